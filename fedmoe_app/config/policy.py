"""A node's policy: what a run may ask of this node, as the node's owner says in ``policy.toml``.

Whoever may submit a run to a SuperLink sends code and a run config to every node. The policy is the
owner's answer, and the SuperNode asks it before any of that code is stored or run
(:mod:`fedmoe_app.launch.gate`)::

    apps = ["sha256:0677f6dc..."]      # fedmoe node digest prints it; no other code is run
    schemes = ["fedavg", "fedmoe"]     # names, or "package.module:Class" in full
    models = ["org/base"]              # hub names or folders, beside the presets
    sources = ["nodes"]                # what data.source may name
    data-roots = ["/data/site"]        # folders that files named by a run may lie in
    columns = ["text", "label"]        # columns that a run may read, named by it or guessed
    tasks = ["classification"]
    max-rounds = 50
    max-local-steps = 500              # optimiser steps a round
    min-examples = 50                  # with fewer this node takes no part
    may-leave = ["update", "num-examples", "histogram", "metrics"]
    secure-sum = "required"            # what leaves is masked, or this node takes no part
    same-start = "allowed"             # masked sums of one start over other clients, too
    max-sum-lists = 1                  # lists of clients that masked sums may be over, in all runs
    max-epsilon = 8.0                  # of the node's examples, by all runs together
    delta = 1e-5                       # at which that is told

Every list is a list of what is allowed; a key that is left out allows the default at its field.
A refusal says which key of the run, and the value that *the run* asked for: never a path, a count
or a value of the node.
"""

from __future__ import annotations

import glob
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.config.lists import file_names, name_list
from fedmoe_app.config.names import COMBINE, PRESET_NAMES, SCHEME_NAMES, SMOLLM2_MOE
from fedmoe_app.config.tasks import TASKS

REFUSED = "this node's policy"  # how the reason of every refusal begins; the server knows it by it
VARIABLE = "FEDMOE_POLICY"
DEFAULT_PATH = Path("/etc/fedmoe/policy.toml")
EMBEDDED, NODES = "embedded", "nodes"
# One example more or less would decide whether the node takes part, which is what it must not tell.
_MIN_EXAMPLES = "min-examples would tell whether there is one example more"
_SHOWN = 100  # characters of a run's value that a refusal repeats
_FILES = ("source", "label-names-file", "chat-template")  # keys of ``data`` that a node would open

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Leaving = Literal[
    "update", "num-examples", "histogram", "metrics", "scores", "regions", "feature-sums"
]


class RefusedError(PermissionError):
    """What a run asks for and this node's policy does not allow."""


