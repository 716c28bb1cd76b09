"""Block formats against ggml's own Python, and GGUF files of ours against transformers' reader."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from cutaway.models.compare import settings
from cutaway.weights import blocks
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_gguf
from kit import twins

GGUF_TWINS = (
    "llama",
    "qwen2",
    "qwen2-tied",
    "qwen3",
    "gemma2-published",
    "gemma3-published",
    "phi3",
    "phi3-long",
    "gpt2",
    "bloom",
)


def decoding(name: str) -> None:
    """Random blocks, with scales that are ordinary numbers, give the very bits that ggml's decoder gives."""
    form = blocks.FORMATS[name]
    raw = torch.randint(256, (64, form.bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with np.errstate(all="ignore"):  # a scale of random bits may be NaN
        expected = quants.dequantize(raw.numpy(), GGMLQuantizationType[name])
    found = blocks.dequantize(raw, name, (64, form.elements)).numpy()
    ordinary = np.isfinite(expected)
    assert ordinary.mean() > 0.8
    assert np.array_equal(found[ordinary], expected[ordinary]), f"{(found != expected).mean():.0%} of weights differ"


def encoding(name: str) -> None:
    """Our encoder writes the very bytes that ggml's does."""
    weights = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 2, 48)[:, None]
    expected = quants.quantize(weights.numpy(), GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(blocks.quantize(weights, name).numpy(), expected)


def gguf(name: str) -> None:
    """What transformers reads from a GGUF file of ours is the twin itself, bit for bit; so is what we read."""
    twin = twins.twin(name)
    original, kind = twins.ours(twin), type(twin.reference)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        save_gguf(original, twins.Tokenizerless(), path, "F32")  # type: ignore[arg-type]
        found = kind.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32).state_dict()  # type: ignore[attr-defined]
        checkpoint = open_checkpoint(path)
        again = checkpoint.model(torch.float64).state_dict()
    expected = {name: tensor.float() for name, tensor in twin.reference.state_dict().items()}
    assert set(found) == set(expected), f"only one side has {sorted(set(found) ^ set(expected))[:3]}"
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing, f"{differing[:3]} differ"
    assert settings(checkpoint.spec, original.spec) == []
    assert all(torch.equal(again[name], tensor) for name, tensor in original.state_dict().items())


PROOFS = {
    **{f"decoding {name}": partial(decoding, name) for name in blocks.FORMATS},
    **{f"encoding {name}": partial(encoding, name) for name, form in blocks.FORMATS.items() if form.encode},
    **{f"gguf {name}": partial(gguf, name) for name in GGUF_TWINS},
}
