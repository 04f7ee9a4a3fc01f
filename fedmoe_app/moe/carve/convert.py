"""From a dense model in memory to an MoE model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedmoe_app.moe.carve.plan import DEAD, Plan, Sizes, moe_config, sizes_of
from fedmoe_app.moe.carve.split import (
    SHARED,
    Layout,
    lay_out,
    refitted,
    relative_error,
    routed,
    seen_by_down,
)

Batch = dict[str, Tensor]  # input_ids and attention_mask [B, T], padded on the right
_TOKENS_A_NEURON = 2  # below, least squares would learn the calibration texts by heart


@dataclass(frozen=True)
class LayerReport:
    """How well an MoE layer does on the calibration tokens.

    Attributes:
        index: of the layer in the model.
        error: mean over tokens of ‖MoE − dense‖ / ‖dense‖ of the output.
        load: share of the tokens' choices by expert, times E: 1 is an equal share.
    """

    index: int
    error: float
    load: tuple[float, ...]


@dataclass(frozen=True)
class Carved:
    """The MoE model, in float32, with a layout and a report a layer; none of ``copy``."""

    model: PreTrainedModel
    layouts: tuple[Layout, ...] = ()
    reports: tuple[LayerReport, ...] = ()


def enough_to_refit(tokens: int, neurons: int) -> bool:
    """Tell whether calibration tokens are enough to solve the down projections anew."""
    return tokens >= _TOKENS_A_NEURON * neurons


@torch.no_grad()
def carve(
    dense: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Batch] = (),
    layouts: Sequence[Layout] = (),
    done: Callable[[LayerReport], None] = lambda report: None,
) -> Carved:
    """Make an MoE model of a dense one; what is not changed, the two share.

    Args:
        dense: of a family of :data:`fedmoe_app.moe.carve.plan.SIBLINGS`, in float32.
        plan: what to make of it.
        batches: calibration texts; only for ``split`` without ``layouts``.
        layouts: how to split each MoE layer, if that is known; then nothing is refitted and nothing
            but the order and a factor of the dense weights changes.
        done: called with the report of each layer as soon as there is one.

    Raises:
        ConfigError: sizes that do not fit.
    """
    sizes = sizes_of(plan, dense.config)
    config = moe_config(dense.config, plan)
    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = made.state_dict().keys()
    state = {key: tensor for key, tensor in dense.state_dict().items() if key in names}
    made.load_state_dict(state, strict=False, assign=True)
    made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(config)  # its buffers are in no state dict
    made.generation_config = dense.generation_config
    calibrated = plan.method == "split" and not layouts
    streams = [_Stream(dense, batch, sizes.first) for batch in batches] if calibrated else []
    found, reports = list(layouts), []
    for i, layer in enumerate(dense.model.layers[sizes.first :]):
        block = made.model.layers[sizes.first + i].mlp
        if calibrated:
            x = torch.cat([stream.attend(layer, i) for stream in streams])
            layout, tensors, error, load = _split(layer.mlp, x, plan, sizes)
            found.append(layout)
            reports.append(LayerReport(sizes.first + i, error, load))
            done(reports[-1])
        elif layouts:
            tensors = _assembled(layer.mlp, layouts[i], layer.mlp.down_proj.weight, plan, sizes)
        else:
            tensors = _copied(layer.mlp, plan, sizes, seed=plan.seed + i)
        block.load_state_dict(tensors, assign=True)
        for stream in streams:
            stream.leave(block)
    return Carved(made.eval(), tuple(found), tuple(reports))


def _split(
    mlp: Any, x: Tensor, plan: Plan, sizes: Sizes
) -> tuple[Layout, dict[str, Tensor], float, tuple[float, ...]]:
    """Split a dense layer by its inputs ``[T, D]``; return tensors, error and load, too."""
    down = mlp.down_proj.weight
    act = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
    layout = lay_out(x, act, down, plan, sizes)
    weights = routed(x, layout.router, plan.top_k)
    seen, target = seen_by_down(act, layout, weights, plan.top_k), act @ down.T
    if plan.refit and enough_to_refit(len(x), len(act[0])):
        down = refitted(seen, target, down, plan.ridge)
    error = relative_error(seen @ down.T, target)
    load = (weights > 0).float().mean(0) * plan.experts / plan.top_k
    tensors = _assembled(mlp, layout, down, plan, sizes)
    return layout, tensors, error, tuple(load.tolist())


def _assembled(
    mlp: Any, layout: Layout, down: Tensor, plan: Plan, sizes: Sizes
) -> dict[str, Tensor]:
    """Return the tensors of an MoE layer by their names in it.

    Args:
        mlp: the dense layer.
        layout: how it is divided.
        down: its down projection ``[D, N]``, or the one solved anew.
        plan, sizes: what to make of it.
    """
    gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    groups = [layout.neurons(e) for e in range(plan.experts)]
    tensors = {
        "gate.weight": layout.router.clone(),
        "experts.gate_up_proj": torch.stack([torch.cat([gate[g], up[g]]) for g in groups]),
        # The weights of the experts chosen sum to 1: k times 1/k.
        "experts.down_proj": torch.stack([down[:, g] for g in groups]) * plan.top_k,
    }
    if sizes.shared_width is None:
        return tensors
    common = layout.neurons(SHARED)
    if len(common) == 0:
        return tensors | _dead(gate)
    return tensors | _shared(gate[common], up[common], down[:, common])


def _copied(mlp: Any, plan: Plan, sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Return the tensors of an MoE layer whose experts are all the dense layer."""
    generator = torch.Generator().manual_seed(seed)
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    tensors = {
        "gate.weight": 0.02 * torch.randn(plan.experts, gate.shape[1], generator=generator),
        "experts.gate_up_proj": torch.cat([gate, up]).expand(plan.experts, -1, -1).clone(),
        "experts.down_proj": down.expand(plan.experts, -1, -1).clone(),
    }
    return tensors | (_dead(gate) if sizes.shared_width is not None else {})


