"""Mistakes that somebody could make in the C++ source, each compiled without optimization and found by a proof."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch

from cutaway.engine.matrices import layout
from cutaway.engine.sampler import gumbel
from cutaway.native import build
from cutaway.native.packing import pack_rows
from cutaway.native.sampling import draw, fence, kernels, reach
from cutaway.native.tape import Kind, batch_of
from cutaway.nn.attention import Question
from cutaway.weights import blocks
from native import adapters
from native.attention import codes_of, empty, opened, place, texts
from native.tapes import PORTABLE, packed, play, product, quantized, raw, rows
from native.tiles import tiled


def products(type: str, count: int = 7) -> Callable[[], bool]:
    """Whether rows of this format are multiplied as their numbers say."""

    def proof() -> bool:
        made, numbers_NK = packed(type, 24, 512)
        x_TK = torch.randn(count, 512)
        codes, step = quantized(x_TK)
        wanted = (codes.double() * step.double().repeat_interleave(32, 1)) @ numbers_NK.double().T
        return bool(((product(made, x_TK, PORTABLE) - wanted).abs().max() / wanted.abs().max()) < 1e-5)

    return proof


def by_tiles(type: str) -> Callable[[], bool]:
    """Whether tiles are used, and make the same products."""

    def proof() -> bool:
        with tiled("-O0", march=PORTABLE) as isa:
            return isa.endswith("AMX") and products(type, 37)()

    return proof


def packing(type: str) -> Callable[[], bool]:
    """Whether rows of a file become the bytes that PyTorch makes."""

    def proof() -> bool:
        stored = raw(type, 24, 512)
        places = stored.data_ptr() + torch.arange(24) * stored.shape[1]
        made = pack_rows(places, 512, blocks.named(type).id, layout(type), march=PORTABLE)
        return torch.equal(made.blocks, packed(type, 24, 512)[0].blocks)

    return proof


def answers(width: int = 32, coded: bool = False) -> bool:
    """Whether attention with everything agrees with the softmax written out. coded: over keys and values of 8 bits."""
    sinks_H = torch.tensor([0.5, -2.0, 3.0, 0.0])
    asked = texts([540, 33], (4, 2), width, Question(0.2, window=530, softcap=4.0, sinks_H=sinks_H), coded=coded)
    got = asked.asked([(0, 527, 13), (1, 0, 33)], PORTABLE).floats
    first, second = asked.wanted()
    wanted = torch.cat([first[527:], second])
    return bool(((got - wanted).abs().max() / wanted.abs().max()) < 1e-5)


def drawn() -> bool:
    """Whether the winner is NumPy's, and the best reach as far as sorting says."""
    native = kernels.__wrapped__(PORTABLE)
    scores_V = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    scores_V -= scores_V.max()
    order_N = scores_V.sort(descending=True).values
    mass_N = order_N.double().exp().cumsum(0) / order_N.double().exp().sum()
    few_V = scores_V[:40] / 4
    for luck in range(2**40, 2**40 + 50):
        noisy_V = (few_V + gumbel(luck, torch.arange(40))).where(few_V >= few_V.median(), -torch.inf)
        if draw(native, few_V, float(few_V.median()), 1.0, luck) != int(noisy_V.argmax()):
            return False
    return all(reach(native, scores_V, -1e30, most=k) == order_N[k - 1] for k in (1, 2, 30, 400)) and all(
        reach(native, scores_V, -1e30, share=p) == order_N[int((mass_N < p).sum())] for p in (0.1, 0.5, 0.9, 0.99)
    )


coded_answers = partial(answers, 64, coded=True)


def kept() -> bool:
    """Whether keys and values of 8 bits come into pages as PyTorch rounds them."""
    x_TGE, at = torch.randn(7, 3, 64), torch.arange(30, 37)
    pages = [empty(2, 1, 64, True) for _ in range(2)]
    batch = batch_of([0] * 7, [(30, 7)], [[1, 0]], [0], torch.zeros(1))
    how = {"heads": 1, "kv_heads": 1, "head_dim": 64, "coded": 1, "keys": pages[0], "values": pages[1]}
    play(batch, Kind.TURN, PORTABLE, in_=rows(x_TGE.flatten(1)), **how)
    page_T, slot_T, same = 1 - at // 32, at % 32, []
    for value, kept in enumerate(pages):
        (codes, scales), wanted = opened(kept, 64, bool(value), True), codes_of(x_TGE[:, 1 + value : 2 + value])
        got = codes[place(page_T, slot_T, bool(value))], scales[page_T, :, :, slot_T]
        same += [torch.equal(*pair) for pair in zip(got, wanted, strict=True)]
    return all(same)


