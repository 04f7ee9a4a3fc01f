"""``fedmoe inspect MODEL``: its MoE layers, their sizes, and what a run trains and sends."""

from __future__ import annotations

import math

from rich import box

from fedmoe_app.config.names import CODEC_NAMES, TOPK
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.launch.preflight import check_model
from fedmoe_app.moe.loading import DTYPES, PRESETS, LoadSpec, empty_model
from fedmoe_app.moe.outline import Outline, outline
from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.terminal import Console, Table, literal
from fedmoe_app.shown.text import readable
from fedmoe_app.tasks.setup import adaptation, head_of
from fedmoe_app.wire.codecs import make_codec
from fedmoe_app.wire.packing import expected_packed
from fedmoe_app.wire.spec import Shape, UpdateSpec

_NOTE = "The routing histogram adds some bytes an expert; topk: for positions spread evenly."


def inspect_model(config: RunConfig) -> Outline:
    """Count the model of a run config without reading its weights.

    Raises:
        ModelNotFoundError, UnsupportedModelError, ValueError: see ``check_model``,
            ``empty_model`` and ``outline``.
    """
    check_model(config, weights=False)
    model = config.model
    head = head_of(config)
    vocab_size = len(load_tokenizer(model.name, PRESETS)) if model.name in PRESETS else 1
    spec = LoadSpec(
        model.name,
        config.data.task,
        vocab_size,
        head=head,
        label_names=config.data.labels,
        dtype=model.dtype,
    )
    return outline(empty_model(spec), adaptation(config, head))


def print_outline(config: RunConfig, found: Outline, console: Console) -> None:
    """Print the model, its MoE layers, and what travels."""
    model = config.model
    title = literal(readable(model.name), "bold")
    title.append(f": {found.family}, {_short(found.total)} parameters", "not bold")
    console.print(title, soft_wrap=True)  # a path stays in one piece
    console.print(
        f"  experts {_short(found.experts)}, gates {_short(found.gates)}, dense "
        f"{_short(found.dense)}; a token uses {_short(found.active)} "
        f"({found.active / found.total:.0%})"
    )
    console.print(
        f"  weights in {model.dtype}: {human_bytes(found.total * DTYPES[model.dtype].itemsize)}"
    )
    console.print(_layer_table(found))
    console.print(_traffic_table(config, found))
    console.print(_NOTE)
    console.print(_download(config, found.trained))


def _layer_table(found: Outline) -> Table:
    table = Table(title="MoE layers", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for header in ("layer", "in the model", "experts", "top-k", "stored"):
        table.add_column(header, justify="left" if header == "in the model" else "right")
    for layer in found.layers:
        stored = "stacked" if layer.fused else "one by one"
        table.add_row(
            str(layer.index), layer.name, str(layer.num_experts), str(layer.top_k), stored
        )
    return table


def update_shapes(state: ModelState, budget: int) -> dict[str, Shape]:
    """Return names and shapes of an update in which the first ``budget`` experts were trained."""
    spec = UpdateSpec.of(state)
    return spec.shapes([key for key in spec.experts if key[1] < budget])


def _traffic_table(config: RunConfig, found: Outline) -> Table:
    """A row a codec, a column a number of experts: bytes of one node's update of one round."""
    table = Table(
        title=f'trained and sent up a round and node, model.train = "{config.model.train}"',
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    num_experts = found.layers[0].num_experts
    by_budget = [update_shapes(found.trained, budget) for budget in _budgets(num_experts)]
    table.add_column("experts a layer")
    for budget in _budgets(num_experts):
        table.add_column(f"{budget} of {num_experts}", justify="right")
    values = [sum(math.prod(shape) for shape in shapes.values()) for shapes in by_budget]
    table.add_row("values", *(_short(count) for count in values))
    table.add_row("of all", *(f"{count / values[0]:.1%}" for count in values), end_section=True)
    for name in CODEC_NAMES:
        codec = make_codec(name, config.wire.topk_share)
        sizes = (expected_packed(codec, shapes) for shapes in by_budget)
        chosen = " (wire.codec)" if name == config.wire.codec else ""
        share = f" of {config.wire.topk_share:.3g}" if name == TOPK else ""
        table.add_row(f"{name}{share}{chosen}", *(human_bytes(size) for size in sizes))
    return table


def _download(config: RunConfig, state: ModelState) -> str:
    values = sum(tensor.numel() for _, tensor in state.named())
    codec = config.wire.download_codec
    size = human_bytes(values * (4 if codec == "fp32" else 2))
    if config.model.experts_in_memory == "chosen":
        return f"sent down: at most {size} in {codec}; of the experts only those that a node holds"
    unchanged = "; what the node has already is left out" * (config.wire.downloads == "changed")
    return f"sent down a round and node: at most {size} in {codec}{unchanged}"


def _budgets(num_experts: int) -> list[int]:
    """Return E, E/2, E/4, E/8 as far as they are whole and at least 1."""
    return [num_experts // part for part in (1, 2, 4, 8) if num_experts % part == 0]


def _short(count: float) -> str:
    """Return a number of parameters as people say it: ``13.4 B``."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
