"""The alignment schemes over gRPC: the model of the in-process run, state kept by node processes.

Every message of a SuperNode is answered by a process of its own, so what a client keeps must lie on
the disk. One deployment serves all runs, one after the other. Its nodes are ``fedmoe supernode``s,
which fork these processes. To save a run, FedAlign-MoE runs with HFedMoE's selection; FC-MoE alone
and HFedMoE alone are marked slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import read_metrics, run_in_process
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.processes import WARM_SUPERNODE, Deployment, deployment
from tests.end_to_end.test_runs import assert_same_run
from tests.homes import home_with_cache, kept_files
from tests.toy import write_topics

NODES = 2
BUDGETS: tuple[Any, ...] = (0.25, None)  # of the nodes: 2 of 8 experts; the second has its turn: 4
CHANGES: dict[str, Any] = {"num-server-rounds": 2, "min-clients": NODES, "data.alpha": 0.1}


def node_config(index: int) -> str:
    budget = "" if BUDGETS[index] is None else f" expert-budget={BUDGETS[index]}"
    return f"partition-id={index} num-partitions={NODES}{budget}"


def node_table(index: int) -> dict[str, Any]:
    own = {} if BUDGETS[index] is None else {"expert-budget": BUDGETS[index]}
    return {"partition-id": index, "num-partitions": NODES} | own


@dataclass
class Place:
    """A deployment, and the home that its processes share with this one."""

    flower: Deployment
    folder: Path
    home: Path

    def run(self, name: str, **overrides: Any) -> list[dict[str, Any]]:
        """Run over gRPC and in this process, compare, and return the lines of the former."""
        flat = CHANGES | {
            "run-name": name,
            "data.source": str(self.folder / "train.jsonl"),
            "data.test-source": str(self.folder / "test.jsonl"),
        }
        flat |= overrides
        nodes = [node_table(i) for i in range(NODES)]
        # This one forgets in any case: what lies there afterwards is of the other.
        here = flat_config(**flat | {"output-dir": str(self.folder), "keep-client-state": False})
        expected = run_in_process(here, NODES, nodes)
        there = self.folder / "grpc"
        outcome = self.flower.run(REPOSITORY, flat | {"output-dir": str(there)})
        assert outcome.completed, (outcome, self.flower.lines[-20:])
        assert_same_run(there / name, expected)
        return read_metrics(there / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("schemes")
    home = home_with_cache(folder)
    write_topics(folder / "train.jsonl", 40)
    write_topics(folder / "test.jsonl", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(home))
        with deployment(folder, NODES, node_config, supernode=WARM_SUPERNODE) as flower:
            yield Place(flower, folder, home)
        flower.assert_nothing_left()


def of_clients(line: dict[str, Any], name: str) -> list[Any]:
    return [client[name] for client in line["clients"]]


@pytest.mark.slow
def test_fcmoe_keeps_changes_across_processes_and_leaves_them_if_told_to(place: Place) -> None:
    lines = place.run(
        "fcmoe", **{"scheme": "fcmoe", "fcmoe.retention": "filtered", "keep-client-state": True}
    )
    assert of_clients(lines[1], "kept_round") == [0] * NODES
    assert of_clients(lines[2], "kept_round") == [1] * NODES
    # Some expert conflicted in round 1, so that something was retained in round 2.
    assert any((kappa or 0) > 0 for layer in lines[1]["diagnostics"]["kappa"] for kappa in layer)
    assert kept_files(place.home) == [
        f"client-{i}/round-{r}.safetensors" for i in range(NODES) for r in (1, 2)
    ]


@pytest.mark.deployment
def test_fedalign_keeps_gates_across_processes_and_forgets_them(place: Place) -> None:
    before = kept_files(place.home)
    parts = {f"combine.{part}": "fedalign" for part in ("loss", "gates", "experts")}
    lines = place.run("fedalign", **{"scheme": "combine", "combine.selection": "hfedmoe", **parts})
    assert [of_clients(line, "kept_round") for line in lines[1:]] == [[0] * NODES, [1] * NODES]
    assert not any(lost for line in lines for lost in of_clients(line, "state_lost"))
    assert all("similarity" in line["diagnostics"] for line in lines[1:])
    assert all(of_clients(line, "expert_budget") == [2, 4] for line in lines[1:])
    assert kept_files(place.home) == before


@pytest.mark.slow
def test_hfedmoe_takes_the_budgets_from_the_node_configs(place: Place) -> None:
    for line in place.run("hfedmoe", scheme="hfedmoe")[1:]:
        assert of_clients(line, "expert_budget") == [2, 4]
        assert of_clients(line, "kept_round") == [None] * NODES
        ratios = of_clients(line, "selection_ratio")
        assert 0 < ratios[0] < ratios[1]
