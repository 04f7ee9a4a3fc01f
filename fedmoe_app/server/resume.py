"""Going on with a run: find its last good checkpoint, refuse one of another run, set files back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import resumable_keys
from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.folder import (
    CHECKPOINTS,
    CLASSES_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    keep_rounds,
    list_checkpoints,
    read_metrics,
)
from fedmoe_app.server.checkpoint import (
    HEADER_FILE,
    Checkpoint,
    CheckpointError,
    Identity,
    drop_later,
    read_best,
    read_checkpoint,
    read_identity,
)
from fedmoe_app.shown.values import shown

logger = logging.getLogger("fedmoe")

_MAX_NAMED = 20  # differences that one message lists


def find_checkpoint(path: Path) -> Checkpoint:
    """Read the newest good checkpoint of a result folder, or the one that ``path`` names.

    A damaged one is passed over with a warning, in favour of the one before it.

    Raises:
        ConfigError: if there is none, or none can be read.
    """
    candidates = _candidates(path)
    if not candidates:
        raise ConfigError(
            f"resume = {str(path)!r}: no checkpoint there; name the result folder of a run, or one "
            f"of the folders in its {CHECKPOINTS}/"
        )
    faults = []
    for candidate in candidates:
        try:
            return read_checkpoint(candidate)
        except CheckpointError as error:
            faults.append(str(error))
            logger.warning("checkpoint passed over: %s", error)
    raise ConfigError(f"resume = {str(path)!r}: no checkpoint can be read: {'; '.join(faults)}")


def _candidates(path: Path) -> list[Path]:
    if path.parent.name == CHECKPOINTS:
        everything = list_checkpoints(path.parent.parent)
        return everything[everything.index(path) :] if path in everything else []
    if (path / HEADER_FILE).is_file():
        raise ConfigError(
            f"resume = {str(path)!r}: a checkpoint outside the {CHECKPOINTS}/ of its result "
            "folder; copy the whole result folder instead"
        )
    return list_checkpoints(path)


def check_same_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse another run config than that of the newest checkpoint; its tensors are not read.

    Args:
        path: a result folder, or one of its checkpoints.
        config: flat, of the run that is to go on.

    Raises:
        ConfigError: naming each difference, or that no round is left.
    """
    for candidate in _candidates(path):
        with suppress(CheckpointError):
            done, stored = read_identity(candidate)
            _refuse(candidate, _config_differences(stored.config, config))
            _refuse_done(candidate, done, config)
            _refuse_ended(candidate, done, config)
            return


def check_same_run(checkpoint: Checkpoint, identity: Identity, state: ModelState) -> None:
    """Refuse to go on with another config, data or model than the checkpoint's.

    Raises:
        ConfigError: naming each difference, the checkpoint's value first.
    """
    stored = checkpoint.identity
    differences = _config_differences(stored.config, identity.config)
    for name in ("label_names", "data_fingerprint", "base_fingerprint"):
        before, now = getattr(stored, name), getattr(identity, name)
        if before != now:
            differences.append(
                f"{name.replace('_', ' ')}: {shown(before, 80)}, now {shown(now, 80)}"
            )
    differences += _state_differences(checkpoint.snapshot.state, state)
    _refuse(checkpoint.path, differences)
    _refuse_done(checkpoint.path, checkpoint.snapshot.server_round, identity.config)
    _refuse_ended(checkpoint.path, checkpoint.snapshot.server_round, identity.config)


def _refuse(path: Path, differences: Sequence[str]) -> None:
    if differences:
        more = f" and {len(differences) - _MAX_NAMED} more" if len(differences) > _MAX_NAMED else ""
        raise ConfigError(
            f"resume = {str(path)!r}: the checkpoint is of another run: "
            f"{'; '.join(differences[:_MAX_NAMED])}{more}"
        )


def _refuse_done(path: Path, done: int, config: Mapping[str, Any]) -> None:
    rounds = config["num-server-rounds"]
    if done >= rounds:
        raise ConfigError(
            f"resume = {str(path)!r}: {done} rounds are done and num-server-rounds = "
            f"{rounds}; ask for more rounds to train on"
        )


def _refuse_ended(path: Path, done: int, config: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that ended because no better round came."""
    patience, best = config["patience"], read_best(path)
    if patience and best is not None and done - best.round >= patience:
        raise ConfigError(
            f"resume = {str(path)!r}: no round was better than round {best.round} for patience = "
            f"{patience} rounds, so the run is complete; give a higher patience to train on"
        )


def _config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    free = resumable_keys()
    if now.get("privacy.dp", "none") != "none" and not now.get("privacy.dp-noise"):
        free -= {"num-server-rounds", "privacy.dp-epsilon"}  # the noise is worked out from them
    if now.get("privacy.example-dp") and not now.get("privacy.example-noise"):
        free -= {"num-server-rounds"}  # likewise
    if now.get("train.lr-scheduler-type") != "constant":  # the schedule runs over all rounds
        free -= {"num-server-rounds"}
    return [
        f"{key} = {_value(before, key)}, now {_value(now, key)}"
        for key in sorted((before.keys() | now.keys()) - free)
        if _value(before, key) != _value(now, key)
    ]


def _value(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "no such key"


def _state_differences(before: ModelState, now: ModelState) -> list[str]:
    mine, other = _shapes(before), _shapes(now)
    return [
        f"model tensor {name}: {mine.get(name, 'none')}, now {other.get(name, 'none')}"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    ]


def _shapes(state: ModelState) -> dict[str, str]:
    def shape(tensor: Tensor) -> str:
        # The server folds and stores values of bfloat16 in float32.
        dtype = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
        return f"{str(dtype).removeprefix('torch.')}{list(tensor.shape)}"

    return {name: shape(tensor) for name, tensor in state.named()}


def set_back(
    results: Path, server_round: int, before: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Drop what the result folder holds of later rounds: lines and checkpoints.

    Args:
        results: the result folder.
        server_round: the last round that stays.
        before: what this returned under ``repeated`` at earlier resumes of the run.

    Returns:
        ``repeated``: what was spent on rounds that have to be repeated, for the totals of the run;
        nothing if there are none.
    """
    repeated = dict(before or {})
    for line in _lines_after(results, server_round):
        for key in ("bytes_up", "bytes_down"):
            repeated[key] = repeated.get(key, 0) + (line.get(key) or 0)
        repeated["rounds"] = repeated.get("rounds", 0) + 1
    for name in (METRICS_FILE, SAMPLES_FILE, CLASSES_FILE):
        keep_rounds(results / name, server_round)
    drop_later(results, server_round)
    return {"repeated": repeated} if repeated else {}


def _lines_after(results: Path, server_round: int) -> list[dict[str, Any]]:
    if not (results / METRICS_FILE).is_file():
        return []
    return [line for line in read_metrics(results) if line["round"] > server_round]
