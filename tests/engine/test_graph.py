"""The tape of a model against the model's own modules, for every architecture that it takes; and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.engine.graph import Graph, refusal
from cutaway.engine.matrices import OfCheckpoint, OfModel
from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.models.spec import LayerSpec, Spec
from cutaway.native.build import compiled
from cutaway.native.tape import batch_of
from cutaway.nn.attention import BlockDiagonal, Question
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.heads import TransformSpec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.position_bias import AlibiSpec
from cutaway.nn.positions import RopeScaling, RopeSpec
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_gguf
from weights import checkpoints

CONTEXT = 256
SIZES: dict[str, Any] = {
    "vocab_size": 203, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": CONTEXT, "rope_theta": 100.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": 203, "n_positions": CONTEXT, "n_embd": 96, "n_layer": 3, "n_head": 3}
OPT = {
    "vocab_size": 203, "hidden_size": 96, "ffn_dim": 160, "num_hidden_layers": 3, "num_attention_heads": 3,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
T5 = {"vocab_size": 203, "d_model": 96, "d_ff": 160, "d_kv": 32, "num_heads": 3, "num_layers": 1}


def of(family: str, **config: Any) -> Spec:
    return spec_of(FAMILIES[family], SIZES | config)


def each(spec: Spec, change: Any) -> Spec:
    """With every layer changed."""
    return replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def attending(spec: Spec, **changes: Any) -> Spec:
    """With every layer's attention changed."""
    return each(spec, lambda layer: replace(layer, attention=replace(layer.attention, **changes)))


def dense_gpt_oss() -> Spec:
    """gpt-oss with plain feed-forward layers in place of experts: sinks, biases, windows in every other layer, YaRN."""
    experts = of("gpt_oss", sliding_window=33, num_local_experts=4, num_experts_per_tok=2)
    return each(experts, lambda layer: replace(layer, ffn=FeedForwardSpec(160, "silu", True, True)))


SPECS = {
    "llama": lambda: of("llama"),
    "llama tied": lambda: of("llama", tie_word_embeddings=True),
    "llama 3": lambda: of("llama", rope_scaling=LLAMA3),
    "qwen2": lambda: of("qwen2"),
    "qwen3": lambda: of("qwen3"),
    "mistral": lambda: of("mistral", sliding_window=40),
    "gemma2": lambda: of("gemma2", sliding_window=40, query_pre_attn_scalar=24, hidden_activation="gelu_pytorch_tanh"),
    "gemma3": lambda: of("gemma3", sliding_window=40, query_pre_attn_scalar=24, sliding_window_pattern=2),
    "phi3": lambda: of("phi3", partial_rotary_factor=0.5, hidden_size=128, head_dim=None, pad_token_id=0),
    "gpt2": lambda: spec_of(FAMILIES["gpt2"], GPT2),
    "opt": lambda: spec_of(FAMILIES["opt"], OPT),
    "opt after": lambda: spec_of(FAMILIES["opt"], OPT | {"do_layer_norm_before": False}),
    "gpt-oss dense": dense_gpt_oss,
    "after": lambda: each(of("llama"), lambda layer: replace(layer, placement="after")),
    "sinusoids": lambda: replace(of("llama"), embedding=replace(of("llama").embedding, sinusoidal=True)),
    "norms of heads": lambda: attending(of("llama"), qk_norm=NormSpec("layer", 1e-5, bias=False)),
    "scaled head": lambda: replace(of("llama"), head=replace(of("llama").head, scale=0.25, softcap=3.0)),
}


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    try:
        compiled()
    except CutawayError as error:
        pytest.skip(f"no native kernels: {error}")


class Rounded(BlockDiagonal):
    """Keys and values as pages keep them."""

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        assert v_TGK is not None
        k_TGK, v_TGK = (t.half().to(t.dtype) for t in (k_TGK, v_TGK))
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


def model(spec: Spec, seed: int = 0) -> Decoder:
    """Every tensor drawn anew, so that a mistake anywhere shows in the logits."""
    made, generator = build(spec).eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 if fan_in > 1 else 0.5) / fan_in**0.5)
    assert isinstance(made, Decoder)
    return made


def graph(spec: Spec, source: Any, tokens: int = 200, cache: str = "float16") -> Graph:
    return Graph(spec, source, context=CONTEXT, pages=12, tokens=tokens, rows=tokens, cache=cache)


def ids_of(count: int, seed: int = 0, vocab: int = 203) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


Spans = list[tuple[int, int]]


def step(graph: Graph, ids: list[int], spans: Spans, tables: list[list[int]], **how: Any) -> Tensor:
    """Logits of all tokens."""
    batch = batch_of(ids, spans, tables, range(len(ids)), torch.zeros(1 << 16))
    return torch.stack([row.values_V for row in graph(batch, how.get("threads", 1))])