class Policy(BaseModel):
    """What a run may ask of this node; made by :func:`read_policy`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    apps: list[Digest]
    schemes: list[str] = list(SCHEME_NAMES)
    models: list[str] = []
    sources: list[str] = [EMBEDDED, NODES]
    data_roots: list[str] = []
    columns: list[str] | None = None
    tasks: list[str] = list(TASKS)
    max_rounds: int | None = Field(None, ge=1)
    max_local_steps: int | None = Field(None, ge=1)
    max_threads: int | None = Field(None, ge=1)
    keep_client_state: bool = True
    min_examples: int = Field(1, ge=1)
    may_leave: list[Leaving] = [
        "update",
        "num-examples",
        "histogram",
        "metrics",
        "scores",
        "regions",
        "feature-sums",
    ]
    secure_sum: Literal["allowed", "required"] = "allowed"
    same_start: Literal["allowed", "refused"] = "refused"
    max_sum_lists: int | None = Field(None, ge=1)
    max_epsilon: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)

    @model_validator(mode="after")
    def _budget_allows_runs(self) -> Policy:
        if self.max_epsilon is not None and self.min_examples > 1:
            raise ValueError(
                f"max-epsilon with min-examples = {self.min_examples}: {_MIN_EXAMPLES}, so that no "
                "run is left; leave out one of them"
            )
        return self

    def check_app(self, digest: str) -> None:
        """Refuse code that the node's owner has not listed.

        Args:
            digest: ``sha256:`` and the hash of the app's bundle.

        Raises:
            RefusedError: naming the digest.
        """
        if digest not in self.apps:
            raise RefusedError(f"{REFUSED} does not list the app {digest}")

    def check_run(self, run: Mapping[str, Any]) -> None:
        """Refuse a run config.

        Args:
            run: flat, of the whole run.

        Raises:
            RefusedError: naming every key that is not allowed, with the run's value.
        """
        refused = list(self.refusals(run))
        if refused:
            raise RefusedError(f"{REFUSED} does not allow {'; '.join(refused)}")

    def refusals(self, run: Mapping[str, Any]) -> Iterator[str]:
        """Yield what is not allowed of a flat run config, one text a key."""
        parts = [key for key in run if key.startswith("combine.")]
        for key in ["scheme", *(parts if run.get("scheme") == COMBINE else [])]:
            if run.get(key) not in self.schemes:
                yield _named(run, key)
        if run.get("data.task") not in self.tasks:
            yield _named(run, "data.task")
        if run.get("model.name") not in (*PRESET_NAMES, SMOLLM2_MOE, *self.models):
            yield _named(run, "model.name")
        yield from self._files(run)
        yield from self._columns(run)
        rounds = run.get("num-server-rounds")
        if self.max_rounds is not None and not (
            isinstance(rounds, int) and rounds <= self.max_rounds
        ):
            yield _named(run, "num-server-rounds")
        steps = run.get("train.max-steps")
        # Only there the steps do not follow from the node's examples.
        if (
            self.max_local_steps is not None
            and run.get("privacy.example-dp") is True
            and not (isinstance(steps, int) and steps <= self.max_local_steps)
        ):
            yield f"{_named(run, 'train.max-steps')} (at most {self.max_local_steps})"
        threads = run.get("train.threads")
        if self.max_threads is not None and not (
            isinstance(threads, int) and threads <= self.max_threads
        ):
            yield _named(run, "train.threads")
        if not self.keep_client_state and run.get("keep-client-state") is not False:
            yield _named(run, "keep-client-state")
        if self.secure_sum == "required" and run.get("privacy.secure-sum") is not True:
            yield _named(run, "privacy.secure-sum")
        if self.max_epsilon is not None and run.get("privacy.example-dp") is not True:
            yield _named(run, "privacy.example-dp")
        if self.min_examples > 1 and run.get("privacy.example-dp") is True:
            yield f"{_named(run, 'privacy.example-dp')} ({_MIN_EXAMPLES})"
        for what in sorted(_leaves(run) - set(self.may_leave)):
            yield f"{what} to leave the node, which the run needs"

    def _files(self, run: Mapping[str, Any]) -> Iterator[str]:
        for key in (f"data.{name}" for name in _FILES):
            value = str(run.get(key, ""))
            # All other values of it are words, or a template's own text.
            if key == "data.chat-template" and ("{" in value or not value.endswith(".jinja")):
                continue
            if value and value not in self.sources and not self._under_roots(run, key, value):
                yield _named(run, key)

    def _columns(self, run: Mapping[str, Any]) -> Iterator[str]:
        if self.columns is None:
            return
        kind = TASKS.get(str(run.get("data.task")))
        keys = (*(kind.column_keys if kind else ()), "partition-by")
        for key in (f"data.{name}" for name in keys):
            if not _columns_of(key, str(run.get(key, ""))) <= {"", *self.columns}:
                yield _named(run, key)

    def _under_roots(self, run: Mapping[str, Any], key: str, value: str) -> bool:
        """Tell whether all that a value names lies below ``data-roots``, links resolved."""
        roots = [Path(root).resolve() for root in self.data_roots]
        try:
            return bool(roots) and all(
                os.path.isabs(path) and any(Path(path).resolve().is_relative_to(r) for r in roots)
                for path in _files_meant(run, key, value)
            )
        except (ValueError, OSError, RuntimeError):  # no list, no path, or links in a circle
            return False

    def columns_read(self, needed: Iterable[str], optional: Iterable[str]) -> tuple[str, ...]:
        """Refuse columns of a file that a run reads, whether it named them or they were guessed.

        Args:
            needed: names of those that it cannot do without.
            optional: of those that need not be there.

        Returns:
            the optional ones that may be read; the others are left alone.

        Raises:
            RefusedError: one that is needed is not allowed; the node's names are not told.
        """
        if self.columns is None:
            return tuple(optional)
        if not set(needed) <= set(self.columns):
            raise RefusedError(
                f"{REFUSED} does not allow a column that the run would read here; name the allowed "
                "ones in data.*-field"
            )
        return tuple(name for name in optional if name in self.columns)

    def check_leaves(self, what: Leaving) -> None:
        """Refuse a message that asks for what may not leave, whatever the run's config asks for.

        Raises:
            RefusedError: so it is.
        """
        if what not in self.may_leave:
            raise RefusedError(f"{REFUSED} does not allow {what} to leave the node")

    def check_promise(self, example_dp: bool) -> None:
        """Refuse a run with privacy of examples where ``min-examples`` asks for a number of them.

        Raises:
            RefusedError: so it is. Whether there are enough is not looked at.
        """
        if example_dp and self.min_examples > 1:
            raise RefusedError(
                f"{REFUSED} does not allow privacy.example-dp = true ({_MIN_EXAMPLES})"
            )

    def check_round(self, num_examples: int, num_steps: int, asked: Mapping[str, Any]) -> None:
        """Refuse a round; the numbers of the node are not told.

        Args:
            num_examples: training examples of this node.
            num_steps: all optimiser steps that the round would take, also those on what stays here.
            asked: what the steps follow from, by key of the run, for the message.

        Raises:
            RefusedError: too few examples, or too many steps.
        """
        if num_examples < self.min_examples:
            raise RefusedError(f"{REFUSED} asks for more examples than this node has for the run")
        if self.max_local_steps is not None and num_steps > self.max_local_steps:
            values = "; ".join(f"{key} = {value!r}" for key, value in asked.items())
            raise RefusedError(
                f"{REFUSED} does not allow as many optimiser steps a round as {values} takes here: "
                f"all together at most {self.max_local_steps} (max-local-steps); set "
                f"train.max-steps"
            )


def read_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: it cannot be read, is not valid, or others may change it.
    """
    try:
        mode = path.stat().st_mode
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"policy {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy {path}: not TOML: {error}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"policy {path}: others than its owner may change it; chmod 0600 {path}")
    try:
        return Policy.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"policy {path}: {_first_fault(error)}") from None


