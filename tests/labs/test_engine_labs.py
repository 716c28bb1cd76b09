"""Parts of the labs on the engine that have known values, or must notice what is wrong."""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch

from cutaway.engine.engine import Engine
from cutaway.errors import CutawayError
from cutaway.labs.engine import (
    batch_drift,
    continuous_batching,
    kv_quantization,
    low_bit_speed,
    paged_cache,
    prefix_reuse,
)
from cutaway.labs.engine.batch_drift import Answers, Drift
from cutaway.labs.engine.continuous_batching import FIXED, PATIENCE, Request, Way
from cutaway.labs.engine.kv_quantization import CHANNEL, TOKEN, Coarse
from cutaway.labs.engine.low_bit_speed import Work
from cutaway.labs.engine.paged_cache import Twin
from cutaway.labs.engine.prefix_reuse import Chat
from cutaway.labs.engine.replay import Overheard, finish, greedy
from engine.tiny import decoder, tokenizer
from kit.threads import one_thread

__all__ = ["one_thread"]


def tiny(running: int = 16) -> Engine:
    return Engine(decoder(), tokenizer(), running=running)


# ---- paged-cache


def test_reserving_runs_as_many_as_fit_and_pages_more() -> None:
    lengths = [8, 1, 1, 1, 1, 1, 1, 1]
    reserved, paged = (paged_cache.serve(lengths, size, 16) for size in (8, 1))
    assert (reserved.steps, reserved.together) == (8, pytest.approx(15 / 8))
    assert reserved.waste == pytest.approx(7 * 7 / 8)
    assert (paged.waste, paged.together) == (0, reserved.together)
    short = [8, 1, 3, 3, 3, 3]
    assert paged_cache.serve(short, 1, 16).together > paged_cache.serve(short, 8, 16).together


def test_a_page_that_is_not_copied_shows_in_the_logits() -> None:
    class Forgetful(Twin):
        def allocate(self, pages: int) -> None:
            super().allocate(pages)
            self.pool.copy = lambda pairs: None  # type: ignore[method-assign]

    right, wrong = (paged_cache.shuffle(random.Random(0), 200, kind(0)).difference for kind in (Twin, Forgetful))
    assert right < paged_cache.TOLERANCE
    assert wrong > 1e-3


# ---- continuous-batching


@pytest.mark.parametrize(
    ("rule", "waiting", "busy_and_last", "waited", "expected"),
    [
        ("continuous", 3, (True, False), 0, 3),
        ("static", 4, (True, False), 0, 0),
        ("static", 3, (False, False), 10 * PATIENCE, 0),
        ("static", 3, (False, True), 0, 4),
        ("static", 4, (False, False), 0, 4),
        ("dynamic", 3, (False, False), 0, 0),
        ("dynamic", 3, (False, False), PATIENCE, 4),
        ("dynamic", 3, (True, False), PATIENCE, 0),
    ],
)
def test_who_joins_when(
    rule: str, waiting: int, busy_and_last: tuple[bool, bool], waited: float, expected: int
) -> None:
    busy, last = busy_and_last
    queue = deque(Request(0, [1], 2) for _ in range(waiting))
    way = Way(rule, rule, 4, 64)  # type: ignore[arg-type]
    assert continuous_batching.admitted(way, queue, busy, waited, last) == expected


def test_what_a_trace_costs_is_counted() -> None:
    trace = [Request(0, [1, 2, 3], 2), Request(0, [4, 5], 4), Request(5, [6], 1)]
    static, free = (
        continuous_batching.serve(tiny(running=2), trace, Way(rule, rule, 2, 64))  # type: ignore[arg-type]
        for rule in ("static", "continuous")
    )
    assert static.replies == free.replies
    assert [len(reply) for reply in static.replies] == [2, 4, 1]
    assert static.clock == [0, FIXED + 5, 2 * FIXED + 7, 3 * FIXED + 8, 4 * FIXED + 9, 5 * FIXED + 10]
    assert (static.steps, static.idle, static.starving) == (5, 3, 2)
    assert (free.steps, free.idle, free.starving) == (4, 1, 0)
    assert static.latencies == [2 * FIXED + 7, 4 * FIXED + 9, 5 * FIXED + 5]
    assert static.gap(static.clock) == FIXED + 2


# ---- prefix-reuse


def test_tokens_computed_at_each_turn_by_hand() -> None:
    chat = Chat(persona=4, question=1, answer=2, turns=3)
    assert [chat.prompt(turn) for turn in range(3)] == [5, 8, 11]
    assert prefix_reuse.computed(chat, 1) == [5, 2, 2]
    assert prefix_reuse.computed(chat, 4) == [5, 4, 3]
    assert prefix_reuse.computed(chat, 1, stamped=True) == [5, 8, 11]


@torch.inference_mode()
def test_a_cache_from_a_file_is_the_one_that_was_saved() -> None:
    engine = tiny(running=4)
    engine.runner = heard = Overheard(engine.runner)
    spoken = torch.randint(0, 256, (65,), generator=torch.Generator().manual_seed(0)).tolist()
    assert prefix_reuse.on_disk(engine, heard, spoken, 64).apart < 1e-4
    assert engine.scheduler.pages.held == 0
    whole = prefix_reuse.stores(heard.runner)
    assert all(len(store) == engine.scheduler.pages.count for store in whole)


def test_what_was_overheard_is_what_was_drawn_from() -> None:
    engine = tiny()
    engine.runner = heard = Overheard(engine.runner)
    sequence = engine.add([1, 2, 3], greedy(1))
    finish(engine)
    assert sequence.reply == heard.values_RV.argmax(-1).tolist()


