"""Codecs: what comes back, in how many bytes, and every length that cannot be."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

from fedmoe_app.wire.codecs import CODEC_NAMES, Offer, choose, make_codec
from fedmoe_app.wire.codecs.base import rows_of
from fedmoe_app.wire.errors import InvalidUpdateError

SHAPES = [(40, 96), (64, 8), (5, 33)]
SIZE = sum(a * b for a, b in SHAPES)
ROWS = rows_of(SHAPES)
VALUES = 1e-3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


def round_trip(name: str, values: torch.Tensor = VALUES, seed: int = 0) -> torch.Tensor:
    codec = make_codec(name, topk_share=0.1)
    return codec.decode(memoryview(codec.encode(values, ROWS, [seed])), ROWS)


def test_short_rows_share_a_scale_with_their_neighbours() -> None:
    assert ROWS == ((40, 96), (8, 64), (2, 66), (1, 33))
    assert rows_of([(3, 2), (0, 4), ()]) == ((1, 6), (1, 1))


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_the_same_seed_gives_the_same_bytes_of_the_expected_number(name: str) -> None:
    codec = make_codec(name, topk_share=0.1)
    coded = codec.encode(VALUES, ROWS, [7])
    assert coded == codec.encode(VALUES.clone(), ROWS, [7])
    assert len(coded) <= codec.max_bytes(ROWS)
    kept = round(0.1 * SIZE)
    values = {"fp32": 4 * kept, "fp16": 2 * kept, "bf16": 2 * kept, "int8": kept + 8}
    values["int4"] = -(-kept // 2) + 2 * -(-kept // 64)
    whole = {"fp32": 4 * SIZE, "fp16": 2 * SIZE, "bf16": 2 * SIZE, "int8": SIZE + 4 * 51}
    whole["int4"] = -(-SIZE // 2) + 2 * -(-SIZE // 64)
    first, _, second = name.partition("+")
    if first == "topk":  # a header, and a byte a position
        assert len(coded) == 9 + kept + values[second or "fp32"]
    else:
        assert len(coded) == whole[first]


@pytest.mark.parametrize(
    ("name", "error"), [("fp32", 0), ("fp16", 1e-3), ("bf16", 5e-3), ("int8", 0.02), ("int4", 0.12)]
)
def test_what_comes_back_is_near(name: str, error: float) -> None:
    lost = (round_trip(name) - VALUES).norm() / VALUES.norm()
    assert lost <= error
    kept = round_trip("topk" if name == "fp32" else f"topk+{name}")
    largest = VALUES.abs() >= VALUES.abs().sort(descending=True).values[round(0.1 * SIZE) - 1]
    assert torch.equal(kept != 0, largest)
    assert (kept[largest] - VALUES[largest]).norm() <= error * VALUES[largest].norm()


def test_stochastic_rounding_is_right_on_average() -> None:
    values = torch.linspace(-1, 1, SIZE)
    mean = torch.stack([round_trip("int8", values, seed) for seed in range(200)]).mean(dim=0)
    # A step is 1/127; the mean of 200 roundings deviates by at most 0.5/sqrt(200) of it.
    assert float((mean - values).abs().mean()) < 1 / 127 / 20
    assert not torch.equal(round_trip("int8", values, 1), round_trip("int8", values, 2))


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_zeros_and_tiny_values_come_back(name: str) -> None:
    assert torch.equal(round_trip(name, torch.zeros(SIZE)), torch.zeros(SIZE))
    assert float(round_trip(name, torch.full((SIZE,), 1e-38)).abs().max()) < 1e-30


def test_int4_decodes_as_bitsandbytes_does() -> None:
    size = 64 * 20
    values, rows = VALUES[:size], ((20, 64),)
    codec = make_codec("int4")
    coded = codec.encode(values, rows, [0])
    scales = torch.frombuffer(bytearray(coded[:40]), dtype=torch.bfloat16).float()
    packed = torch.frombuffer(bytearray(coded[40:]), dtype=torch.uint8).unsqueeze(1)
    state = QuantState(
        scales, torch.Size([size]), get_4bit_type("nf4", "cpu"), 64, "nf4", torch.float32
    )
    theirs = dequantize_4bit(packed, state).flatten()
    assert torch.equal(codec.decode(memoryview(coded), rows), theirs)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.05, 0.3, 1.0])
def test_positions_of_any_density_come_back(share: float) -> None:
    size = 70_000
    values = torch.randn(size, generator=torch.Generator().manual_seed(2))
    codec, rows = make_codec("topk", share), ((size // 100, 100),)
    decoded = codec.decode(memoryview(codec.encode(values, rows, [])), rows)
    assert int((decoded != 0).sum()) == max(1, round(share * size))
    assert torch.equal(decoded[decoded != 0], values[decoded != 0])


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_no_wrong_length_is_decoded(name: str) -> None:
    codec = make_codec(name)
    coded = codec.encode(VALUES, ROWS, [0])
    for wrong in (b"", coded[:-1], coded[:7], coded + b"\0"):
        with pytest.raises(InvalidUpdateError):
            codec.decode(memoryview(wrong), ROWS)


@pytest.mark.parametrize("name", ["int8", "int4", "topk+int8", "topk+int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(name: str, value: float) -> None:
    broken = VALUES.clone()
    broken[3] = value
    with pytest.raises(InvalidUpdateError, match="a scale is NaN, infinite"):
        round_trip(name, broken)


def test_positions_beyond_the_vector_are_refused() -> None:
    codec = make_codec("topk", 0.01)
    coded = bytearray(codec.encode(VALUES, ROWS, [0]))
    coded[0:4] = (2**31).to_bytes(4, "little")
    with pytest.raises(InvalidUpdateError, match="keeps 2147483648 of"):
        codec.decode(memoryview(coded), ROWS)
    coded = bytearray(codec.encode(VALUES, ROWS, [0]))
    coded[9 : 9 + 20] = b"\xfe" * 20
    with pytest.raises(InvalidUpdateError, match="positions up to"):
        codec.decode(memoryview(coded), ROWS)


def test_a_node_answers_in_what_it_knows() -> None:
    offer = Offer(("zip", "topk+int4", "fp32"), topk_share=0.2)
    chosen = [choose(offer, own) for own in (None, "fp32", "int8")]
    assert [codec and codec.name for codec in chosen] == ["topk+int4", "fp32", "topk+int4"]
    assert choose(Offer(("zip",))) is None
    with pytest.raises(ValueError, match='"zip": unknown codec; choose one of fp32, fp16'):
        make_codec("zip")
