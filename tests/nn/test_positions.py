"""Rotation against complex numbers, its frequencies against transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cutaway.errors import CutawayError
from cutaway.models.families import llama
from cutaway.models.families.table import interleaved, spec_of
from cutaway.models.spec import Spec
from cutaway.nn.positions import RopeScaling, RopeSpec, rope_frequencies, rotate, rotation
from kit.precision import all_float64
from kit.twins import LLAMA3, twin

SPEC = RopeSpec(base=300.0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turned(x_THK: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
    return rotate(x_THK, rotation(SPEC, x_THK.shape[-1], positions_T, torch.float64))


def test_a_pair_turns_as_a_complex_number_does():
    x_THK, positions_T = drawn(5, 3, 10), torch.tensor([0, 1, 2, 40, 7])
    angle_Tk = positions_T[:, None] * 300.0 ** (-torch.arange(5, dtype=torch.float64) / 5)
    as_complex = torch.complex(x_THK[..., :5], x_THK[..., 5:]) * torch.polar(torch.ones(1).double(), angle_Tk)[:, None]
    torch.testing.assert_close(turned(x_THK, positions_T), torch.cat([as_complex.real, as_complex.imag], -1))


def test_scores_depend_on_the_distance_alone():
    q_THK, k_THK, positions_T = drawn(6, 2, 10), drawn(6, 2, 10) * 0.7, torch.arange(6)
    near, far = (
        torch.einsum("qhk,shk->hqs", turned(q_THK, positions_T + shift), turned(k_THK, positions_T + shift))
        for shift in (0, 1234)
    )
    torch.testing.assert_close(near, far)


def test_the_two_layouts_give_the_same_scores():
    """Meta's layout pairs neighbors; GGUF stores llama's weights so, and they are permuted when they are read."""
    q_THK, k_THK, positions_T = drawn(6, 2, 10), drawn(6, 2, 10) * 0.7, torch.arange(6)
    angle_Tk = positions_T[:, None] * rope_frequencies(SPEC, 10)
    turn_T1k = torch.polar(torch.ones(1).double(), angle_Tk)[:, None]
    q_pairs, k_pairs = (torch.view_as_complex(x.reshape(6, 2, 5, 2)) * turn_T1k for x in (q_THK, k_THK))
    expected_HQS = torch.einsum("qhk,shk->hqs", q_pairs, k_pairs.conj()).real
    q, k = (permuted(x.reshape(6, 20)).reshape(6, 2, 10) for x in (q_THK, k_THK))
    found_HQS = torch.einsum("qhk,shk->hqs", turned(q, positions_T), turned(k, positions_T))
    torch.testing.assert_close(found_HQS, expected_HQS)


def permuted(x_TD: torch.Tensor) -> torch.Tensor:
    """Two heads' coordinates reordered as rows of a llama's matrix are when a GGUF file is read."""
    via, spec = interleaved(lambda s: 2), spec_of(llama.FAMILY, twin("llama").config)
    (x_DT,) = via.load(x_TD.T, spec)
    assert torch.equal(via.save((x_DT,), spec), x_TD.T)
    return x_DT.T


@pytest.mark.parametrize(
    ("theirs", "scaling"),
    [
        (LLAMA3, RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
        ({"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}, RopeScaling("linear", 3.0)),
    ],
)
def test_scaled_frequencies_are_those_of_transformers(theirs, scaling):
    with all_float64():
        config = transformers.LlamaConfig(head_dim=64, rope_parameters=theirs)
        expected, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    assert factor == 1.0
    torch.testing.assert_close(rope_frequencies(RopeSpec(500.0, scaling), 64), expected, rtol=1e-14, atol=0)


def test_the_table_is_exact_at_late_positions():
    """In float32 the angle at position 100,000 would be off by about 0.01."""
    table = rotation(RopeSpec(), 64, torch.tensor([100_000]), torch.float32)
    exact = torch.tensor([100_000 * 10_000 ** (-2 * j / 64) for j in range(32)], dtype=torch.float64)
    torch.testing.assert_close(table.cos_TK[0, :32].double(), exact.cos(), atol=1e-7, rtol=0)


def test_a_spec_with_a_rope_needs_an_even_head():
    with pytest.raises(CutawayError, match="is odd"):
        Spec.from_dict(odd_head())


def odd_head() -> dict:
    norm = {"kind": "rms", "eps": 1e-6}
    attention = {"heads": 2, "kv_heads": 2, "head_dim": 5, "scale": 1.0, "rope": {"base": 1e4}}
    layer = {"attention": attention, "ffn": {"width": 8, "activation": "silu", "gated": True}, "norm": norm}
    sizes = {"family": "llama", "vocab": 9, "width": 10, "context": 16}
    return {**sizes, "embedding": {}, "layers": [layer], "final_norm": norm, "head": {"tied": True}}
