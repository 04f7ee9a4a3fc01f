"""``fedmoe inspect MODEL``: its MoE layers, their sizes, and what a run trains and sends."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from fedmoe_app.config import RunConfig
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.local.setup import adaptation
from fedmoe_app.moe.loading import DTYPES, PRESETS, empty_model, resolve_head
from fedmoe_app.moe.outline import Outline, outline
from fedmoe_app.moe.state import ModelState
from fedmoe_app.report.table import human_bytes

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Traffic:
    """Values that travel between the server and one node in a round.

    Attributes:
        dense, gates: parameters of these parts.
        expert: parameters of one expert of one layer (of the largest layer).
        experts: parameters of all experts of all layers.
    """

    dense: int
    gates: int
    expert: int
    experts: int

    @classmethod
    def of(cls, state: ModelState) -> Traffic:
        """Count what is trained."""
        by_expert = [_count(tensors) for tensors in state.experts.values()]
        return cls(
            dense=_count(state.dense),
            gates=sum(_count(tensors) for tensors in state.gates.values()),
            expert=max(by_expert, default=0),
            experts=sum(by_expert),
        )

    def bytes(self, share: float = 1.0) -> float:
        """Return the size of a round's update in float32, with that share of the experts."""
        return _FLOAT32 * (self.dense + self.gates + share * self.experts)


def inspect_model(config: RunConfig) -> Outline:
    """Count the model of a run config without reading its weights.

    Raises:
        ModelNotFoundError, UnsupportedModelError, ValueError: see ``empty_model`` and ``outline``.
    """
    model = config.model
    classifies = config.data.task == "classification"
    head = resolve_head(model.name, model.head if classifies else "label-words")
    vocab_size = len(load_tokenizer(model.name, PRESETS)) if model.name in PRESETS else 1
    empty = empty_model(
        model.name,
        task=config.data.task,
        head=head,
        num_labels=max(2, len(config.data.labels)),
        vocab_size=vocab_size,
        dtype=model.dtype,
    )
    return outline(empty, adaptation(config, head))


def print_outline(config: RunConfig, found: Outline, console: Console) -> None:
    """Print the model, its MoE layers, and what travels."""
    model = config.model
    console.print(f"[bold]{model.name}[/bold]: {found.family}, {_short(found.total)} parameters")
    console.print(
        f"  experts {_short(found.experts)}, gates {_short(found.gates)}, dense "
        f"{_short(found.dense)}; a token uses {_short(found.active)} "
        f"({found.active / found.total:.0%})"
    )
    console.print(f"  weights in {model.dtype}: {human_bytes(_weights(config, found))}")
    console.print(_layer_table(found))
    console.print(_traffic_table(config, Traffic.of(found.trained), found.layers[0].num_experts))


def _weights(config: RunConfig, found: Outline) -> float:
    return float(found.total * DTYPES[config.model.dtype].itemsize)


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


def _traffic_table(config: RunConfig, traffic: Traffic, num_experts: int) -> Table:
    trained = config.model.train
    table = Table(
        title=f'trained and sent a round and node, model.train = "{trained}"',
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("experts a layer")
    for header in ("values", "float32", "of all"):
        table.add_column(header, justify="right")
    for budget in _budgets(num_experts):
        share = budget / num_experts
        size = traffic.bytes(share)
        table.add_row(
            f"{budget} of {num_experts}",
            _short(size / _FLOAT32),
            human_bytes(size),
            f"{size / traffic.bytes():.1%}",
        )
    return table


def _budgets(num_experts: int) -> list[int]:
    """Return E, E/2, E/4, E/8 as far as they are whole and at least 1."""
    return [num_experts // part for part in (1, 2, 4, 8) if num_experts % part == 0]


def _count(tensors: object) -> int:
    assert isinstance(tensors, dict)
    return sum(tensor.numel() for tensor in tensors.values())


def _short(count: float) -> str:
    """Return a number of parameters as people say it: ``13.4 B``."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
