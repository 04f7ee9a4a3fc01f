"""Every scheme through whole runs in one process: what it sends, keeps, tells and forgets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.config.names import WITH_TABLE
from fedmoe_app.server.rounds import RunFailedError
from tests.compare.test_in_process import after_round, run, without_times
from tests.homes import home_with_topics, kept_files
from tests.toy import TOPICS, write_topics

LAYERS, EXPERTS = 2, 8  # of the model, qwen3moe-tiny
SMALL = {"num-server-rounds": 3, "data.alpha": 0.1}  # few topics a client: experts conflict
FCMOE = {"scheme": "fcmoe", "fcmoe.retention": "filtered"}
COMBINED = {
    "scheme": "combine",
    "combine.selection": "hfedmoe",
    "combine.loss": "fedalign",
    "combine.gates": "fedalign",
    "combine.experts": "fcmoe",
}
# Without the PFL-MoE baseline, whose training loop is tested where it is.
SETTINGS: dict[str, dict[str, Any]] = {
    "fedavg": {"scheme": "fedavg"},
    "fedprox": {"scheme": "fedprox"},
    "fedmoe": {"scheme": "fedmoe", "fedmoe.experts-per-client": EXPERTS},
    "hfedmoe batch": {"scheme": "hfedmoe"},
    "hfedmoe round": {"scheme": "hfedmoe", "hfedmoe.selection": "round"},
    "fcmoe paper": {"scheme": "fcmoe"},
    "fcmoe filtered": FCMOE,
    "fedalign private": {"scheme": "fedalign"},
    "fedalign consistency": {"scheme": "fedalign", "fedalign.gates": "consistency"},
    "combine": COMBINED,
}
KEEPING = ("fcmoe paper", "fcmoe filtered", "fedalign private", "combine")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_with_topics(tmp_path_factory.mktemp("schemes")) as folder:
        yield folder


def run_small(home: Path, folder: Path, clients: int = 3, **overrides: Any) -> Path:
    data = {
        "data.source": str(home / "train.jsonl"),
        "data.test-source": str(home / "test.jsonl"),
    }
    return run(folder, clients, **data | SMALL | overrides)


@dataclass
class Watched:
    """A run: its lines, and the clients' files after each of its rounds and after its end."""

    lines: list[dict[str, Any]]
    files: dict[int, list[str]]
    left: list[str]

    def of_clients(self, name: str, server_round: int) -> list[Any]:
        return [client[name] for client in self.lines[server_round]["clients"]]


def watch(home: Path, folder: Path, **overrides: Any) -> Watched:
    files: dict[int, list[str]] = {}
    with after_round(lambda number: files.update({number: kept_files(home)})):
        lines = without_times(run_small(home, folder, **overrides))
    return Watched(lines, files, kept_files(home))


@pytest.fixture(scope="module")
def watched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Watched]:
    """Return the run of a setting; each is run once."""
    runs: dict[str, Watched] = {}

    def get(name: str) -> Watched:
        if name not in runs:
            folder = tmp_path_factory.mktemp("run")
            runs[name] = watch(home, folder, **SETTINGS[name])
        return runs[name]

    return get


def test_the_settings_leave_out_no_scheme() -> None:
    assert {s["scheme"] for s in SETTINGS.values()} == {*WITH_TABLE, "combine"} - {"pflmoe"}


# -- every scheme ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_every_scheme_learns(name: str, watched: Callable[[str], Watched]) -> None:
    lines = watched(name).lines
    assert [line["status"] for line in lines] == ["ok"] * 4
    assert all(line["failures"] == [] for line in lines)
    assert lines[3]["loss"] < lines[1]["loss"] < lines[0]["loss"]
    assert all(c["local_loss"] < c["loss"] for c in lines[1]["clients"])


@pytest.mark.parametrize("name", SETTINGS)
def test_state_is_kept_for_the_next_round_only_where_there_is_some(
    name: str, watched: Callable[[str], Watched]
) -> None:
    found = watched(name)
    for server_round in (1, 2, 3):
        last = server_round - 1 if name in KEEPING else None
        assert found.of_clients("kept_round", server_round) == [last] * 3
        assert found.of_clients("state_lost", server_round) == [False] * 3


@pytest.mark.parametrize("name", SETTINGS)
def test_the_files_of_two_rounds_lie_there_and_none_after_the_run(
    name: str, watched: Callable[[str], Watched]
) -> None:
    found, clients = watched(name), range(3) if name in KEEPING else ()
    rounds = {0: (), 1: (1,), 2: (1, 2), 3: (2, 3)}
    assert found.files == {
        number: [f"client-{c}/round-{r}.safetensors" for c in clients for r in kept]
        for number, kept in rounds.items()
    }
    assert found.left == []


@pytest.mark.parametrize("name", SETTINGS)
def test_diagnostics_have_an_entry_for_every_expert_and_client(
    name: str, watched: Callable[[str], Watched]
) -> None:
    line = watched(name).lines[2]
    assert watched(name).lines[0]["diagnostics"] == {}
    weights, trained = line["diagnostics"]["expert_weights"], line["routing"]["trained"]
    for layer in range(LAYERS):
        for e in range(EXPERTS):
            members = [client for client in range(3) if trained[client][layer][e]]
            found = weights[layer][e]
            if not members:
                assert found is None
                continue
            assert [i for i in range(3) if found[i] is not None] == members
            assert 0 <= sum(found[i] for i in members) <= 1 + 1e-5
            assert 0 <= line["diagnostics"]["conflict"][layer][e] <= 1


