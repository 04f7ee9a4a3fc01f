"""A hostile node over real gRPC, let in by its key: what it says harms nobody but itself."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedmoe_app import read_metrics
from fedmoe_app.deploy.certificates import create
from fedmoe_app.server.client_list import add_to_client_list
from tests.end_to_end.conftest import HERE, REPOSITORY
from tests.end_to_end.processes import WARM_SUPERNODE, Deployment, Keys, deployment

pytestmark = pytest.mark.slow

# Attacks of client 2 by round. It says at first that it is client 0; it is honest in rounds 4, 5
# and 9, and rests after two failures in a row. Client 0 rests in round 6.
SCRIPT = (
    "describe:0,score:2^62-items,1:raises,2:as-victim,6:as-victim,7:replay,10:config-bomb,"
    "11:raises,13:not-asked"
)
FAILS = "4;5"
TRAINED = [[0, 1]] * 3 + [[1, 2], [1, 2], [1], [0, 1], [0, 1], [0, 1, 2]] + [[0, 1]] * 4
RUN: dict[str, Any] = {
    "num-server-rounds": 13,
    "min-clients": 1,
    "max-rest-rounds": 1,
    "evaluate-every": 4,
    "round-timeout": 20.0,
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "certificates"
    create(folder, ["localhost"], num_nodes=3, days=1)
    return folder


@pytest.fixture(scope="module")
def flower(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    own = {0: f' fails="{FAILS}"', 2: f' script="{SCRIPT}" memory="{folder}"'}

    def node_config(index: int) -> str:
        return f"partition-id={index}{own.get(index, '')}"

    with deployment(folder, 3, node_config, Keys(keys), supernode=WARM_SUPERNODE) as running:
        yield running
    running.assert_nothing_left()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    app = Path(shutil.copytree(HERE / "hostile_app", tmp_path / "app"))
    table = tomllib.loads((app / "pyproject.toml").read_text())
    real = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    table["tool"]["flwr"]["app"]["config"] = real["tool"]["flwr"]["app"]["config"]
    (app / "pyproject.toml").write_text(tomli_w.dumps(table))
    return app


def test_a_hostile_node_harms_nobody_but_itself(
    flower: Deployment, app: Path, tmp_path: Path
) -> None:
    outcome = flower.run(app, RUN | {"output-dir": str(tmp_path), "run-name": "run"})
    assert outcome.completed, (outcome, flower.lines[-20:])
    lines = read_metrics(tmp_path / "run")[1:]
    assert [[c["client"] for c in line["clients"]] for line in lines] == TRAINED
    # Every folded change is 1; a lie that was believed would be 1000.
    checkpoint = json.loads(next((tmp_path / "run").rglob("checkpoint.json")).read_text())
    assert checkpoint["counters"]["num_folded"] == 13
    scores = [(line["accuracy"], line["loss"]) for line in lines]
    assert [scores[i] for i in (3, 7, 11, 12)] == [(0.0, 1.0)] * 4
    blamed = [{f["who"].removesuffix(" (evaluation)") for f in line["failures"]} for line in lines]
    assert blamed[3] == {"client 0", "client 2"}  # client 0's own failure, client 2's score
    assert blamed[4] == {"client 0"}
    assert all(names <= {"client 2"} for names in blamed[5:])
    assert [len(names) for names in blamed[:3]] == [1, 1, 0]  # it rests in round 3
    assert all(who.startswith("node ") for names in blamed[:2] for who in names)
    reasons = {f["reason"] for line in lines for f in line["failures"]}
    assert any("is that of node" in reason for reason in reasons)
    assert any("it is client 2 in this run and says client 0" in reason for reason in reasons)
    assert any("it answers round 5 of run" in reason for reason in reasons)
    assert any("records ['\\x1b[31mbomb" in reason for reason in reasons)
    assert "no reply within 20 s" in reasons
    assert (tmp_path / "run" / "log.jsonl").stat().st_size < 60_000
    assert all(reason.isprintable() for reason in reasons)
    shown = "\n".join(line for line in flower.lines if " failed: " in line)
    assert "\x1b" not in shown and len(shown) < 20_000


def test_a_client_list_keeps_the_node_out(
    flower: Deployment, app: Path, keys: Path, tmp_path: Path
) -> None:
    """Flower tells the ServerApp the key of each node."""
    path = tmp_path / "clients.toml"
    add_to_client_list(path, {client: keys / f"node-{client}.pub" for client in (0, 1)})
    overrides = {"num-server-rounds": 1, "min-clients": 2, "client-list": str(path)}
    overrides |= {"output-dir": str(tmp_path), "run-name": "listed"}
    outcome = flower.run(app, overrides)
    assert outcome.completed, (outcome, flower.lines[-20:])
    line = read_metrics(tmp_path / "listed")[1]
    assert [client["client"] for client in line["clients"]] == [0, 1]
    assert line["failures"] == []
    assert sum("is not in the client list; it is not asked" in text for text in flower.lines) == 1
