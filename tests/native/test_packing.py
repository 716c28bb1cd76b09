"""Weights as they are packed: every number can be read back, and odd shapes are refused or filled up."""

from __future__ import annotations

import pytest
import torch

from cutaway.engine.matrices import layout
from cutaway.errors import CutawayError
from cutaway.native.packing import Layout, pack_codes, pack_floats, pack_rows
from cutaway.native.tape import Kind, Matrix
from cutaway.weights import blocks
from native.tapes import HALVES, TYPES, flat, packed, play, raw, rows


@pytest.mark.parametrize("type", TYPES)
def test_embed_reads_back_every_row(type):
    """EMBED of a matrix whose rows do not fill its last panel, times a scale, plus a row by position."""
    n, k = 37, 512
    made, numbers_NK = packed(type, n, k)
    out, table = rows(torch.zeros(n, k)), torch.randn(n, k)
    play(flat(n), Kind.EMBED, out=out, matrix=Matrix.of(made), scale=1.0)
    assert torch.equal(out.floats, numbers_NK)
    play(flat(n), Kind.EMBED, out=out, matrix=Matrix.of(made), scale=3.0, table=table)
    assert torch.equal(out.floats, numbers_NK * 3.0 + table)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32", "BF16", "MXFP4"])
def test_nothing_is_lost(type):
    """Formats whose scales are float16 in the file are packed exactly."""
    _, numbers_NK = packed(type, 16, 256)
    assert torch.equal(numbers_NK, blocks.dequantize(raw(type, 16, 256), type, (16, 256)))


BYTES = {"F32": 2048, "BF16": 1024, "Q4_0": 288, "Q5_1": 384, "Q6_K": 448, "Q8_0": 544}


@pytest.mark.parametrize("type", BYTES)
def test_bytes_of_a_block(type):
    """16 outputs times 32 inputs, and a whole number of panels."""
    assert packed(type, 33, 256)[0].blocks.shape == (3, 8, BYTES[type])


@pytest.mark.parametrize("type", TYPES)
def test_rows_of_a_file(type):
    """Packed from the file's bytes, some rows twice and in any order, not aligned: the bytes that PyTorch makes."""
    n, k, order = 37, 512, torch.randint(0, 37, (50,))
    stored, wanted = raw(type, n, k), packed(type, n, k, order)[0]
    buffer = torch.empty(stored.numel() + 1, dtype=torch.uint8)
    buffer[1:] = stored.flatten()
    places = buffer.data_ptr() + 1 + order * stored.shape[1]
    for threads in (1, 3):
        made = pack_rows(places, k, blocks.named(type).id, layout(type), threads=threads)
        assert torch.equal(made.blocks, wanted.blocks)
        assert made[1:] == wanted[1:]


@pytest.mark.parametrize("type", [*HALVES, "MXFP4"])
def test_impossible_scales(type):
    """Zeros pass, infinite scales are refused."""
    form = blocks.named(type)
    stored = torch.zeros(16, 256 // form.elements * form.bytes, dtype=torch.uint8)
    places = stored.data_ptr() + torch.arange(16) * stored.shape[1]
    assert pack_rows(places, 256, form.id, layout(type)).n == 16
    if type in HALVES:
        stored[3, HALVES[type][-1] + 1] = 0x7C
        stored[3, 4:16] = stored[3, 192:208] = 255
        with pytest.raises(CutawayError, match="too large for float16"):
            pack_rows(places, 256, form.id, layout(type))


def test_odd_shapes_are_refused():
    codes = torch.zeros(4, 64, dtype=torch.uint8)
    with pytest.raises(CutawayError, match="48 inputs are no multiple of 32"):
        pack_floats(torch.zeros(4, 48))
    with pytest.raises(CutawayError, match="48 inputs are no multiple of 32"):
        pack_rows(torch.zeros(4, dtype=torch.int64), 48, 0, Layout(32))
    with pytest.raises(CutawayError, match="1 scales for 64 inputs"):
        pack_codes(codes, torch.ones(4, 1), None, 8, 4)
    with pytest.raises(CutawayError, match="4 scales for 64 inputs"):
        pack_codes(codes, torch.ones(4, 4), torch.ones(4, 4), 0, 4)
    with pytest.raises(CutawayError, match="too large for float16"):
        pack_codes(codes, torch.full((4, 2), 1e6), None, 8, 4)


def test_every_format_of_integers_is_tried():
    assert {name for name, form in blocks.FORMATS.items() if form.split} == set(HALVES)
    assert set(TYPES) == set(blocks.FORMATS)
