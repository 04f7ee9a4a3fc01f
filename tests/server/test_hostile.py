"""Hostile nodes: nobody else's number, failures, scores or log are theirs, whatever they send.

The attacks are those of the hostile app, which tries them over gRPC, too.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from fedmoe_app import ConfigError, run_in_process
from fedmoe_app.deploy.authority import make_node_key
from fedmoe_app.server import checkpoint
from fedmoe_app.server.checkpoint import Identity, read_checkpoint, write_checkpoint
from fedmoe_app.server.client_list import ClientList, add_to_client_list, read_client_list
from tests.conftest import flat_config
from tests.end_to_end.hostile_app.hostile_app.attacks import LIE, SCORES, TRAIN
from tests.hostile import FIRST, Nodes, Trial, assert_little_and_printable

pytestmark = pytest.mark.usefixtures("no_pictures")

VICTIM, OTHER, HOSTILE = FIRST, FIRST + 1, FIRST + 2  # nodes of clients 0, 1 and 2


def three(script: str, **hostile: Any) -> list[dict[str, Any]]:
    """Two honest nodes and one with a script."""
    return [
        {"partition-id": 0},
        {"partition-id": 1},
        {"partition-id": 2, "script": script, **hostile},
    ]


def joins_in(server_round: int, node: int = HOSTILE) -> Any:
    def before(begins: int, nodes: Nodes) -> None:
        nodes.away = {node} if begins < server_round else set()

    return before


@pytest.mark.parametrize("attack", TRAIN)
def test_a_bound_node_harms_nobody_but_itself(
    attack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was honest in round 1, so that its number is known."""
    caplog.set_level("INFO", "fedmoe")
    trial = Trial(tmp_path, three(f"2:{attack},3:{attack}")).run(3)
    assert trial.folded() == [[0, 1, 2], [0, 1], [0, 1]]
    assert trial.head() == 3
    for server_round in (2, 3):
        assert list(trial.failures(server_round)) == ["client 2"]
    assert trial.strategy.registry.clients == {VICTIM: 0, OTHER: 1, HOSTILE: 2}
    assert trial.strategy.registry.sizes == {0: 10, 1: 10, 2: 10}
    assert_little_and_printable(trial, caplog.records)


