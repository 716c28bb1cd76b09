"""A reference computed in float64 throughout.

transformers forces float32 inside norms, softmax and rotation whatever the dtype of the model: reference and
candidate can then agree to about 1e-6 only, and a wrong epsilon hides below that. While `all_float64` is on, asking
for float32 gives float64, so the reference's formulas stay what they are and its rounding all but disappears.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def all_float64() -> Iterator[None]:
    """Build and run the reference inside; never run ours inside, or a lost precision of ours would be mended."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            patch.setattr(torch, "float32", torch.float64)
            patch.setattr(torch, "float", torch.float64)
            yield
    finally:
        torch.set_default_dtype(before)
