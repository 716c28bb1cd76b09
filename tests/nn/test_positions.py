"""Rotations and their scalings against complex numbers, formulae and transformers; what makes no sense is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.models.families import llama
from cutaway.models.families.table import interleaved, spec_of
from cutaway.models.spec import Spec
from cutaway.nn.positions import (
    RopeScaling,
    RopeSpec,
    deinterleave,
    faults,
    rope_frequencies,
    rotate,
    rotation,
    sinusoids,
)
from cutaway.nn.rope_scaling import attention_factor, yarn_mscale
from kit.proofs.positions import PROOFS, ROPES, drawn
from kit.twins import twin

SPEC = RopeSpec(base=300.0)


@pytest.mark.parametrize("proof", [name for name in PROOFS if name.startswith(("rope", "sinusoids"))])
def test_agrees_with_its_reference(proof):
    PROOFS[proof]()


def turned(x_THK: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
    return rotate(x_THK, rotation(SPEC, x_THK.shape[-1], positions_T, torch.float64))


def test_scores_of_a_whole_text_do_not_change_when_it_is_shifted():
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
    assert torch.equal(q, deinterleave(q_THK))


def permuted(x_TD: torch.Tensor) -> torch.Tensor:
    """Two heads' coordinates reordered as rows of a llama's matrix are when a GGUF file is read."""
    via, spec = interleaved(lambda s: 2), spec_of(llama.FAMILY, twin("llama").config)
    (x_DT,) = via.load(x_TD.T, spec)
    assert torch.equal(via.save((x_DT,), spec), x_TD.T)
    return x_DT.T


def test_the_table_is_exact_at_late_positions():
    """In float32 the angle at position 100,000 would be off by about 0.01."""
    table = rotation(RopeSpec(), 64, torch.tensor([100_000]), torch.float32)
    exact = torch.tensor([100_000 * 10_000 ** (-2 * j / 64) for j in range(32)], dtype=torch.float64)
    torch.testing.assert_close(table.cos_TK[0, :32].double(), exact.cos(), atol=1e-7, rtol=0)


def test_published_attention_factors():
    """0.1 ln 4 + 1 (YaRN), sqrt(1 + ln 32 / ln 4096) (Phi-3 128k), 1 for a DeepSeek-V3, none where none is due."""
    assert attention_factor(RopeScaling("yarn", 4.0)) == pytest.approx(1.1386294361)
    assert attention_factor(RopeScaling("longrope", 32.0, original_context=4096)) == pytest.approx(1.1902380714)
    assert attention_factor(RopeScaling("yarn", 40.0, mscale=1.0, mscale_all_dim=1.0)) == 1
    assert attention_factor(RopeScaling("dynamic", 8.0)) == 1
    assert yarn_mscale(0.5) == 1


def test_a_dynamic_scaling_leaves_short_texts_alone():
    dynamic = RopeSpec(1e4, RopeScaling("dynamic", 4.0, original_context=100))
    plain = rope_frequencies(RopeSpec(1e4), 64)
    assert torch.equal(rope_frequencies(dynamic, 64, 100), plain)
    slower = plain / rope_frequencies(dynamic, 64, 200)
    assert slower[0] == 1
    assert slower[-1].item() == pytest.approx(5.0)  # 1 + factor * (200 / 100 - 1)
    assert bool((slower.diff() > 0).all())


def test_rotation_keeps_the_dtype_and_passes_empty_batches():
    x_THK = torch.zeros(0, 2, 10, dtype=torch.bfloat16)
    turn = rotation(SPEC, 10, torch.arange(0), torch.bfloat16, reach=0)
    assert rotate(x_THK, turn).shape == (0, 2, 10)
    assert rotate(x_THK, turn).dtype == torch.bfloat16


def test_sinusoids_of_a_shift_are_a_fixed_rotation():
    """PE(p + 7) is the same linear map of PE(p) at every p, which is why a distance can be learned."""
    here, there = (deinterleave(sinusoids(torch.arange(50) + shift, 16)) for shift in (0, 7))
    angle_k = 7 * rope_frequencies(RopeSpec(), 16)
    sin_Tk, cos_Tk = here.chunk(2, -1)
    moved = sin_Tk * angle_k.cos() + cos_Tk * angle_k.sin(), cos_Tk * angle_k.cos() - sin_Tk * angle_k.sin()
    torch.testing.assert_close(there, torch.cat(moved, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROPES)
def test_what_is_sensible_has_no_faults(name):
    assert list(faults(ROPES[name][1], 20)) == []


YARN = RopeScaling("yarn", 4.0, high=32.0)


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        (RopeSpec(dim=7), "dim"),
        (RopeSpec(dim=22), "dim"),
        (RopeSpec(dim=0), "dim"),
        (RopeSpec(base=1.0), "base"),
        (RopeSpec(base=float("nan")), "base"),
        (RopeSpec(scaling=RopeScaling("spiral", 2.0)), "scaling.kind"),  # type: ignore[arg-type]
        (RopeSpec(scaling=RopeScaling("dynamic", 2.0), dim=2), "scaling.kind"),
        (RopeSpec(scaling=RopeScaling("linear", 0.5)), "scaling.factor"),
        (RopeSpec(scaling=RopeScaling("linear", float("inf"))), "scaling.factor"),
        (RopeSpec(scaling=replace(YARN, low=32.0)), "scaling.low"),
        (RopeSpec(scaling=replace(YARN, low=0.0)), "scaling.low"),
        (RopeSpec(scaling=replace(YARN, original_context=0)), "scaling.original_context"),
        (RopeSpec(scaling=replace(YARN, attention_factor=-1.0)), "scaling.attention_factor"),
        (RopeSpec(scaling=RopeScaling("longrope", 2.0, short=(1.0,) * 10, long=(1.0,) * 9)), "scaling.long"),
        (RopeSpec(scaling=RopeScaling("longrope", 2.0, short=(0.0,) * 10, long=(1.0,) * 10)), "scaling.short"),
    ],
)
def test_nonsense_is_named(rope, field):
    assert {name for name, _ in faults(rope, 20)} == {field}


def test_a_spec_with_a_rope_needs_an_even_head():
    with pytest.raises(CutawayError, match="is odd"):
        Spec.from_dict(odd_head())


def odd_head() -> dict:
    norm = {"kind": "rms", "eps": 1e-6}
    attention = {"heads": 2, "kv_heads": 2, "head_dim": 5, "scale": 1.0, "rope": {"base": 1e4}}
    layer = {"attention": attention, "ffn": {"width": 8, "activation": "silu", "gated": True}, "norm": norm}
    sizes = {"family": "llama", "vocab": 9, "width": 10, "context": 16}
    return {**sizes, "embedding": {}, "layers": [layer], "final_norm": norm, "head": {"tied": True}}
