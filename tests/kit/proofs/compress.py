"""Few bits against PyTorch's quantizers and float types, bitsandbytes' NF4 (recorded), and closed forms."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

from cutaway.compress import normal_float, uniform
from cutaway.compress.floats import FORMATS
from cutaway.compress.simulated import with_inputs, with_weights
from cutaway.weights import blocks

GOLDEN = Path(__file__).parents[2] / "goldens" / "nf4.bitsandbytes.json"
GROUP = 16


def sample(rows: int = 256, width: int = 128) -> Tensor:
    """Numbers with a bell's shape and rows of different sizes, float32: the same bits everywhere."""
    i = torch.arange(rows * width, dtype=torch.int64)
    parts = [
        ((i * a + b) % 2**24).double() / 2**23 - 1 for a, b in ((10_368_889, 31), (6_700_417, 11), (3_267_000_013, 5))
    ]
    return (sum(parts) * (1 + i // width % 7) / 8).view(rows, width).float()


def theirs(x: Tensor, per: uniform.Sharing, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scales, zeros and numbers of PyTorch's observers and kernels for 8 bits; groups are their channels."""
    channels = x.reshape(-1, GROUP) if per == GROUP else x
    low, high, dtype = (-127, 127, torch.qint8) if symmetric else (0, 255, torch.quint8)
    each = per != "tensor"
    scheme = getattr(torch, f"per_{'channel' if each else 'tensor'}_{'symmetric' if symmetric else 'affine'}")
    observer = (partial(PerChannelMinMaxObserver, ch_axis=0) if each else MinMaxObserver)(
        dtype=dtype, qscheme=scheme, quant_min=low, quant_max=high, eps=1e-30
    )
    observer(channels)
    scale, zero = observer.calculate_qparams()
    made = (
        torch.quantize_per_channel(channels, scale, zero, 0, dtype)
        if each
        else torch.quantize_per_tensor(channels, float(scale), int(zero), dtype)
    )
    return made.int_repr(), scale, zero, made.dequantize()


def integers() -> None:
    """Codes, scales, zeros and numbers are PyTorch's, by tensor, row and group, symmetric or not, far from 0 too."""
    for x in (sample(16, 64), sample(16, 64) + 3, sample(16, 64) - 3, sample(16, 64) * 1e-4):
        for per in ("tensor", "row", GROUP):
            for symmetric in (True, False):
                found = uniform.quantize(x, 8, per, symmetric=symmetric)  # type: ignore[arg-type]
                codes, scale, zero, numbers = theirs(x, per, symmetric)  # type: ignore[arg-type]
                case = f"per {per}, symmetric {symmetric}"
                assert found.scale_S1.numel() == scale.numel(), f"other numbers share a scale, {case}"
                assert torch.allclose(found.scale_S1.flatten(), scale.float().flatten(), rtol=1e-6, atol=0), case
                assert torch.equal(found.zero_S1.flatten().int(), zero.flatten().int()), f"zeros, {case}"
                assert torch.equal(found.codes_SE.flatten().int(), codes.flatten().int()), f"codes, {case}"
                assert torch.allclose(found.numbers.flatten(), numbers.flatten(), rtol=1e-5, atol=1e-7), case


def worked() -> None:
    """Four numbers by hand, a half that goes to the even code, and a row of zeros."""
    found = uniform.quantize(torch.tensor([0.8, -1.2, 0.05, 2.54], dtype=torch.float64), 8)
    assert abs(float(found.scale_S1) - 0.02) < 1e-15
    assert found.codes_SE.flatten().tolist() == [40, -60, 2, 127]
    assert torch.allclose(found.numbers, torch.tensor([0.8, -1.2, 0.04, 2.54], dtype=torch.float64))
    assert uniform.quantize(torch.zeros(2, 4), 4, "row").numbers.abs().max() == 0
    assert uniform.quantize(torch.zeros(2, 4), 4, "row", symmetric=False).numbers.abs().max() == 0


def decibels() -> None:
    """On uniform numbers a zero-point quantizer of b bits has a signal to noise of 20 log10 (2^b - 1)."""
    x = torch.linspace(-1, 1, 2**20 + 1, dtype=torch.float64)
    for bits in range(2, 13):
        found = uniform.decibels(x, uniform.quantize(x, bits, symmetric=False).numbers)
        assert abs(found - 20 * math.log10(2**bits - 1)) < 0.1 + 6 * 4.0**-bits * 16, f"{bits} bits: {found:.2f} dB"


def normal() -> None:
    """Tables, codes and scales are those of bitsandbytes, bit for bit."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert normal_float.nf4().tolist() == golden["table"], "another table"
    assert normal_float.dynamic().tolist() == golden["dynamic"], "another table of scales"
    plain, double = (normal_float.quantize(sample(), double=d) for d in (False, True))
    assert isinstance(plain.scale_B, Tensor)
    assert isinstance(double.scale_B, normal_float.Doubled)
    found = {
        "codes": digest(plain.packed), "absmax": digest(plain.scale_B), "numbers": digest(plain.numbers),
        "scale codes": digest(double.scale_B.codes_B), "scales of scales": double.scale_B.scale_S.tolist(),
        "offset": float(double.scale_B.offset), "numbers, double": digest(double.numbers),
    }  # fmt: skip
    differing = [name for name, value in found.items() if golden[name] != value]
    assert not differing, f"{differing} differ"
    assert torch.equal(plain.codes_BE, double.codes_BE)


def digest(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()


def sizes() -> None:
    """Bits a weight as published; a block of zeros stays zeros."""
    assert normal_float.bits(double=False) == 4.5
    assert abs(normal_float.bits(double=True) - 4.127) < 5e-4
    saved = (normal_float.bits(double=False) - normal_float.bits(double=True)) * 65e9 / 8
    assert abs(saved - 3.03e9) < 5e6
    assert normal_float.quantize(torch.zeros(4, 64)).numbers.abs().max() < 1e-7
    assert [uniform.stored_bits(4, 32), uniform.stored_bits(4, 128), uniform.stored_bits(8, 32)] == [4.5, 4.125, 8.5]


TORCH = {
    "FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16, "E4M3": torch.float8_e4m3fn,
    "E5M2": torch.float8_e5m2,
}  # fmt: skip


def floats() -> None:
    """Limits are those of PyTorch's types, and rounding theirs, subnormal numbers and ties among them."""
    generator = torch.Generator().manual_seed(0)
    for name, dtype in TORCH.items():
        form, info = FORMATS[name], torch.finfo(dtype)
        assert (form.largest, form.smallest, 2 * form.roundoff) == (info.max, info.smallest_normal, info.eps), name
        assert form.bits == info.bits
        every = torch.arange(2**16).to(torch.int16).view(torch.float16).double()  # has ties of all smaller formats
        spread = torch.randn(4096, generator=generator).double() * 2.0 ** torch.arange(-24, 8).double().repeat(128)
        x = torch.cat([every, spread])
        x = x[x.abs() <= form.largest].float()
        assert torch.equal(form.round(x), x.to(dtype).double()), f"{name} rounds otherwise"
    e2m1 = torch.tensor(blocks.E2M1_DOUBLED) / 2
    assert set(FORMATS["E2M1"].round(torch.linspace(-9, 9, 999)).tolist()) == set(e2m1.tolist())
    assert FORMATS["E4M3"].round(torch.tensor([1e9])).item() == 448


def twins() -> None:
    """A twin computes with rounded weights, or inputs, and the original does not notice."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 8), nn.Linear(8, 2)
    model, x = nn.Sequential(first, nn.Tanh(), last).double(), torch.randn(5, 4, dtype=torch.float64)
    before = model(x)

    def coarse(numbers: Tensor) -> Tensor:
        return (numbers * 4).round() / 4

    hidden = torch.tanh(x @ coarse(first.weight).T + first.bias)
    expected = hidden @ coarse(last.weight).T + last.bias
    assert torch.allclose(with_weights(model, coarse)(x), expected), "weights are not those rounded"
    expected = coarse(torch.tanh(coarse(x) @ first.weight.T + first.bias)) @ last.weight.T + last.bias
    assert torch.allclose(with_inputs(model, coarse)(x), expected), "inputs are not those rounded"
    assert torch.equal(model(x), before), "the original changed"


PROOFS = {
    "uniform integers": integers,
    "uniform worked": worked,
    "uniform decibels": decibels,
    "normal float": normal,
    "normal float sizes": sizes,
    "float formats": floats,
    "simulated formats": twins,
}
