"""Switch's experts, one module each, against the same experts stacked in one fused module.

The fused side is a Switch model whose MoE blocks run transformers' own fused experts of two plain
matrices (those of Nemotron-H), with the same weights: ``wi`` is ``up_proj``, ``wo`` is
``down_proj``. Everything else, router and capacity included, is Switch's own code. So both models
compute the same function, and differ in how their experts are stored and made trainable: listed
parameters of the model against slots.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers import PreTrainedModel, SwitchTransformersForConditionalGeneration
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from fedmoe_app import HFedMoE, ModelState, RoutingStats, find_moe_layers
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables
from tests.toy import plan_of, select, toy_client

from .families import EXPERTS, batch, build

FUSED_NAMES = {"wi.weight": "up_proj", "wo.weight": "down_proj"}


class FusedBlock(nn.Module):
    """Switch's MoE block around fused experts."""

    def __init__(self, block: Any, config: Any) -> None:
        super().__init__()
        self.router = block.router
        self.experts = NemotronHExperts(config)
        listed = list(block.experts.values())
        with torch.no_grad():
            self.experts.up_proj.copy_(torch.stack([expert.wi.weight for expert in listed]))
            self.experts.down_proj.copy_(torch.stack([expert.wo.weight for expert in listed]))

    def forward(self, hidden: Tensor) -> Tensor:
        chosen, weights, _ = self.router(hidden)
        index = chosen.argmax(dim=-1).reshape(-1, 1)  # [T, 1]; the capacity is never reached
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.experts(flat, index, weights.reshape(-1, 1)).view_as(hidden)


class FusedSwitch(SwitchTransformersForConditionalGeneration):
    """A Switch model that may switch its experts implementation, as fused families may."""

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


def listed_and_fused() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models of the same function."""
    torch.manual_seed(0)
    listed = build("SwitchTransformers")
    fused = copy.deepcopy(listed)
    fused.__class__ = FusedSwitch
    config = fused.config
    config.n_routed_experts, config.moe_intermediate_size = EXPERTS, config.d_ff
    config.moe_latent_size, config.mlp_hidden_act = None, "relu"
    for module in list(fused.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "SwitchTransformersSparseMLP":
                setattr(module, name, FusedBlock(child, config))
    return listed, fused.eval()


def train(model: PreTrainedModel, scheme: HFedMoE, steps: int) -> tuple[ModelState, RoutingStats]:
    """Train with the scheme's selection per batch, as a client does, but with SGD: Adam makes a
    change of its own out of a gradient's rounding error.
    """
    layers = find_moe_layers(model)
    client = toy_client(expert_budget=2)
    with Trainables(model, layers) as trainables:

        def freeze(layer: int, probs: Tensor, chosen: Tensor) -> None:
            routed = torch.bincount(chosen.reshape(-1), minlength=EXPERTS) > 0
            trainables.train_only(layer, select(scheme).choose(probs, routed, client))

        optimizer = SGD(trainables.named_parameters().values(), lr=0.1, momentum=0.9)
        on_route = freeze if plan_of(scheme).selects_in_batch else None
        with RoutingRecorder(layers, regions=True, on_route=on_route) as recorder:
            for step in range(steps):
                inputs = batch(model, seed=step)
                recorder.mask(inputs["attention_mask"], inputs["decoder_attention_mask"])
                optimizer.zero_grad(set_to_none=True)
                model(**inputs).loss.backward()
                trainables.count_step()
                optimizer.step()
        return trainables.changes(), recorder.stats(trainables.trained)


def test_both_are_found_as_what_they_are() -> None:
    listed, fused = listed_and_fused()
    assert [layer.fused for layer in find_moe_layers(listed)] == [False] * 4
    assert [layer.fused for layer in find_moe_layers(fused)] == [True] * 4
    left, right = (read_state(model, find_moe_layers(model)) for model in (listed, fused))
    assert left.experts.keys() == right.experts.keys()
    for key, tensors in left.experts.items():
        renamed = {FUSED_NAMES[name]: tensor for name, tensor in tensors.items()}
        assert all(torch.equal(renamed[name], t) for name, t in right.experts[key].items())
    torch.testing.assert_close(listed(**batch(listed)).logits, fused(**batch(fused)).logits)


@pytest.mark.parametrize("selection", ["batch", "none"])
def test_training_gives_the_same_changes_and_the_same_routing(selection: str) -> None:
    listed, fused = listed_and_fused()
    scheme = HFedMoE(selection=selection)
    (left, stats), (right, other) = (train(model, scheme, 3) for model in (listed, fused))
    assert torch.equal(stats.count, other.count)
    assert torch.equal(stats.trained, other.trained)
    if selection == "batch":
        assert (stats.trained.sum(dim=1) <= 2 * 3).all()  # budget 2, three steps
        assert stats.trained.sum() > 0
    for name in ("prob", "margin", "peak", "kl", "region"):
        torch.testing.assert_close(
            getattr(stats, name), getattr(other, name), atol=1e-5, rtol=1e-4, msg=name
        )
    assert left.experts.keys() == right.experts.keys()
    for key, tensors in left.experts.items():
        for name, change in tensors.items():
            close(change, right.experts[key][FUSED_NAMES[name]], f"{key} {name}")
    for layer, gate in left.gates.items():
        for name, change in gate.items():
            close(change, right.gates[layer][name], f"gate {layer} {name}")
    for name, change in left.dense.items():
        close(change, right.dense[name], name)


def close(left: Tensor, right: Tensor, name: str) -> None:
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4, msg=name)
