"""Products by AMX tiles have the bits of those without, here on a twin of the instructions in plain C++."""

from __future__ import annotations

import ctypes
import logging

import pytest
import torch
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfModel, Stored
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.native import build
from cutaway.native.packing import Packed, pack_codes
from cutaway.native.tape import ACTIVATIONS, Kind, Matrix
from cutaway.weights import blocks
from engine.test_equality import REQUESTS, Answer, answers, folders, model
from engine.tiny import tokenizer
from native import adapters
from native.tapes import HALVES, flat, integers, packed, play, product, rows
from native.tiles import tiled

TDPBSUD = {  # as Intel's manual encodes it, VEX.128.F3.0F38.W0 5E: a in ModRM.rm, b in VEX.vvvv, c in ModRM.reg
    (c, a, b): bytes([0xC4, 0xE2, (~b & 15) << 3 | 2, 0x5E, 0xC0 | c << 3 | a])
    for c, a, b in ((0, 4, 6), (1, 5, 7), (2, 4, 6), (3, 5, 7))
}


def eight_bits(w_NK: Tensor) -> Packed:
    """Rounded as Q8_0 is."""
    step_NG = w_NK.unflatten(1, (-1, 32)).abs().amax(-1) / 127
    codes_NK = (w_NK / step_NG.repeat_interleave(32, 1)).round() + 128
    return pack_codes(codes_NK.to(torch.uint8), step_NG, None, 128, 8)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("type", HALVES)
def test_products(type, rows):
    """Every format, 1 to 70 rows, panels that are no power of two, groups that are no whole runs."""
    made, _ = packed(type, 83, 256 if type.endswith("_K") else 288)
    x_TK = torch.randn(70, made.k)
    whole = product(made, x_TK)
    with tiled(rows=rows) as isa:
        assert isa.endswith(", AMX")
        for count in range(1, 71):
            assert torch.equal(product(made, x_TK[:count]), whole[:count])
        assert torch.equal(product(made, x_TK[-33:], threads=3), whole[-33:])


