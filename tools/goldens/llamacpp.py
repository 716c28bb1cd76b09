"""Goldens from llama.cpp: the best logits of a GGUF model at some positions of some prompts.

    python tools/goldens/llamacpp.py model.gguf tests/goldens/model.llamacpp.json

Needs the packages llama-cpp-python (compiled from source, hence goldens) and gguf, and none of ours. Everything is
computed twice: from the file as it is, where llama.cpp rounds activations to 8 bits before it multiplies them with
quantized weights, and from the same weights dequantized to float32 by the gguf package, where it rounds nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp import Llama

TOP = 50
POSITIONS = 4  # per prompt, the last token's always among them
THREADS = 2
F32 = 0  # ggml's number for the type of keys and values in the cache

TABLE = " ".join(f"{a} times {b} is {a * b}." for a in range(3, 9) for b in range(2, 12))
PROMPTS = {
    "english": "The capital of France is Paris, and the river that flows through it is called the",
    "code": "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b,",
    "mixed": "Ångström, naïve café, 中文分词, emoji 🙂, tabs\tand  spaces: 3.14159 × 2 =",
    "long": TABLE,  # longer than Gemma 3's window of 512
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float32.gguf"
        dequantize(arguments.model, plain)
        runs = {"stored": run(arguments.model), "float32": run(plain)}
    record = {
        "made_by": "tools/goldens/llamacpp.py",
        "sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in ("llama-cpp-python", "gguf", "numpy")},
        "settings": {"threads": THREADS, "cache": "F32", "flash_attention": False},
        "prompts": [
            {"name": name, **runs["stored"][name][0], **{kind: said[name][1] for kind, said in runs.items()}}
            for name in PROMPTS
        ],
    }
    arguments.out.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def run(
    path: Path, prompts: Mapping[str, str] = PROMPTS, context: int = 1024
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Per prompt its ids and positions, and what llama.cpp says at those. context: room for the longest, in tokens."""
    model = Llama(
        str(path), n_ctx=context, n_batch=context, n_threads=THREADS, n_threads_batch=THREADS, logits_all=True,
        type_k=F32, type_v=F32, flash_attn=False, verbose=False,
    )  # fmt: skip
    answers = {}
    for name, text in prompts.items():
        ids = model.tokenize(text.encode(), add_bos=True, special=False)
        positions = sorted({*np.linspace(0, len(ids) - 1, POSITIONS).astype(int).tolist()})
        model.reset()
        model.eval(ids)
        answers[name] = {"ids": ids, "positions": positions}, [best(model.scores[p]) for p in positions]
    model.close()
    return answers


def best(logits_V: np.ndarray) -> dict[str, Any]:
    """The largest logits with their ids, and log(sum(exp)) of all of them."""
    wide_V = logits_V.astype(np.float64)
    ids = np.argsort(-wide_V, kind="stable")[:TOP]
    total = wide_V.max() + np.log(np.exp(wide_V - wide_V.max()).sum())
    return {"ids": ids.tolist(), "logits": [round(v, 5) for v in wide_V[ids].tolist()], "logsumexp": round(total, 5)}


def dequantize(source: Path, target: Path) -> None:
    """The same GGUF file with every tensor in float32, by the gguf package's own arithmetic."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        nested = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], nested)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
