"""Hidden words: the shares of BERT's recipe, against the collator of transformers and by definition."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from cutaway.errors import CutawayError
from cutaway.nn.losses import IGNORED
from cutaway.nn.masking import Masked, mask_tokens

COUNT, MASK, VOCAB = 200_000, 4, 50


def text() -> torch.Tensor:
    return torch.randint(5, VOCAB, (COUNT,), generator=torch.Generator().manual_seed(1))


def masked(seed: int = 0, **settings: object) -> Masked:
    return mask_tokens(text(), torch.Generator().manual_seed(seed), mask=MASK, vocab=VOCAB, **settings)  # type: ignore[arg-type]


def shares(tokens_T: torch.Tensor, found: Masked) -> list[float]:
    """Of all tokens the chosen; of those the masked, those that stay, those that became another."""
    chosen_T = found.targets_T != IGNORED
    inputs, tokens = found.inputs_T[chosen_T], tokens_T[chosen_T]
    fates = [inputs == MASK, inputs == tokens, (inputs != MASK) & (inputs != tokens)]
    return [float(chosen_T.double().mean()), *(float(fate.double().mean()) for fate in fates)]


def test_targets_are_the_chosen_tokens_and_all_others_stay() -> None:
    found = masked()
    chosen_T = found.targets_T != IGNORED
    assert torch.equal(found.targets_T[chosen_T], text()[chosen_T])
    assert torch.equal(found.inputs_T[~chosen_T], text()[~chosen_T])


def test_shares_are_those_of_transformers() -> None:
    words = {
        name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(5, VOCAB))])
    }
    library = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    roles = {f"{r}_token": f"[{r.upper()}]" for r in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, **roles)
    torch.manual_seed(0)
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)([{"input_ids": text().tolist()}])
    expected = shares(text(), Masked(theirs["input_ids"][0], theirs["labels"][0]))
    assert shares(text(), masked()) == pytest.approx(expected, abs=0.01)
    assert shares(text(), masked()) == pytest.approx([0.15, 0.8, 0.1 + 0.1 / VOCAB, 0.1 - 0.1 / VOCAB], abs=0.008)


def test_special_tokens_are_never_chosen() -> None:
    found = masked(share=1.0, special=(7, 9))
    special_T = (text() == 7) | (text() == 9)
    assert torch.equal(found.targets_T == IGNORED, special_T)


def test_a_seed_decides() -> None:
    assert all(torch.equal(a, b) for a, b in zip(masked(3), masked(3), strict=True))
    assert not torch.equal(masked(3).inputs_T, masked(4).inputs_T)


@pytest.mark.parametrize("settings", [{"share": 1.2}, {"random": -0.1}, {"replaced": 0.9, "random": 0.2}])
def test_what_is_no_share_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(CutawayError, match="no share"):
        masked(**settings)
