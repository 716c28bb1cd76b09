"""How a text becomes ids, step by step: what the studio shows and what a reader can follow by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cutaway.text.bpe import BPE, Pair

if TYPE_CHECKING:
    from cutaway.text.tokenizer import Tokenizer

Step = dict[str, Any]


def explain(tokenizer: Tokenizer, text: str, parse_special: bool = True) -> list[Step]:
    """The steps in order, as plain data:

    {"step": "added", "text", "id"}                 an added token found in the text
    {"step": "normalize", "text", "normalized"}     what the normalizer made of the text between them
    {"step": "word", "text", "symbols", "merges", "tokens", "ids"}   one pre-token. For BPE, `symbols` are
    what merging
                                                    starts from and `merges` the pairs in the order they were
                                                    joined
    """
    steps: list[Step] = []
    for stretch in tokenizer.stretches(text, parse_special):
        if stretch.id is not None:
            steps.append({"step": "added", "text": stretch.text, "id": stretch.id})
            continue
        steps.append({"step": "normalize", "text": stretch.source, "normalized": stretch.text})
        steps += [_word(tokenizer, word) for word in stretch.words]
    return steps


def _word(tokenizer: Tokenizer, word: str) -> Step:
    model, spelled = tokenizer.model, tokenizer.spelled(word)
    step: Step = {"step": "word", "text": word}
    if isinstance(model, BPE):
        merges: list[Pair] = []
        tokens = model.tokens(spelled, merges)
        step |= {"symbols": model.spell(spelled), "merges": merges}
    else:
        tokens = model.tokens(spelled)
    return step | {"tokens": tokens, "ids": model.ids(spelled)}
