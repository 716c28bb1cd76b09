"""Search against transformers' beam search and against contrastive search written out, on one tiny Llama."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.search import Beams, Tree, beam_search, best_of, contrastive_search
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal
from engine.tiny import tokenizer
from kit.precision import all_float64
from kit.twins import ours, twin

PROMPT = [5, 17, 3, 17, 3, 40, 8, 2, 9, 1, 30, 11, 7, 21, 22, 23, 24, 3, *range(16, 34), 3]
STOPS = tuple(range(3, 90, 5))
SETTINGS = [
    {"width": 3},
    {"width": 2, "early_stopping": True},
    {"width": 4, "length_penalty": 2.0, "early_stopping": True},
    {"width": 2, "early_stopping": "never"},
    {"width": 5, "length_penalty": -1.0},
]


def _params(stops: tuple[int, ...] = STOPS) -> SamplingParams:
    return SamplingParams(max_tokens=9, stop_token_ids=stops, ignore_eos=True)


@cache
def _theirs(index: int) -> list[list[int]]:
    beams = Beams(**SETTINGS[index])
    with all_float64(), torch.no_grad():
        rows = twin("llama").reference.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), max_new_tokens=9,
            num_beams=beams.width, num_return_sequences=beams.width, do_sample=False, eos_token_id=list(STOPS),
            pad_token_id=98, length_penalty=beams.length_penalty, early_stopping=beams.early_stopping,
        )  # fmt: skip
    return rows[:, len(PROMPT) :].tolist()


def beams() -> None:
    """The same replies in the same order, and no page is left behind."""
    for index, settings in enumerate(SETTINGS):
        engine = Engine(ours(twin("llama")), tokenizer(), context=64)
        found = beam_search(engine, PROMPT, _params(), Beams(**settings))
        expected = [[t for t in row if t != 98] for row in _theirs(index)]
        assert [one.reply for one in found] == expected[: len(found)], f"other replies with {settings}"
        assert len(found) == Beams(**settings).width
        engine.scheduler.pages.check([])


def forks() -> None:
    """Each leaf's logits are those of its own text computed alone."""
    model = ours(twin("llama"))
    engine = Engine(model, tokenizer(), context=64)
    with Tree(engine, PROMPT, _params(()), 5) as tree:
        tree.logits()
        for chosen in ([(0, 4), (0, 9), (0, 4)], [(1, 50), (1, 51), (2, 7)], [(2, 1), (0, 2), (2, 3), (0, 4), (1, 1)]):
            tree.grow([(tree.leaves[i], token) for i, token in chosen])
            for leaf, found_V in zip(tree.leaves, tree.logits(), strict=True):
                assert torch.allclose(found_V, _whole(leaf.tokens)[0][-1].float(), atol=1e-4), (
                    "a leaf's past is not its"
                )


def diverse() -> None:
    """The first tokens of later groups avoid those of earlier ones; without a price they are the same."""
    for diversity, different in ((0.0, 1), (50.0, 3)):
        engine = Engine(ours(twin("llama")), tokenizer(), context=64)
        params, rules = _params(()), Beams(width=3, groups=3, diversity=diversity)
        assert len({one.reply[0] for one in beam_search(engine, PROMPT, params, rules)}) == different


@torch.no_grad()
def _whole(tokens: list[int]) -> tuple[Tensor, Tensor]:
    model = ours(twin("llama"))
    hidden_TD = model(torch.tensor(tokens), positions_of([len(tokens)]), BlockDiagonal([len(tokens)]))
    return model.logits(hidden_TD), hidden_TD


def contrastive() -> None:
    """(1 - alpha) p - alpha * the largest cosine, for each of the k likeliest."""
    tokens, alpha = PROMPT[:2], 0.9
    for _ in range(8):
        logits_TV, hidden_TD = _whole(tokens)
        best = logits_TV[-1].softmax(-1).topk(4)
        alike = [F.cosine_similarity(_whole([*tokens, int(t)])[1][-1:], hidden_TD).max() for t in best.indices]
        tokens.append(int(best.indices[((1 - alpha) * best.values - alpha * torch.stack(alike)).argmax()]))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    found = contrastive_search(ours(twin("llama")), tokenizer(), PROMPT[:2], params, k=4, alpha=alpha)
    assert found == tokens[2:]


def choice() -> None:
    """The mean decides, not the sum."""
    assert best_of([[-1.0, -1.0], [-1.5], [-0.9, -0.9, -0.9]], 2) == [2, 0]


PROOFS = {f"search {proof.__name__}": proof for proof in (beams, forks, diverse, contrastive, choice)}
