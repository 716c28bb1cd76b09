"""The kernel for GPUs where there is none: its values in Triton's interpreter, and that it compiles."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kit.proofs.paged import PROOFS

COMPILE = """
import json, re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cutaway.engine.paged_kernel import paged

made, kernel = {}, triton.jit(paged)
for chip in (80, 90):
    kinds = dict.fromkeys(("q", "k", "v", "out", "sinks"), "*bf16") | dict.fromkeys(("tiles", "tables"), "*i64")
    kinds |= dict.fromkeys(("scale", "softcap"), "fp32") | dict.fromkeys(("window", "pages"), "i32")
    sizes = dict(SIZE=32, HEADS=9, KV_HEADS=3, WIDTH=24, WIDE=32, TOKENS=16, SHARED=4, KEYS=64, CAPPED=1, SINKS=1)
    fixed = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(kernel, kinds | dict.fromkeys(sizes, "constexpr"), fixed)
    done = triton.compile(source, target=GPUTarget("cuda", chip, 32), options={"num_warps": 4, "num_stages": 2})
    products = {*re.findall("wgmma.mma_async|mma.sync", done.asm["ptx"])}
    made[chip] = [len(done.asm["cubin"]), [*products], done.metadata.shared]
print(json.dumps(made))
"""


@pytest.mark.parametrize("proof", PROOFS)
def test_the_kernel(proof):
    PROOFS[proof]()


def test_the_kernel_compiles_for_gpus(tmp_path, monkeypatch):
    """To machine code of two generations, for their tensor cores, in shared memory that small ones of them have too."""
    pytest.importorskip("triton", reason="Triton is not there")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True, timeout=300)
    made = json.loads(run.stdout)
    assert made["80"][1] == ["mma.sync"]
    assert made["90"][1] == ["wgmma.mma_async"]
    assert all(size > 1000 and shared <= 99 << 10 for size, _, shared in made.values())
