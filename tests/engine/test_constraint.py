"""Constraints: on made vocabularies by brute force, on real ones by what comes out; and what is refused."""

from __future__ import annotations

import functools
import json
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from cutaway.engine.constraints.constraint import Constraint, allowed, vocabulary
from cutaway.engine.constraints.spec import LARGEST, ConstraintSpec
from cutaway.engine.sampler import fence
from cutaway.errors import CutawayError
from cutaway.text.tokenizer import Tokenizer
from kit.proofs import constraints as proofs
from text.samples import gguf_metadata

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", "日本"]}, "maxItems": 3},
        "shape": {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/box"}]},
    },
    "required": ["name", "age", "shape"],
    "additionalProperties": False,
    "$defs": {
        kind: {
            "type": "object",
            "properties": {"kind": {"const": kind}, size: {"type": "number", "minimum": 0, "maximum": 9.5}},
            "required": ["kind", size],
            "additionalProperties": False,
        }
        for kind, size in (("circle", "r"), ("box", "a"))
    },
}
TOOLS = [{"name": "look_up", "parameters": PERSON}, {"name": "stop"}]
WORDS = ["cat", "the", "sat", "on", "mat", "don't", "naïve", "日本"]
CHOICES = ["yes", "yes, please", "no", "日本語", 'say "hi"\n', "ye"]
ISO = r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d( [a-zé]+)?"


@functools.cache
def from_gguf(path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_metadata(path))