@pytest.mark.parametrize("k", [32, 96, 768])
def test_products_of_extremes(k):
    """The largest codes and activations of either sign, and what lies behind the last row counts for nothing."""
    for bits, top in ((4, 15), (5, 31), (6, 63), (8, 255)):
        codes_NK = torch.full((16, k), top, dtype=torch.uint8)
        codes_NK[1::2] = 0
        scales = torch.ones(16, k // (16 if bits == 6 else 32))
        made = pack_codes(codes_NK, scales, None, 32 if bits == 6 else top // 2 + 1, bits)
        x_TK = torch.full((18, k), 127.0)
        x_TK[::3] *= -1
        with tiled():
            got = product(made, x_TK)
        assert torch.equal(got.double(), x_TK.double() @ (codes_NK.double() - made.zero).T)


@pytest.mark.parametrize(("zero", "offset"), [(0, True), (0, False), (3, False), (200, False)])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_products_of_other_codes(bits, zero, offset):
    """Zeros that no file of GGUF has, 8 bits with an offset among them."""
    codes_NK = torch.randint(0, 1 << bits, (40, 160), dtype=torch.uint8)
    made = pack_codes(codes_NK, torch.randn(40, 5), torch.randn(40, 5) if offset else None, zero, bits)
    x_TK = torch.randn(26, 160)
    alone = torch.cat([product(made, x_K[None]) for x_K in x_TK])
    with tiled():
        assert torch.equal(product(made, x_TK), alone)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("type", ["Q4_K", "Q6_K"])
def test_hidden_units(type, gated):
    """All that comes out of a feed-forward layer, codes included."""
    matrix, x_TK, bias = Matrix.of(packed(type, 192, 256)[0]), torch.randn(45, 256), torch.randn(192)
    how = {"matrix": matrix, "bias": bias, "gated": int(gated), "activation": ACTIVATIONS.index("silu"), "quantize": 1}

    def hidden() -> tuple[Tensor, ...]:
        out = rows(torch.zeros(45, 96 if gated else 192))
        play(flat(45), Kind.FEED, threads=2, in_=integers(x_TK), out=out, **how)
        return out.tensors

    wanted = hidden()
    with tiled():
        assert all(torch.equal(*pair) for pair in zip(hidden(), wanted, strict=True))


def test_adapters():
    """What adapters add to products of integers is added to those of tiles."""
    case = adapters.Case([3, 30, 1, 20], [5, 0, 17, 40])
    case.pack, case.rows = eight_bits, integers
    wanted, bare = case.made(), adapters.Case([3, 30, 1, 20], [0, 0, 0, 0])
    with tiled():
        assert all(torch.equal(*pair) for pair in zip(case.made(threads=2), wanted, strict=True))
    bare.pack, bare.rows = eight_bits, integers
    assert not torch.equal(bare.made()[0], wanted[0])


class InEightBits(OfModel):
    """The tensors of a model, matrices rounded to Q8_0."""

    def matrix(self, name: str) -> Stored:
        w_NK = self.tensors[name].detach()
        return Stored(blocks.quantize(w_NK, "Q8_0").view(len(w_NK), -1), torch.arange(len(w_NK)), "Q8_0")


def told(wanted: list[int], threads: int = 1, **limits: int) -> list[Answer]:
    """Tokens and log-probabilities of the requests with these numbers, by a model of 8 bits."""
    made = model()
    runner = Native(made.spec, InEightBits(made), threads)
    ready = Engine(runner, tokenizer(), cache=99 * runner.page_bytes, **limits)
    for name, folder in folders().items():
        ready.adapters.load(name, folder)
    return answers(ready, wanted)


def test_texts():
    """Each alone without tiles; with them all together, in chunks of several sizes, in companies of several sizes."""
    every = [*range(len(REQUESTS))]
    alone = [told([i])[0] for i in every]
    assert len({tuple(answer) for answer in alone}) == len(REQUESTS)
    for least in (1, 9):
        with tiled(rows=least):
            assert told(every, threads=2) == alone
            for budget in (7, 16, 31, 50):
                assert told(every, budget=budget) == alone
            assert told(every, running=3) == alone


def test_tiles_are_left_as_they_were():
    """Others in the process may have shaped theirs."""
    made, theirs = packed("Q8_0", 40, 256)[0], bytes([1, *15 * [0], 4, *31 * [0], 2, *15 * [0]])
    with tiled():
        kernels = build.library()
        kernels.twin_config.restype = ctypes.c_void_p
        config = (ctypes.c_char * 64).from_address(kernels.twin_config())
        assert config.raw == bytes(64)
        config.raw = theirs
        product(made, torch.randn(20, 256))
        assert config.raw == theirs


def test_who_is_lent_no_tiles_does_without():
    made, _ = packed("Q4_1", 40, 256)
    x_TK = torch.randn(20, 256)
    wanted = product(made, x_TK)
    with tiled("-DTWIN_REFUSES", "-O0") as isa:
        assert "AMX" not in isa
        assert torch.equal(product(made, x_TK), wanted)


def test_tiles_that_give_other_numbers_are_told_and_not_used(caplog):
    made, _ = packed("Q4_1", 40, 256)
    x_TK = torch.randn(20, 256)
    wanted = product(made, x_TK)
    with caplog.at_level(logging.WARNING), tiled("-DTWIN_LIES", "-O0") as isa:
        assert "not AMX" in isa
        assert torch.equal(product(made, x_TK), wanted)
    assert "other numbers" in caplog.text


def test_the_compiler_makes_the_instructions():
    """For a processor with AMX, which this one need not be: operands are where Intel's manual has them."""
    try:
        library = build.compiled("sapphirerapids").read_bytes()
    except CutawayError as error:
        if "sapphirerapids" not in str(error):
            raise
        pytest.skip("the compiler is older than the processor")
    for tiles, code in TDPBSUD.items():
        assert code in library, tiles
