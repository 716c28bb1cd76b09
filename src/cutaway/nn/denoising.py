"""Texts made worse, for an encoder-decoder to restore: the noise of T5 and of BART.

    the old dog near my cat sleeps .           what is written
    the <0> near <1> sleeps .  ->  <0> old dog <1> my cat          T5: span corruption
    the _ near my _ sleeps .   ->  the old dog near my cat ...     BART: infilling, one mask for any number of words

T5 (Raffel et al. 2019, arXiv:1910.10683, section 3.1.4) hides 15 % of the tokens in spans of 3 on average, and has only
what is hidden said. BART (Lewis et al. 2019, arXiv:1910.13461, section 2.2) has the whole text said: it hides 30 % in
spans whose lengths are Poisson(3), an empty one being a mask where nothing is missing, and shuffles the sentences; the
paper also tries masked tokens (`cutaway.nn.masking`), deleted tokens and texts that begin in their middle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError


class Noised(NamedTuple):
    """source: what the encoder reads. target: what the decoder is to say."""

    source_S: Tensor
    target_T: Tensor


def corrupt_spans(
    tokens_T: Tensor,
    generator: torch.Generator,
    *,
    sentinels: Sequence[int],
    share: float = 0.15,
    length: float = 3.0,
) -> Noised:
    """T5's: each span becomes a sentinel, and the target says behind each sentinel what it stands for.

    As in T5's own code the counts are fixed, only places are drawn: `share` of the tokens in spans of mean `length`,
    each way to cut them as likely as any other; kept and hidden spans alternate, and a kept one is the first.
    sentinels: ids that no text contains; T5's are the last of the vocabulary, downward.
    Errors: fewer than two tokens, more spans than sentinels, a sentinel in the text.
    """
    _check(share, length)
    if len(tokens_T) < 2:
        raise CutawayError(f"has {len(tokens_T)} tokens", "text", "span corruption keeps one and hides one at least")
    hidden = min(max(round(share * len(tokens_T)), 1), len(tokens_T) - 1)
    spans = min(max(round(hidden / length), 1), hidden, len(tokens_T) - hidden)
    if spans > len(sentinels):
        raise CutawayError(f"are {len(sentinels)} for {spans} spans", "sentinels", "give more, or hide longer spans")
    if torch.isin(tokens_T, torch.tensor([*sentinels])).any():
        raise CutawayError("contains a sentinel", "text", "it could not be told from those of the noise")
    kept, lost = (_cut(count, spans, generator) for count in (len(tokens_T) - hidden, hidden))
    parts = tokens_T.split([n for pair in zip(kept, lost, strict=True) for n in pair])
    marks = tokens_T.new_tensor(sentinels[:spans]).split(1)
    triples = list(zip(parts[::2], marks, parts[1::2], strict=True))
    source = torch.cat([part for keep, mark, _ in triples for part in (keep, mark)])
    return Noised(source, torch.cat([part for _, mark, lose in triples for part in (mark, lose)]))


def fill_spans(source_S: Tensor, target_T: Tensor, sentinels: Collection[int]) -> Tensor:
    """The text again: every sentinel of the source replaced by what the target says behind it. What the target does
    not name is left out."""
    said: dict[int, list[int]] = {}
    at: list[int] = []
    for token in target_T.tolist():
        if token in sentinels:
            at = said.setdefault(token, [])
        else:
            at.append(token)
    known = (said.get(token, []) if token in sentinels else [token] for token in source_S.tolist())
    return source_S.new_tensor([token for part in known for token in part])


def infill(
    tokens_T: Tensor, generator: torch.Generator, *, mask: int, share: float = 0.3, length: float = 3.0
) -> Tensor:
    """BART's: spans of Poisson(`length`) tokens until `share` of all are hidden, each one mask, wherever it falls.

    The last span is cut to fit. Spans may touch, and then as many masks follow each other.
    """
    _check(share, length)
    left, spans = round(share * len(tokens_T)), list[int]()
    while left > 0:
        spans.append(min(left, int(torch.poisson(torch.tensor(length), generator=generator))))
        left -= spans[-1]
    kept = len(tokens_T) - sum(spans)
    is_span = (torch.randperm(kept + len(spans), generator=generator) < len(spans)).tolist()
    lengths = iter(spans)
    parts = tokens_T.split([next(lengths) if span else 1 for span in is_span])
    masked = tokens_T.new_tensor([mask])
    return torch.cat([masked if span else part for span, part in zip(is_span, parts, strict=True)] or [tokens_T])


def permute_sentences(tokens_T: Tensor, generator: torch.Generator, *, ends: Collection[int]) -> Tensor:
    """BART's: sentences, each closed by a token of `ends`, in random order. What is left open at the end is one too."""
    closed = torch.isin(tokens_T, torch.tensor([*ends])).nonzero()[:, 0] + 1
    sentences = [part for part in torch.tensor_split(tokens_T, closed) if len(part)]
    order = torch.randperm(len(sentences), generator=generator).tolist()
    return torch.cat([sentences[i] for i in order] or [tokens_T])


def delete_tokens(tokens_T: Tensor, generator: torch.Generator, *, share: float = 0.15) -> Tensor:
    """BART's: tokens that are gone without a trace, each with probability `share`."""
    _check(share)
    return tokens_T[torch.rand(len(tokens_T), generator=generator) >= share]


def rotate_document(tokens_T: Tensor, generator: torch.Generator) -> Tensor:
    """BART's: the text from a random token on, then what stood before it."""
    return tokens_T.roll(-int(torch.randint(max(len(tokens_T), 1), (), generator=generator)))


def denoise(
    tokens_T: Tensor,
    generator: torch.Generator,
    *,
    mask: int,
    ends: Collection[int],
    share: float = 0.3,
    length: float = 3.0,
) -> Noised:
    """What BART was trained on: sentences shuffled, then spans infilled; the whole text is the target."""
    shuffled_T = permute_sentences(tokens_T, generator, ends=ends)
    return Noised(infill(shuffled_T, generator, mask=mask, share=share, length=length), tokens_T)


def _cut(count: int, pieces: int, generator: torch.Generator) -> list[int]:
    """`count` cut into so many pieces, none empty, every way equally likely."""
    cuts = (torch.randperm(count - 1, generator=generator)[: pieces - 1] + 1).sort().values.tolist()
    return [b - a for a, b in zip([0, *cuts], [*cuts, count], strict=True)]


def _check(share: float, length: float = 1.0) -> None:
    if not 0 <= share <= 1:
        raise CutawayError(f"{share} is no share", "share", "between 0 and 1")
    if not length > 0:
        raise CutawayError(f"spans cannot have {length} tokens on average", "length", "more than 0")