def test_a_scheme_that_keeps_state_gives_the_same_metrics_twice(
    home: Path, watched: Callable[[str], Watched], tmp_path: Path
) -> None:
    again = watch(home, tmp_path, **FCMOE)
    assert again.lines == watched("fcmoe filtered").lines


# -- schemes with everything switched off ------------------------------------------------------

OFF = {
    "fcmoe": {"fcmoe.importance": False, "fcmoe.projection": False, "fcmoe.retention": "none"},
    "fedalign": {"fedalign.lam": 0.0, "fedalign.gates": "average", "fedalign.experts": "index"},
}
HFEDMOE_OFF = {
    "hfedmoe.selection": "none",
    "hfedmoe.usage-weights": False,
    "hfedmoe.importance-gates": False,
}


def losses(lines: list[dict[str, Any]]) -> list[Any]:
    of_clients = [[c["local_loss"] for c in line["clients"]] for line in lines]
    return [[line["loss"] for line in lines], of_clients]


@pytest.mark.parametrize("scheme", OFF)
def test_without_its_parts_a_scheme_is_fedmoe_with_all_experts(
    scheme: str, home: Path, watched: Callable[[str], Watched], tmp_path: Path
) -> None:
    """Per-expert averaging by n_i over those who trained, bit for bit."""
    found = watch(home, tmp_path, scheme=scheme, **OFF[scheme])
    assert losses(found.lines) == losses(watched("fedmoe").lines)


def test_hfedmoe_without_its_parts_is_fedavg(
    home: Path, watched: Callable[[str], Watched], tmp_path: Path
) -> None:
    found = watch(home, tmp_path, scheme="hfedmoe", **HFEDMOE_OFF)
    assert losses(found.lines) == losses(watched("fedavg").lines)


def test_a_combination_of_the_defaults_is_fedavg(
    home: Path, watched: Callable[[str], Watched], tmp_path: Path
) -> None:
    found = watch(home, tmp_path, scheme="combine")
    assert found.lines == watched("fedavg").lines


# -- what a scheme does on the clients ---------------------------------------------------------


def test_retention_acts_from_the_second_round(
    home: Path, watched: Callable[[str], Watched], tmp_path: Path
) -> None:
    without = watch(home, tmp_path, **{"scheme": "fcmoe", "fcmoe.retention": "none"})
    for name in ("fcmoe paper", "fcmoe filtered"):
        kept = watched(name)
        assert kept.lines[1]["loss"] == without.lines[1]["loss"]
        # Round 2 scores the received model, still the same, and then starts from others.
        assert kept.of_clients("loss", 2) == without.of_clients("loss", 2)
        assert kept.of_clients("train_loss", 2) != without.of_clients("train_loss", 2)


def test_private_gates_replace_the_received_ones_before_training(
    watched: Callable[[str], Watched],
) -> None:
    """Both average the gates with ω; they differ in what a client starts round 2 from."""
    private, sent = watched("fedalign private"), watched("fedalign consistency")
    assert private.lines[1]["loss"] == sent.lines[1]["loss"]
    assert private.of_clients("loss", 2) == sent.of_clients("loss", 2)
    assert private.of_clients("train_loss", 2) != sent.of_clients("train_loss", 2)


def test_the_reference_travels_from_the_second_round(watched: Callable[[str], Watched]) -> None:
    down = [watched("fedalign private").of_clients("bytes_down", r)[0] for r in (1, 2, 3)]
    # Two float32 tensors [L, E] with their .npy headers of 128 bytes, and a little protobuf.
    assert 2 * (LAYERS * EXPERTS * 4 + 128) <= down[1] - down[0] < 1000
    assert down[2] == down[1]
    plain = [watched("fcmoe paper").of_clients("bytes_down", r)[0] for r in (1, 2, 3)]
    assert max(plain) == plain[0]  # later less: experts that nobody trained are left out


def test_regions_travel_only_where_they_are_read(watched: Callable[[str], Watched]) -> None:
    with_regions = watched("fedalign private").of_clients("bytes_up", 1)
    without = watched("fcmoe paper").of_clients("bytes_up", 1)
    assert all(a > b for a, b in zip(with_regions, without, strict=True))


# -- budgets -----------------------------------------------------------------------------------

NODES: list[dict[str, Any]] = [
    {"partition-id": i, "num-partitions": 3} | extra
    for i, extra in enumerate([{"expert-budget": 1}, {"expert-budget": 0.5}, {}])
]
BUDGETS = [1, 4, 8]  # 0.5 of 8 experts; client 2 has its turn of "2, 4, 8"