def adapted() -> bool:
    """Whether rows of three sequences, two with an adapter, are those of merged matrices, gated units among them."""
    return all(off < 1e-5 for off in adapters.distances(PORTABLE))


def fenced() -> bool:
    """Whether 40 scores keep what a mask of one word allows, and nothing beyond it."""
    scores_V, mask_W = torch.zeros(40), torch.tensor([0b101], dtype=torch.int32)
    fence(kernels.__wrapped__(PORTABLE), scores_V, mask_W)
    return bool(scores_V.isfinite().nonzero().flatten().tolist() == [0, 2])


class Mutant(NamedTuple):
    """In which file, what becomes what, and who must notice."""

    file: str
    old: str
    new: str
    proof: Callable[[], bool]


MUTANTS = {
    "the first group's offset is left out": Mutant(
        "kernels.cpp", "Form::OFFSET ? fma(second", "Form::OFFSET && group ? fma(second", products("Q4_1")
    ),
    "the second half takes the first's scale": Mutant(
        "kernels.cpp", "second * step, sum)", "scale * step, sum)", products("Q6_K")
    ),
    "the second half's sum is the first's": Mutant(
        "kernels.cpp", "sum[1] = total(qb)", "sum[1] = total(qa)", products("Q5_0")
    ),
    "a single last row is left out": Mutant(
        "kernels.cpp", "while (row < end) those", "while (row + 1 < end) those", products("Q8_0", 9)
    ),
    "a window sees one token more": Mutant("kernels.cpp", "- op.window + 1", "- op.window", answers),
    "every head has the first one's sink": Mutant("kernels.cpp", "op.sinks[head]", "op.sinks[0]", answers),
    "slots of nobody are read": Mutant("kernels.cpp", "j = begin; j < end", "j = 0; j < PAGE", answers),
    "what was before does not fade": Mutant(
        "kernels.cpp", "whole.mass * a + part.mass", "whole.mass + part.mass", answers
    ),
    "noise has one key instead of two": Mutant("sampling.h", "+ all((int32_t)high)", "", drawn),
    "noise near its peak is cut off": Mutant("sampling.h", "LUCKIEST = 22.9f", "LUCKIEST = 0.1f", drawn),
    "a logarithm forgets its power of two": Mutant("simd.h", "return fma(e, all(0.693359375f),", "return (", drawn),
    "who is below the filter may win": Mutant("sampling.h", "&& scores[k + i] >= low ", "", drawn),
    "the next band begins at nothing": Mutant("sampling.h", "have = weight, above", "above", drawn),
    "a band has its upper end twice": Mutant("sampling.h", "&& scores[i] < above", "", drawn),
    "beyond the mask all is allowed": Mutant("sampling.h", "mask[k / 32] : 0", "mask[k / 32] : ~0u", fenced),
    "masks are read from the highest bit": Mutant("sampling.h", "bits >> i & 1", "bits >> (31 - i) & 1", fenced),
    "a token's scale lands at another": Mutant("kernels.cpp", "* PAGE + slot] = to_half", "* PAGE] = to_half", kept),
    "a scale of the whole head": Mutant("kernels.cpp", "x + e, row + e, &step", "x, row + e, &step", kept),
    "the largest number is clipped": Mutant("kernels.cpp", "? 127.0f / size", "? 128.0f / size", kept),
    "keys have the first scales": Mutant("kernels.cpp", "e % GROUP == 0) scale", "e == 0) scale", coded_answers),
    "late tokens have the scales of early ones": Mutant(
        "kernels.cpp", "load_half(keys.scales(E, e) + LANES)", "load_half(keys.scales(E, e))", coded_answers
    ),
    "values without their scales": Mutant("kernels.cpp", "(CODED ? scaled : weight)", "weight", coded_answers),
    "an adapter's part is added after the activation": Mutant(
        "kernels.cpp",
        "activate(op.activation, made(sums, row, p))",
        "adapted(op, b, row, unit * panels + p, activate(op.activation, sums[p * MOST]))",
        adapted,
    ),
    "only the gate is adapted": Mutant(
        "kernels.cpp", "hidden * made(sums, row, 2 + p)", "hidden * sums[(2 + p) * MOST]", adapted
    ),
    "all rows have the first sequence's adapter": Mutant(
        "kernels.cpp", "update_of(op, b, b.owner[row])", "update_of(op, b, 0)", adapted
    ),
    "only the first row of a sequence is made narrow": Mutant(
        "kernels.cpp", "b.first[s], b.first[s + 1], [&]", "b.first[s], b.first[s] + 1, [&]", adapted
    ),
    "joined matrices read the first one's ranks": Mutant("kernels.cpp", " + share.first;", ";", adapted),
    "the last rank is left out": Mutant("kernels.cpp", "r < rank; r++, column", "r + 1 < rank; r++, column", adapted),
    "tiles: operands change places": Mutant(
        "tiles.h", "_tile_dpbsud(c, a, b)", "_tile_dpbsud(c, b, a)", by_tiles("Q8_0")
    ),
    "tiles: codes are signed": Mutant("tiles.h", "_tile_dpbsud(c", "_tile_dpbssd(c", by_tiles("Q8_0")),
    "tiles: sums go on from those before": Mutant("tiles.h", "_tile_zero(c); ", "", by_tiles("Q4_0")),
    "tiles: rows lie without gaps": Mutant(
        "tiles.h", "_tile_loadd(a, q, width)", "_tile_loadd(a, q, 32)", by_tiles("Q4_0")
    ),
    "tiles: nobody asks for them": Mutant("kernels.cpp", "right = permitted() && (", "right = (", by_tiles("Q4_0")),
    "tiles: the second half has no zero": Mutant("kernels.cpp", "late + none", "late", by_tiles("Q6_K")),
    "tiles: the first half's codes stay for the second": Mutant(
        "kernels.cpp", "[r * PIECES + step / 4 % PIECES]", "[r * PIECES]", by_tiles("Q6_K")
    ),
    "tiles: all rows are the first sixteen": Mutant(
        "kernels.cpp", "(row + from) * in.width", "row * in.width", by_tiles("Q5_1")
    ),
    "tiles: a run has the first group's scale": Mutant(
        "kernels.cpp", "late + none, scale[r]", "late + none, scale[0]", by_tiles("Q5_1")
    ),
    "tiles: the second run begins at the first group": Mutant(
        "kernels.cpp", "* in.width + g * GROUP;", "* in.width;", by_tiles("Q4_1")
    ),
    "lanes of a plane share their bits": Mutant("packing.h", "bits << lane % 2 * 4", "bits", packing("Q5_1")),
    "late scales lack their high bits": Mutant("packing.h", " | six[j - 4] >> 6 << 4", "", packing("Q4_K")),
}


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile the sources with one text replaced; nothing is kept."""

    def compile(file: str, old: str, new: str) -> None:
        for source in build.SOURCES:
            shutil.copy(source, tmp_path)
        text = (tmp_path / file).read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times, write the mutant anew"
        (tmp_path / file).write_text(text.replace(old, new))
        monkeypatch.setattr(build, "SOURCES", tuple(tmp_path / source.name for source in build.SOURCES))
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
        monkeypatch.setattr(build, "cache_dir", lambda: tmp_path)
        build.library.cache_clear()

    yield compile
    build.library.cache_clear()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name, compiled):
    file, old, new, proof = MUTANTS[name]
    compiled(file, old, new)
    assert not proof()


def test_proofs_hold_without_a_mutant(compiled):
    compiled("kernels.cpp", "constexpr int PAGE = 32;", "constexpr int PAGE  = 32;")
    for mutant in MUTANTS.values():
        assert mutant.proof()
