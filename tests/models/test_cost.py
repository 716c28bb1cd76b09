"""The cost model against the tensors, transformers' counts, PyTorch's FLOP counter and its allocator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cutaway.engine.cache import KVCache, Spans
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Logits, sample
from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.cost import SAMPLER_BYTES, STEP, Cost, pairs, per_pair
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.families.table import spec_of
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Question, visible
from kit import twins

DECODERS = ["llama", "mixtral", "qwen2", "qwen3-biased", "gemma3", "gemma3-untied", "gpt2", "gpt2-untied"]
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def spec(name: str) -> Spec:
    twin = twins.twin(name)
    return spec_of(twin.family, twin.config | twin.family.observed(twin.config, twin.state))


def smollm2() -> Spec:
    return spec_of(twins.twin("llama").family, SMOLLM2)


def cached(model: Decoder, past: int) -> KVCache:
    """A cache that remembers `past` tokens and has room for more."""
    cache = KVCache(model.spec, model.dtype, model.device, capacity=past + STEP)
    for pair in cache.buffers:
        for buffer in pair:
            buffer.normal_()
    return cache


@pytest.mark.parametrize("name", sorted(twins.ARCHITECTURES))
def test_parameters_are_those_of_the_tensors_and_of_transformers(name: str) -> None:
    cost, twin = Cost(spec(name)), twins.twin(name)
    cost.check(build(cost.spec, "meta"))
    assert cost.parameters == sum(t.numel() for t in twin.state.values())
    assert cost.parameters == sum(term.value for term in cost.by_part())


def test_check_names_the_module_that_differs() -> None:
    model = build(spec("llama"))
    model.layers[1].ffn.up = torch.nn.Linear(48, 54, bias=False)
    with pytest.raises(CutawayError, match=r"layers\.1\.ffn\.up: the formulas give 2,544 .* hold 2,592"):
        Cost(model.spec).check(model)
    surplus = build(spec("llama"))
    surplus.pooler = torch.nn.Linear(2, 2)
    with pytest.raises(CutawayError, match="pooler: the formulas give 0 parameters, the tensors hold 6"):
        Cost(surplus.spec).check(surplus)


def test_smollm2_has_134515008_parameters_and_says_where() -> None:
    cost = Cost(smollm2())
    terms = {term.name: term for term in cost.by_part()}
    assert cost.parameters == 134_515_008
    assert terms["embedding.tokens"][1:] == (28_311_552, "V·D", "49,152 × 576")
    assert terms["layers.*.attention.k"][1:] == (3_317_760, "L·D·(G·K)", "30 × 576 × 192")
    assert terms["layers.*.ffn.down"].value == 30 * 1536 * 576


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma3"])
def test_formulas_with_numbers_come_to_the_value(name: str) -> None:
    cost = Cost(spec(name))
    memory = cost.memory(60, 3, "bfloat16")
    for term in [*cost.by_part(), *cost.per_token(60), cost.kv_bytes_per_token("float32"), *memory]:
        assert eval(term.numbers.replace("×", "*").replace(",", "")) == term.value, term
    assert memory[-1].value == sum(term.value for term in memory[:-1])


@pytest.mark.parametrize("past", [0, 1, 5, 40])
@pytest.mark.parametrize("name", DECODERS)
def test_flops_of_a_token_are_what_pytorch_counts(name: str, past: int) -> None:
    """The mathematical kernel takes only the keys that the cache hands it: for one query, those in the window."""
    model = build(spec(name))
    assert isinstance(model, Decoder)
    context = Spans([(cached(model, past), past, 1)])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(torch.tensor([3]), torch.tensor([past]), context))
    cost = Cost(model.spec)
    assert cost.flops_per_token(past + 1) == counter.get_total_flops()
    assert cost.flops(1, past, rows=1) == counter.get_total_flops()


def test_flops_of_an_encoder_are_what_pytorch_counts() -> None:
    model = build(spec("bert"))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.arange(19), torch.arange(19), BlockDiagonal([19]))
    assert Cost(model.spec).flops(19) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_flops_of_an_encoder_decoder_are_what_pytorch_counts(name: str) -> None:
    model, source, target = build(spec(name)), 11, 7
    assert isinstance(model, EncoderDecoder)
    cost = Cost(model.spec)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        memory_MD = model.encode(torch.arange(source), [source])
        context = BlockDiagonal([target], memory_MD=memory_MD, sources=[source])
        hidden_TD = model(torch.arange(target), torch.arange(target), context)
        model.logits(hidden_TD[-1:])
    # The kernel multiplies all pairs and masks; a causal token sees those before it.
    unseen = sum(2 * layer.attention.per_pair for layer in model.spec.layers) * target * (target - 1) // 2
    assert cost.flops(target, rows=1, source=source) == counter.get_total_flops() - unseen
    assert cost.flops_per_token(target, source) == cost.flops(1, target - 1, 1, source=source)
    kept = cost.kv_bytes(target, 3, "float32", source).value - cost.kv_bytes(target, 3, "float32").value
    held = KVCache(model.spec, torch.float32, torch.device("cpu"), capacity=target)
    with torch.no_grad():
        held.memory_SD = memory_MD
        model(torch.arange(target), torch.arange(target), Spans([(held, 0, target)]))
    assert kept == 3 * sum(k.nbytes + v.nbytes for k, v in held.sources.values())


@pytest.mark.parametrize("past", [0, 5])
def test_flops_of_latent_attention_follow_its_form(past: int) -> None:
    """Naive over tokens that are all new, absorbed where a cache remembers."""
    experts = spec("deepseek_v3")
    model = build(replace(experts, layers=experts.layers[:1]))
    assert isinstance(model, Decoder)
    cost, new = Cost(model.spec), 1 if past else 4
    unseen = new * (new - 1) // 2
    for remembers in (True,) if past else (True, False):
        context = Spans([(cached(model, past), past, new)]) if remembers else BlockDiagonal([new])
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.arange(new), torch.arange(past, past + new), context)
        masked = 2 * per_pair(model.spec.layers[0].attention, remembers) * unseen
        assert cost.flops(new, past, remembers=remembers) == counter.get_total_flops() - masked


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "first"), [(None, 0), (1, 0), (4, 0), (7, 0), (30, 0), (1, 1), (4, 3), (3, 12)])
@pytest.mark.parametrize("past", [0, 3, 9])
def test_pairs_are_the_ones_in_the_mask(past: int, window: int | None, first: int, causal: bool) -> None:
    a = AttentionSpec(heads=1, kv_heads=1, head_dim=2, scale=1.0, causal=causal, window=window, anchors=first)
    for new in (1, 2, 6, 11):
        mask = visible(new, past + new, Question(1.0, causal, window, first), torch.device("cpu"))
        assert pairs(a, new, past) == (new * (past + new) if mask is None else int(mask.sum()))


def test_prompt_and_steps_cost_what_one_pass_costs() -> None:
    """With a cache no work is done twice: the split into steps does not change the sum."""
    cost = Cost(spec("gemma3"))
    assert cost.flops(23, rows=2) == cost.flops(20, rows=1) + cost.flops(2, 20) + cost.flops(1, 22, rows=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_bytes_are_those_of_a_cache_until_a_window_is_full(dtype: str) -> None:
    cost = Cost(spec("gemma3"))
    cache = KVCache(cost.spec, getattr(torch, dtype), torch.device("cpu"), capacity=7)
    held = sum(buffer.nbytes for pair in cache.buffers for buffer in pair)
    assert cost.kv_bytes(7, 1, dtype).value == 7 * cost.kv_bytes_per_token(dtype).value == held
    growth = cost.kv_bytes(31, 3, dtype).value - cost.kv_bytes(30, 3, dtype).value
    one_global_layer = 2 * 2 * 10 * torch.finfo(getattr(torch, dtype)).bits // 8
    assert growth == 3 * one_global_layer
    assert Cost(spec("bert")).kv_bytes(9, 1, dtype).value == 0


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that was allocated at one time while `run` ran, as PyTorch's allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("sequences", "past"), [(1, 0), (1, 300), (4, 300)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_activations_stay_below_their_bound(name: str, dtype: str, sequences: int, past: int) -> None:
    wide = replace(spec(name), context=4096, embedding=replace(spec(name).embedding, positions=0))
    model = build(wide).to(getattr(torch, dtype))
    assert isinstance(model, Decoder)
    new = 256 // sequences
    tokens_T, positions_T = (
        torch.zeros(256, dtype=torch.long),
        torch.arange(past, past + new).repeat(sequences),
    )
    context = Spans([(cached(model, past), past, new) for _ in range(sequences)])
    with torch.inference_mode():
        peak = peak_bytes(lambda: model(tokens_T, positions_T, context))
    bound = next(t for t in Cost(wide).memory(past + new, sequences, dtype, step=256) if t.name == "activations")
    assert peak <= bound.value


def test_the_bound_of_activations_is_not_idle() -> None:
    """Without mask, the worst moment of a plain Llama's feed-forward is within a quarter of the bound."""
    model = build(spec("llama"))
    tokens_T = torch.zeros(2048, dtype=torch.long)
    context = BlockDiagonal([32] * 64)
    with torch.inference_mode():
        peak = peak_bytes(lambda: model(tokens_T, torch.arange(32).repeat(64), context))
    bound = next(t for t in Cost(model.spec).memory(32, 64, "float32", step=2048) if t.name == "activations")
    assert 0.75 * bound.value < peak <= bound.value


@pytest.mark.parametrize("params", [SamplingParams(top_k=50, top_p=0.9, min_p=0.01), SamplingParams(temperature=0)])
def test_the_sampler_stays_below_its_bound(params: SamplingParams) -> None:
    logits_V = torch.randn(100_000)
    assert peak_bytes(lambda: sample(Logits.of(logits_V), params, [1, 2], [3], trace=10)) <= SAMPLER_BYTES * 100_000


def test_the_step_is_the_engines() -> None:
    assert inspect.signature(Engine).parameters["budget"].default == STEP


@pytest.mark.parametrize(
    ("context", "batch", "dtype", "named"),
    [(0, 1, "float32", "context"), (9, 0, "float32", "batch"), (9, 1, "int3", "dtype")],
)
def test_senseless_questions_are_refused_by_name(context: int, batch: int, dtype: str, named: str) -> None:
    with pytest.raises(CutawayError, match=named):
        Cost(spec("llama")).memory(context, batch, dtype)
