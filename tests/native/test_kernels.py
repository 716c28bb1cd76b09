"""Every kind of operation against PyTorch, and the promise that a row's bits do not depend on its company."""

from __future__ import annotations

import pytest
import torch

from cutaway.native.packing import pack_codes, pack_floats
from cutaway.native.tape import ACTIVATIONS, Kind, Matrix, Tape, batch_of
from cutaway.nn import feed_forward
from cutaway.nn.attention import Question
from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.positions import RopeSpec, Rotation, rotate, rotation
from native import adapters
from native.attention import codes_of, empty, opened, place, texts
from native.tapes import AVX2, PORTABLE, TYPES, flat, has_avx2, integers, packed, play, product, quantized, rows


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-6) -> None:
    """To a share of the largest number."""
    off = float((got.double() - wanted.double()).abs().max() / wanted.abs().max())
    assert off < tolerance, off


@pytest.fixture(params=[False, True], ids=["float16", "int8"])
def coded(request) -> bool:
    """Whether pages hold codes of 8 bits."""
    return request.param


@pytest.fixture(params=[AVX2, PORTABLE])
def other(request) -> str:
    if request.param == AVX2 and not has_avx2():
        pytest.skip("this processor has no AVX2")
    return request.param


# ---- matrices


def test_activations_become_integers():
    """As the formula says, to the bit; nothing, next to nothing and ties included."""
    x_TK = torch.randn(5, 256) * torch.logspace(-4, 4, 256)
    x_TK[0, :32], x_TK[1, :32], x_TK[2, :32] = 0, 1e-36, torch.arange(-15.5, 16.5)
    x_TK[3, :2] = torch.tensor([127.0, 0.5])
    _, codes, step, sums, mass = integers(x_TK).tensors
    wanted_codes, wanted_step = quantized(x_TK)
    assert torch.equal(codes, wanted_codes)
    assert torch.equal(step, wanted_step)
    assert torch.equal(sums, wanted_codes.unflatten(1, (-1, 16)).sum(-1, dtype=torch.int32))
    assert torch.equal(mass, sums.unflatten(1, (-1, 2)).sum(-1) * wanted_step)


@pytest.mark.parametrize("type", TYPES)
def test_product(type):
    """1 to 19 rows, outputs that do not fill a panel, with a bias, added to what is there."""
    n, k = 83, 512
    made, numbers_NK = packed(type, n, k)
    x_TK, bias, onto = torch.randn(19, k), torch.randn(96), torch.randn(19, 96)
    codes, step = quantized(x_TK)
    taken_TK = codes.double() * step.double().repeat_interleave(32, 1) if made.bits < 16 else x_TK.double()
    wanted = taken_TK @ numbers_NK.double().T
    whole = product(made, x_TK)
    close(whole, wanted)
    for count in (1, 2, 3, 4, 5, 7, 8, 11):
        assert torch.equal(product(made, x_TK[:count]), whole[:count])
        assert torch.equal(product(made, x_TK[-count:]), whole[-count:])
    assert torch.equal(product(made, x_TK, threads=3), whole)
    close(product(made, x_TK, bias=bias, onto=onto), wanted + bias[:n] + onto[:, :n])


