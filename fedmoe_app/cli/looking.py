"""Put the commands that look and explain on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.carve import carve
from fedmoe_app.config.overrides import app_defaults, check, read_overrides, with_absolute_paths
from fedmoe_app.launch.app_folder import app_folder
from fedmoe_app.launch.preflight import check_files
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.table import LOG_WIDTH
from fedmoe_app.shown.terminal import Console, say

App = Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")]
RunConfigItems = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config",
        "-c",
        metavar="FILE.toml | 'KEY=VALUE ...'",
        help="Run config over the app's defaults; repeat it, later ones win.",
    ),
]
Online = Annotated[bool, typer.Option("--online", help="Allow downloads from the model hub.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    example = "Example: "
    app.command(epilog=f"{example}fedmoe inspect qwen3moe-tiny -c 'model.train=\"expert-lora\"'")(
        inspect
    )
    app.command(epilog=f"{example}fedmoe partition --clients 10 -c 'data.alpha=0.1'")(partition)
    app.command(epilog=f"{example}fedmoe preview -c experiments/instructions.toml")(preview)
    app.command(epilog=f"{example}fedmoe export RUN --format peft --output my-adapter")(export)
    app.command(epilog=f"{example}fedmoe carve ./my-llama --output ./my-moe")(carve)
    app.command(epilog=f"{example}fedmoe doctor")(doctor)


def inspect(
    model: Annotated[str, typer.Argument(help="A preset, a local folder or a hub name.")],
    app_dir: App = Path("."),
    run_config: RunConfigItems = None,
    online: Online = False,
    debug: Debug = False,
) -> None:
    """Show a model's MoE layers and sizes, and what a run would train and send of it.

    Only the model's config is read, not its weights.
    """
    from fedmoe_app.cli.inspect import inspect_model, print_outline

    _allow_downloads(online)
    flat = (
        app_defaults(app_folder(app_dir)) | read_overrides(run_config or []) | {"model.name": model}
    )
    config = check(with_absolute_paths(flat, Path.cwd()), None)
    print_outline(config, inspect_model(config), _console())


def partition(
    clients: Annotated[int, typer.Option(min=1, help="Clients to split over.")] = 8,
    app_dir: App = Path("."),
    run_config: RunConfigItems = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Picture (.png, .svg or .pdf).",
            show_default="$FEDMOE_HOME/results/partition.png",
        ),
    ] = None,
    online: Online = False,
    debug: Debug = False,
) -> None:
    """Show how the data would be split over clients: table and picture by client and label."""
    from fedmoe_app.cli.partition import describe_setting, plot_split, print_split, split_of
    from fedmoe_app.config.paths import results_dir

    _allow_downloads(online)
    path = picture_path(output or results_dir() / "partition.png")
    flat = app_defaults(app_folder(app_dir)) | read_overrides(run_config or [])
    config = check(with_absolute_paths(flat, Path.cwd()), None)
    check_files(config.data)
    split = split_of(config, clients)
    say(describe_setting(config))
    print_split(split, _console())
    say(f"picture: {plot_split(split, describe_setting(config), path)}")


def preview(
    examples: Annotated[int, typer.Option(min=1, help="Examples to show.")] = 3,
    data_path: Annotated[
        Path | None,
        typer.Option(help="A node's own file, in place of data.source.", show_default=False),
    ] = None,
    app_dir: App = Path("."),
    run_config: RunConfigItems = None,
    online: Online = False,
    debug: Debug = False,
) -> None:
    """Show training examples as the model sees them: what is learnt, and what is cut.

    The model's tokenizer and config are read, not its weights.
    """
    from fedmoe_app.cli.preview import preview_of, print_preview

    _allow_downloads(online)
    flat = app_defaults(app_folder(app_dir)) | read_overrides(run_config or [])
    config = check(with_absolute_paths(flat, Path.cwd()), None)
    print_preview(preview_of(config, examples, data_path), _console())


def export(
    run_dir: Annotated[Path, typer.Argument(help="Result folder of a run, or the run's name.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="hf: the whole model, adapters merged; peft: the adapter alone."
        ),
    ] = "hf",
    output: Annotated[
        Path | None,
        typer.Option(help="New folder.", show_default="RUN-hf or RUN-peft in this folder"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy a run's model to a folder that plain transformers or PEFT loads."""
    from fedmoe_app.cli.export import export as export_run
    from fedmoe_app.cli.export import read_format, source_of

    chosen = read_format(kind)
    run_dir = find_run(run_dir)
    target = (output or Path(f"{run_dir.name}-{chosen}")).expanduser().absolute()
    say(f"from {source_of(run_dir, chosen)}")
    say(export_run(run_dir, chosen, target))


def doctor(
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="SuperLink to compare this clock with."),
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="Its CA certificate; without it, it has no TLS.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what works on this machine, what does not, and how to mend it."""
    from fedmoe_app.cli.doctor import FAILURE, examine, print_findings

    findings = examine(superlink or "", root_certificates)
    print_findings(findings, _console())
    if any(finding.state == FAILURE for finding in findings):
        raise typer.Exit(1)


def picture_path(path: Path) -> Path:
    """Refuse a picture of a kind that cannot be drawn.

    Raises:
        ConfigError: naming the kinds.
    """
    from fedmoe_app.config.errors import ConfigError

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--output {path}: give it one of the endings .png, .svg, .pdf")
    return path.expanduser().absolute()


def _allow_downloads(online: bool) -> None:
    import os

    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)
