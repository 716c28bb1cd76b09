"""What a model takes in memory beside its packed weights: little, while it is loaded and for a first reply."""

from __future__ import annotations

import ctypes
import gc
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.params import SamplingParams
from cutaway.native.build import library
from cutaway.nn.positions import rotation
from cutaway.weights.checkpoint import STORED, load
from cutaway.weights.save import save_directory, save_gguf
from weights import checkpoints

SIZES = {
    "hidden_size": 512, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
MORE = 1.35  # times the weights; those that also stay in the file's pages would take 2


@cache
def shelf() -> TemporaryDirectory[str]:
    """The same model twice: 22 MB as Q8_0 and 41 MB as bfloat16."""
    made, kept = checkpoints.model(**SIZES), TemporaryDirectory()
    save_gguf(made, checkpoints.tokenizer(), Path(kept.name, "model.gguf"), "Q8_0")
    save_directory(made, checkpoints.tokenizer(), Path(kept.name, "model"), torch.bfloat16)
    return kept


def replied(name: str, prompt: int = 3, reply: int = 100) -> Engine:
    """An engine for one of them that has replied once; tokens of both."""
    engine = engine_of(load(str(Path(shelf().name, name)), STORED), cache=1 << 24)
    params = SamplingParams(temperature=0, max_tokens=reply, ignore_eos=True)
    assert len([*engine.generate([1] * prompt, params)]) == reply
    return engine


def resident(which: str) -> int:
    """Bytes of this process: VmRSS, now; VmHWM, the most since that was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def peak(name: str) -> None:
    """From before the file is opened until the reply has ended."""
    if library() is None:
        return
    replied(name)  # what is loaded once, code above all, is no matter of the model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what others left free would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    engine = replied(name)
    weights = sum(path.stat().st_size for path in Path(shelf().name).glob(f"{name}/*.safetensors"))
    weights = weights or Path(shelf().name, name).stat().st_size
    assert weights / 2 < resident("VmHWM") - before < MORE * weights, f"{engine.context} tokens of context"


def rotations() -> None:
    """Those of the positions that came, and not of the whole context."""
    if library() is None:
        return
    graph = replied("model.gguf", 150, 1).runner.graph  # type: ignore[attr-defined]
    ((rope, made),) = graph.turns.items()
    wanted = rotation(rope, 64, torch.arange(graph.turned), torch.float32)
    assert 150 <= graph.turned <= 256
    torch.testing.assert_close(made[0, : graph.turned], wanted.cos_TK[:, :32])
    torch.testing.assert_close(made[1, : graph.turned], wanted.sin_TK[:, :32])
    assert not made[:, graph.turned :].any()


PROOFS = {
    "footprint gguf": lambda: peak("model.gguf"),
    "footprint safetensors": lambda: peak("model"),
    "footprint rotations": rotations,
}
