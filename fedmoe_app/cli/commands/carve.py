"""``fedmoe carve BASE``: a Mixture-of-Experts model of a dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import Online, allow_downloads
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.shown.terminal import say


@command("fedmoe carve ./my-llama --output ./my-moe")
def carve(
    base: Annotated[
        str, typer.Argument(help="Dense model: a local folder, a .gguf file or a hub name.")
    ],
    output: Annotated[Path, typer.Option(help="New folder.")],
    method: Annotated[
        str,
        typer.Option(help="split: divide its neurons; copy: every expert is the dense layer."),
    ] = "split",
    layers: Annotated[
        str, typer.Option(metavar="N|all", help="The last so many become MoE layers.")
    ] = "4",
    experts: Annotated[int, typer.Option(help="Routed experts a layer.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts that a token is sent to.")] = 2,
    shared: Annotated[
        int | None,
        typer.Option(help="Neurons of the shared expert.", show_default="about two thirds"),
    ] = None,
    texts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Calibration texts: a .jsonl/.json/.csv/.tsv/.parquet file."
        ),
    ] = "embedded",
    text_field: Annotated[
        str, typer.Option(metavar="NAME,...", help="Its column, or several to be joined.")
    ] = "text",
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 20_000,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens a text is cut to.")] = 64,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Solve the down projections anew.")
    ] = True,
    balance: Annotated[
        bool, typer.Option("--balance/--no-balance", help="Have the experts used alike.")
    ] = True,
    ridge: Annotated[
        float, typer.Option(min=0.0, help="Pull of the refit towards the dense weights.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of grouping and texts; of copy's routers.")] = 0,
    gguf_file: Annotated[
        str, typer.Option(metavar="NAME", help="File of a folder or hub model with several.")
    ] = "",
    dtype: Annotated[
        str,
        typer.Option(help="Of the saved weights: auto (the base's), float32, bfloat16 or float16."),
    ] = "auto",
    online: Online = False,
) -> None:
    """Make a Mixture-of-Experts model of a dense one, without training.

    The new folder is loaded by plain transformers, and is a model.name for a run.
    """
    allow_downloads(online)
    from fedmoe_app.moe.carve.base import find_base
    from fedmoe_app.moe.carve.folder import Calibration, carve_folder
    from fedmoe_app.moe.carve.plan import Plan

    plan = Plan(
        method=method,
        layers=_layers(layers),
        experts=experts,
        top_k=top_k,
        shared=shared,
        refit=refit,
        balance=balance,
        ridge=ridge,
        seed=seed,
    )
    made = carve_folder(
        find_base(base, gguf_file),
        plan,
        Calibration(texts, text_field, tokens, max_length),
        output.expanduser().absolute(),
        dtype,
        say,
    )
    change = made.after / made.before - 1
    say(f"perplexity of the MoE model: {made.after:.1f} ({change:+.1%})")
    say(f"{made.parameters / 1e6:.1f} M parameters, fingerprint {made.fingerprint}")
    say(str(made.folder))


def _layers(text: str) -> int:
    """Read ``--layers``; 0 means all."""
    if text == "all":
        return 0
    if text.isdecimal() and int(text):
        return int(text)
    raise ConfigError(f"--layers {text}: give it a number of layers, or all")