@pytest.mark.parametrize("k", [32, 96, 768])
def test_product_of_extremes(k):
    """Codes of 0 and 255, 15 and 127, as large and as one-sided as they come: nothing saturates."""
    for bits, top in ((4, 15), (5, 31), (6, 63), (8, 255)):
        codes_NK = torch.full((16, k), top, dtype=torch.uint8)
        codes_NK[1::2] = 0
        scales = torch.ones(16, k // (16 if bits == 6 else 32))
        made = pack_codes(codes_NK, scales, None, 32 if bits == 6 else top // 2 + 1, bits)
        weights_NK = codes_NK.double() - made.zero
        for sign in (1, -1):
            x_TK = torch.full((3, k), 127.0 * sign)
            for march in ("native", AVX2) if has_avx2() else ("native",):
                assert torch.equal(product(made, x_TK, march).double(), x_TK.double() @ weights_NK.T)


@pytest.mark.parametrize("type", TYPES)
def test_processors_agree_on_products(type, other):
    made, _ = packed(type, 40, 512)
    x_TK = torch.randn(7, 512)
    here, there = product(made, x_TK), product(made, x_TK, other)
    if other == AVX2:
        assert torch.equal(here, there)
    close(there, here)


# ---- adapters


def test_adapters(other):
    """Two products of joined matrices, three sequences with adapters of several ranks or none, on every processor."""
    assert max(adapters.distances("native")) < 2e-6
    case = adapters.Case([3, 9, 1, 20], [5, 0, 17, 40])
    here = case.made()
    assert max(adapters.distances(other)) < 2e-6
    for got, there, threaded in zip(here, case.made(other), case.made(threads=3), strict=True):
        assert torch.equal(got, threaded)
        assert other != AVX2 or torch.equal(got, there)


def test_adapters_of_others_change_nothing():
    """Each sequence alone has the same bits; and who has none, those of a tape that knows no adapters."""
    case = adapters.Case([3, 9, 1, 20], [5, 0, 17, 40])
    for alone in range(4):
        for whole, single in zip(case.made(), case.made(only=alone), strict=True):
            assert torch.equal(whole.split(case.counts)[alone], single)
    bare = adapters.Case([3, 9, 1, 20], [0, 0, 0, 0])
    for with_others, without in zip(case.made(), bare.made(), strict=True):
        assert torch.equal(with_others.split(case.counts)[1], without.split(case.counts)[1])


# ---- norms, feed-forward, rotation


@pytest.mark.parametrize("spec", [NormSpec("rms", 1e-3), NormSpec("layer", 1e-3), NormSpec("layer", 1e-3, bias=False)])
def test_norm(spec, other):
    """Some rows only, in another order; then added to what is there, and as integers."""
    x_TD, wanted_R = torch.randn(9, 96) * 3 + 1, [7, 2, 2]
    norm = make_norm(spec, 96).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_()
    layered = int(spec.kind == "layer")
    how = {"weight": norm.weight.clone(), "eps": spec.eps, "layered": layered}
    how["bias"] = norm.bias.clone() if layered and spec.bias else None
    x, out, again = rows(x_TD), rows(torch.zeros(3, 96)), rows(torch.zeros(3, 96))
    play(flat(9, wanted_R), Kind.NORM, in_=x, out=out, of_rows=1, quantize=1, **how)
    close(out.floats, norm.double()(x_TD.double())[wanted_R])
    assert torch.equal(out.tensors[1], quantized(out.floats)[0])
    play(flat(9, wanted_R), Kind.NORM, other, in_=x, out=again, of_rows=1, **how)
    close(again.floats, out.floats, 1e-30 if other == AVX2 else 1e-6)
    play(flat(9), Kind.NORM, in_=x, out=x, add=1, **how)
    close(x.floats, x_TD + norm(x_TD.double()))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed(activation, gated):
    """Every activation, gated and not, over numbers from tiny to huge."""
    width, count = 96, 11
    gate, up = torch.randn(2, width, 64)
    biases = torch.randn(1 + gated, width)
    parts = (gate, up) if gated else (gate,)
    matrix = Matrix.of(pack_floats(torch.stack([p.unflatten(0, (-1, 32)) for p in parts], 1).flatten(0, 2)))
    bias = biases.unflatten(1, (-1, 32)).transpose(0, 1).flatten().contiguous()
    x_TD = torch.randn(count, 64) * torch.logspace(-3, 1, count)[:, None]
    out, alone = rows(torch.zeros(count, width)), rows(torch.zeros(1, width))
    how = {"matrix": matrix, "bias": bias, "activation": ACTIVATIONS.index(activation), "gated": int(gated)}
    play(flat(count), Kind.FEED, in_=rows(x_TD), out=out, quantize=1, **how)
    act = feed_forward.ACTIVATIONS.get(activation, lambda x: x)
    made = act(x_TD.double() @ gate.double().T + biases[0])
    wanted = made * (x_TD.double() @ up.double().T + biases[1]) if gated else made
    for got_F, wanted_F in zip(out.floats, wanted, strict=True):
        close(got_F, wanted_F)
    assert torch.equal(out.tensors[1], quantized(out.floats)[0])
    play(flat(1), Kind.FEED, threads=2, in_=rows(x_TD[4:5]), out=alone, quantize=1, **how)
    assert all(torch.equal(a[0], b[4]) for a, b in zip(alone.tensors, out.tensors, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_processors_agree_on_activations(activation, other):
    x_TD = torch.linspace(-30, 30, 32 * 32).view(32, 32)
    matrix = Matrix.of(pack_floats(torch.eye(32)))
    here, there = rows(x_TD), rows(x_TD)
    for march, out in (("native", here), (other, there)):
        how = {"matrix": matrix, "activation": ACTIVATIONS.index(activation)}
        play(flat(32), Kind.FEED, march, in_=rows(x_TD), out=out, **how)
    if other == AVX2:
        assert torch.equal(here.floats, there.floats)
    close(there.floats, here.floats)


@pytest.mark.parametrize("norm", [None, NormSpec("rms", 1e-4), NormSpec("layer", 1e-4, bias=False)])
@pytest.mark.parametrize("turning", [0, 32, 64])
def test_turn(norm, turning, coded):
    """Two sequences at different places, queries and keys normalized and turned, keys and values in their pages."""
    H, G, E, spans = 4, 2, 64, [(30, 5), (3, 2)]
    positions_T = torch.tensor([30, 31, 32, 33, 34, 3, 4])
    x_THE = torch.randn(7, H + 2 * G, E)
    scales = torch.randn(2, E)
    cos, sin = rotation(RopeSpec(100.0, dim=turning or None), E, torch.arange(64), torch.float32)
    half = turning // 2
    x = rows(x_THE.flatten(1))
    keys, values = empty(4, G, E, coded), empty(4, G, E, coded)
    tables = [[3, 1], [0, 9]]
    tape = Tape()
    tape.add(
        Kind.TURN, in_=x, heads=H, kv_heads=G, head_dim=E, turning=turning, keys=keys, values=values,
        cos=cos[:, :half].contiguous(), sin=sin[:, :half].contiguous(), eps=1e-4,
        layered=int(norm is not None and norm.kind == "layer"), coded=int(coded),
        q_norm=scales[0] if norm else None, k_norm=scales[1] if norm else None,
    )  # fmt: skip
    tape.run(batch_of([0] * 7, spans, tables, [0], torch.zeros(1)), 2)
    q, k, v = x_THE.double().split([H, G, G], 1)
    if norm:
        unit = make_norm(norm, E).double().requires_grad_(False)
        q, k = unit(q) * scales[0], unit(k) * scales[1]
    if turning:
        turn = Rotation(cos[positions_T].double(), sin[positions_T].double())
        q, k = rotate(q, turn), rotate(k, turn)
    close(x.floats.view(7, -1, E), torch.cat([q, k, v], 1))
    page, slot = torch.tensor([3, 3, 1, 1, 1, 0, 0]), positions_T % 32
    _, k_TGE, v_TGE = x.floats.view(7, -1, E).split([H, G, G], 1)
    for pages, x_TGE, value in ((keys, k_TGE, False), (values, v_TGE, True)):
        (numbers, steps), at = opened(pages, E, value, coded), place(page, slot, value)
        assert torch.equal(numbers[at], codes_of(x_TGE)[0] if coded else x_TGE.half())
        numbers.view(torch.int8 if coded else torch.int16)[at] = -1
        if steps is not None:
            assert torch.equal(steps[page, :, :, slot], codes_of(x_TGE)[1])
            steps.view(torch.int16)[page, :, :, slot] = -1
        assert (pages == 255).all(), "something else was written"


# ---- attention

SINKS = torch.tensor([0.5, -2.0, 3.0, 0.0, 8.0, 1.0])
KINDS = {
    "plain": Question(0.1),
    "window": Question(0.1, window=37),
    "narrow": Question(0.1, window=1),
    "softcap": Question(0.3, softcap=5.0),
    "sinks": Question(0.1, sinks_H=SINKS),
    "all": Question(0.2, window=40, softcap=4.0, sinks_H=SINKS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_attention(kind, coded):
    """Texts of several lengths in one batch, whole, against the softmax written out in float64."""
    asked = texts([70, 1, 33, 64], (6, 2), 64, KINDS[kind], coded=coded)
    got = asked.asked([(i, 0, len(q)) for i, q in enumerate(asked.q)])
    close(got.floats, torch.cat(asked.wanted()))
    assert torch.equal(got.tensors[1], quantized(got.floats)[0])


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 12])
@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
def test_attention_of_groups(group, width, coded):
    """Every number of query heads per key/value head, every width of a head; alone, in company and in pieces."""
    asked = texts([41, 9], (2 * group, 2), width, Question(width**-0.5 / 3), seed=group, coded=coded)
    whole = asked.asked([(0, 0, 41), (1, 0, 9)])
    close(whole.floats, torch.cat(asked.wanted()))
    for spans in ([(1, 8, 1), (0, 40, 1)], [(1, 2, 7), (0, 29, 12)]):
        some = torch.cat([torch.arange(start, start + n) + 41 * i for i, start, n in spans])
        got = asked.asked(spans, threads=2)
        assert all(torch.equal(a, b[some]) for a, b in zip(got.tensors, whole.tensors, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_company(kind, coded):
    """To the bit: whole, token by token, in pieces, with another text, by several threads, keys cut or not."""
    length = 1100  # more than two runs of 512 keys
    asked = texts([length, 600], (6, 2), 32, KINDS[kind], coded=coded)
    whole = asked.asked([(0, 0, length), (1, 0, 600)], threads=2)
    close(whole.floats[:length], asked.wanted()[0])
    for spans in (
        [(0, 1099, 1)], [(0, 511, 1)], [(0, 512, 1)], [(0, 1090, 10)], [(0, 0, 600)], [(0, 600, 500)],
        [(0, 1023, 3), (1, 597, 3)], [(1, 0, 5), (0, 508, 9)],
    ):  # fmt: skip
        some = torch.cat([torch.arange(start, start + n) + length * i for i, start, n in spans])
        for threads, scratch in ((1, 1 << 20), (3, 1 << 20), (1, 1)):
            got = asked.asked(spans, threads=threads, scratch=scratch)
            assert all(torch.equal(a, b[some]) for a, b in zip(got.tensors, whole.tensors, strict=True)), spans


@pytest.mark.parametrize("kind", KINDS)
def test_processors_agree_on_attention(kind, other, coded):
    asked = texts([70, 520], (6, 2), 64, KINDS[kind], coded=coded)
    spans = [(0, 30, 40), (1, 500, 20)]
    here, there = asked.asked(spans), asked.asked(spans, other)
    if other == AVX2:
        assert all(torch.equal(a, b) for a, b in zip(here.tensors, there.tensors, strict=True))
    close(there.floats, here.floats)