# ---- batch-drift


def test_the_earliest_differing_token_and_the_logits_that_can_be_compared() -> None:
    first_SV, second_SV = torch.zeros(3, 2), torch.zeros(3, 2)
    mine = Answers([[1, 2, 3], [4, 5, 6], [7, 8, 9]], first_SV, second_SV)
    others_SV = torch.tensor([[0.0, 0.0], [0.0, 0.5], [9.0, 9.0]])  # the third began with another token
    theirs = Answers([[1, 2, 3], [4, 5, 0], [0, 8, 9]], first_SV + 0.25, others_SV)
    assert batch_drift._drift(("any", 1, 2, False), mine, theirs) == Drift("any", 1, 2, False, 2, 1, 0.5)


def test_only_limited_room_makes_tokens_depend_on_others() -> None:
    free, ample, tight = (
        batch_drift.beside(capacity, 60, torch.Generator().manual_seed(1)).changed for capacity in (None, 8.0, 1.0)
    )
    assert free == ample == 0 < tight


# ---- low-bit-speed


def test_intensity_is_one_for_a_token_and_grows_with_the_prompt() -> None:
    work = Work(body=90, head=10, bytes=50)
    assert [work.intensity(n) for n in (1, 11)] == [1, 10]
    assert [work.per_byte(n) for n in (1, 11)] == [2, 20]


def test_unknown_types_are_refused() -> None:
    with pytest.raises(CutawayError, match="Q3_0"):
        low_bit_speed.low_bit_speed.run({"types": "F32,Q3_0"}, "quick")


# ---- kv-quantization


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_as_fine_as_its_bits_and_knows_its_axis(bits: int) -> None:
    """A channel of large numbers, and one of constants: each has its own scale where scales are of channels."""
    x_GSK = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(bits))
    x_GSK[:, :, 5] = 300 + 100 * x_GSK[:, :, 5]
    x_GSK[:, :, 7] = 2.5
    token, channel = (kv_quantization.rounded(x_GSK, bits, along) for along in (TOKEN, CHANNEL))
    groups_GBTK = x_GSK.unflatten(1, (2, 32))
    span_GBK = groups_GBTK.amax(2) - groups_GBTK.amin(2)
    off_GBK = (channel - x_GSK).abs().unflatten(1, (2, 32)).amax(2)
    bound_GBK = span_GBK / (2**bits - 1) * 0.505 + groups_GBTK.abs().amax(2) * 2**-10
    assert (off_GBK <= bound_GBK).all()
    assert torch.equal(channel[:, :, 7], x_GSK[:, :, 7])
    others = [k for k in range(32) if k not in (5, 7)]
    assert (channel - x_GSK)[..., others].abs().mean() < (token - x_GSK)[..., others].abs().mean() / 4
    assert torch.equal(token.transpose(1, 2), kv_quantization.rounded(x_GSK.transpose(1, 2), bits, CHANNEL))
    assert channel.unflatten(1, (2, 32))[0, 0, :, 0].unique().numel() <= 2**bits


def test_recent_tokens_stay_exact_and_closed_caches_as_they_are() -> None:
    model, made = decoder(), torch.Generator().manual_seed(0)
    (heads, width), _ = model.spec.layers[0].attention.cached
    wide = -(-width // 32) * 32
    cache = Coarse(model, 200, kv_quantization.Way(2, CHANNEL, TOKEN, 40))
    cache.buffers = [[torch.empty(heads, 200, wide) for _ in "kv"] for _ in cache.buffers]
    k_TGK, v_TGK = torch.randn(2, 120, heads, wide, generator=made)
    for start in range(0, 120, 24):
        cache.put(1, start, k_TGK[start : start + 24], v_TGK[start : start + 24])
    for got_GSK, given_TGK, along in zip(cache.get(1, 0, 120), (k_TGK, v_TGK), (CHANNEL, TOKEN), strict=True):
        same_S = (got_GSK == given_TGK.transpose(0, 1)).flatten(2).all(2).all(0)
        assert same_S[64:].all(), "of 120 tokens the last 40 are recent, and 64 ... 79 an unfinished group"
        assert not same_S[:64].any()
        assert torch.equal(got_GSK[:, :64], kv_quantization.rounded(given_TGK.transpose(0, 1)[:, :64], 2, along))
    before, cache.closed = [kept.clone() for kept in cache.get(1, 0, 120)], True
    cache.put(1, 120, k_TGK[:60], v_TGK[:60])
    assert all(torch.equal(a, b) for a, b in zip(before, cache.get(1, 0, 120), strict=True))


def test_bytes_of_few_bits() -> None:
    """Two float16 numbers for every 32; recent tokens count in full."""
    assert [kv_quantization.Way(bits).token_bytes(64) for bits in (16, 8, 4, 2)] == [128, 72, 40, 24]
    assert kv_quantization.Way(2, CHANNEL, TOKEN, 100).text_bytes(64, 1000) == 100 * 128 + 900 * 24
    with pytest.raises(CutawayError, match="8 and 2 among them"):
        kv_quantization.sizes("8,4")


def test_a_prompt_in_pieces_is_overheard_at_its_end():
    """Pieces before the last have no logits to look at."""
    engine = Engine(decoder(), tokenizer(), budget=4)
    engine.runner = heard = Overheard(engine.runner)
    engine.add([*range(1, 11)], greedy(1))
    assert finish(engine) == 3
    assert heard.values_RV.shape == (1, engine.runner.spec.vocab)
