"""Checkpoints of GPTQ, AWQ and compressed-tensors: loaded, run as they are stored, and refused where not understood.

Each is a Llama whose matrices a packer of one number at a time made. That every number comes out is a proof of the kit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.matrices import OfCheckpoint
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.native.build import library
from cutaway.weights import safetensors
from cutaway.weights.checkpoint import load, open_checkpoint
from cutaway.weights.grouped import Grouped
from cutaway.weights.integers import AWQ as AWQ_PACKING
from cutaway.weights.integers import gptq, packed_integers
from cutaway.weights.packed import Unpacked
from cutaway.weights.quantization import packings_of
from engine.test_graph import graph, ids_of, off, step
from kit.proofs.grouped import read
from weights import checkpoints, integers
from weights.integers import Drawn

SIZES = {"head_dim": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
PROMPT = "Of all tongues this one is the quietest"
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
PACKED, PLAIN = integers.scheme(4), integers.scheme(8, "int-quantized")

Pack = Callable[[Drawn], dict[str, Tensor]]
# quantization_config, how the matrices are drawn and packed, what they are called, and as what the kernels get them
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], Pack, str, str | None]] = {
    "gptq": (GPTQ, {"least": 1}, integers.gptq, "GPTQ-4", "Q4_1"),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, {}, lambda m: integers.gptq(m, 0), "GPTQ-4", "Q4_1"),
    "gptq 8": (GPTQ | {"bits": 8}, {"bits": 8, "even": True}, integers.gptq, "GPTQ-8", "Q8_0"),
    "gptq desc_act": (GPTQ | {"desc_act": True}, {"shuffled": True, "least": 1}, integers.gptq, "GPTQ-4", None),
    "gptq dynamic": (GPTQ | {"bits": 8, "dynamic": {}}, {"even": True}, integers.gptq, "GPTQ-4", "Q4_0"),
    "awq": (AWQ, {}, integers.awq, "AWQ-4", "Q4_1"),
    "packed 4": (PACKED, {"dtype": torch.bfloat16}, integers.packed, "INT-4", "Q4_1"),
    "packed even": (PACKED, {"even": True}, lambda m: integers.packed(m, "none"), "INT-4", "Q4_0"),
    "packed 8": (integers.scheme(8), {"bits": 8}, integers.packed, "INT-8", None),
    "plain 8": (PLAIN, {"bits": 8, "even": True}, integers.plain, "INT-8", "Q8_0"),
}


def quantized(folder: Path, stated: dict[str, Any], how: dict[str, Any], pack: Pack) -> tuple[Path, Path]:
    """A checkpoint, and its dense twin in float32."""
    twin, made = (checkpoints.directory(folder / name, **SIZES) for name in ("dense", "packed"))
    tensors = load_file(twin / "model.safetensors")
    stored = dict(tensors)
    for seed, name in enumerate(n for n in tensors if n.endswith("_proj.weight")):
        loud = integers.draw(*stored.pop(name).shape, seed=seed, **how)
        drawn = replace(loud, scales=loud.scales / 2)  # next tokens are less often nearly tied
        tensors[name] = drawn.dense.float()
        stored |= integers.named(name.removesuffix(".weight"), pack(drawn))
    save_file(tensors, twin / "model.safetensors", {"format": "pt"})
    save_file(stored, made / "model.safetensors", {"format": "pt"})
    checkpoints.configure(made, quantization_config=stated)
    return made, twin


@pytest.fixture(scope="module", params=FORMATS)
def packed(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """A format, a checkpoint in it, and its dense twin."""
    return request.param, *quantized(tmp_path_factory.mktemp("packed"), *FORMATS[request.param][:3])


def said(engine: Engine) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=12)
    return [event.choice.token for event in engine.generate(engine.tokenizer.encode(PROMPT), params)]


def test_a_model_in_each_format(packed):
    """The same numbers as its dense twin to the last bit, by the same names; the same text, run as it is stored."""
    name, made, twin = packed
    stored, blocks = FORMATS[name][3:]
    checkpoint, dense = open_checkpoint(made), open_checkpoint(twin)
    ours, theirs = (opened.model().state_dict() for opened in (checkpoint, dense))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert checkpoint.stored_type("layers.1.ffn.down.weight") == stored
    rows = checkpoint.stored_rows("layers.1.ffn.down.weight")
    assert (rows[2] if rows else None) == blocks
    assert checkpoint.stored_rows("embedding.tokens.weight") is None
    engine, reference = (engine_of(load(str(path), dtype)) for path, dtype in ((made, "stored"), (twin, "float32")))
    assert library() is None or isinstance(engine.runner, Native)
    assert said(engine) == said(reference)


def test_a_cache_of_8_bits_needs_native_kernels(tmp_path):
    path = str(checkpoints.directory(tmp_path / "dense", **SIZES))
    with pytest.raises(CutawayError, match=r"--cache-dtype.*--dtype stored"):
        engine_of(load(path, "float32"), cache_dtype="int8")
    if library() is not None:
        assert said(engine_of(load(path, "stored"), cache_dtype="int8"))


@pytest.mark.skipif(library() is None, reason="no native kernels")
def test_kernels_take_the_integers(packed):
    """Near the dense twin on the same kernels: nothing but activations is rounded, and these only where codes are."""
    name, *paths = packed
    opened, ids, blocks = map(open_checkpoint, paths), ids_of(40), FORMATS[name][4]
    got, wanted = (step(graph(c.spec, OfCheckpoint(c)), ids, [(0, 40)], [[3, 1]]) for c in opened)
    assert off(got, wanted) < (2e-2 if blocks else 1e-6)
    assert off(got, wanted) > (1e-4 if blocks else -1)


# ---- what does not become blocks, and what is refused


@pytest.mark.parametrize(
    ("dtype", "scale", "held"),
    [
        (torch.float16, 2.0**-24, True),  # the least number of float16, exactly
        (torch.bfloat16, 1.5 * 2.0**-24, False),  # between two of them
        (torch.float32, 1.0001, True),  # rounded as any number is
        (torch.float32, 70000.0, False),
        (torch.float32, 6000.0, False),  # a zero of 15 makes it 90000
    ],
)
def test_numbers_that_float16_cannot_hold_are_no_blocks(dtype, scale, held):
    codes, zeros = torch.zeros(16, 32, dtype=torch.uint8), torch.full((16, 1), 15)
    made = Grouped(codes, torch.full((16, 1), scale, dtype=dtype), zeros, 4).blocks()
    assert (made is not None) == held


@pytest.mark.parametrize("size", [16, 48])
def test_groups_that_cut_a_block_are_no_blocks(size):
    drawn = integers.draw(16, 96, 4, size)
    assert read(AWQ_PACKING, integers.awq(drawn)).blocks() is None
    assert torch.equal(read(AWQ_PACKING, integers.awq(drawn)).weights().double(), drawn.dense)


def test_biases_of_zeros_that_the_model_lacks_are_left_out(tmp_path):
    made, _ = quantized(tmp_path, *FORMATS["gptq"][:3])
    name = "model.layers.0.mlp.up_proj"
    checkpoints.retensor(made, **{f"{name}.bias".replace(".", "__"): lambda _: torch.zeros(96)})
    assert open_checkpoint(made).bindings
    checkpoints.retensor(made, **{f"{name}.bias".replace(".", "__"): lambda _: torch.ones(96)})
    with pytest.raises(CutawayError, match=r"such as 'model\.layers\.0\.mlp\.up_proj\.bias'"):
        assert open_checkpoint(made).bindings


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


def group(**changes: Any) -> dict[str, Any]:
    """A scheme of compressed-tensors with other weights."""
    made = integers.scheme(4)
    made["config_groups"]["group_0"]["weights"] |= changes  # type: ignore[index]
    return made


STATIC = {"num_bits": 8, "dynamic": False}
REFUSED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantized by bitsandbytes"),
    ({"quant_method": "hqq"}, "quantized by hqq"),
    (without(GPTQ, "quant_method"), "quantized by None"),
    (GPTQ | {"checkpoint_format": "marlin"}, "GPTQ in the format marlin"),
    (GPTQ | {"is_marlin_format": True}, "GPTQ in the format marlin"),
    (GPTQ | {"bits": 3}, "GPTQ of 3 bits"),
    (AWQ | {"version": "gemv"}, "AWQ in the version gemv"),
    (AWQ | {"zero_point": False}, "AWQ without zeros"),
    (AWQ | {"bits": 8}, "AWQ of 8 bits"),
    (integers.scheme(8, "float-quantized"), "compressed-tensors in the format float-quantized"),
    (group(type="float"), "compressed-tensors in the format pack-quantized of floats"),
    (group(num_bits=2), "compressed-tensors of 2 bits"),
    (group(strategy="block"), "scales for each block"),
    (integers.scheme(8, "int-quantized", input_activations=STATIC), "fixed scales of input_activations"),
    (integers.scheme(8, input_activations={"num_bits": 8}), "with fixed scales"),
    (PACKED | {"kv_cache_scheme": {"num_bits": 8}}, "compressed-tensors with kv_cache_scheme"),
    (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "compressed-tensors with sparse-24-bitmask"),
    (PACKED | {"config_groups": 3}, "bad quantization_config"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "FP8 with weight_block_size None"),
    ([1], "should be an object"),
]


@pytest.mark.parametrize(("stated", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_is_not_read_exactly_is_refused_by_name(stated, why):
    with pytest.raises(CutawayError, match=why) as refused:
        packings_of({"quantization_config": stated}, "config.json")
    assert "GGUF" in refused.value.hint or "damaged" in refused.value.hint


def test_a_refusal_names_the_file(tmp_path):
    made = checkpoints.directory(tmp_path)
    checkpoints.configure(made, quantization_config={"quant_method": "quip"})
    with pytest.raises(CutawayError, match="quip") as refused:
        open_checkpoint(made)
    assert refused.value.where.endswith("config.json")


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    ],
)
def test_what_is_known_by_names_needs_no_more(stated):
    assert packings_of(stated, "config.json") == ()


def narrower(tensor: Tensor) -> Tensor:
    return tensor[:, :-1].contiguous()


@pytest.mark.parametrize("name", ["gptq", "awq", "packed 4", "plain 8"])
def test_tensors_that_do_not_go_together_are_refused(name, tmp_path):
    """Each of them once with a column less, and once of a type that is not its own."""
    stated, how, pack, _, _ = FORMATS[name]
    parts = integers.named("x", pack(integers.draw(32, 224, **how)))
    wanted = packings_of({"quantization_config": stated}, "")
    for end in [end for end, part in parts.items() if part.dim() == 2]:
        for spoilt in (narrower, lambda t: t.to(torch.float64)):
            save_file(parts | {end: spoilt(parts[end])}, tmp_path / "model.safetensors")
            with pytest.raises(CutawayError, match="do not fit"):
                Unpacked(safetensors.read(tmp_path), wanted)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_groups_that_do_not_exist_are_refused(wrong):
    for packing, parts in (
        (gptq(4, 1), integers.gptq(integers.draw(16, 128, shuffled=True, least=1))),
        (packed_integers(4), integers.packed(integers.draw(16, 128, shuffled=True))),
    ):
        (index,) = [end for end in parts if end.endswith("g_idx")]
        parts[index][5] = wrong
        with pytest.raises(CutawayError, match="other than its 4"):
            read(packing, parts)
