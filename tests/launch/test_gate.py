"""The node's gate in Flower's own SuperNode code: what is refused is never stored."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as supernode

from fedmoe_app.compare.in_process import task_identity
from fedmoe_app.config.policy import Policy
from fedmoe_app.launch.app_folder import lean_copy
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.gate import digest_of, gated, install, log_path
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_fab_from_disk(lean_copy(REPOSITORY, tmp_path_factory.mktemp("app")))


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)


class Node:
    """Flower's function that takes a message, between a SuperLink and a state that are made up."""

    def __init__(self, bundle: bytes, monkeypatch: pytest.MonkeyPatch, **override: Any) -> None:
        self.bundle, self.state = bundle, MagicMock()
        self.state.get_run.return_value = None
        self.state.get_run_series_context.return_value = None
        self.run = SimpleNamespace(
            override_config=override, fab_hash="", series_id=1, primary_task_type=""
        )
        self.answers: list[SimpleNamespace] = []  # what the SuperLink says of the run first
        self.replies: list[Message] = []
        monkeypatch.setattr(
            supernode, "_insert_message", lambda message, *_: self.replies.append(message)
        )
        monkeypatch.setattr(supernode, "pull_objects", lambda *_, **__: {})

    def take(self, policy: Policy | None) -> int | None:
        with task_identity():
            message = Message(RecordDict(), 2, "train", group_id="1")
            return self._take(policy, message)

    def _take(self, policy: Policy | None, message: Message) -> int | None:
        pull = supernode._pull_and_store_message
        return (pull if policy is None else gated(pull, policy))(
            state=self.state,
            object_store=MagicMock(),
            node_config={},
            receive=lambda: (message, MagicMock()),
            get_run=lambda run_id: self.answers.pop(0) if self.answers else self.run,
            get_fab=lambda fab_hash, run_id: Fab(fab_hash, self.bundle, {}),
            pull_object=lambda *_: b"",
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )

    @property
    def stored(self) -> bool:
        return bool(self.state.store_fab.called or self.state.store_message.called)


def test_a_listed_app_and_an_allowed_run_are_taken(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(bundle, monkeypatch)
    assert node.take(Policy(apps=[digest_of(bundle)])) == 1
    assert node.stored
    assert node.replies == []


@pytest.mark.parametrize(
    "override, said",
    [
        ({"scheme": "evil.module:Class"}, "does not allow scheme = 'evil.module:Class'"),
        ({"data.source": "/etc/shadow"}, "does not allow data.source = '/etc/shadow'"),
        ({"model.name": "/root/model"}, "does not allow model.name = '/root/model'"),
    ],
)
def test_a_run_that_is_not_allowed_leaves_no_code(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch, override: dict[str, str], said: str
) -> None:
    node = Node(bundle, monkeypatch, **override)
    assert node.take(Policy(apps=[digest_of(bundle)])) == 1
    assert not node.stored
    assert said in node.replies[0].error.reason
    assert Node(bundle, monkeypatch, **override).take(None) == 1  # what Flower alone does: takes it


def test_code_that_is_not_listed_is_not_stored(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(bundle + b"x", monkeypatch)
    node.take(Policy(apps=[digest_of(bundle)]))
    assert not node.stored
    reason = node.replies[0].error.reason
    assert reason == f"this node's policy does not list the app {digest_of(bundle + b'x')}"


def test_the_config_that_is_checked_is_the_one_that_is_stored(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperLink that answers twice, and differently, cannot have one checked and one run."""
    node = Node(bundle, monkeypatch)
    evil = {"data.source": "/etc/shadow"}
    node.answers = [SimpleNamespace(**vars(node.run) | {"override_config": evil})]
    node.take(Policy(apps=[digest_of(bundle)]))
    assert not node.stored
    assert "does not allow data.source = '/etc/shadow'" in node.replies[0].error.reason


def test_the_log_keeps_what_was_asked(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(apps=[digest_of(bundle)])
    Node(bundle, monkeypatch).take(policy)
    Node(bundle, monkeypatch, scheme="evil.module:Class").take(policy)
    taken, refused = map(json.loads, log_path().read_text().splitlines())
    assert (taken["taken"], taken["refusal"]) == (True, "")
    assert taken["config"]["scheme"] == "fedavg"
    assert not refused["taken"]
    assert refused["config"]["scheme"] == "evil.module:Class"
    assert refused["app"] == digest_of(bundle)
    assert log_path().stat().st_mode & 0o777 == 0o600


def test_a_run_cannot_fill_the_log(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(bundle, monkeypatch, scheme="x" * 10**6)
    node.take(Policy(apps=[digest_of(bundle)]))
    assert not node.stored
    assert log_path().stat().st_size < 30_000


def test_a_config_that_flower_cannot_read_ends_no_node(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(bundle, monkeypatch, **{"no-such-key": 1})
    assert node.take(Policy(apps=[digest_of(bundle)])) == 1
    assert not node.stored
    assert "config cannot be read" in node.replies[0].error.reason


def test_a_log_that_cannot_be_written_costs_no_decision(
    bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_path().mkdir(parents=True)  # no file can be written there
    policy = Policy(apps=[digest_of(bundle)])
    taken, refused = Node(bundle, monkeypatch), Node(bundle, monkeypatch, scheme="evil.module:X")
    taken.take(policy)
    refused.take(policy)
    assert taken.stored
    assert not refused.stored


def test_a_node_does_not_start_without_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of Flower, in which the function is gone or takes other arguments."""
    monkeypatch.setattr(supernode, "_pull_and_store_message", lambda state: None)
    with pytest.raises(LaunchError, match="no place for the node's gate"):
        install(Policy(apps=[]))
    monkeypatch.delattr(supernode, "_pull_and_store_message")
    with pytest.raises(LaunchError, match="no place for the node's gate"):
        install(Policy(apps=[]))


def test_the_same_code_has_the_same_digest(tmp_path: Path) -> None:
    """In any folder, at any time; and one more byte has another one."""
    app = REPOSITORY / "tests" / "end_to_end" / "echo_app"
    first, second = (shutil.copytree(app, tmp_path / name) for name in ("a", "b"))
    digest = digest_of(build_fab_from_disk(first))
    assert digest_of(build_fab_from_disk(second)) == digest
    (second / "echo_app" / "more.py").write_text("#")
    assert digest_of(build_fab_from_disk(second)) != digest
