"""Record what bitsandbytes makes of a sample in NF4: `PYTHONPATH=tests python tools/goldens/bitsandbytes_nf4.py`.

Needs `bitsandbytes` (recorded with 0.50.2). Its kernel for float32 on CPUs finds the 8-bit codes of scales by a table
of 2^16 steps, and takes the neighbor for about one in a thousand that lies on an edge. Its code for other types
compares with all 256 numbers, as its kernel for GPUs does, and is asked here.
"""

from __future__ import annotations

import json

import bitsandbytes
import bitsandbytes.functional as bnb
import torch

from kit.proofs.compress import GOLDEN, digest, sample


def main() -> None:
    x = sample()
    packed, plain = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    offset, dynamic = plain.absmax.mean(), bnb.create_dynamic_map()
    exact = torch.ops.bitsandbytes.quantize_blockwise.default
    codes, scales = exact((plain.absmax - offset).double(), dynamic, 256)
    absmax = bnb.dequantize_blockwise(codes, absmax=scales, code=dynamic, blocksize=256) + offset
    numbers = torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, 64, "nf4", x.shape, torch.float32)
    golden = {
        "made_by": "tools/goldens/bitsandbytes_nf4.py",
        "versions": {"bitsandbytes": bitsandbytes.__version__},
        "table": plain.code.tolist(),
        "dynamic": dynamic.tolist(),
        "codes": digest(packed.flatten()),
        "absmax": digest(plain.absmax),
        "numbers": digest(bnb.dequantize_4bit(packed, plain)),
        "scale codes": digest(codes),
        "scales of scales": scales.tolist(),
        "offset": float(offset),
        "numbers, double": digest(numbers),
    }
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