@pytest.mark.parametrize("attack", TRAIN)
def test_a_new_node_harms_nobody_but_itself(
    attack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It joins when the others are known, and says of itself that it is client 0."""
    caplog.set_level("INFO", "fedmoe")
    if attack in ("replay", "another-number"):
        pytest.skip("it has nothing to send again; a number that nobody has is anybody's")
    nodes = three(f"train:{attack},describe:0,score:score-of-victim")
    trial = Trial(tmp_path, nodes, joins_in(2)).run(3)
    assert trial.folded() == [[0, 1]] * 3
    assert trial.head() == 3
    names = {f"node {HOSTILE}", f"node {HOSTILE} (evaluation)"}
    assert set(trial.failures(2)) == set(trial.failures(3)) == names
    assert trial.strategy.registry.clients == {VICTIM: 0, OTHER: 1}
    assert {report.evaluation["items"] for report in trial.reports[1:]} == {2}
    assert_little_and_printable(trial, caplog.records)


@pytest.mark.parametrize("attack", [name for name in SCORES if name != "ten-items"])
def test_no_score_is_forged(attack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Honest nodes get nothing right, with a loss of 1."""
    caplog.set_level("INFO", "fedmoe")
    trial = Trial(tmp_path, three(f"score:{attack}")).run(2)
    for report in trial.reports[1:]:
        assert dict(report.evaluation or {}) == {"loss": 1.0, "accuracy": 0.0, "items": 2}
        assert list(report.failures) == ["client 2 (evaluation)"]
    assert_little_and_printable(trial, caplog.records)


def test_who_has_never_trained_does_not_decide_how_good_the_model_is(tmp_path: Path) -> None:
    """Nobody knows how many test examples it has."""
    for attack, items in (("many-items", 2), ("ten-items", 12)):
        trial = Trial(tmp_path, three(f"train:raises-quietly,score:{attack}")).run(2)
        assert [report.evaluation["items"] for report in trial.reports[1:]] == [items] * 2


def test_a_list_that_is_not_there_stops_the_run_before_anything_else(tmp_path: Path) -> None:
    flat = flat_config(**{"client-list": str(tmp_path / "no.toml"), "output-dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="client-list = .*no.toml.*No such file"):
        run_in_process(flat, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_taken_is_refused_by_name_and_the_first_goes_on(tmp_path: Path) -> None:
    trial = Trial(tmp_path, three("train:as-victim"), joins_in(2)).run(2)
    assert trial.failures(2)[f"node {HOSTILE}"] == (
        f"reply rejected: partition-id = 0 is that of node {VICTIM} since an earlier round; give "
        "each its own"
    )


def test_a_new_number_every_round_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path, three("train:another-number")).run(4)
    assert trial.folded() == [[0, 1, 101], [0, 1], [0, 1], [0, 1]]
    assert "it is client 101 in this run and says client 103" in trial.failures(3)["client 101"]


def test_a_resting_client_is_not_replaced(tmp_path: Path) -> None:
    """It failed in rounds 1 and 2, rests in round 3 and trains in round 4."""
    nodes = three("3:as-victim")
    nodes[0]["fails"] = "1;2"
    trial = Trial(tmp_path, nodes, longest_cooldown=8).run(4)
    assert trial.folded() == [[1, 2], [1, 2], [1], [0, 1, 2]]
    assert trial.nodes.asked.count((VICTIM, "train")) == 3
    assert list(trial.failures(3)) == ["client 2"]
    assert trial.failures(2) == {"client 0": "broken disk"}


def test_a_silent_client_is_not_replaced(tmp_path: Path) -> None:
    def before(begins: int, nodes: Nodes) -> None:
        nodes.silent = {VICTIM} if begins == 2 else set()

    trial = Trial(tmp_path, three("2:as-victim"), before).run(2, timeout=0.5)
    assert trial.folded() == [[0, 1, 2], [1]]
    assert set(trial.failures(2)) >= {"client 0", "client 2"}
    assert trial.failures(2)["client 0"] == "no reply within 0.5 s"


def test_a_drawn_node_that_tells_anothers_number_is_refused(tmp_path: Path) -> None:
    """Nodes are asked for their numbers, since not all of them train."""
    nodes = three("describe:0,train:as-victim,score:score-of-victim")
    trial = Trial(tmp_path, nodes, joins_in(2), clients_per_round=1).run(4)
    assert all(len(clients) == 1 and clients[0] in (0, 1) for clients in trial.folded())
    assert "number rejected: partition-id = 0 is that of" in trial.failures(2)[f"node {HOSTILE}"]
    assert trial.nodes.asked.count((HOSTILE, "query.describe")) == 1


def test_who_describes_itself_otherwise_than_it_replies_is_refused(tmp_path: Path) -> None:
    nodes = three("describe:2,train:another-number")
    trial = Trial(tmp_path, nodes, clients_per_round=2).run(6)
    assert {c for clients in trial.folded() for c in clients} == {0, 1}
    refused = [trial.failures(r).get("client 2", "") for r in range(1, 7)]
    assert any("it is client 2 in this run and says client 10" in why for why in refused)


def test_two_nodes_with_one_number_from_the_start_are_both_named(tmp_path: Path) -> None:
    nodes = [{"partition-id": 0}, {"partition-id": 1}, {"partition-id": 0}]

    def before(begins: int, nodes: Nodes) -> None:
        nodes.silent = {VICTIM} if begins == 2 else set()
        nodes.away = {VICTIM} if begins == 3 else set()

    trial = Trial(tmp_path, nodes, before).run(4, timeout=0.5)
    both = f"2 nodes have partition-id = 0 ({VICTIM}, {HOSTILE}); give each its own"
    assert trial.failures(1)[f"node {VICTIM}"] == f"reply rejected: {both}"
    assert trial.failures(1)[f"node {HOSTILE}"] == f"reply rejected: {both}"
    # The one does not get the number because the other is silent, but because it is gone.
    assert trial.folded() == [[1], [1], [0, 1], [0, 1]]
    assert trial.strategy.registry.clients == {OTHER: 1, HOSTILE: 0}


def test_who_only_says_a_number_does_not_block_who_works(tmp_path: Path) -> None:
    """From the start: the one fails and says that it is client 0, which trains."""
    trial = Trial(tmp_path, three("train:raises,describe:0,score:score-of-victim")).run(2)
    assert trial.folded() == [[0, 1], [0, 1]]
    names = {f"node {HOSTILE}", f"node {HOSTILE} (evaluation)"}
    assert set(trial.failures(1)) == set(trial.failures(2)) == names


@pytest.mark.parametrize("attack", ["as-victim", "another-number", "replay", "2^62-examples"])
def test_buffered_rounds_believe_no_more(attack: str, tmp_path: Path) -> None:
    trial = Trial(tmp_path, three(f"2:{attack},3:{attack}"), buffer_size=2).run(4)
    for clients in trial.folded():
        assert len(clients) == len(set(clients)) == 2
    assert trial.head() < LIE / 10
    names = {who for report in trial.reports for who in report.failures}
    assert names <= {"client 2"}
    assert trial.strategy.registry.clients.items() <= {VICTIM: 0, OTHER: 1, HOSTILE: 2}.items()


def test_a_buffer_is_not_filled_by_who_claims_anothers_number(tmp_path: Path) -> None:
    trial = Trial(tmp_path, three("train:as-victim"), joins_in(2), buffer_size=2).run(3)
    assert trial.folded() == [[0, 1]] * 3
    assert trial.head() == 3


# -- restarts ------------------------------------------------------------------------------------


def resumed(trial: Trial, folder: Path, **arguments: Any) -> Trial:
    """Go on with a run from its checkpoint, as another process would."""
    (folder / "results").mkdir(exist_ok=True)
    path = write_checkpoint(
        folder / "results", trial.loop.snapshot(), Identity({}), {"fedmoe": "0"}
    )
    other = Trial(folder, three("train:as-victim"), **arguments)
    snapshot = read_checkpoint(path).snapshot
    other.loop.restore(snapshot)
    other.strategy.state = snapshot.state
    return other


def test_bindings_outlive_the_process(tmp_path: Path) -> None:
    """In the first round after the resume the victim is silent, and a new node has its number."""
    first = Trial(tmp_path, three(""), joins_in(2)).run(1)

    def before(begins: int, nodes: Nodes) -> None:
        nodes.silent = {VICTIM} if begins == 2 else set()

    second = resumed(first, tmp_path, before=before).run(3, timeout=0.5)
    assert [[u.client for u in report.updates] for report in second.reports] == [[1], [0, 1]]
    assert f"node {HOSTILE}" in second.reports[0].failures
    assert second.strategy.registry.tests == {0: 1, 1: 1}


def test_a_node_that_was_started_anew_has_its_number_when_the_old_one_is_gone(
    tmp_path: Path,
) -> None:
    """Without a key it has a new node id. The old one is still listed for a minute, if killed."""
    nodes = [{"partition-id": 0}, {"partition-id": 1}, {"partition-id": 0}]

    def before(begins: int, nodes: Nodes) -> None:
        nodes.away = {1: {HOSTILE}, 2: set(), 3: {VICTIM}, 4: {VICTIM}}.get(begins, set())
        nodes.silent = {VICTIM} if begins == 2 else set()

    trial = Trial(tmp_path, nodes, before).run(5, timeout=0.5)
    assert trial.folded() == [[0, 1], [1], [0, 1], [0, 1], [0, 1]]
    assert f"node {HOSTILE}" in trial.failures(2)
    assert trial.failures(3) == trial.failures(4) == {}
    # In round 5 the old one is back after all: it was not replaced, but cut off.
    assert list(trial.failures(5))[:1] == [f"node {HOSTILE}"]
    assert trial.head() == 5


def test_a_restarted_node_is_asked_again_for_its_number_when_the_old_one_is_gone(
    tmp_path: Path,
) -> None:
    """One of the nodes is drawn a round, by number: who has none is not drawn."""
    nodes = [{"partition-id": 0}, {"partition-id": 0}]

    def before(begins: int, nodes: Nodes) -> None:
        nodes.away = {1: {OTHER}, 2: set(), 3: set()}.get(begins, {VICTIM})
        nodes.silent = {VICTIM} if begins > 1 else set()

    trial = Trial(tmp_path, nodes, before, clients_per_round=1)
    trial.run(5, timeout=0.3)
    assert trial.folded() == [[0], [], [], [0], [0]]
    assert trial.strategy.registry.clients == {VICTIM: 0, OTHER: 0}


def test_a_checkpoint_of_an_older_release_resumes(tmp_path: Path) -> None:
    first = Trial(tmp_path, three("")).run(1)
    (tmp_path / "results").mkdir()
    path = write_checkpoint(
        tmp_path / "results", first.loop.snapshot(), Identity({}), {"fedmoe": "0"}
    )
    header = path / "checkpoint.json"
    stored = json.loads(header.read_text())
    del stored["counters"]["tests"], stored["sha256"]
    stored["counters"]["roster"] = {}
    header.write_text(json.dumps(stored | {"sha256": checkpoint._own_digest(stored)}))
    other = Trial(tmp_path, three(""))
    snapshot = read_checkpoint(path).snapshot
    other.loop.restore(snapshot)
    other.strategy.state = snapshot.state
    other.run(2)
    assert [u.client for u in other.reports[-1].updates] == [0, 1, 2]
    assert other.strategy.registry.clients == {VICTIM: 0, OTHER: 1, HOSTILE: 2}


# -- the client list -----------------------------------------------------------------------------


class Keys:
    """Key pairs in a folder, and the PEM by which Flower knows them."""

    def __init__(self, folder: Path, number: int) -> None:
        self.files = [folder / f"node-{i}.pub" for i in range(number)]
        self.pem = []
        for file in self.files:
            public = make_node_key(file.stem).public
            file.write_bytes(public)
            key = serialization.load_ssh_public_key(public)
            self.pem.append(
                key.public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )


def listed_trial(tmp_path: Path, numbers: dict[int, int], script: str) -> Trial:
    """A run with a list: client's number -> position of its node; node 3's key is in no list."""
    keys = Keys(tmp_path, 4)
    path = tmp_path / "clients.toml"
    add_to_client_list(path, {client: keys.files[i] for client, i in numbers.items()})
    nodes = [*three(script), {"partition-id": 0}]
    trial = Trial(tmp_path, nodes, client_list=read_client_list(path))
    trial.nodes.keys = {FIRST + i: pem for i, pem in enumerate(keys.pem)}
    return trial


def test_a_list_says_who_is_who_from_the_first_round_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedmoe")
    trial = listed_trial(tmp_path, {0: 0, 1: 1, 2: 2}, "1:as-victim,2:raises").run(3)
    assert trial.folded() == [[0, 1], [0, 1], [0, 1, 2]]
    assert trial.failures(1)["client 2"] == (
        "reply rejected: it says client 0, but the client list has it as client 2"
    )
    assert "client 0: out of memory" in trial.failures(2)["client 2"]
    stranger = FIRST + 3
    assert stranger not in {node for node, _ in trial.nodes.asked}
    told = [r.getMessage() for r in caplog.records if f"node {stranger}" in r.getMessage()]
    assert told == [f"node {stranger} is not in the client list; it is not asked"]


def test_a_list_overrules_what_a_checkpoint_says(tmp_path: Path) -> None:
    trial = listed_trial(tmp_path, {0: 3, 1: 1}, "")
    trial.strategy.registry.clients = {VICTIM: 0, OTHER: 1}
    trial.run(1)
    assert trial.folded() == [[0, 1]]
    assert trial.strategy.registry.clients == {FIRST + 3: 0, OTHER: 1}


def test_nodes_without_keys_are_on_no_list(tmp_path: Path) -> None:
    key = base64.b64encode(b"x" * 32).decode()
    nodes = ClientList({f"SHA256:{key}": 0})
    trial = Trial(tmp_path, three(""), client_list=nodes)
    with pytest.raises(RuntimeError, match="0 of min-clients = 1 nodes connected"):
        trial.run(1)