def off(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_the_modules(name):
    """Two texts at once: as near to float64 as the modules in float32. Then the first in pieces: the same bits.

    Neither is nearer than 1e-6: a key that differs by next to nothing may be rounded to another float16.
    """
    spec = SPECS[name]()
    assert refusal(spec) is None
    made, first, second = model(spec), ids_of(70), ids_of(5, 1)
    recorded, tables = graph(spec, OfModel(made)), [[7, 2, 5], [4, 0, 0]]
    got = step(recorded, first + second, [(0, 70), (0, 5)], tables, threads=2)
    positions_T = torch.cat([torch.arange(70), torch.arange(5)])

    def modules() -> Tensor:
        return made.logits(made(torch.tensor(first + second), positions_T, Rounded([70, 5])))

    narrow, wanted = modules(), (made.double(), modules())[1]
    assert off(got, wanted) < 1e-5 + 3 * off(narrow, wanted)
    assert off(narrow, wanted) < 1e-4
    assert min(off(*pair) for pair in zip(got, wanted, strict=True)) < 2e-6
    pages = [[1, 8, 3]]
    for start, count in ((0, 31), (31, 2), (33, 1), (34, 36)):
        some = step(recorded, first[start : start + count], [(start, count)], pages)
        assert torch.equal(some, got[start : start + count])


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16", "F16"])
def test_a_file_as_it_is_stored(kind, tmp_path):
    """Near the model of the same file dequantized: only activations are rounded, to 1 part in 254 of 32 of them."""
    config = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 160, "max_position_embeddings": CONTEXT}
    spec = spec_of(FAMILIES["llama"], checkpoints.CONFIG | config)
    path = Path(tmp_path, "tiny.gguf")
    save_gguf(model(spec), checkpoints.tokenizer(), path, kind)
    checkpoint = open_checkpoint(path)
    twin, ids = model(spec), ids_of(40)
    twin.load_state_dict({name: checkpoint.tensor(name) for name, _ in twin.named_parameters()})
    got = step(graph(spec, OfCheckpoint(checkpoint)), ids, [(0, 40)], [[3, 1]])
    wanted = twin.logits(twin(torch.tensor(ids), torch.arange(40), Rounded([40])))
    distance = off(got, wanted)
    assert distance < (3e-2 if kind.startswith("Q") else 1e-4)
    assert distance > (1e-4 if kind.startswith("Q") else 0), "nothing was rounded"


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_copied_pages_hold_the_same(cache):
    spec = SPECS["llama"]()
    recorded, ids = graph(spec, OfModel(model(spec)), cache=cache), ids_of(40)
    step(recorded, ids[:39], [(0, 39)], [[3, 1]])
    recorded.copy_pages([(3, 9), (1, 4)])
    there, here = (step(recorded, ids[39:], [(39, 1)], [pages]) for pages in ([3, 1], [9, 4]))
    assert torch.equal(here, there)


def _feeding(**changes: Any) -> Spec:
    return each(of("llama"), lambda layer: replace(layer, ffn=replace(layer.ffn, **changes)))


def _layers(**changes: Any) -> Spec:
    return each(of("llama"), lambda layer: replace(layer, **changes))


def _embedding(**changes: Any) -> Spec:
    return replace(of("llama"), embedding=replace(of("llama").embedding, **changes))


def _latent(layer: LayerSpec) -> LayerSpec:
    return replace(layer, attention=LatentSpec(4, 64, 32, 32, 32, 64**-0.5, RopeSpec(100.0)))


LONGER = RopeSpec(100.0, RopeScaling("dynamic", 2.0, 64))
REFUSED = {
    "reads a source": lambda: spec_of(FAMILIES["t5"], T5),
    "head is not a single": lambda: replace(of("llama"), head=replace(of("llama").head, transform=TransformSpec())),
    "head is scaled before": lambda: replace(of("llama"), head=replace(of("llama").head, bias=True, scale=0.5)),
    "more than a table": lambda: _embedding(types=2),
    "its width 112 is": lambda: of("llama", hidden_size=112),
    "LatentSpec and FeedForwardSpec": lambda: each(of("llama"), _latent),
    "AttentionSpec and ExpertsSpec": lambda: of("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "residual stream is scaled": lambda: _layers(residual=0.5),
    "over the batch": lambda: _layers(norm=NormSpec("batch", 1e-5)),
    "not plainly causal": lambda: attending(of("llama"), position_bias=AlibiSpec()),
    "rotation adapts": lambda: attending(of("llama"), rope=LONGER),
    "heads are 24 wide": lambda: of("llama", head_dim=24),
    "norms of its heads": lambda: attending(of("llama"), qk_norm=NormSpec("layer", 1e-5)),
    "clamped": lambda: _feeding(limit=7.0),
    "odd width": lambda: of("llama", intermediate_size=150),
    "uses tanh": lambda: _feeding(activation="tanh"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refusals_say_why(why):
    assert why in str(refusal(REFUSED[why]()))
