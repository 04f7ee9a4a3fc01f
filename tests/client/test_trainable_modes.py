"""Can a model be trained in a mode? Decided before a run leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DbrxConfig,
    DbrxForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from fedmoe_app import (
    ConfigError,
    UnsupportedModelError,
    find_moe_layers,
    parse_run_config,
    run_in_process,
)
from fedmoe_app.cli.inspect import inspect_model
from fedmoe_app.client import trainable_modes
from fedmoe_app.client.trainable_modes import check_trainable
from fedmoe_app.client.trial import word_tokenizer
from fedmoe_app.launch.preflight import check_sources
from tests.bases import save_base
from tests.conftest import flat_config, make_config

SIZES: dict[str, Any] = dict(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))


def llama4() -> PreTrainedModel:
    own = dict(intermediate_size=16, intermediate_size_mlp=48, num_local_experts=4, head_dim=8)
    return Llama4ForCausalLM(Llama4TextConfig(**SIZES | own))


def dbrx() -> PreTrainedModel:
    sizes: dict[str, Any] = dict(d_model=32, n_heads=4, n_layers=2, vocab_size=61, max_seq_len=64)
    attention = {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}
    experts = {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}
    return DbrxForCausalLM(DbrxConfig(**sizes, attn_config=attention, ffn_config=experts))


def longcat() -> PreTrainedModel:
    heads = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8)
    own = dict(n_routed_experts=4, zero_expert_num=2, expert_ffn_hidden_size=16, moe_topk=2)
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    config: Any = LongcatFlashConfig(
        **sizes | heads | own, num_layers=1, ffn_hidden_size=48, v_head_dim=8, head_dim=8
    )
    return LongcatFlashForCausalLM(config)


def doge() -> PreTrainedModel:
    own = dict(is_moe=True, num_experts=16, num_experts_per_tok=4, intermediate_size=48)
    return DogeForCausalLM(DogeConfig(**SIZES | own))


REFUSED = {
    "llama4": (llama4, "found Llama4TextExperts (gate_up_proj [4, 32, 32], down_proj [4, 16, 32])"),
    "dbrx": (dbrx, "found transformer.blocks.0.ffn.router (DbrxRouter: layer.weight [4, 32])"),
    "longcat": (longcat, "LongcatFlashTopkRouter: classifier.weight [6, 32]"),
    "doge": (doge, "found model.layers.0.mlp (DogeCDMoE: "),
}


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
@pytest.mark.parametrize("family", REFUSED)
def test_a_family_of_another_form_is_refused_everywhere(
    family: str, task: str, tmp_path: Path
) -> None:
    """In inspect, before a SuperLink is started, and on the server before a result folder is."""
    make, found = REFUSED[family]
    row = '{"instruction": "a", "response": "b", "text": "a", "label": "%s"}\n'
    (tmp_path / "rows.jsonl").write_text("".join(row % "yn"[i % 2] for i in range(40)))
    overrides: dict[str, Any] = {
        "model.name": save(make(), tmp_path / "base"),
        "data.source": str(tmp_path / "rows.jsonl"),
        "data.task": task,
        "data.partition": "iid",
        "data.max-length": 16,
        "output-dir": str(tmp_path / "results"),
    }
    flat = flat_config(**overrides)
    for check in (
        lambda: inspect_model(parse_run_config(flat)),
        lambda: check_sources(parse_run_config(flat), 2),
        lambda: run_in_process(flat, 2),
    ):
        with pytest.raises(UnsupportedModelError) as refusal:
            check()
        assert "looked for" in str(refusal.value)
        assert found in str(refusal.value)
    assert not (tmp_path / "results").exists()


MODES: list[dict[str, Any]] = [
    {},
    {"data.task": "causal-lm", "data.partition": "iid", "model.train": "experts"},
    {"data.task": "multiple-choice", "data.partition": "iid", "model.train": "expert-lora"},
    {"model.head": "label-words", "model.train": "expert-lora", "model.attention-lora": True},
    {"model.train": "expert-lora", "model.quantization": "nf4", "model.dtype": "bfloat16"},
    {"model.train": "expert-lora", "model.quantization": "int8", "model.gates": False},
    {"model.train": "experts", "model.experts-in-memory": "chosen", "model.head": "label-words"},
    {"data.task": "causal-lm", "data.partition": "iid", "data.metric": "exact-match"},
    {"train.gradient-checkpointing": True, "model.train": "experts", "model.train-head": False},
]


FAMILIES = ("Qwen3Moe", "DeepseekV3", "SwitchTransformers")


def _works() -> Iterator[Any]:
    """Every mode with every family; those tests are slow in which both are in another one, too.

    Chosen experts are tried with a family of listed ones, which are loaded in a way of their own.
    """
    for row, mode in enumerate(MODES):
        for family in FAMILIES:
            here = FAMILIES.index(family) == (row + 2) % len(FAMILIES)
            marks = [] if here else [pytest.mark.slow]
            name = "-".join((family, ",".join(map(str, mode.values()))))
            yield pytest.param(family, mode, id=name, marks=marks)


@pytest.mark.parametrize(("family", "overrides"), _works())
def test_what_works_passes(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(hidden_size=64, moe_intermediate_size=64)
    if family == "SwitchTransformers":
        sizes = dict(hidden_size=64, d_ff=64)
    save_base(tmp_path / "base", family, **sizes)
    check_trainable(make_config(**{"model.name": str(tmp_path / "base")} | overrides))
    assert len(list((tmp_path / "home/cache/tried").iterdir())) == 1


def test_a_published_size_passes_without_its_weights(tmp_path: Path) -> None:
    config: Any = OlmoeConfig(intermediate_size=1024, vocab_size=50304)  # OLMoE-1B-7B
    config.save_pretrained(tmp_path / "base")
    nf4 = {"model.train": "expert-lora", "model.quantization": "nf4"}
    check_trainable(make_config(**{"model.name": str(tmp_path / "base")} | nf4))


def test_what_passed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(tmp_path / "base", "Olmoe")
    overrides: dict[str, Any] = {"model.name": str(tmp_path / "base"), "model.train": "experts"}
    check_trainable(make_config(**overrides))

    def never(*_: Any) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(trainable_modes, "try_mode", never)
    check_trainable(make_config(**overrides))
    check_trainable(make_config(**overrides | {"num-server-rounds": 3, "train.learning-rate": 1.0}))
    for other in ({"model.train": "all"}, {"data.task": "causal-lm", "data.partition": "iid"}):
        with pytest.raises(AssertionError, match="tried again"):
            check_trainable(make_config(**overrides | other))


class OddConfig(OlmoeConfig):  # type: ignore[misc]
    """A family that nobody has seen; what is odd about it, its config says."""

    model_type = "odd_moe"
    odd: str = ""


class OwnForward(OlmoeExperts):  # type: ignore[misc]
    """Experts that go round transformers' interface: training them one by one does nothing."""

    def forward(self, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in range(self.num_experts):
            gate, up = (x @ self.gate_up_proj[e].T).chunk(2, dim=-1)
            weight = (top_k_weights * (top_k_index == e)).sum(-1, keepdim=True)
            out = out + weight * ((self.act_fn(gate) * up) @ self.down_proj[e].T)
        return out


class OddForCausalLM(OlmoeForCausalLM):  # type: ignore[misc]
    """Odd in the way that its config says."""

    config_class = OddConfig
    # transformers looks for its decorator in the text of the file that a class is in.
    _can_set_experts_implementation_cached_value = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in find_moe_layers(self):
            if config.odd == "own forward":
                layer.experts_module.__class__ = OwnForward
            if config.odd == "reads a weight":
                layer.router.register_forward_hook(self._look(self.model.layers[0].self_attn))

    @staticmethod
    def _look(attention: Any) -> Any:
        def add(module: Any, args: Any, output: Any) -> Any:
            # Packed, the weight has other values: a number that stands for its rows.
            size = attention.v_proj.weight.float().abs().mean()
            return (output[0], output[1] * size, *output[2:])

        return add


@pytest.fixture(scope="module", autouse=True)
def _odd_family() -> None:
    AutoConfig.register("odd_moe", OddConfig, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM, exist_ok=True)


@pytest.mark.parametrize(
    ("odd", "overrides", "reason"),
    [
        ("own forward", {"model.train": "experts"}, "a round of it failed .no expert got a grad"),
        (
            "reads a weight",
            {"model.train": "expert-lora", "model.quantization": "nf4"},
            "the export of what it trained failed .in plain transformers its logits differ",
        ),
    ],
)
def test_an_unknown_family_that_would_fail_in_every_client_is_refused(
    odd: str, overrides: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    sizes = SIZES | dict(hidden_size=64, intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    name = save(OddForCausalLM(OddConfig(**sizes, odd=odd)), tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match=reason) as refusal:
        check_trainable(make_config(**{"model.name": name} | overrides))
    assert f'model.name = "{name}": OddForCausalLM cannot be trained with' in str(refusal.value)
    assert f'model.train = "{overrides["model.train"]}"' in str(refusal.value)
    assert not (tmp_path / "home/cache/tried").exists()


def test_the_same_family_passes_where_nothing_is_odd(tmp_path: Path) -> None:
    sizes = SIZES | dict(hidden_size=64, intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    name = save(OddForCausalLM(OddConfig(**sizes)), tmp_path / "base")
    for train, quantization in (("experts", "none"), ("expert-lora", "nf4")):
        modes = {"model.train": train, "model.quantization": quantization}
        check_trainable(make_config(**{"model.name": name} | modes))


@pytest.mark.parametrize(
    ("saved", "train", "works"),
    [
        ({"quant_method": "fp8"}, "expert-lora", False),
        ({"quant_method": "fp8"}, "all", False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "all", False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "expert-lora", True),
        ({"quant_method": "mxfp4"}, "experts", True),
    ],
)
def test_a_checkpoint_that_is_quantised_already(
    saved: dict[str, Any], train: str, works: bool, tmp_path: Path
) -> None:
    model = save_base(tmp_path / "base", "Qwen3Moe")
    model.config.quantization_config = saved
    model.config.save_pretrained(tmp_path / "base")
    config = make_config(**{"model.name": str(tmp_path / "base"), "model.train": train})
    if works:
        check_trainable(config)
        return
    with pytest.raises(ConfigError, match=rf"quantised already \({saved['quant_method']}\)"):
        check_trainable(config)


def test_a_preset_is_not_tried() -> None:
    check_trainable(make_config())
