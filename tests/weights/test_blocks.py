"""Block formats against ggml's own Python reference (`gguf.quants`), bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.weights import blocks, gguf

FORMATS = list(blocks.FORMATS)
WRITABLE = [name for name, form in blocks.FORMATS.items() if form.encode]
QUANTIZED = [name for name, form in blocks.FORMATS.items() if form.elements > 1]


def same_numbers(ours: Tensor, theirs: np.ndarray) -> None:
    """Equal bit for bit, signs of zeros included; NaN equals NaN whatever its payload."""
    a, b = ours.numpy(), np.asarray(theirs, np.float32)
    assert a.shape == b.shape
    nan = np.isnan(a)
    np.testing.assert_array_equal(nan, np.isnan(b))
    np.testing.assert_array_equal(a.view(np.uint32)[~nan], b.view(np.uint32)[~nan])


def reference(raw: Tensor, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with np.errstate(all="ignore"):
        kind = GGMLQuantizationType[name]
        return quants.dequantize(raw.numpy().reshape(*shape[:-1], -1), kind).reshape(shape)


def encoded(weights: Tensor, name: str) -> np.ndarray:
    kind = GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        return quants.quantize(weights.numpy(), kind).view(np.uint8)


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.mark.parametrize("name", FORMATS)
def test_table_agrees_with_ggml(name: str) -> None:
    form, kind = blocks.FORMATS[name], GGMLQuantizationType[name]
    assert form.id == kind.value
    assert (form.elements, form.bytes) == GGML_QUANT_SIZES[kind]
    assert form.bits == 8 * form.bytes / form.elements


@pytest.mark.parametrize("name", QUANTIZED)
def test_docstring_says_bits_per_weight(name: str) -> None:
    form = blocks.FORMATS[name]
    told = (form.split or form.plain).__doc__
    assert told.startswith(f"{name}, {form.bytes} bytes for {form.elements} weights, {form.bits:g} bits")


@pytest.mark.parametrize("name", FORMATS)
def test_decodes_random_bytes(name: str, draw: torch.Generator) -> None:
    """Any bytes are a valid block: scales of NaN, infinity and subnormals too. Several chunks of them."""
    form = blocks.FORMATS[name]
    shape = (5, blocks.CHUNK // form.elements // 2, form.elements)
    raw = torch.randint(0, 256, (form.nbytes(shape),), dtype=torch.uint8, generator=draw)
    same_numbers(blocks.dequantize(raw, name, shape), reference(raw, name, shape))


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55])
@pytest.mark.parametrize("name", FORMATS)
def test_decodes_adversarial_bytes(name: str, fill: int) -> None:
    """Codes at their ends under every kind of scale: each two bytes in turn are ±0, ±1, ±inf, tiny, huge."""
    form = blocks.FORMATS[name]
    halves = torch.tensor([0.0, -0.0, 1.0, -1.0, 65504, 6e-8, float("inf"), float("-inf")], dtype=torch.float16)
    raw = torch.full((len(halves) * (form.bytes // 2), form.bytes), fill, dtype=torch.uint8)
    for row in range(len(raw)):
        at = row // len(halves) * 2
        raw[row, at : at + 2] = halves[row % len(halves), None].view(torch.uint8)
    shape = (len(raw), form.elements)
    same_numbers(blocks.dequantize(raw, name, shape), reference(raw, name, shape))


def weights_like(kind: str, draw: torch.Generator) -> Tensor:
    """64 blocks of 256 weights in which rounding, signs or scales are hard."""
    noise = torch.randn(64, 256, generator=draw)
    makers: dict[str, Callable[[], Tensor]] = {
        "normal": lambda: noise * 0.02,
        "wide": lambda: noise * 10 ** torch.linspace(-6, 3, 64)[:, None],
        "zero": lambda: torch.zeros(64, 256),
        "one weight": lambda: torch.nn.functional.one_hot(torch.arange(64), 256).float() * -3,
        "constant": lambda: torch.linspace(-2, 2, 64)[:, None].expand(64, 256).contiguous(),
        "ties": lambda: torch.randint(-16, 17, (64, 256), generator=draw) / 2,
        "halves": lambda: torch.randint(-254, 255, (64, 256), generator=draw) / 2 + 127.5 * (noise > 2),
        "tiny": lambda: noise * 1e-9,
        "positive": lambda: noise.abs() + 1,
        "negative": lambda: -noise.abs() - 1,
        "far from zero": lambda: noise * 1e-3 + 100,
    }
    return makers[kind]().float()


KINDS = ["normal", "wide", "zero", "constant", "ties", "halves", "tiny", "positive", "negative"]
KINDS += ["one weight", "far from zero"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITABLE)
def test_encodes_as_ggml(name: str, kind: str, draw: torch.Generator) -> None:
    weights = weights_like(kind, draw)
    ours = blocks.quantize(weights, name)
    assert ours.shape == (64, blocks.FORMATS[name].nbytes((256,)))
    np.testing.assert_array_equal(ours.numpy(), encoded(weights, name))


@pytest.mark.parametrize("name", WRITABLE)
def test_encodes_more_than_one_chunk(name: str, draw: torch.Generator) -> None:
    weights = torch.randn(3, blocks.CHUNK // 2, generator=draw)
    np.testing.assert_array_equal(blocks.quantize(weights, name).numpy(), encoded(weights, name))


@pytest.mark.parametrize(("name", "levels"), [("Q8_0", 254), ("Q5_1", 31), ("Q5_0", 31), ("Q4_1", 15), ("Q4_0", 15)])
def test_round_trip_error_is_below_one_step(name: str, levels: int, draw: torch.Generator) -> None:
    """A step is at most the extent over the number of levels; symmetric codes cut the short side by one."""
    weights = torch.rand(100, 32, generator=draw) * 2 - 1
    again = blocks.dequantize(blocks.quantize(weights, name), name, weights.shape)
    assert (again - weights).abs().amax() <= 2 / levels * 1.1
    assert (again - weights).abs().mean() <= 2 / levels * 0.3


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_formats_keep_infinity_and_nan(name: str) -> None:
    weights = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0])
    same_numbers(blocks.dequantize(blocks.quantize(weights, name), name, (4,)), weights.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [name for name in WRITABLE if name in QUANTIZED])
def test_blocks_refuse_what_they_cannot_hold(name: str, bad: float) -> None:
    weights = torch.zeros(3, 64)
    weights[1, 40] = bad
    with pytest.raises(CutawayError, match="NaN or infinite"):
        blocks.quantize(weights, name)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_overflow_of_half_precision_is_refused(name: str) -> None:
    with pytest.raises(CutawayError, match="too large"):
        blocks.quantize(torch.linspace(-1, 1, 32) * 1e8, name)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_weight_too_small_for_a_step_becomes_zero(name: str) -> None:
    if blocks.FORMATS[name].encode:
        weights = torch.full((2, 32), 1e-41)
        again = blocks.dequantize(blocks.quantize(weights, name), name, (2, 32))
        assert not again.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decodes_to_other_dtypes(dtype: torch.dtype, draw: torch.Generator) -> None:
    raw = blocks.quantize(torch.randn(4, 64, generator=draw), "Q4_1")
    loaded = blocks.dequantize(raw, "Q4_1", (4, 64), dtype)
    assert loaded.dtype == dtype
    assert torch.equal(loaded, blocks.dequantize(raw, "Q4_1", (4, 64)).to(dtype))


def test_bytes_need_not_be_aligned(draw: torch.Generator) -> None:
    weights = torch.randn(7, 32, generator=draw)
    for name in WRITABLE:
        raw = blocks.quantize(weights, name)
        shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), raw.view(-1)])[1:]
        assert torch.equal(blocks.dequantize(shifted, name, (7, 32)), blocks.dequantize(raw, name, (7, 32)))


def test_strided_input_and_empty_tensors() -> None:
    weights = torch.randn(64, 32).t()
    assert torch.equal(blocks.quantize(weights, "Q8_0"), blocks.quantize(weights.contiguous(), "Q8_0"))
    assert blocks.quantize(torch.zeros(0, 32), "Q4_0").shape == (0, 18)
    assert blocks.dequantize(torch.zeros(0, dtype=torch.uint8), "Q4_K", (0, 256)).shape == (0, 256)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(CutawayError, match=r"rows of 33 weights .* Q8_0 blocks of 32"):
        blocks.quantize(torch.zeros(2, 33), "Q8_0")
    with pytest.raises(CutawayError, match=r"rows of 288 weights .* blocks of 256"):
        blocks.dequantize(torch.zeros(144, dtype=torch.uint8), "Q4_K", (288,))
    with pytest.raises(CutawayError, match=r"takes 36 bytes, not 35"):
        blocks.dequantize(torch.zeros(35, dtype=torch.uint8), "Q4_0", (2, 32))
    with pytest.raises(CutawayError, match=r"'Q9_9' \(known: F32, F16"):
        blocks.dequantize(torch.zeros(1, dtype=torch.uint8), "Q9_9", (1,))
    with pytest.raises(CutawayError, match=r"Q6_K can be read but not written \(write one of F32"):
        blocks.quantize(torch.zeros(256), "Q6_K")


def check_file(path: Path) -> set[str]:
    """Every tensor of a real file, or its first 130,000 weights: enough blocks, and a small bill."""
    file = gguf.read(path)
    for name, info in file.tensors.items():
        width = info.shape[-1]
        raw = file.raw(name).view(-1, blocks.FORMATS[info.type].nbytes([width]))[: 2**17 // width + 1]
        shape = (len(raw), width)
        same_numbers(blocks.dequantize(raw, info.type, shape), reference(raw, info.type, shape))
    return {info.type for info in file.tensors.values()}


def test_real_smollm2(smollm2_gguf: Path) -> None:
    assert check_file(smollm2_gguf) == {"F32", "Q4_1", "Q8_0"}


def test_real_gemma3(gemma3_gguf: Path) -> None:
    assert check_file(gemma3_gguf) == {"F32", "Q5_0", "Q8_0", "Q4_K", "Q6_K"}
