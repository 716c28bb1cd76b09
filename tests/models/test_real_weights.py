"""Real checkpoints against three programs written by others: llama.cpp, transformers and sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutaway.embed.sentences import encode
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.save import save_directory
from cutaway.weights.sides import Witness, witness

ROOT = Path(__file__).parents[2]
REPLY = 64
MARGIN = 1e-3  # between the best and the next logit: what float32 in another order cannot turn round

GENERAL = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
    "Once upon a time, in a village by the sea,",
    "中国的首都是",
    'The JSON object {"name": "Ada", "age": 36} has',
)
QUESTIONS = ("What is gravity?", "Write a haiku about autumn leaves.")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Every core, for once, in place of the fixture of this name: these models are not small."""


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Loaded:
    return load(str(smollm2_gguf))


@pytest.fixture(scope="module")
def gemma3(gemma3_gguf: Path) -> Loaded:
    return load(str(gemma3_gguf))


@pytest.fixture(scope="module")
def smollm2_witness(smollm2_gguf: Path) -> Witness:
    return witness(str(smollm2_gguf))


@pytest.fixture(scope="module")
def gemma3_witness(gemma3_gguf: Path) -> Witness:
    return witness(str(gemma3_gguf))


# ---- llama.cpp


@cache
def goldens(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "tests" / "goldens" / f"{name}.llamacpp.json").read_text("utf-8"))["prompts"]


def answers(loaded: Loaded, name: str) -> list[Tensor]:
    """Our logits at the positions of the goldens, all prompts in one ragged batch."""
    rows, model = [prompt["ids"] for prompt in goldens(name)], loaded.model
    lengths = [len(row) for row in rows]
    assert isinstance(model, Decoder)
    with torch.inference_mode():
        tokens_T = torch.tensor([id for row in rows for id in row])
        hidden = model(tokens_T, positions_of(lengths), BlockDiagonal(lengths)).split(lengths)
        return [model.logits(h[p["positions"]]).double() for h, p in zip(hidden, goldens(name), strict=True)]


def distances(found: list[Tensor], name: str, kind: str) -> Iterator[tuple[float, float, bool]]:
    """Per position: largest difference of llama.cpp's 50 best logits, that of log(sum(exp)), is the best the same."""
    for logits_RV, prompt in zip(found, goldens(name), strict=True):
        for logits_V, best in zip(logits_RV, prompt[kind], strict=True):
            expected = torch.tensor(best["logits"], dtype=torch.float64)
            close = expected[0] - expected[1] < 1.0
            same = bool(logits_V.argmax() == best["ids"][0])
            total = abs(float(logits_V.logsumexp(-1)) - best["logsumexp"])
            yield float((logits_V[best["ids"]] - expected).abs().max()), total, same or bool(close)


def worst(found: list[Tensor], name: str, kind: str) -> tuple[float, float]:
    logits, totals, best = zip(*distances(found, name, kind), strict=True)
    assert all(best)
    return max(logits), max(totals)


def test_smollm2_is_what_llamacpp_computes(smollm2):
    """On dequantized weights both compute in float32; on stored ones llama.cpp rounds activations to 8 bits."""
    found = answers(smollm2, "smollm2-135m-instruct")
    logits, total = worst(found, "smollm2-135m-instruct", "float32")
    assert logits < 5e-4
    assert total < 2e-4
    logits, total = worst(found, "smollm2-135m-instruct", "stored")
    assert logits < 1.5
    assert total < 1


def test_gemma3_is_what_llamacpp_computes(gemma3):
    """llama.cpp looks GELU up in a table of float16, which alone costs some 1e-2 in a logit."""
    found = answers(gemma3, "gemma-3-270m")
    logits, total = worst(found, "gemma-3-270m", "float32")
    assert logits < 0.04
    assert total < 0.02
    logits, total = worst(found, "gemma-3-270m", "stored")
    assert logits < 2.5
    assert total < 2


def test_the_table_of_gelu_is_what_keeps_gemma3_apart(gemma3):
    """With such a table in ours, the first position, where no difference has built up yet, agrees far better."""

    def table(x: Tensor) -> Tensor:
        y = F.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))

    model, prompt = gemma3.model, goldens("gemma-3-270m")[0]
    best = prompt["float32"][0]
    errors = []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for activation in (model.layers[0].ffn.activation, table):
            for layer in model.layers:
                patch.setattr(layer.ffn, "activation", activation)
            hidden_TD = model(torch.tensor(prompt["ids"][:1]), positions_of([1]), BlockDiagonal([1]))
            errors.append(float((model.logits(hidden_TD)[0, best["ids"]] - torch.tensor(best["logits"])).abs().max()))
    assert errors[0] < 5e-3
    assert errors[1] < errors[0] / 3