def _dead(gate: Tensor) -> dict[str, Tensor]:
    """Return a shared expert that adds nothing."""
    none = torch.zeros(DEAD, gate.shape[1])
    return _shared(none, none.clone(), none.T.contiguous())


def _shared(gate: Tensor, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """Return a shared expert; its own gate's weights of zero mean a factor of exactly 1/2."""
    return {
        "shared_expert.gate_proj.weight": gate,
        "shared_expert.up_proj.weight": up,
        "shared_expert.down_proj.weight": 2 * down,
        "shared_expert_gate.weight": torch.zeros(1, gate.shape[1]),
    }


class _Stream:
    """A batch of calibration texts on its way through the MoE model made so far.

    Each layer is split for the inputs that it will see, which those before it have changed already.
    """

    def __init__(self, dense: PreTrainedModel, batch: Batch, first: int) -> None:
        self._real = batch["attention_mask"].bool()
        calls: list[tuple[Any, dict[str, Any]]] = []

        def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        layers = dense.model.layers[first:]
        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            dense.model(**batch, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self._hidden = calls[0][0][0]  # [B, T, D]
        self._kwargs = [kwargs for _, kwargs in calls]  # masks and rotary embeddings of each layer
        self._middle = self._inputs = self._hidden

    def attend(self, layer: Any, i: int) -> Tensor:
        """Go to the input of the feed-forward part; return it at real tokens ``[T, D]``."""
        attended, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(self._hidden), **self._kwargs[i]
        )
        self._middle = self._hidden + attended
        self._inputs = layer.post_attention_layernorm(self._middle)
        return self._inputs[self._real]

    def leave(self, block: Any) -> None:
        """Go through the MoE layer that took the dense one's place."""
        self._hidden = self._middle + block(self._inputs)
