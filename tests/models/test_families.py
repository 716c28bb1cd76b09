"""Every family against transformers: values, gradients, cache, precision, and the way there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from cutaway.errors import CutawayError
from cutaway.models.families import FAMILIES, proven
from cutaway.models.families.table import config_of, spec_of
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_directory
from kit import twins
from kit.precision import all_float64
from kit.proofs import PROOFS
from kit.proofs.models import PROOFS as MODEL_PROOFS
from kit.proofs.models import TWIN_PROOFS, agree, bound
from kit.twins import ARCHITECTURES, EAGER, Tokenizerless, Twin

# Entries of config.json that say nothing about what the model computes, and those that another entry overrides.
HARMLESS = {
    *("_name_or_path", "transformers_version", "model_type", "dtype", "return_dict", "use_cache", "problem_type"),
    *("output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "classifier_dropout"),
    *("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout_rate", "encoder_layerdrop", "decoder_layerdrop", "activation_dropout", "initializer_factor"),
    *("dropout", "layerdrop", "init_std", "hidden_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn"),
    *("router_jitter_noise", "router_aux_loss_coef", "output_router_logits"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    *("summary_last_dropout", "classifier_dropout_prob", "pooler_dropout"),
    *("mlp_dropout", "embedding_dropout", "sparse_prediction", "sparse_pred_ignore_index"),
    *("initializer_cutoff_factor", "deterministic_flash_attn", "cls_token_id", "sep_token_id"),
}
OVERRIDDEN = {
    "qwen2": {"sliding_window", "max_window_layers", "layer_types"},  # use_sliding_window is false
    "qwen3": {"sliding_window", "max_window_layers", "layer_types"},
    "gemma3": {"sliding_window_pattern", "_sliding_window_pattern"},  # layer_types is there
    "qwen2_moe": {"sliding_window", "max_window_layers", "layer_types"},
    "qwen3_moe": {"sliding_window"},
    "deepseek_v2": {"head_dim", "qk_head_dim"},  # said by the widths of their two parts
    "deepseek_v3": {"head_dim", "qk_head_dim", "num_nextn_predict_layers"},  # twice nothing is nothing
    "gpt_oss": {"hidden_act"},  # its gate is its own
    "phi3": {"original_max_position_embeddings", "partial_rotary_factor"},  # no scaling; said by rope_parameters
    "bert": {"tie_word_embeddings"},  # the bare encoder has no head
    "deberta": {"type_vocab_size", "pooler_hidden_size"},  # twice nothing is nothing; a head of words has no pooler
    "modernbert": {"classifier_pooling"},  # a head of words looks at each token
    "t5": {"dense_act_fn", "is_gated_act", "is_decoder"},  # said by feed_forward_proj; both halves are there
    "mt5": {"dense_act_fn", "is_gated_act", "is_decoder", "decoder_start_token_id"},  # twice nothing is nothing
    "bart": {"is_decoder", "forced_eos_token_id"},  # the latter says when `generate` ends
    "electra": {"tie_word_embeddings"},  # nor has the discriminator one of words
}


@pytest.mark.parametrize("proof", PROOFS)
def test_agrees_with_transformers(proof):
    PROOFS[proof]()


@pytest.fixture(params=ARCHITECTURES)
def twin(request) -> Twin:
    return twins.twin(request.param)


def test_a_directory_of_transformers_loads(twin, tmp_path):
    with all_float64():
        twin.reference.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    found, expected = checkpoint.model(torch.float64).state_dict(), twins.ours(twin).state_dict()
    assert checkpoint.spec == twins.ours(twin).spec
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_loads_in_transformers(twin, tmp_path):
    """Every tensor comes back bit for bit, and the configuration says the same model."""
    path = tmp_path / "saved"
    save_directory(twins.ours(twin), Tokenizerless(), path, torch.float64)
    with all_float64():
        again = type(twin.reference).from_pretrained(path, dtype=torch.float64, **EAGER).eval()
    found, expected = again.state_dict(), twin.reference.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    agree(Twin(twin.name, again).answers().values, twin.answers().values, 1e-14)


def test_the_configuration_survives_a_round_trip(twin):
    spec = twins.ours(twin).spec
    assert spec_of(twin.family, config_of(twin.family, spec)) == spec


OTHER: dict[type, Callable[[Any], Any]] = {  # a different value of the same kind
    bool: lambda value: not value,
    int: lambda value: value * 2,
    float: lambda value: value * 3 + 0.1,
    str: lambda value: value + "x",
    type(None): lambda value: 0.7,
    dict: lambda value: {k: other(v) for k, v in value.items()},
    list: lambda value: [other(v) for v in value],
}


def other(value: Any) -> Any:
    return OTHER[type(value)](value)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in FAMILIES])
def test_nothing_in_a_configuration_is_silently_ignored(name):
    """Another value of any entry gives another spec or an error, or the entry is known not to matter."""
    twin = twins.twin(name)
    spec, ignored = spec_of(twin.family, twin.config), set()
    for key, value in twin.config.items():
        try:
            if spec_of(twin.family, {**twin.config, key: other(value)}) == spec:
                ignored.add(key)
        except (CutawayError, TypeError, ValueError):
            continue
    labels = {"id2label", "label2id", "architectures"}
    assert ignored - HARMLESS - labels == OVERRIDDEN.get(name, set())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in FAMILIES])
def test_a_missing_entry_means_what_it_means_to_transformers(name):
    """Or is refused: a default that is guessed differently would be a silently different model."""
    settings = ARCHITECTURES[name][2] | twins.SHAPES.get(name, twins.LLAMA_SHAPES)
    family, kind = FAMILIES[name], getattr(transformers, ARCHITECTURES[name][0])
    compared = 0
    for missing in [*settings]:
        config = {key: value for key, value in settings.items() if key != missing}
        try:
            ours = spec_of(family, config)
            theirs = spec_of(family, kind(**config).to_dict())
        except Exception:  # refused by one side, so nothing is guessed
            continue
        assert ours == theirs, f"without {missing}"
        compared += 1
    assert compared > 0


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [
        ("llama", {"hidden_act": "swoosh"}, "hidden_act"),
        ("llama", {"num_attention_heads": 5}, "kv_heads"),
        ("llama", {"num_hidden_layers": 0}, "layers"),
        ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "proportional"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "rope.scaling.factor"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.4}}, "rope.dim"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3", {"sliding_window": None}, "sliding_window"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("modernbert", {"classifier_bias": True}, "classifier_bias"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("bert-masked", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("bert-span", {"id2label": {0: "a"}}, "span"),
        ("albert", {"inner_group_num": 2}, "inner_group_num"),
        ("albert", {"num_hidden_groups": 4}, "distinct"),
        ("deberta", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("deberta", {"position_biased_input": True}, "position_biased_input"),
        ("deberta", {"share_att_key": False}, "share_att_key"),
        ("deberta", {"pos_att_type": "c2p|p2p"}, "p2p"),
        ("deberta", {"embedding_size": 32}, "embedding_size"),
        ("deberta", {"position_buckets": 40}, "buckets"),
        ("deberta-classifier", {"pooler_hidden_size": 32}, "pooler_hidden_size"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name, change, names):
    twin = twins.twin(name)
    with pytest.raises(CutawayError, match=names):
        spec_of(twin.family, twin.config | change)


def test_a_spec_that_a_family_cannot_express_is_not_saved():
    spec = twins.ours(twins.twin("qwen3")).spec
    with pytest.raises(CutawayError, match=r"attention"):
        config_of(FAMILIES["llama"], spec)


def test_what_is_on_record_as_proven_is_what_these_tests_prove():
    """`PYTHONPATH=tests python tools/prove_families.py` writes the record anew."""
    record = json.loads(proven.RECORD.read_text())
    assert record["versions"]["transformers"] == transformers.__version__
    found = {name: set(kinds) for name, kinds in record["twins"].items()}
    run = {name: {kind for kind in TWIN_PROOFS if f"{kind} {name}" in MODEL_PROOFS} for name in ARCHITECTURES}
    assert found == {name: kinds - {"float32", "bfloat16"} for name, kinds in run.items()}
    assert {name.partition("-")[0] for name in found} == set(FAMILIES)
    assert all(error <= bound(torch.float64) for errors in record["twins"].values() for error in errors.values())
    assert {p.name: p.kind for p in proven.proven()}["t5"] == "encoder-decoder"