if importlib.util.find_spec("llama_cpp"):

    def test_goldens_are_what_llamacpp_says(smollm2_gguf):
        """Where llama-cpp-python is installed, which takes a compiler and twenty minutes."""
        path = ROOT / "tools" / "goldens" / "llamacpp.py"
        spec = importlib.util.spec_from_file_location("golden_maker", path)
        assert spec is not None
        assert spec.loader is not None
        maker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(maker)
        short = {name: maker.PROMPTS[name] for name in ("english", "code", "mixed")}
        for name, (asked, said) in maker.run(smollm2_gguf, short, context=128).items():
            golden = next(p for p in goldens("smollm2-135m-instruct") if p["name"] == name)
            assert asked == {"ids": golden["ids"], "positions": golden["positions"]}
            for now, then in zip(said, golden["stored"], strict=True):
                assert now["logsumexp"] == pytest.approx(then["logsumexp"], abs=1e-2)


# ---- transformers


def prompts(loaded: Loaded) -> list[list[int]]:
    """Eight of them; those of a model without chat template stay questions."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        return [tokenizer.encode(text) for text in GENERAL + QUESTIONS]
    chats = [tokenizer.chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    return [*(tokenizer.encode(text) for text in GENERAL), *chats]


def greedy(loaded: Loaded) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and the greedy replies of our engine, all at once, by way of its cache."""
    engine = Engine(loaded.model, loaded.tokenizer)
    params = SamplingParams(temperature=0, max_tokens=REPLY, ignore_eos=True)
    sequences = [engine.add(prompt, params) for prompt in prompts(loaded)]
    while engine.busy:
        engine.step()
    return [s.prompt for s in sequences], [s.reply for s in sequences]


def follows(witness: Witness, prompt: list[int], reply: list[int]) -> float:
    """Is each token of the reply what transformers finds most probable after those before? The smallest margin.

    By induction the reply is then what it generates greedily; one pass without a cache shows it.
    """
    with torch.inference_mode():
        logits_TV = witness.model(torch.tensor([prompt + reply]), logits_to_keep=REPLY + 1).logits[0, :-1]
    best = logits_TV.topk(2, -1)
    assert best.indices[:, 0].tolist() == reply
    return float((best.values[:, 0] - best.values[:, 1]).min())


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_weights_are_bit_for_bit_what_transformers_reads_from_the_same_file(name, request):
    loaded, theirs = request.getfixturevalue(name), request.getfixturevalue(f"{name}_witness")
    ours = loaded.model.state_dict()
    assert set(ours) == set(theirs.tensors)
    assert [n for n, tensor in theirs.tensors.items() if not torch.equal(tensor, ours[n])] == []


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_greedy_replies_are_those_of_transformers(name, request):
    loaded, theirs = request.getfixturevalue(name), request.getfixturevalue(f"{name}_witness")
    asked, replied = greedy(loaded)
    assert [len(reply) for reply in replied] == [REPLY] * 8
    margins = [follows(theirs, prompt, reply) for prompt, reply in zip(asked, replied, strict=True)]
    assert min(margins) > MARGIN, margins
    settings = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16}
    generated = theirs.model.generate(torch.tensor(asked[:1]), attention_mask=torch.ones(1, len(asked[0])), **settings)
    assert generated[0, len(asked[0]) :].tolist() == replied[0][:16]


def test_smollm2_saved_is_smollm2_in_transformers(smollm2, smollm2_witness, tmp_path):
    """GGUF in, safetensors out, loaded unchanged: the same weights, ids and chat format."""
    path = tmp_path / "smollm2"
    save_directory(smollm2.model, smollm2.tokenizer, path, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path)
    found, expected = model.state_dict(), smollm2_witness.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "".join(GENERAL)
    assert tokenizer.encode(text) == smollm2.tokenizer.encode(text)
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == smollm2.tokenizer.chat(chat)


# ---- sentence-transformers


TEXTS = [
    "A man is eating food.",
    "Ein Mann isst etwas.",
    "",
    "the quick brown fox " * 40,
    "def f(x): return x ** 2",
    "北京是中国的首都。",
    "naïve café 🙂 ½",
    "!",
    *(f"Sentence number {i} is about {i * i} things." for i in range(12)),
]


def test_sentence_vectors_are_those_of_sentence_transformers(minilm_dir):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(minilm_dir), device="cpu")
    expected_ND = torch.tensor(reference.encode(TEXTS, batch_size=5))
    loaded = load(str(minilm_dir))
    found_ND = encode(loaded.model, loaded.tokenizer, TEXTS, batch_tokens=200)
    torch.testing.assert_close(found_ND, expected_ND, atol=2e-6, rtol=0)
    torch.testing.assert_close(found_ND.norm(dim=-1), torch.ones(len(TEXTS)))
