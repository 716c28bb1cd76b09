"""The noise of T5 and BART: what is refused, and the edges. The proofs hold the rest."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.denoising import corrupt_spans, delete_tokens, denoise, fill_spans, infill
from kit.proofs.denoising import MASK, PROOFS, SENTINELS, generator, text


@pytest.mark.parametrize("proof", PROOFS)
def test_noise_is_as_defined(proof: str) -> None:
    PROOFS[proof]()


def test_a_seed_decides() -> None:
    one, same, other = (denoise(text(50), generator(s), mask=MASK, ends={10, 20, 30}).source_S for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.tolist() != other.tolist()


def test_the_shortest_text_and_the_longest_spans() -> None:
    source_S, target_T = corrupt_spans(text(2), generator(0), sentinels=[9], share=1.0)
    assert (source_S.tolist(), target_T.tolist()) == ([1, 9], [9, 2])
    assert infill(text(5), generator(0), mask=9, share=1.0, length=50.0).tolist() == [9]
    assert infill(text(5), generator(0), mask=9, share=0.0).tolist() == [1, 2, 3, 4, 5]


def test_what_an_answer_leaves_out_is_left_out() -> None:
    found = fill_spans(torch.tensor([1, 99, 4, 98]), torch.tensor([7, 99, 2, 3]), {99, 98})
    assert found.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (1, {}, "keeps one and hides one"),
        (40, {"sentinels": [999]}, "for 2 spans"),
        (40, {"sentinels": [7, 8, 9]}, "contains a sentinel"),
        (40, {"share": 1.5}, "no share"),
        (40, {"length": 0.0}, "cannot have 0.0 tokens"),
    ],
)
def test_what_cannot_be_undone_is_refused(words: int, settings: dict, message: str) -> None:
    with pytest.raises(CutawayError, match=message):
        corrupt_spans(text(words), generator(0), **{"sentinels": SENTINELS, **settings})
    with pytest.raises(CutawayError, match="no share"):
        delete_tokens(text(4), generator(0), share=-0.1)
    with pytest.raises(CutawayError, match="cannot have"):
        infill(text(4), generator(0), mask=9, length=-1.0)