@pytest.fixture(params=["smollm2", "gemma3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Byte-level BPE with 49,152 tokens; SentencePiece's with 262,144, some of which spell the same."""
    return from_gguf(request.getfixturevalue(f"{request.param}_gguf"))


@pytest.fixture
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return from_gguf(smollm2_gguf)


@pytest.mark.parametrize("name", proofs.PROOFS)
def test_masks_are_what_the_definition_says(name: str) -> None:
    proofs.PROOFS[name]()


# ---- real vocabularies


def reply(tokenizer: Tokenizer, constraint: Constraint, seed: int, longest: int = 400) -> str:
    """A random walk that prefers short tokens, so that it comes to an end; "" if it does not."""
    rng, ids = random.Random(seed), list[int]()
    while len(ids) < longest:
        may = allowed(constraint.mask()).nonzero().flatten().tolist()
        ends = [i for i in may if i in tokenizer.stop_ids]
        others = [i for i in rng.sample(may, min(len(may), 50)) if i not in tokenizer.stop_ids]
        if ends and (not others or rng.random() < 0.3):
            constraint.advance(ends[0])
            return b"".join(map(tokenizer.token_bytes, ids)).decode()
        closing = [i for i in others if re.search(rb'[]}"]\s?$', tokenizer.token_bytes(i))]
        ids.append(rng.choice(closing if closing and rng.random() < 0.3 else others))
        constraint.advance(ids[-1])
    return ""


def is_call(text: str, begin: str, end: str) -> bool:
    call = json.loads(text.removeprefix(begin).removesuffix(end))
    jsonschema.validate(call.pop("arguments"), PERSON if call == {"name": "look_up"} else {"maxProperties": 0})
    return text.startswith(begin) and text.endswith(end) and call["name"] in ("look_up", "stop")


def balanced(text: str) -> bool:
    while "()" in text:
        text = text.replace("()", "")
    return not text


KINDS: dict[str, tuple[ConstraintSpec, Callable[[str], object]]] = {
    "choices": (ConstraintSpec.choices(CHOICES), lambda t: t in CHOICES),
    "regex": (ConstraintSpec.regex(ISO), lambda t: re.fullmatch(ISO, t)),
    "words": (
        ConstraintSpec.words(WORDS, " .,"),
        lambda t: {w.lower() for w in re.split(r"[ .,]+", t) if w} <= {*WORDS} and re.search(r"\w", t),
    ),
    "json": (ConstraintSpec.json(), lambda t: [json.loads(t)]),
    "schema": (ConstraintSpec.schema(PERSON), lambda t: jsonschema.validate(json.loads(t), PERSON) is None),
    "lark": (ConstraintSpec.grammar('start: "(" start ")" start | ""'), balanced),
    "ebnf": (ConstraintSpec.grammar('root ::= "(" root ")" root | ""'), balanced),
    "tools": (
        ConstraintSpec.tools(TOOLS, "<call>\n", "\n</call>"),
        lambda t: is_call(t, "<call>\n", "\n</call>"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_valid(kind: str, tokenizer: Tokenizer) -> None:
    spec, valid = KINDS[kind]
    replies = [reply(tokenizer, spec.compile(tokenizer), seed) for seed in range(5)]
    finished = [text for text in replies if text or kind in ("lark", "ebnf")]
    assert len(finished) >= 3, replies
    assert [text for text in finished if not valid(text)] == []
    assert len({*finished}) >= 2


INSTANCES = [
    {"name": "Zoë", "age": 0, "shape": {"kind": "circle", "r": 1.25}},
    {"name": 'a"b\\', "age": 130, "tags": [], "shape": {"kind": "box", "a": 9.5}},
    {"name": "x\n", "age": 42, "tags": ["x", "yy", "日本"], "shape": {"kind": "circle", "r": 0}},
]


@pytest.mark.parametrize("ascii_", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_usual_spelling_of_a_value_can_be_said(indent: int | None, ascii_: bool, tokenizer: Tokenizer) -> None:
    for instance in INSTANCES:
        text = json.dumps(instance, indent=indent, ensure_ascii=ascii_)
        for spec in (ConstraintSpec.json(), *([] if ascii_ else [ConstraintSpec.schema(PERSON)])):
            says(tokenizer, spec, text)


def says(tokenizer: Tokenizer, spec: ConstraintSpec, text: str) -> None:
    """The text can be said as the tokenizer spells it; on the way, what is forced is what comes."""
    constraint, ids = spec.compile(tokenizer), vocabulary(tokenizer)(text)
    for i, token in enumerate(ids):
        forced = constraint.forced()
        assert forced == ids[i : i + len(forced)], (text, i)
        constraint.advance(token)
    mask = allowed(constraint.mask()).nonzero().flatten().tolist()
    assert {*mask} >= tokenizer.stop_ids, text


def test_masks_of_real_vocabularies_are_those_of_brute_force(tokenizer: Tokenizer) -> None:
    """Texts spelled out token by token, over all tokens; and choices, as it cuts them itself."""
    viable = functools.cache(proofs.listed(CHOICES))
    for seed in range(1 + (tokenizer.vocab_size < 100_000)):
        proofs.walk(tokenizer, ConstraintSpec.regex("|".join(CHOICES)).compile(tokenizer), viable, random.Random(seed))
    spelled = [tokenizer.encode(f"\n{text}", add_special=False) for text in CHOICES]
    begun = len(tokenizer.encode("\n", add_special=False))
    for seed in range(8):
        constraint = ConstraintSpec.choices(CHOICES).compile(tokenizer)
        proofs.choose(tokenizer, constraint, [ids[begun:] for ids in spelled], random.Random(seed))


def test_a_forced_answer_needs_no_model(smollm2: Tokenizer) -> None:
    constraint = ConstraintSpec.regex("The capital of France is (Paris|Rome)").compile(smollm2)
    forced = constraint.forced()
    assert smollm2.decode(forced) == "The capital of France is"
    for token in forced:
        assert allowed(constraint.mask())[token]
        constraint.advance(token)
    assert constraint.forced() == []


def test_a_tool_call_may_follow_free_text(smollm2: Tokenizer) -> None:
    free = ConstraintSpec.tools(TOOLS, "<call>", "</call>", free=True, several=True)
    call = '<call>{"name": "stop", "arguments": {}}</call>'
    for text in ("Hello", "", call, f"I will. {call} Done: a < b {call}"):
        says(smollm2, free, text)
    constraint = free.compile(smollm2)
    for token in vocabulary(smollm2)("ok <call>{"):
        constraint.advance(token)
    mask = allowed(constraint.mask())
    assert not mask[vocabulary(smollm2)("x")[0]], "within a call there is no free text"
    assert not any(mask[i] for i in smollm2.stop_ids), "nor may it stop there"


def test_control_tokens_mark_a_call(smollm2: Tokenizer) -> None:
    start, end = (smollm2.recipe.added_by_content[name].id for name in ("<|im_start|>", "<|im_end|>"))
    constraint = ConstraintSpec.tools(TOOLS, "<|im_start|>call\n", "", free=True).compile(smollm2)
    for token in [*vocabulary(smollm2)("Well "), start, *vocabulary(smollm2)('call\n{"name":"stop","arguments":{}}')]:
        assert allowed(constraint.mask())[token]
        constraint.advance(token)
    assert allowed(constraint.mask())[end]
    plain = ConstraintSpec.regex(".*").compile(smollm2)
    assert not allowed(plain.mask())[start], "no text is spelled with control tokens"


# ---- the interface


def test_a_spec_is_a_value_and_compiles_once(smollm2: Tokenizer) -> None:
    one, two = ConstraintSpec.schema(PERSON), ConstraintSpec.schema(json.loads(json.dumps(PERSON)))
    assert one == two
    assert hash(one) == hash(two)
    one.compile(smollm2)
    start = time.perf_counter()
    for _ in range(20):
        two.compile(smollm2)
    assert (time.perf_counter() - start) / 20 < 0.001, "it was compiled again"
    first, second = one.compile(smollm2), one.compile(smollm2)
    first.advance(vocabulary(smollm2)("{")[0])
    assert not torch.equal(first.mask(), second.mask())


def test_misuse_is_told_and_changes_nothing(smollm2: Tokenizer) -> None:
    constraint = ConstraintSpec.choices(["ab"]).compile(smollm2)
    before = constraint.mask()
    for token in (-1, 10**9, smollm2.vocab_size, vocabulary(smollm2)("x")[0], min(smollm2.stop_ids), 1):
        with pytest.raises(CutawayError, match="not allowed"):
            constraint.advance(token)
    for count in (1, -1):
        with pytest.raises(CutawayError, match="cannot forget"):
            constraint.rollback(count)
    for row in (torch.zeros(3, dtype=torch.int32), torch.zeros(9999), torch.zeros(9999, 2, dtype=torch.int32)[:, 0]):
        with pytest.raises(ValueError, match="words"):
            constraint.mask(row)
    assert torch.equal(constraint.mask(), before)


# ---- refusals

REFUSED: dict[str, tuple[Callable[[], ConstraintSpec], str]] = {
    "kind": (lambda: ConstraintSpec("poem", ""), "no constraint of kind"),
    "no choice": (lambda: ConstraintSpec.choices([]), "none"),
    "empty choice": (lambda: ConstraintSpec.choices(["a", ""]), r"choices\[1\]"),
    "choice that is no text": (lambda: ConstraintSpec.choices([1]), r"choices\[0\]"),  # type: ignore[list-item]
    "surrogate": (lambda: ConstraintSpec.choices(["\ud800"]), "surrogate"),
    "null": (lambda: ConstraintSpec.regex("a\0"), "null"),
    "words run together": (lambda: ConstraintSpec.words(["a"], between=""), "words.between"),
    "open group": (lambda: ConstraintSpec.regex("(a"), "regex: invalid regex"),
    "lookahead": (lambda: ConstraintSpec.regex("(?=a)b"), "look-around"),
    "trailing backslash": (lambda: ConstraintSpec.regex("a\\"), "regex"),
    "pattern that says more": (lambda: ConstraintSpec.regex('a/\nstart: "b"\\'), "regex"),
    "large pattern": (lambda: ConstraintSpec.regex("a" * 20_000), "20,000 characters"),
    "empty class": (lambda: ConstraintSpec.regex("[^\\s\\S]"), "regex"),
    "unknown rule": (lambda: ConstraintSpec.grammar("start: x"), "unknown name"),
    "no grammar": (lambda: ConstraintSpec.grammar("hello"), "not a grammar"),
    "endless rule": (lambda: ConstraintSpec.grammar("start: a\na: a"), "no reply can begin"),
    "counting option": (lambda: ConstraintSpec.grammar("start: w\nw[max_tokens=3]: /a*/"), "max_tokens"),
    "stop option": (lambda: ConstraintSpec.grammar('start: w\nw[lazy, stop="x"]: /a*/'), "stop"),
    "no tool": (lambda: ConstraintSpec.tools([], "<", ">"), "at least one tool"),
    "tool without name": (lambda: ConstraintSpec.tools([{"parameters": {}}], "<", ">"), r"tools\[0\]: has no name"),
    "tool's schema": (
        lambda: ConstraintSpec.tools([TOOLS[1], {"name": "f", "parameters": {"items": {"not": {}}}}], "<", ">"),
        r"tools\[1\]\.parameters\.items: .*not",
    ),
    "not JSON": (lambda: ConstraintSpec.schema('{"type": '), "is not JSON"),
    "not a number": (lambda: ConstraintSpec.schema({"const": float("nan")}), "is not JSON"),
    "not a value": (lambda: ConstraintSpec.schema({"const": object()}), "is not JSON"),
    "remote": (lambda: ConstraintSpec.schema({"items": {"$ref": "http://a.b/c"}}), r"schema\.items: .*http"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(CutawayError, match=words):
        make().compile(proofs.byte_level())


def nested(depth: int, width: int, key: str) -> dict[str, Any]:
    if not depth:
        return {"type": "string"}
    parts = [nested(depth - 1, width, key) for _ in range(width)]
    return {key: [{"type": "object", "properties": {f"k{i}": p}, "required": [f"k{i}"]} for i, p in enumerate(parts)]}


def optional(n: int) -> dict[str, Any]:
    return {"properties": {f"p{n}": {"type": "integer"}}, "required": [f"p{n}"]}


BOMBS: dict[str, Callable[[], ConstraintSpec]] = {
    "oneOf in oneOf": lambda: ConstraintSpec.schema(nested(5, 4, "oneOf")),
    "oneOf deep": lambda: ConstraintSpec.schema(nested(10, 2, "oneOf")),
    "anyOf in anyOf": lambda: ConstraintSpec.schema(nested(6, 3, "anyOf")),
    "allOf of anyOf": lambda: ConstraintSpec.schema(
        {"allOf": [{"anyOf": [optional(2 * n), optional(2 * n + 1)]} for n in range(30)]}
    ),
    "allOf of oneOf": lambda: ConstraintSpec.schema(
        {"allOf": [{"oneOf": [{"required": [f"a{n}{i}"]} for i in range(5)]} for n in range(12)]}
    ),
    "references that double": lambda: ConstraintSpec.schema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}},
        }
    ),
    "references that branch": lambda: ConstraintSpec.schema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"oneOf": [{"$ref": f"#/$defs/d{(i + k) % 20}"} for k in (1, 2, 3)]} for i in range(20)},
        }
    ),
    "many items": lambda: ConstraintSpec.schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**6}),
    "long string": lambda: ConstraintSpec.schema({"type": "string", "minLength": 10**6, "pattern": "^(a|b|ab)*$"}),
    "deep": lambda: ConstraintSpec.schema('{"items":' * 5000 + "{}" + "}" * 5000),
    "deep list": lambda: ConstraintSpec.schema('{"enum":' + "[" * 5000 + "]" * 5000 + "}"),
    "many properties": lambda: ConstraintSpec.schema(
        {"properties": {f"p{i}": {"type": "string"} for i in range(5000)}}
    ),
    "too many properties": lambda: ConstraintSpec.schema({"properties": {f"p{i}": {} for i in range(50_000)}}),
    "many choices": lambda: ConstraintSpec.choices([f"{i * 7919 % 100003} x" for i in range(20_000)]),
    "long choice": lambda: ConstraintSpec.choices(["many words " * 22_000]),
    "large enum": lambda: ConstraintSpec.schema({"enum": [f"{i * 7919 % 10007}x" for i in range(9000)]}),
    "repeats of repeats": lambda: ConstraintSpec.regex("((a{1,1000}){1,1000}){1,1000}"),
    "automaton with 2^n states": lambda: ConstraintSpec.regex("(a|b)*a(a|b){200}"),
    "alternatives": lambda: ConstraintSpec.regex("|".join(f"a{{{i}}}b" for i in range(1200))),
    "many words": lambda: ConstraintSpec.words([f"w{i * 7919 % 100003}" for i in range(20_000)]),
    "ambiguous rules": lambda: ConstraintSpec.grammar('start: e\ne: e e e | e e | "a" | '),
    "nested groups": lambda: ConstraintSpec.grammar("root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "long grammar": lambda: ConstraintSpec.grammar(
        "\n".join(f'root{i or ""} ::= "a" root{i + 1}?' for i in range(1000)) + '\nroot1000 ::= "b"'
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_request_holds_up_the_others(name: str, smollm2: Tokenizer) -> None:
    """Compiling, and forty tokens after it: done or refused, within a second or so on an idle machine."""
    vocabulary(smollm2)
    start, rng = time.process_time(), random.Random(0)
    try:
        constraint = BOMBS[name]().compile(smollm2)
        for _ in range(40):
            may = allowed(constraint.mask()).nonzero().flatten().tolist()
            constraint.advance(rng.choice([i for i in may if i not in smollm2.stop_ids] or may))
    except CutawayError as error:
        print(f"{name}: {error}"[:200])
    seconds = time.process_time() - start
    print(f"{name}: {seconds:.2f} s")
    assert seconds < 3


def test_limits_are_those_of_the_source() -> None:
    for kind, limit in LARGEST.items():
        with pytest.raises(CutawayError, match="characters"):
            ConstraintSpec(kind, " " * (limit + 1))


# ---- cost


def cost(tokenizer: Tokenizer, spec: ConstraintSpec, steps: int = 15) -> dict[str, float]:
    """Median microseconds of each operation along random replies, on states that were visited before."""
    row_W, times = torch.empty(vocabulary(tokenizer).words, dtype=torch.int32), dict[str, list[float]]()
    for warm in (False, True):
        constraint, rng = spec.compile(tokenizer), random.Random(0)
        for _ in range(steps):
            for name, act in {
                "mask": lambda c=constraint: c.mask(row_W),
                "fork": constraint.fork,
                "forced": constraint.forced,
            }.items():
                start = time.perf_counter()
                act()
                if warm:
                    times.setdefault(name, []).append(1e6 * (time.perf_counter() - start))
            may = allowed(row_W).nonzero().flatten().tolist()
            token = rng.choice([i for i in may if i not in tokenizer.stop_ids] or may)
            start = time.perf_counter()
            constraint.advance(token)
            times.setdefault("advance", []).append(1e6 * (time.perf_counter() - start))
            if token in tokenizer.stop_ids:
                break
    return {name: statistics.median(found) for name, found in times.items()}


def test_cost(tokenizer: Tokenizer) -> None:
    """Printed, for time depends on who else is there: `pytest -s -k cost`."""
    many = sorted(
        {w for i in range(500, 6000) if (w := tokenizer.token_bytes(i).decode("utf-8", "ignore").strip()).isalpha()}
    )
    specs = {name: spec for name, (spec, _) in KINDS.items()} | {"2000 words": ConstraintSpec.words(many[:2000])}
    for name, spec in specs.items():
        print(f"{name:12}", "  ".join(f"{what} {us:6.1f} us" for what, us in cost(tokenizer, spec).items()))
    scores_V, mask_W = (
        torch.randn(tokenizer.vocab_size),
        torch.full((vocabulary(tokenizer).words,), 7, dtype=torch.int32),
    )
    found = []
    for _ in range(20):
        start = time.perf_counter()
        fence(scores_V, mask_W)
        found.append(1e6 * (time.perf_counter() - start))
    print(f"fence {tokenizer.vocab_size} scores: {statistics.median(found):.0f} us")
