"""Encoders beyond what every family is proven for: published sizes, input rows, ends of each class, one-sided sight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.embed.sentences import encode
from cutaway.errors import CutawayError
from cutaway.models.block import Block, positions_of
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.models.encoder import Encoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Place
from cutaway.nn.disentangled import DisentangledSpec
from cutaway.nn.heads import TaskSpec
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_directory
from kit import twins
from kit.precision import all_float64
from kit.proofs.models import agree, bound
from kit.twins import Tokenizerless

BASE = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "max_position_embeddings": 512,
}
LARGE = BASE | {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
DEBERTA = {
    **{"vocab_size": 128100, "relative_attention": True, "position_biased_input": False, "share_att_key": True},
    **{"pos_att_type": "p2c|c2p", "position_buckets": 256, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0},
}
MODERN = {"vocab_size": 50368, "max_position_embeddings": 8192, "architectures": ["ModernBertForMaskedLM"]}
POOLED = {"cutaway_pooling": {"dense": True}}
DISCRIMINATOR = {"vocab_size": 30522, "architectures": ["ElectraForPreTraining"]}

# what the published config.json says, and how many parameters the published model has
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "BERT base": ("bert", BASE | {"vocab_size": 30522} | POOLED, 109_482_240),
    "BERT large": ("bert", LARGE | {"vocab_size": 30522} | POOLED, 335_141_888),
    "RoBERTa base": ("roberta", BASE | ROBERTA | POOLED, 124_645_632),
    "RoBERTa large": ("roberta", LARGE | ROBERTA | POOLED, 355_359_744),
    "XLM-RoBERTa base": ("xlm_roberta", BASE | ROBERTA | {"vocab_size": 250002} | POOLED, 278_043_648),
    "ELECTRA small": (
        "electra",
        BASE | DISCRIMINATOR | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4},
        13_549_057,
    ),
    "ELECTRA base": ("electra", BASE | DISCRIMINATOR | {"embedding_size": 768}, 109_483_009),
    "ALBERT base": ("albert", BASE | {"vocab_size": 30000} | POOLED, 11_683_584),
    "ALBERT xxlarge": (
        "albert",
        LARGE
        | {"vocab_size": 30000, "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 64}
        | {"num_hidden_layers": 12}
        | POOLED,
        222_595_584,
    ),
    "DeBERTa-v3 base": ("deberta", BASE | DEBERTA, 183_831_552),
    "ModernBERT base": (
        "modernbert",
        BASE | MODERN | {"num_hidden_layers": 22, "intermediate_size": 1152},
        149_655_232,
    ),
    "ModernBERT large": (
        "modernbert",
        LARGE | MODERN | {"num_hidden_layers": 28, "intermediate_size": 2624},
        395_881_664,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_survive_a_recount(name: str) -> None:
    family, config, expected = PUBLISHED[name]
    cost = Cost(spec_of(FAMILIES[family], config))
    assert cost.parameters == expected
    cost.check(build(cost.spec, "meta"))


def test_albert_spends_on_its_vocabulary_a_sixth_of_what_bert_would() -> None:
    """Lan et al. 2019, section 3.1: 30,000 rows of 128 and a matrix to 768, for 30,000 rows of 768."""
    terms = {t.name: t.value for t in Cost(spec_of(FAMILIES["albert"], PUBLISHED["ALBERT base"][1])).by_part()}
    assert terms["embedding.tokens"] == 30_000 * 128
    assert terms["embedding.project"] == 128 * 768 + 768
    assert round((30_000 * 128 + 128 * 768) / 1e6, 2) == 3.94
    assert round(30_000 * 768 / 1e6, 2) == 23.04


# ---- the input


def bert() -> Any:
    return twins.ours(twins.twin("bert-classifier"))


def test_types_change_what_comes_out() -> None:
    model, tokens_T = bert(), twins.prompts((19,))[0]
    outs = [
        model(tokens_T, positions_of([19]), BlockDiagonal([19]), types) for types in (None, tokens_T * 0, tokens_T % 2)
    ]
    assert torch.equal(outs[0], outs[1])
    assert float((outs[0] - outs[2]).detach().abs().min()) > 0


def test_tuning_on_single_texts_leaves_the_second_type_as_it_was() -> None:
    """No gradient ever reaches its row; the first row and all tokens of the texts get one."""
    model = bert()
    before = model.embedding.types.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        tokens_T = torch.cat(twins.prompts(twins.RAGGED))
        hidden_TD = model(tokens_T, positions_of([*twins.RAGGED]), BlockDiagonal([*twins.RAGGED]))
        optimizer.zero_grad()
        F.cross_entropy(model.task(hidden_TD, [*twins.RAGGED]), torch.tensor([0, 1, step % 3])).backward()
        gradient = model.embedding.types.weight.grad
        assert float(gradient[1].abs().max()) == 0.0
        assert float(gradient[0].abs().max()) > 0
        optimizer.step()
    assert torch.equal(model.embedding.types.weight[1], before[1])
    assert not torch.equal(model.embedding.types.weight[0], before[0])


# ---- ends


ENDED = [name for name in twins.ARCHITECTURES if twins.is_encoder(name)]


@pytest.mark.parametrize("name", ENDED)
def test_a_model_is_written_under_its_class_and_the_names_of_its_tensors(name: str, tmp_path: Path) -> None:
    """The very names that transformers writes, so that nothing depends on what a reader forgives."""
    twin = twins.twin(name)
    save_directory(twins.ours(twin), Tokenizerless(), tmp_path / "ours", torch.float64)  # type: ignore[arg-type]
    with all_float64():
        twin.reference.save_pretrained(tmp_path / "theirs")
    ours, theirs = ({*load_file(tmp_path / side / "model.safetensors")} for side in ("ours", "theirs"))
    assert ours == theirs
    said = [json.loads((tmp_path / side / "config.json").read_text())["architectures"] for side in ("ours", "theirs")]
    assert said[0] == said[1]


def saved(name: str, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: Any) -> Path:
    """A twin as transformers saves it, tensors and configuration changed."""
    with all_float64():
        twins.twin(name).reference.save_pretrained(folder)
    path, settings = folder / "model.safetensors", folder / "config.json"
    save_file({n: t.contiguous() for n, t in change(load_file(path)).items()}, path, {"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    return folder


def test_a_class_named_without_its_head_is_the_bare_encoder(tmp_path: Path) -> None:
    """So sentence encoders are published; what is in the file decides."""
    path = saved("bert-masked", tmp_path, lambda state: {n: t for n, t in state.items() if not n.startswith("cls.")})
    spec = open_checkpoint(path).spec
    assert spec.head is None
    assert open_checkpoint(path).model().pooling.kind == "mean"


def test_what_a_head_was_trained_beside_is_left_out(tmp_path: Path) -> None:
    """BERT's next-sentence end and pooler, and the copy of a tied matrix, lie in its published file."""

    def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        beside = {"cls.seq_relationship.weight": (2, 48), "cls.seq_relationship.bias": (2,)}
        pooler = {"bert.pooler.dense.weight": (48, 48), "bert.pooler.dense.bias": (48,)}
        copies = {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"].clone()}
        return state | copies | {n: torch.ones(shape).double() for n, shape in {**beside, **pooler}.items()}

    checkpoint = open_checkpoint(saved("bert-masked", tmp_path, published))
    found, expected = checkpoint.model(torch.float64).state_dict(), twins.ours(twins.twin("bert-masked")).state_dict()
    assert {n for n in found if not n.startswith("pooler")} == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert checkpoint.spec.pooling is not None
    assert checkpoint.spec.pooling.dense


def test_norms_are_read_in_tensorflows_spelling(tmp_path: Path) -> None:
    def respelled(state: dict[str, Tensor]) -> dict[str, Tensor]:
        spelling = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {n.replace(*next((s for s in spelling.items() if s[0] in n), ("", ""))): t for n, t in state.items()}

    found = open_checkpoint(saved("bert", tmp_path, respelled)).model(torch.float64).state_dict()
    assert all(torch.equal(found[n], t) for n, t in twins.ours(twins.twin("bert")).state_dict().items())


@pytest.mark.parametrize("name", ["bert-classifier", "electra-classifier", "modernbert-classifier"])
def test_the_names_of_labels_survive(name: str, tmp_path: Path) -> None:
    model = twins.ours(twins.twin(name))
    assert model.spec.task is not None
    assert model.spec.task.names == ("neutral", "for", "against")
    save_directory(model, Tokenizerless(), tmp_path / "saved", torch.float64)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["id2label"] == {"0": "neutral", "1": "for", "2": "against"}
    assert open_checkpoint(tmp_path / "saved").spec == model.spec


def test_a_pooling_that_is_not_the_usual_one_is_kept_beside_a_head(tmp_path: Path) -> None:
    model = twins.ours(twins.twin("roberta"))
    assert model.spec.pooling is not None
    save_directory(model, Tokenizerless(), tmp_path / "usual", torch.float64)  # type: ignore[arg-type]
    assert not (tmp_path / "usual" / "modules.json").exists()
    model.spec = replace(model.spec, pooling=replace(model.spec.pooling, kind="cls"))
    save_directory(model, Tokenizerless(), tmp_path / "first", torch.float64)  # type: ignore[arg-type]
    assert open_checkpoint(tmp_path / "first").spec == model.spec


TINY = BASE | {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20},
    **{"vocab_size": 30522, "embedding_size": 24, "pad_token_id": 0},
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "cls"),
        ("roberta", "mean"),
        ("electra", "cls"),
        ("albert", "mean"),
        ("deberta", "cls"),
        ("modernbert", "mean"),
    ],
)
def test_sentence_vectors_are_those_of_sentence_transformers(
    family: str, kind: str, minilm_dir: Path, tmp_path: Path
) -> None:
    """A tiny model of each family with BERT's real tokenizer, saved by us and loaded by them."""
    from sentence_transformers import SentenceTransformer

    distances = {k: v for k, v in DEBERTA.items() if k != "vocab_size"} if family == "deberta" else {}
    pooling = {"cutaway_pooling": {"kind": kind, "normalize": kind == "cls"}}
    model = build(spec_of(FAMILIES[family], TINY | distances | pooling)).eval()
    assert isinstance(model, Encoder)
    twins.make_loud(model)
    tokenizer = Tokenizer.from_dir(minilm_dir)
    save_directory(model, tokenizer, tmp_path / "saved", torch.float32)
    texts = ["A man is eating food.", "naïve café 🙂", "the quick brown fox " * 20]
    expected_ND = torch.tensor(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts))
    torch.testing.assert_close(encode(model, tokenizer, texts), expected_ND, atol=1e-4, rtol=1e-4)


