"""Views of SmolLM2 against transformers with the same weights, and what is known of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.inside import ablation, attention, editing, geometry, lens, patching, trace
from cutaway.inside.prompt import stack
from cutaway.inside.rome import Place, Search
from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.sides import Witness

PROMPT = "The capital of France is"
TEXT = "The lamp burned whale oil, and a keeper had to climb the steps every four hours to trim the wick. " * 3


@pytest.fixture(scope="module")
def theirs(smollm2: Loaded, smollm2_witness: Witness) -> object:
    """What transformers computes for the prompt: logits, hidden states and attention weights."""
    ids = torch.tensor([smollm2.tokenizer.encode(PROMPT)])
    with torch.no_grad():
        return smollm2_witness.model(ids, output_attentions=True, output_hidden_states=True)


def test_maps_are_those_of_transformers_and_rows_sum_to_one(smollm2, theirs) -> None:
    found = attention.attention(smollm2, PROMPT)
    weights = torch.tensor(found.weights)
    assert weights.shape == (30, 9, 5, 5)
    torch.testing.assert_close(weights, torch.cat(list(theirs.attentions)), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(30, 9, 5), atol=1e-5, rtol=0)
    assert found.tokens == ["The", "␣capital", "␣of", "␣France", "␣is"]
    assert json.loads(json.dumps(asdict(found)))["layers"] == list(range(30))


def test_every_step_of_the_trace_is_what_transformers_computes(smollm2, smollm2_witness, theirs) -> None:
    found = trace.follow(smollm2, PROMPT, SamplingParams(temperature=0))
    answer = smollm2_witness.answer(found.ids)
    expected = {name: trace.left_TN for name, trace in answer.traces.items()}
    expected |= {f"layers.{n}": hidden[0] for n, hidden in enumerate(theirs.hidden_states[1:-1])}
    expected |= {f"layers.{n}.attention.weights": weights[0] for n, weights in enumerate(theirs.attentions)}
    steps = {step.name: step for step in found.steps}
    expected["logits"] = expected.pop("head")
    assert len(expected) == 30 * (9 + 1) + 29 + 3  # modules with weights, maps, blocks; embedding, final norm, logits
    for name, tensor in expected.items():
        rms, last = float(tensor.double().square().mean().sqrt()), tensor[0, -1] if "weights" in name else tensor[-1]
        assert steps[name].rms == pytest.approx(rms, rel=1e-4), name
        assert steps[name].first == pytest.approx(last[: trace.SHOWN].tolist(), abs=1e-4 * max(rms, 1)), name
        assert math.prod(steps[name].shape) == tensor.numel(), name
    logits_TV = answer.result_TN
    expected_V = logits_TV[-1].softmax(-1)
    assert found.choice.id == int(expected_V.argmax())
    assert found.choice.probability == pytest.approx(float(expected_V.max()), abs=1e-4)
    loss = torch.nn.functional.cross_entropy(logits_TV[:-1], torch.tensor(found.ids[1:]))
    assert found.loss == pytest.approx(float(loss), abs=1e-4)
    words = {term.name: term for term in found.glossary}
    assert words["parameter"].value == 134_515_008
    assert words["layer"].value == 30
    assert words["context"].value == 8192
    assert words["perplexity"].value == pytest.approx(math.exp(float(loss)), rel=1e-3)
    assert words["training"].value > 0
    assert all(term.at == "" or term.at in steps for term in found.glossary)
    assert bytes(found.bytes).decode() == PROMPT


def test_the_lens_ends_with_what_the_model_says(smollm2, theirs) -> None:
    found = lens.lens(smollm2, PROMPT, None)
    assert [len(views) for views in found.views] == [31] * 5
    assert [g.id for g in found.final] == theirs.logits[0].argmax(-1).tolist()
    for views in found.views:
        assert views[-1].rank == 0
        assert views[-1].probability == pytest.approx(views[-1].best[0].probability)
    assert found.final[-1].token == "␣Paris"


def test_head_23_4_carries_the_capital(smollm2) -> None:
    """Patching says that attention of layer 23 moves the answer to the last token; ablation finds the head."""
    patched = patching.patch(smollm2, PROMPT, "The capital of Italy is", parts=["attention"])
    assert patched.answers == ("␣Paris", "␣Rome")
    effects = torch.tensor(patched.effects["attention"])
    assert divmod(int(effects.argmax()), 5) == (23, 4)
    taken = ablation.ablate(smollm2, PROMPT, ablation.every(smollm2.model, "heads", [23]))
    assert max(taken.effects, key=lambda e: e.kl).index == 4


def test_analogies_and_neighbors(smollm2) -> None:
    found = geometry.analogy(smollm2, "man", "king", "woman", 3)
    assert found.nearest[0].token == "␣queen"
    assert found.with_question[0].token == "␣king"
    assert all(n.token != "␣king" for n in found.nearest)
    assert geometry.neighbors(smollm2, "king", 1)[0].token == "␣King"
    plane = geometry.plane(smollm2, ["king", "queen", "cat", "dog"])
    x = {point.token: point.x for point in plane.points}
    assert (x["king"] > 0) == (x["queen"] > 0) != (x["cat"] > 0)


def test_a_fact_is_rewritten_and_the_model_is_not_touched(smollm2, smollm2_witness) -> None:
    fact = editing.Fact("The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome")
    paraphrase, neighbor = "To see the Eiffel Tower you travel to the city of", "The Louvre is located in the city of"
    after, report = editing.rewrite(
        smollm2,
        fact,
        Place(5),
        TEXT,
        paraphrases=[paraphrase],
        neighbors=[neighbor],
        contexts=[""],
        search=Search(steps=12),
    )
    told, followed, aside = report.asked
    assert told.before < 0.1
    assert told.after > 0.8
    assert followed.after > 0.5
    assert aside.best_after[0].token == aside.best_before[0].token == "␣Paris"
    assert report.changed == 576 * 1536
    own, changed = smollm2.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in smollm2_witness.tensors.items())
    assert [name for name in own if own[name] is not changed[name] and not torch.equal(own[name], changed[name])] == [
        "layers.5.ffn.down.weight"
    ]


# ---- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: attention.attention(m, PROMPT, [30]), "30 is not one of the layers 0 to 29"),
        (lambda m: attention.attention(m, ""), "has 0 tokens"),
        (lambda m: attention.influence(m, PROMPT, 5), "5 is not one of 5 tokens"),
        (lambda m: lens.lens(m, PROMPT, [-6]), "-6 is not one of 5 tokens"),
        (lambda m: ablation.ablate(m, PROMPT, [ablation.Target("heads", 2, 9)]), "9 is not one of the 9 heads"),
        (lambda m: ablation.ablate(m, PROMPT, [ablation.Target("ffn", 30)]), "30 is not one of the layers"),
        (lambda m: ablation.ablate(m, PROMPT, [ablation.Target("ffn", 3, 5)]), "is taken out whole"),
        (lambda m: patching.patch(m, PROMPT, "The capital of the Netherlands is"), "5 .* and 6 "),
        (lambda m: patching.patch(m, PROMPT, PROMPT), "both answers are"),
        (lambda m: patching.patch(m, PROMPT, PROMPT, answers=("Paris", "Rome")), "the same logits"),
        (lambda m: geometry.neighbors(m, "antidisestablishment"), "is not one token but 4"),
        (lambda m: geometry.plane(m, ["king", "king", "queen"]), "2 words do not make a plane"),
        (lambda m: trace.follow(m, "The"), "nothing is predicted within it"),
        (
            lambda m: editing.wish(m.tokenizer, editing.Fact("The tower is in", "bridge", "Rome")),
            "stands in the prompt",
        ),
        (lambda m: editing.wish(m.tokenizer, editing.Fact("The Eiffel Tower", "The Eiff", "Rome")), "goes on beyond"),
    ],
)
def test_bad_input_is_named(smollm2, call, says) -> None:
    with pytest.raises(CutawayError, match=says):
        call(smollm2)


def test_a_model_that_reads_a_source_is_refused(smollm2) -> None:
    spec = SimpleNamespace(encoder=smollm2.model.spec)
    both = SimpleNamespace(name="both", model=SimpleNamespace(spec=spec))
    with pytest.raises(CutawayError, match="reads a source beside the text"):
        stack(both)  # type: ignore[arg-type]


def test_an_encoder_has_maps_but_predicts_nothing(minilm_dir) -> None:
    loaded = load(str(minilm_dir))
    assert torch.tensor(attention.attention(loaded, "a bank").weights).shape == (6, 12, 4, 4)
    with pytest.raises(CutawayError, match="does not predict the next token"):
        lens.lens(loaded, "a bank")
