"""What to make of a dense model: the method, the sizes, and the MoE family of its architecture."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from fedmoe_app.config.errors import ConfigError

METHODS = ("split", "copy")
DEAD = 64  # zero neurons of a shared expert that is not wanted: one of width 0 warns when built

# Dense family -> its MoE sibling. Attention must be computed alike, so that its weights are taken
# over as they are; Qwen3-MoE normalises queries and keys as Qwen3 does and has no shared expert.
SIBLINGS: dict[str, type[PreTrainedConfig]] = {
    "llama": Qwen2MoeConfig,
    "mistral": Qwen2MoeConfig,
    "qwen2": Qwen2MoeConfig,
    "qwen3": Qwen3MoeConfig,
}
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Plan:
    """What to make of each feed-forward layer.

    Attributes:
        method: ``split`` or ``copy``.
        layers: the last so many become MoE layers; 0: all.
        experts: E, routed experts a layer.
        top_k: k, experts that a token is sent to.
        shared: neurons of the shared expert, which all tokens use; None: about two thirds of the
            layer's, 0 for a family without one. Only for ``split``.
        refit: solve the down projections anew, so that the experts chosen stand in for the others.
        balance: shift the router until the experts are used alike.
        router_scale: standard deviation of the router's logits over tokens and experts.
        ridge: pull of the refit towards the dense weights, in mean squares of a neuron.
        seed: of the grouping, and of the random router of ``copy``.
    """

    method: str = "split"
    layers: int = 4
    experts: int = 8
    top_k: int = 2
    shared: int | None = None
    refit: bool = True
    balance: bool = True
    router_scale: float = 1.0
    ridge: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """A plan in the numbers of one model.

    Attributes:
        first: index of the first MoE layer.
        shared: neurons of the shared expert, 0 where it is dead or there is none.
        width: neurons of a routed expert.
        shared_width: neurons that the shared expert is stored with; None for a family without one.
    """

    first: int
    shared: int
    width: int
    shared_width: int | None


def check_family(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model that no MoE family of transformers can take over.

    Args:
        name: of the model, for the message.
        config: of the dense model.

    Raises:
        ConfigError: another family, biases that the sibling lacks, a quantised checkpoint.
    """
    family = config.model_type
    if family not in SIBLINGS:
        raise ConfigError(
            f"{name}: {family} has no Mixture-of-Experts sibling in transformers whose attention "
            f"is computed alike; choose a model of one of {', '.join(SIBLINGS)}"
        )
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False) and not (family == "qwen3" and key == "attention_bias"):
            raise ConfigError(
                f"{name}: {key} = true, and {SIBLINGS[family].model_type} has no such biases; "
                "choose a model without them"
            )
    if family == "qwen3" and len(set(config.layer_types)) > 1:
        raise ConfigError(
            f"{name}: layer_types mixes full and sliding attention, which qwen3_moe cannot; "
            "choose a model with one kind"
        )


def sizes_of(plan: Plan, config: PreTrainedConfig) -> Sizes:
    """Return a plan's numbers for a dense model.

    Raises:
        ConfigError: a value out of range, or neurons that do not divide; it names the choices.
    """
    depth, neurons = config.num_hidden_layers, config.intermediate_size
    if plan.method not in METHODS:
        raise ConfigError(f"--method {plan.method}: unknown; choose one of {', '.join(METHODS)}")
    for option, value, least, most in (
        ("--layers", plan.layers, 0, depth),
        ("--experts", plan.experts, 2, neurons),
        ("--top-k", plan.top_k, 1, plan.experts),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{option} {value}: give it a value from {least} to {most}")
    has_shared = SIBLINGS[config.model_type] is Qwen2MoeConfig
    first = depth - plan.layers if plan.layers else 0
    if plan.method == "copy":
        if plan.shared:
            raise ConfigError(f'--shared {plan.shared}: method "copy" has no shared expert')
        return Sizes(first, 0, neurons, DEAD if has_shared else None)
    shared = _shared(plan, neurons, has_shared)
    if shared and not has_shared:
        raise ConfigError(
            f"--shared {shared}: {SIBLINGS[config.model_type].model_type} has no shared expert; "
            "give it 0"
        )
    if not 0 <= shared < neurons or (neurons - shared) % plan.experts:
        near = sorted(range(neurons % plan.experts, neurons, plan.experts), key=_from(shared))[:2]
        raise ConfigError(
            f"--shared {shared}: the layer has {neurons} neurons, and the {neurons - shared} that "
            f"are left do not divide by --experts {plan.experts}; near values that fit: "
            f"{', '.join(map(str, sorted(near)))}"
        )
    width = (neurons - shared) // plan.experts
    return Sizes(first, shared, width, (shared or DEAD) if has_shared else None)


def _from(wanted: int) -> Any:
    return lambda value: (abs(value - wanted), value)


def _shared(plan: Plan, neurons: int, has_shared: bool) -> int:
    if plan.shared is not None:
        return plan.shared
    if not has_shared:
        return 0
    # A third is routed, in experts whose width is a multiple of 64, which 4 bits need, where it can
    # be.
    for step in (64, 8, 1):
        if routed := neurons // 3 // (plan.experts * step) * plan.experts * step:
            return neurons - routed
    return neurons % plan.experts


def moe_config(dense: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """Return the config of the MoE model; layers before the first MoE layer stay dense."""
    sizes = sizes_of(plan, dense)
    family = dense.model_type
    values: dict[str, Any] = {key: copy.deepcopy(getattr(dense, key, None)) for key in _KEPT}
    if values["head_dim"] is None:
        values["head_dim"] = dense.hidden_size // dense.num_attention_heads
    values |= _attention(dense)
    values |= {
        "num_experts": plan.experts,
        "num_experts_per_tok": plan.top_k,
        "moe_intermediate_size": sizes.width,
        "norm_topk_prob": True,
        "mlp_only_layers": list(range(sizes.first)),
    }
    if sizes.shared_width is not None:
        values["shared_expert_intermediate_size"] = sizes.shared_width
        values["qkv_bias"] = family == "qwen2"
    else:
        values["attention_bias"] = dense.attention_bias
    return SIBLINGS[family](**values)


def _attention(dense: PreTrainedConfig) -> dict[str, Any]:
    """Return which layers see a window only, as the sibling says it."""
    window = dense.to_dict().get("sliding_window")
    kinds = getattr(dense, "layer_types", None)
    if kinds is None:  # Mistral says it once for all layers
        kinds = ["sliding_attention" if window else "full_attention"] * dense.num_hidden_layers
    if "sliding_attention" not in kinds:
        return {"use_sliding_window": False}
    only_window = {"use_sliding_window": True, "sliding_window": window}
    return only_window if dense.model_type == "qwen3" else only_window | {"layer_types": kinds}
