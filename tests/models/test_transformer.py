"""The whole encoder-decoder of 2017 against torch.nn.Transformer: outputs and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cutaway.models.build import build
from cutaway.models.decoder import EncoderDecoder
from cutaway.models.spec import HeadSpec, LayerSpec, PoolingSpec, Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from kit.precision import all_float64
from kit.twins import make_loud

WIDTH, HEADS, FFN, DEPTH = 48, 6, 53, 2
SOURCES, TARGETS = [5, 3, 4], [4, 6, 1]  # lengths: unequal, so that the axes of batch and time cannot be exchanged
NORM = NormSpec("layer", 1e-5)
ATTENTION = AttentionSpec(HEADS, HEADS, WIDTH // HEADS, (WIDTH // HEADS) ** -0.5, bias=True, out_bias=True)
STACKS = (("encoder.", "encoder.", ("self_attn",)), ("decoder.", "", ("self_attn", "multihead_attn")))


def spec(placement: str) -> Spec:
    """Sinusoidal positions and shared embeddings, as in the paper; what is compared begins after them."""
    both_ways = replace(ATTENTION, causal=False)
    ffn = FeedForwardSpec(FFN, "relu", gated=False, bias=True)
    layer = LayerSpec(both_ways, ffn, NORM, placement)  # type: ignore[arg-type]
    embedding = EmbeddingSpec(scale=WIDTH**0.5, sinusoidal=True)
    encoder = Spec("vaswani", 31, WIDTH, 64, embedding, (layer,) * DEPTH, NORM, pooling=PoolingSpec())
    layers = (replace(layer, attention=ATTENTION, cross=both_ways),) * DEPTH
    return Spec("vaswani", 31, WIDTH, 64, embedding, layers, NORM, HeadSpec(tied=True), encoder=encoder)


def translated(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their parameters, or the gradients of those, by our names; q, k and v are fused in theirs."""
    found: list[tuple[str, Tensor]] = []
    for stack, ours, attentions in STACKS:
        for i in range(DEPTH):
            at, mine = f"{stack}layers.{i}.", f"{ours}layers.{i}."
            for attention, name in zip(attentions, ("attention", "cross"), strict=False):
                for part in ("weight", "bias"):
                    fused = named[f"{at}{attention}.in_proj_{part}"].chunk(3)
                    found += [(f"{mine}{name}.{x}.{part}", t) for x, t in zip("qkv", fused, strict=True)]
                    found.append((f"{mine}{name}.out.{part}", named[f"{at}{attention}.out_proj.{part}"]))
            linears = {"linear1": "ffn.up", "linear2": "ffn.down"}
            norms = ["attention_norm", "cross_norm", "ffn_norm"] if ours == "" else ["attention_norm", "ffn_norm"]
            linears |= {f"norm{n + 1}": name for n, name in enumerate(norms)}
            found += [(f"{mine}{o}.{p}", named[f"{at}{t}.{p}"]) for t, o in linears.items() for p in ("weight", "bias")]
        found += [(f"{ours}final_norm.{p}", named[f"{stack}norm.{p}"]) for p in ("weight", "bias")]
    return dict(found)


def twins(placement: str) -> tuple[nn.Transformer, EncoderDecoder]:
    """Theirs, loud, and ours with the same weights."""
    with all_float64():
        first = placement == "pre"
        theirs = nn.Transformer(WIDTH, HEADS, DEPTH, DEPTH, FFN, 0.0, norm_first=first, batch_first=True).eval()
        make_loud(theirs)
        ours = build(spec(placement))
    assert isinstance(ours, EncoderDecoder)
    ours.load_state_dict(translated(theirs.state_dict()), strict=False)
    return theirs, ours


def inputs(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in lengths]


def ours_of(model: EncoderDecoder, sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """One ragged batch."""
    lengths, spans = [len(t) for t in targets], [len(s) for s in sources]
    nowhere = torch.zeros(sum(spans), dtype=torch.long)
    memory_MD = model.encoder.transform(torch.cat(sources), nowhere, BlockDiagonal(spans))
    context = BlockDiagonal(lengths, memory_MD=memory_MD, sources=spans)
    return list(model.transform(torch.cat(targets), nowhere[: sum(lengths)], context).split(lengths))


def theirs_of(model: nn.Transformer, sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """One padded batch, with both of its masks."""
    source_BSD, target_BTD = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (sources, targets))
    blind_BS = torch.arange(source_BSD.shape[1]) >= torch.tensor([[len(s)] for s in sources])
    causal_TT = torch.ones(target_BTD.shape[1], target_BTD.shape[1], dtype=torch.bool).triu(1)
    out = model(
        source_BSD, target_BTD, tgt_mask=causal_TT, src_key_padding_mask=blind_BS, memory_key_padding_mask=blind_BS
    )
    return [row[: len(t)] for row, t in zip(out, targets, strict=True)]


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_outputs_and_all_gradients_are_those_of_pytorch(placement):
    theirs, ours = twins(placement)
    sources, targets = inputs(SOURCES, 1), inputs(TARGETS, 2)
    found, expected = ours_of(ours, sources, targets), theirs_of(theirs, sources, targets)
    probes = inputs(TARGETS, 3)
    for outs in (found, expected):
        sum((out * probe).sum() for out, probe in zip(outs, probes, strict=True)).backward()  # type: ignore[union-attr]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    gradients = translated({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    assert sum(g.numel() for g in gradients.values()) == sum(p.numel() for p in theirs.parameters())
    for name, expected_gradient in gradients.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_one_member_of_the_batch_moves_no_other(placement):
    """What an exchange of the axes of batch and time would break."""
    _, ours = twins(placement)
    sources, targets = inputs(SOURCES, 1), inputs(TARGETS, 2)
    before = ours_of(ours, sources, targets)
    sources[1], targets[1] = 2 * sources[1].roll(1, 0), targets[1].roll(1, 1)
    after = ours_of(ours, sources, targets)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


def test_a_decoder_layer_without_cross_attention_is_a_block_of_gpt():
    """Weight for weight: what is left is the block of a decoder-only model."""
    whole = spec("pre")
    plain = replace(whole, encoder=None, layers=tuple(replace(layer, cross=None) for layer in whole.layers))
    names = {name for name, _ in build(whole, "meta").named_parameters() if name.startswith("layers.0.")}
    left = {name for name, _ in build(plain, "meta").named_parameters() if name.startswith("layers.0.")}
    assert {name for name in names if "cross" not in name} == left
