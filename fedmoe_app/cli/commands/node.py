"""``fedmoe node``: what this node allows, which code that is, and what was asked of it."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box

from fedmoe_app.cli.app import app, command
from fedmoe_app.cli.options import AppOption, RunConfigItems
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import app_defaults, read_overrides
from fedmoe_app.config.policy import Policy, policy_path, read_policy
from fedmoe_app.launch.app_folder import app_folder, lean_copy
from fedmoe_app.launch.gate import digest_of, log_path
from fedmoe_app.results.table import LOG_WIDTH
from fedmoe_app.shown.terminal import Console, Table, say

if TYPE_CHECKING:
    from fedmoe_app.privacy.node_ledger import Spent

node = typer.Typer(
    help="What a node's owner allows, and what runs took: policy, digest, log, privacy ledger.",
    epilog="Example: fedmoe node check --policy policy.toml",
)
app.add_typer(node, name="node")

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="The node's policy; by default $FEDMOE_POLICY, then /etc/fedmoe."
    ),
]


@command("fedmoe node digest", on=node)
def digest(app_dir: AppOption = Path(".")) -> None:
    """Print the digest of this app, for the list `apps` of a policy."""
    say(digest_of(_bundle(app_dir)))


@command("fedmoe node check --policy policy.toml -c experiments/own-text.toml", on=node)
def check(
    app_dir: AppOption = Path("."),
    run_config: RunConfigItems = None,
    policy_file: PolicyFile = None,
) -> None:
    """Say whether a policy allows a run of this app; exits with 1 where it does not."""
    policy = _policy(policy_file)
    refusals = list(
        policy.refusals(app_defaults(app_folder(app_dir)) | read_overrides(run_config or []))
    )
    if (own := digest_of(_bundle(app_dir))) not in policy.apps:
        refusals.insert(0, f"the app {own}")
    for refusal in refusals:
        say(f"not allowed: {refusal}")
    if refusals:
        raise typer.Exit(1)
    say("allowed")


@command("fedmoe node log --last 20", on=node)
def log(
    last: Annotated[int, typer.Option(min=1, help="How many of the newest runs.")] = 20,
    config: Annotated[bool, typer.Option("--config", help="Show the run configs, too.")] = False,
) -> None:
    """Show which runs this node took or refused, and why."""
    path = log_path()
    if not path.exists():
        say(f"{path}: nothing was asked of this node while it had a policy")
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-last:]:
        try:
            _show(json.loads(line), config)
        except (ValueError, KeyError, TypeError):
            say("a line that cannot be read: the disk was full, or the process was killed")


@command("fedmoe node ledger --policy policy.toml", on=node)
def ledger(
    policy_file: PolicyFile = None,
    folder: Annotated[
        Path | None,
        typer.Option("--home", help="The node's $FEDMOE_HOME.", show_default="$FEDMOE_HOME"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON array, an object a data set.")
    ] = False,
) -> None:
    """Show what runs have spent of the privacy of this node's examples, by data set.

    `left` is what the policy's max-epsilon leaves for all further runs together. A round counts
    when it begins, also one that broke off.
    """
    path = policy_path(policy_file)
    policy = None if path is None else read_policy(path)
    place = None if folder is None else folder.expanduser() / "node"
    # It brings scipy, which the images of SuperLink and SuperNode have not.
    from fedmoe_app.privacy.node_ledger import FILE, NodeLedger

    book = NodeLedger(place)
    limit, delta = (None, None) if policy is None else (policy.max_epsilon, policy.delta)
    found = book.entries(delta)
    if as_json:
        say(json.dumps([_entry(spent, limit) for spent in found], ensure_ascii=True))
    elif not found:
        say(f"{book.folder / FILE}: no run has spent of this node's examples")
    else:
        _print_ledger(found, limit)


def _entry(spent: Spent, limit: float | None) -> dict[str, Any]:
    """Return what is told of a data set; null is without a limit, or unknown, or no bound."""
    left = None if limit is None else max(0.0, limit - spent.epsilon)
    return {
        "data_set": spent.data_set,
        "runs": spent.runs,
        "rounds": spent.rounds,
        "epsilon": spent.epsilon if math.isfinite(spent.epsilon) else None,
        "delta": spent.delta,
        "max_epsilon": limit,
        "left": left,
    }


def _print_ledger(found: list[Spent], limit: float | None) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("data set", overflow="fold")
    for header in ("runs", "rounds", "epsilon", "delta", "left"):
        table.add_column(header, justify="right", no_wrap=True)
    for spent in found:
        runs = "?" if spent.runs is None else str(spent.runs)
        rest = "no limit" if limit is None else f"{max(0.0, limit - spent.epsilon):.3g}"
        numbers = (runs, str(spent.rounds), f"{spent.epsilon:.3g}", f"{spent.delta:g}", rest)
        table.add_row(spent.data_set, *numbers)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(table)


def _show(entry: dict[str, Any], config: bool) -> None:
    answer = "taken" if entry["taken"] else f"refused: {entry['refusal']}"
    say(f"{entry['time']}  run {entry['run']}  app {entry['app'][:19]}  {answer}")
    if config:
        for key, value in sorted(entry["config"].items()):
            say(f"    {key} = {json.dumps(value)}")


def _policy(given: Path | None) -> Policy:
    path = policy_path(given)
    if path is None:
        raise ConfigError("no policy: name one with --policy FILE")
    return read_policy(path)


def _bundle(app_dir: Path) -> bytes:
    """Return the bundle that Flower would send of an app's folder."""
    from fedmoe_app.flower.supernode import bundle_of

    with tempfile.TemporaryDirectory(prefix="fedmoe-app-") as folder:
        # Flower looks at every file below an app, those of an environment of Python, too.
        return bundle_of(lean_copy(app_folder(app_dir), Path(folder)))