def test_a_head_that_no_class_has_is_not_saved(tmp_path: Path) -> None:
    model = twins.ours(twins.twin("bert"))
    model.spec = replace(model.spec, task=TaskSpec(2, "last"))
    with pytest.raises(CutawayError, match="no class"):
        save_directory(model, Tokenizerless(), tmp_path / "saved", torch.float64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (TaskSpec(0, "first"), "task.labels: must be at least 1"),
        (TaskSpec(3, "span"), "task.labels: a span takes 2"),
        (TaskSpec(3, "each", names=("a", "b")), "task.names: 2 names for 3 labels"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(task: TaskSpec, message: str) -> None:
    with pytest.raises(CutawayError, match=message):
        replace(twins.ours(twins.twin("bert")).spec, task=task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reach": 0}, "attention.reach"),
        ({"buckets": 1}, "attention.buckets"),
        ({"buckets": 22}, "attention.buckets"),
        ({"heads": 0}, "attention.heads"),
    ],
)
def test_distances_that_make_no_sense_are_refused(changes: dict[str, int], message: str) -> None:
    spec = twins.ours(twins.twin("deberta")).spec
    attention = replace(DisentangledSpec(6, 8, 1.0, reach=12, buckets=8), **changes)
    with pytest.raises(CutawayError, match=message):
        replace(spec, layers=tuple(replace(layer, attention=attention) for layer in spec.layers))


def test_layers_that_share_a_block_must_be_alike() -> None:
    spec = twins.ours(twins.twin("albert")).spec
    other = replace(spec.layers[1], dropout=0.1)
    with pytest.raises(CutawayError, match="must be alike"):
        replace(spec, layers=(spec.layers[0], other, spec.layers[2]))
    shared = replace(spec, layers=(other, other, spec.layers[0]), distinct=2)
    assert shared.blocks == (other, spec.layers[0])


# ---- sight


@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert", "albert-groups", "llama", "gpt2"])
def test_editing_a_token_reaches_back_in_an_encoder_only(name: str) -> None:
    model, place = twins.ours(twins.twin(name)), 9
    tokens_T = twins.prompts((19,))[0]
    edited_T = torch.where(torch.arange(19) == place, (tokens_T + 1) % twins.VOCAB, tokens_T)
    with torch.no_grad():
        a, b = (model(t, positions_of([19]), BlockDiagonal([19])) for t in (tokens_T, edited_T))
    moved_T = (a - b).abs().amax(-1)
    assert float(moved_T[place:].min()) > 0
    before = float(moved_T[:place].min() if twins.is_encoder(name) else moved_T[:place].max())
    assert (before > 0) == twins.is_encoder(name)
    assert before > 0 or before == 0.0


def test_a_decoder_layer_without_its_source_is_a_block_of_gpt2() -> None:
    """Weight for weight: what is left is loaded from GPT-2's own block, under its names, and gives its output."""
    twin = twins.twin("gpt2")
    gpt = twins.ours(twin)
    layer_spec = gpt.spec.layers[0]
    with_source = Block(48, replace(layer_spec, cross=AttentionSpec(6, 6, 8, 8**-0.5))).double()
    with_source.cross = with_source.cross_norm = None
    state = gpt.layers[0].state_dict()
    assert {n: t.shape for n, t in with_source.state_dict().items()} == {n: t.shape for n, t in state.items()}
    with_source.load_state_dict(state)
    x_TD = torch.randn(19, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found_TD = with_source(x_TD, 0, Place(), BlockDiagonal([19]))
    with all_float64(), torch.no_grad():
        causal = torch.full((19, 19), -math.inf).triu(1)[None, None]
        theirs = twin.reference.transformer.h[0](x_TD[None], attention_mask=causal)
    expected_TD = theirs[0] if isinstance(theirs, tuple) else theirs
    agree([found_TD.detach()], [expected_TD.reshape(19, 48)], bound(torch.float64))


def test_flops_of_encoders_are_what_pytorch_counts() -> None:
    """Of narrow rows, shared blocks and gated layers, heads included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("albert", "modernbert-biased", "electra-generator"):
        model = twins.ours(twins.twin(name))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            hidden_TD = model(torch.arange(5), torch.arange(5), BlockDiagonal([5]))
            twins.values(model, hidden_TD)
        assert model.cost.flops(5, rows=5 * (model.head is not None)) == counter.get_total_flops(), name