def test_nodes_name_their_budgets_and_the_batch_keeps_to_them(home: Path, tmp_path: Path) -> None:
    lines = read_metrics(run_small(home, tmp_path, node_configs=NODES, scheme="hfedmoe"))
    ratios = []
    for line in lines[1:]:
        assert [c["expert_budget"] for c in line["clients"]] == BUDGETS
        for client, trained in zip(line["clients"], line["routing"]["trained"], strict=True):
            most = client["expert_budget"] * client["num_steps"]
            assert all(0 < sum(layer) <= most for layer in trained)
        ratios.append([c["selection_ratio"] for c in line["clients"]])
    assert all(0 < ratio[0] < ratio[1] < ratio[2] <= 1 for ratio in ratios)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_selection_of_a_round_sends_no_more_experts_than_the_budget(
    home: Path, tmp_path: Path
) -> None:
    overrides = {"scheme": "hfedmoe", "hfedmoe.selection": "round"}
    for line in read_metrics(run_small(home, tmp_path, node_configs=NODES, **overrides))[1:]:
        assert [c["expert_budget"] for c in line["clients"]] == BUDGETS
        for sent, budget in zip(line["clients"], BUDGETS, strict=True):
            assert 0 < sent["experts_sent"] <= LAYERS * budget


def test_fedmoe_takes_the_smaller_of_the_two_budgets(home: Path, tmp_path: Path) -> None:
    overrides = {"scheme": "fedmoe", "fedmoe.experts-per-client": 3, "num-server-rounds": 1}
    line = read_metrics(run_small(home, tmp_path, node_configs=NODES, **overrides))[1]
    assert [c["expert_budget"] for c in line["clients"]] == [1, 3, 3]


# -- state that is lost, left, or skips rounds -------------------------------------------------


def test_a_client_whose_files_are_gone_is_told_and_goes_on(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(number: int) -> None:
        if number == 2:
            (folder,) = (home / "clients").glob("*/client-1")
            shutil.rmtree(folder)

    with after_round(lose):
        lines = read_metrics(run_small(home, tmp_path, **FCMOE, **{"num-server-rounds": 4}))
    by_round = [[(c["kept_round"], c["state_lost"]) for c in line["clients"]] for line in lines[1:]]
    assert by_round[1] == [(1, False)] * 3
    assert by_round[2] == [(2, False), (0, True), (2, False)]
    assert by_round[3] == [(3, False)] * 3
    assert [line["status"] for line in lines] == ["ok"] * 5
    said = "client 1: what it kept of round 2 is lost; it started from the global model"
    assert caplog.text.count(said) == 1


def test_a_damaged_file_counts_as_lost_and_the_one_before_is_taken(
    home: Path, tmp_path: Path
) -> None:
    def damage(number: int) -> None:
        if number == 2:
            (file,) = (home / "clients").glob("*/client-0/round-2.safetensors")
            file.write_bytes(b"no tensors")

    with after_round(damage):
        lines = read_metrics(run_small(home, tmp_path, scheme="fedalign"))
    assert [(c["kept_round"], c["state_lost"]) for c in lines[3]["clients"]] == [
        (1, True),
        (2, False),
        (2, False),
    ]


def test_files_stay_if_the_config_says_so(home: Path, tmp_path: Path) -> None:
    found = watch(home, tmp_path, **FCMOE, **{"keep-client-state": True, "num-server-rounds": 2})
    assert found.left == found.files[2]
    assert len(found.left) == 3 * 2
    shutil.rmtree(home / "clients")


def test_a_failed_run_leaves_the_files(home: Path, tmp_path: Path) -> None:
    """Only a complete run forgets: one that is taken up again needs them."""
    file = write_topics(tmp_path / "own.jsonl", 9)
    nodes = [{"partition-id": i, "data-path": str(file)} for i in (0, 1)]
    names = ",".join(TOPICS)
    overrides = {"data.source": "nodes", "data.label-names": names, "max-failed-rounds": 1}
    vanish = after_round(lambda number: file.unlink() if number == 1 else None)
    with pytest.raises(RunFailedError), vanish:
        run_small(home, tmp_path / "out", node_configs=nodes, **FCMOE | overrides)
    assert kept_files(home) == [f"client-{i}/round-1.safetensors" for i in (0, 1)]
    shutil.rmtree(home / "clients")


@pytest.mark.parametrize("setting", ["fcmoe filtered", "fedalign private"])
def test_clients_that_are_left_out_of_rounds_take_their_own_last_one(
    setting: str, home: Path, tmp_path: Path
) -> None:
    overrides = SETTINGS[setting] | {"fraction-train": 0.5, "num-server-rounds": 5, "seed": 45}
    overrides |= {"data.partition": "iid"}  # four topics would not be enough for four clients
    found = read_metrics(run_small(home, tmp_path, clients=4, **overrides))
    last: dict[int, int] = {}
    gaps = 0
    for number, line in enumerate(found[1:], start=1):
        assert line["status"] == "ok"
        assert line["num_clients"] == 2
        for client in line["clients"]:
            expected = last.get(client["client"], 0)
            assert (client["kept_round"], client["state_lost"]) == (expected, False)
            gaps += 0 < expected < number - 1
            last[client["client"]] = number
    assert gaps > 0  # else this run shows nothing
    assert kept_files(home) == []
