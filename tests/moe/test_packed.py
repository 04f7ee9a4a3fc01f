"""Packed expert weights: their bytes, their rounding error, their gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe_app.moe.quantised.packed import (
    KINDS,
    PackedStack,
    pack,
    packed_stacks,
    packed_weights,
    placeholder,
    put_packed,
    unpack,
)
from fedmoe_app.moe.quantised.streaming import ExpertList

EXPERTS, OUT, IN = 3, 128, 64


def stack(transposed: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (EXPERTS, IN, OUT) if transposed else (EXPERTS, OUT, IN)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def module_of(stacked: Tensor, kind: str) -> nn.Module:
    module = nn.Module()
    module.num_experts = EXPERTS  # type: ignore[assignment]
    module.up_proj = placeholder(stacked, transposed=False)
    module.up_proj_bias = nn.Parameter(torch.arange(EXPERTS * OUT).view(EXPERTS, OUT).float())
    put_packed(module, "up_proj", pack(stacked, kind, transposed=False))
    return module


@pytest.mark.parametrize(("kind", "nbytes"), [("nf4", 0.5 + 4 / 64), ("int8", 1 + 4 / IN)])
def test_bytes_of_a_value(kind: str, nbytes: float) -> None:
    assert pack(stack(), kind, transposed=False).nbytes() == EXPERTS * OUT * IN * nbytes


def test_nf4_by_hand() -> None:
    """A block of 64 whose largest value is 2: 2 and 0 are exact, 1.4 is between two levels."""
    weight = torch.zeros(2, 1, 64)
    weight[1, 0, :3] = torch.tensor([2.0, -2.0, 1.4])
    packed = pack(weight, "nf4", transposed=False).weight(1, 1, torch.float32).dequantise()
    # Levels of NF4 next to 0.7: 0.5626 and 0.7230 (QLoRA, appendix E).
    expected = torch.tensor([2.0, -2.0, 2 * 0.7229568, 0.0])
    assert torch.allclose(packed[0, :4], expected, atol=1e-6)


def test_int8_by_hand() -> None:
    weight = torch.tensor([[[127.0, 63.0, -1.4]], [[1.0, 0.5, 0.0]]])
    stacks = pack(weight, "int8", transposed=False)
    one = stacks.weight(0, 1, torch.float32)
    assert one.values.tolist() == [[127, 63, -1]]
    assert one.scales.tolist() == [127.0]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_experts_at_once_are_each_of_them(kind: str, transposed: bool) -> None:
    packed = pack(stack(transposed), kind, transposed)
    every = packed.dequantise(OUT, torch.float32)
    for e in range(EXPERTS):
        assert torch.equal(every[e], packed.weight(e, OUT, torch.float32).dequantise())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_map_and_its_gradient(kind: str, dtype: torch.dtype, transposed: bool) -> None:
    stacked = stack(transposed, dtype)
    weight = pack(stacked, kind, transposed).weight(1, OUT, dtype)
    full = weight.dequantise()
    wanted = stacked[1].T if transposed else stacked[1]
    # Half the widest gap of NF4 is 0.152 of a block's largest value; of int8, 1/254.
    share = 0.153 if kind == "nf4" else 0.01
    assert (full - wanted).abs().max() <= share * wanted.abs().max()
    x = torch.randn(5, IN).to(dtype).requires_grad_()
    out = weight.linear(x, torch.ones(OUT, dtype=dtype))
    near = 1e-5 if dtype == torch.float32 else 1e-2
    straight = F.linear(x, full) + 1
    assert (out - straight).norm() < near * straight.norm()
    out.sum().backward()
    assert x.grad is not None
    assert (x.grad[0] - full.sum(0)).norm() < near * full.sum(0).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_gives_the_rounded_stack_and_keeps_biases(kind: str) -> None:
    stacked = stack()
    module = module_of(stacked, kind)
    weights = packed_weights(module)
    assert weights is not None
    assert weights[2]["up_proj"].shape == (OUT, IN)
    assert weights[2]["up_proj_bias"][0] == 2 * OUT
    assert list(module.state_dict()) == ["up_proj", "up_proj_bias"]
    unpack(module)
    assert packed_stacks(module) == {}
    assert packed_weights(module) is None
    full = module.get_parameter("up_proj")
    assert full.shape == stacked.shape
    assert torch.equal(full[1], weights[1]["up_proj"].dequantise())


def test_a_cast_of_the_module_leaves_packed_values_alone() -> None:
    module = module_of(stack(), "nf4")
    before = [buffer.clone() for buffer in module.buffers()]
    module.to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_experts_joined_one_by_one_pack_as_their_stack(kind: str) -> None:
    stacked = stack()
    halves = [list(part) for part in stacked.split(OUT // 2, dim=1)]  # gate and up maps
    lazy = ExpertList(halves)
    assert lazy.shape == stacked.shape
    assert (lazy.dtype, lazy.device) == (stacked.dtype, stacked.device)
    one, other = pack(lazy, kind, transposed=False), pack(stacked, kind, transposed=False)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r'"fp3": unknown quantisation; choose one of nf4, int8'):
        pack(stack(), "fp3", transposed=False)


def test_packed_values_are_no_parameters() -> None:
    assert list(PackedStack(*_empty(), "nf4", False, 0).parameters()) == []


def _empty() -> tuple[Tensor, Tensor]:
    return torch.empty(2, 0, dtype=torch.uint8), torch.empty(2, 0)
