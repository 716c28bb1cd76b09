"""Few bits: see the proofs; here what is refused."""

from __future__ import annotations

import pytest
import torch

from cutaway.compress import normal_float, uniform
from cutaway.errors import CutawayError
from kit.proofs.compress import PROOFS


@pytest.mark.filterwarnings("ignore")  # PyTorch announces that its quantizers will move to another package
@pytest.mark.parametrize("name", PROOFS)
def test_proof(name):
    PROOFS[name]()


@pytest.mark.parametrize(("bits", "per"), [(1, "tensor"), (17, "row"), (8, 5), (8, 0)])
def test_what_cannot_be_quantized_is_refused(bits, per):
    with pytest.raises(CutawayError):
        uniform.quantize(torch.ones(2, 8), bits, per)


@pytest.mark.parametrize("weights", [torch.ones(2, 60), torch.full((2, 64), torch.nan), torch.full((2, 64), torch.inf)])
def test_what_has_no_normal_float_is_refused(weights):
    with pytest.raises(CutawayError):
        normal_float.quantize(weights)
