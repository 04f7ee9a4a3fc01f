"""The node's gate: a run is held against the node's policy before any of its code is stored.

Flower's SuperNode fetches a run's bundle and config, stores them and has a SuperExec run them. The
gate stands at the fetching: what the policy does not allow is answered with the reason, and its
code never reaches the disk. A check inside the app would bind honest code only. Where a SuperNode
of Flower fetches is said in :mod:`fedmoe_app.flower.supernode`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmoe_app.config.files import private_folder
from fedmoe_app.config.paths import home
from fedmoe_app.config.policy import REFUSED, Policy, RefusedError
from fedmoe_app.flower.release import UnsupportedFlowerError
from fedmoe_app.flower.supernode import TakesIn, answer, change_taking_in, config_of
from fedmoe_app.launch.connections import LaunchError

logger = logging.getLogger("fedmoe")

ERROR_CODE = 17  # INVALID_FAB of Flower's error codes, from 1.39 on; the reason is what is read
LOG_FILE = "node/runs.jsonl"
MAX_VALUE = 1000  # characters of a run's key or value that the log keeps
MAX_LOG_BYTES = 8 * 2**20  # then the file is renamed, and the one before it goes


def install(policy: Policy) -> None:
    """Let this process's SuperNode take no run that the policy does not allow.

    Raises:
        LaunchError: this Flower has no place for the gate; the node must not start without it.
    """
    try:
        change_taking_in(lambda pull: gated(pull, policy))
    except UnsupportedFlowerError as error:
        raise LaunchError(f"policy: {error}") from None


def gated(pull: TakesIn, policy: Policy) -> TakesIn:
    """Return Flower's function that takes a message, with the policy before the code is stored."""
    from flwr.app import Error, Message

    def gate(**given: Any) -> int | None:
        got: list[Message] = []
        runs: dict[int, Any] = {}

        def receive() -> Any:
            found = given["receive"]()
            if found is not None:
                got.append(found[0])
            return found

        def get_run(run_id: int) -> Any:
            # Asked once: a SuperLink could show Flower one config and the policy another.
            if run_id not in runs:
                runs[run_id] = given["get_run"](run_id)
            return runs[run_id]

        def get_fab(fab_hash: str, run_id: int) -> Any:
            fab = given["get_fab"](fab_hash, run_id)
            run = get_run(run_id)
            decide(policy, fab.content, lambda: config_of(fab.content, run), run_id)
            return fab

        try:
            return pull(**given | {"receive": receive, "get_run": get_run, "get_fab": get_fab})
        except RefusedError as refusal:
            logger.warning("run %s refused: %s", got[0].metadata.run_id, refusal)
            reply = Message(Error(ERROR_CODE, str(refusal)), reply_to=got[0])
            answer(reply, given["state"], given["object_store"])
            return got[0].metadata.run_id

    return gate


def decide(
    policy: Policy, bundle: bytes, read_config: Callable[[], dict[str, Any]], run_id: int
) -> None:
    """Hold a run against the policy, and note the decision in the node's log.

    Args:
        policy: the node's.
        bundle: the app's code as it was sent.
        read_config: reads the run's whole config out of the bundle; called when its code is listed.
        run_id: Flower's.

    Raises:
        RefusedError: see :meth:`Policy.check_app` and :meth:`Policy.check_run`.
    """
    digest, config = digest_of(bundle), {}
    try:
        policy.check_app(digest)
        config = _readable(read_config)
        policy.check_run(config)
    except RefusedError as refusal:
        note(run_id, digest, config, str(refusal))
        raise
    note(run_id, digest, config, "")


def _readable(read_config: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the run's config; one that Flower cannot make would end the SuperNode."""
    try:
        return read_config()
    except Exception as error:
        raise RefusedError(f"{REFUSED} allows no run whose config cannot be read") from error


def digest_of(bundle: bytes) -> str:
    """Return the digest of an app's bundle as policies list it."""
    return f"sha256:{hashlib.sha256(bundle).hexdigest()}"


def log_path() -> Path:
    """Return the file in which this node keeps what was asked of it."""
    return home() / LOG_FILE


def note(run_id: int, digest: str, config: dict[str, Any], refusal: str) -> None:
    """Add a line to the node's log: which code, which config, taken or refused.

    Long values are cut: whoever submits runs must not fill the node's disk. A log that cannot be
    written costs no decision and no node.
    """
    path = log_path()
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "run": str(run_id),
        "app": digest,
        "taken": not refusal,
        "refusal": refusal,
        "config": {str(key)[:MAX_VALUE]: _cut(value) for key, value in config.items()},
    }
    try:
        private_folder(path.parent)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".1.jsonl"))
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
    except OSError as error:
        logger.warning("%s: not written (%s)", path, error)


def _cut(value: Any) -> Any:
    """Return text of at most so many characters; numbers as they are."""
    return value if isinstance(value, bool | int | float) else str(value)[:MAX_VALUE]
