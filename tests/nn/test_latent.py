"""Latent attention: both forms give the same, and a cache holds the latents alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutaway.engine.cache import KVCache, Spans
from cutaway.errors import CutawayError
from cutaway.labs.training import small_spec, with_layers
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.position_bias import Alibi
from cutaway.nn.positions import rotate
from kit.proofs.questions import LATENT, LENGTHS, latent_forms, loud_latent, turning


@pytest.mark.parametrize("rank", [None, 9])
def test_naive_and_absorbed_give_the_same_values_and_gradients(rank):
    latent_forms(replace(LATENT, query_rank=rank))


def test_a_bias_by_distance_does_not_hinder_the_absorbed_form():
    latent_forms(place=turning(LATENT.rope_dim)._replace(bias=Alibi(LATENT.heads)))


def test_turning_the_unfolded_key_does():
    """Why a part of the key is kept apart: rotation and W_uk do not commute."""
    module, place = loud_latent(LATENT), turning(6)
    latent_TC = torch.randn(sum(LENGTHS), 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    up_HNC = module.k_up.weight.unflatten(0, (5, -1))
    q_THN = torch.randn(sum(LENGTHS), 5, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    turned = rotate(torch.einsum("hnc,tc->thn", up_HNC, latent_TC), place.turn)
    unfolded = torch.einsum("qhn,shn->hqs", rotate(q_THN, place.turn), turned)
    folded = torch.einsum("qhc,sc->hqs", torch.einsum("qhn,hnc->qhc", rotate(q_THN, place.turn), up_HNC), latent_TC)
    assert (unfolded - folded).abs().max() > 1e-2


def latent_decoder() -> Spec:
    return with_layers(small_spec(vocab=41, width=24, heads=3), lambda layer: replace(layer, attention=LATENT))


def test_a_cache_holds_the_latent_and_the_turned_part_and_gives_the_same():
    model = build(latent_decoder())
    assert isinstance(model, Decoder)
    model = model.double()
    model.cost.check(model)
    tokens, positions = torch.arange(9), torch.arange(9)
    whole = model(tokens, positions, BlockDiagonal([9]))
    cache = KVCache(model.spec, torch.float64, torch.device("cpu"), 4)
    for start, end in ((0, 5), (5, 6), (6, 9)):
        part = model(tokens[start:end], positions[start:end], Spans([(cache, start, end - start)]))
        torch.testing.assert_close(part, whole[start:end], rtol=1e-10, atol=1e-12)
    assert [tuple(b.shape[::2]) for buffers in cache.buffers for b in buffers] == [(1, 7 + 4)] * 2
    assert model.cost.kv_bytes_per_token("bfloat16").value == 2 * (7 + 4) * 2


def test_deepseek_v3_keeps_70272_bytes_a_token():
    published = replace(LATENT, heads=128, kv_rank=512, plain_dim=128, rope_dim=64, value_dim=128)
    spec = latent_decoder()
    spec = replace(spec, layers=(replace(spec.layers[0], attention=published),) * 61)
    with torch.device("meta"):
        assert Decoder(spec).cost.kv_bytes_per_token("bfloat16").value == 70_272


@pytest.mark.parametrize(("field", "value"), [("kv_rank", 0), ("rope_dim", 0), ("query_rank", 0), ("heads", -1)])
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(CutawayError, match=field):
        with_layers(latent_decoder(), lambda layer: replace(layer, attention=replace(LATENT, **{field: value})))