def policy_path(given: Path | None = None) -> Path | None:
    """Return the file of this node's policy: the given one, $FEDMOE_POLICY, or that of ``/etc``.

    None: this node has none.

    Raises:
        ConfigError: it cannot be told whether there is one in ``/etc``, such as where this user may
            not enter the folder. A node must not run without the policy that its owner wrote.
    """
    if given is not None:
        return given
    if named := os.environ.get(VARIABLE):
        return Path(named)
    try:
        DEFAULT_PATH.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"policy {DEFAULT_PATH}: {error.strerror}; let this user read it and enter its folder"
        ) from None
    return DEFAULT_PATH


def node_policy() -> Policy | None:
    """Return the policy that this process's SuperNode was started with; None without one."""
    named = os.environ.get(VARIABLE)
    return read_policy(Path(named)) if named else None


def _leaves(run: Mapping[str, Any]) -> set[str]:
    """Return what leaves a node in a run of this config."""
    scheme = run.get("scheme")
    own = ":" in str(scheme)
    if not own and run.get("privacy.example-dp"):
        return {"update"}  # noised
    if not own and (run.get("privacy.secure-sum") or run.get("privacy.dp", "none") != "none"):
        # Clipped, or masked; numbers beside it stay on the node.
        has_head = run.get("head.closed-form", "none") != "none"
        return {"update", "feature-sums"} if has_head else {"update"}
    leaves = {"update", "num-examples", "histogram", "metrics"}
    on_server = run.get("data.test-source") or run.get("data.source") != NODES
    chosen_by_nodes = run.get("keep-best") and not run.get("data.validation-source")
    if not on_server or chosen_by_nodes:
        leaves.add("scores")  # the server has no rows for it: nodes score the global model
    if own or "fedalign" in (scheme, run.get("combine.experts")):
        leaves.add("regions")  # mean hidden states of the tokens of each expert
    summed = scheme in ("grammerge", "calmerge") or run.get("head.closed-form", "none") != "none"
    if own or summed:
        leaves.add("feature-sums")  # class counts, sums of features by class, or of their squares
    return leaves


def _files_meant(run: Mapping[str, Any], key: str, value: str) -> Iterator[str]:
    """Yield the files that a key means, by ``data.source-kind`` where it is the source.

    A name itself comes first: a file may be called ``a[1].csv``, and who looks at it first does not
    search all of a disk for ``/**``. All keys but the source name one file, taken literally.
    """
    kind = str(run.get("data.source-kind")) if key == "data.source" else ""
    names = file_names(value, key=key, patterns=kind == "glob") if kind else (value,)
    for name in names or (value,):
        yield name
        if kind == "glob":
            yield from glob.iglob(name, recursive=True)
        elif kind == "folder":
            yield from glob.iglob(os.path.join(glob.escape(name), "**"), recursive=True)


def _columns_of(key: str, value: str) -> set[str]:
    """Return the columns that a key names: one, but for options, which may have several."""
    if key != "data.options-field":
        return {value}
    try:
        return set(name_list(value, key))
    except DataError:
        return {value}


def _named(run: Mapping[str, Any], key: str) -> str:
    value = str(run.get(key, ""))
    cut = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
    return f"{key} = {cut!r}"


def _first_fault(error: ValidationError) -> str:
    # An unknown key before a missing one: it may be the missing one, misspelt.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in Policy.model_fields.items())
        return f"unknown key {key}; the keys are {known}"
    if fault["type"] == "missing":
        return f"{key} is missing; `fedmoe node digest` prints the digest of the installed app"
    if not key:  # of several keys together
        return fault["msg"].removeprefix("Value error, ")
    return f"{key} = {fault['input']!r}: {fault['msg']}"
