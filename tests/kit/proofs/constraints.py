"""Constraints against the definition: a token may come if a text of the language begins with what would then be said.

The languages are finite and written out by the proof, or have an automaton of its own; the vocabularies are small and
made here, one of each kind of tokenizer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from unittest.mock import patch

import regex
import torch

from cutaway.engine.constraints.constraint import Constraint, allowed, vocabulary
from cutaway.engine.constraints.spec import ConstraintSpec, _compiled
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Logits, fence, sample
from cutaway.errors import CutawayError
from cutaway.native.sampling import kernels
from cutaway.text.added import AddedToken
from cutaway.text.alphabet import LETTER_OF_BYTE, to_letters
from cutaway.text.recipe import Recipe
from cutaway.text.tokenizer import Tokenizer

Viable = Callable[[bytes], tuple[bool, bool]]  # whether a text can go on to one of the language, and whether it is one

PIECES = (
    "ab",
    "abc",
    "bc",
    "ca",
    "cc",
    "aab",
    " a",
    "日",
    "本",
    "日本",
    "éa",
    "b日",
    '{"',
    '":',
    "},",
    "tru",
    "e}",
    "12",
    "  ",
)


@cache
def byte_level() -> Tokenizer:
    """BPE over all bytes, some longer tokens, half a character glued to a letter, two end tokens, a hole in the ids."""
    vocab = {LETTER_OF_BYTE[b]: b for b in range(256)}
    merges = []
    for piece in (*map(to_letters, PIECES), "a" + LETTER_OF_BYTE[0xE6], LETTER_OF_BYTE[0x97] + LETTER_OF_BYTE[0xA5]):
        for k in range(2, len(piece) + 1):
            if piece[:k] not in vocab:
                merges.append((piece[: k - 1], piece[k - 1]))
                vocab[piece[:k]] = len(vocab)
    first = len(vocab) + 1
    added = [AddedToken(first + i, name) for i, name in enumerate(("<end>", "<turn>", "<tool>"))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    roles = {"eos": first}
    stop = frozenset({first + 1})
    return Tokenizer(
        Recipe("BPE", vocab, merges, pre_tokenizer=level, decoder=level, added=added, roles=roles, stop=stop)
    )


@cache
def unigram() -> Tokenizer:
    """SentencePiece's kind: a sign for the space, byte fallback, so that some tokens spell the same."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces = ["<unk>", "</s>", *bytes_, *dict.fromkeys(p.replace(" ", "▁") for p in (*PIECES, *'abc日本é{}:,"', "▁"))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    parts = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    return Tokenizer(
        Recipe(
            "Unigram",
            vocab,
            scores={p: -float(5 if len(p) == 1 else 20 if p in bytes_ else 2) for p in pieces},
            options={"unk_token": "<unk>", "byte_fallback": True},
            pre_tokenizer=space,
            decoder={"type": "Sequence", "decoders": parts},
            added=[AddedToken(0, "<unk>"), AddedToken(1, "</s>")],
            roles={"eos": 1, "unk": 0},
        )
    )


@cache
def word_piece() -> Tokenizer:
    """BERT's kind: a token begins a word, and brings its space, or goes on with one. It cannot say everything."""
    pieces = ["[UNK]", "[SEP]", *(f"{sign}{p.strip()}" for p in (*PIECES, *"abc日本é") for sign in ("", "##"))]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return Tokenizer(
        Recipe(
            "WordPiece",
            vocab,
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": False},
            pre_tokenizer={"type": "BertPreTokenizer"},
            added=[AddedToken(0, "[UNK]"), AddedToken(1, "[SEP]")],
            roles={"eos": 1, "unk": 0, "sep": 1},
        )
    )


TOKENIZERS = (byte_level, unigram, word_piece)


def listed(texts: Iterable[str]) -> Viable:
    """The finite language of these texts."""
    whole = {text.encode() for text in texts}
    begun = {text[:k] for text in whole for k in range(len(text) + 1)}
    return lambda text: (text in begun, text in whole)


def matching(pattern: str) -> Viable:
    """The ASCII language of a pattern, by another library's partial matching."""
    compiled = regex.compile(pattern.encode())

    def viable(text: bytes) -> tuple[bool, bool]:
        return compiled.fullmatch(text, partial=True) is not None, compiled.fullmatch(text) is not None

    return viable


def permitted(constraint: Constraint) -> set[int]:
    """The tokens of its mask."""
    return {*allowed(constraint.mask()).nonzero().flatten().tolist()}


def brute_force(tokenizer: Tokenizer, said: bytes, viable: Viable) -> set[int]:
    """The tokens that may come after `said`, tried one by one."""
    ends = tokenizer.stop_ids if viable(said)[1] else frozenset()
    plain = set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    spelled = {i: tokenizer.token_bytes(i) for i in plain}
    return {i for i, data in spelled.items() if data and viable(said + data)[0]} | ends


def walk(
    tokenizer: Tokenizer, constraint: Constraint, viable: Viable, rng: random.Random, steps: int = 12
) -> list[int]:
    """A random reply, the whole mask compared at every step. Returns it, without end token."""
    ids: list[int] = []
    for _ in range(steps):
        said = b"".join(map(tokenizer.token_bytes, ids))
        expected = brute_force(tokenizer, said, viable)
        if not expected:  # a vocabulary that cannot say everything may come to a dead end, which is told
            try:
                constraint.mask()
            except CutawayError:
                return ids
            raise AssertionError(f"a dead end after {said!r} was not told")
        found = permitted(constraint)
        differ = sorted(found ^ expected)[:5]
        assert found == expected, f"after {said!r}: {[(i, tokenizer.token_bytes(i), i in found) for i in differ]}"
        only_end = found <= tokenizer.stop_ids  # with words left that this vocabulary cannot say it is not done
        assert constraint.done == only_end or (only_end and tokenizer is word_piece()), f"done after {said!r}"
        token = rng.choice(sorted(found))
        constraint.advance(token)
        if token in tokenizer.stop_ids:
            assert constraint.done
            assert permitted(constraint) == tokenizer.stop_ids
            return ids
        ids.append(token)
    return ids


def _walks(spec: ConstraintSpec, viable: Viable, seed: int, times: int = 3) -> None:
    rng = random.Random(seed)
    for make in TOKENIZERS:
        for _ in range(times):
            try:
                constraint = spec.compile(make())
            except CutawayError:  # nothing can be said at all
                assert not brute_force(make(), b"", viable), f"{make.__name__} refused {spec.source}"
                continue
            walk(make(), constraint, viable, rng)


LETTERS = ["a", "b", "c", " ", "日本", "é", '"', "\\", "\n", "\t", "/", "\x01", "\x7f", "\u2028"]


def _texts(rng: random.Random) -> list[str]:
    """A few, some of which begin others."""
    texts = ["".join(rng.choices(LETTERS, k=rng.randint(1, 5))) for _ in range(5)]
    return [*dict.fromkeys(texts + [text[: rng.randint(1, len(text))] for text in texts])]


def choices() -> None:
    """Random lists of texts: the next tokens of those that go on so, cut as the tokenizer cuts them."""
    rng = random.Random(0)
    for _ in range(24):
        texts = _texts(rng)
        for make in (byte_level, unigram):
            spelled = [vocabulary(make())(text) for text in texts]
            assert [vocabulary(make()).bytes_of(ids).decode() for ids in spelled] == texts
            choose(make(), ConstraintSpec.choices(texts).compile(make()), spelled, rng)
    with contextlib.suppress(CutawayError):
        ConstraintSpec.choices(["日", "?"]).compile(word_piece())
        raise AssertionError("a text that has no spelling was taken")


def choose(tokenizer: Tokenizer, constraint: Constraint, spelled: list[list[int]], rng: random.Random) -> None:
    """A random walk to the end of one of the texts."""
    said, token = list[int](), -1
    while token not in tokenizer.stop_ids:
        rest = [ids[len(said) :] for ids in spelled if ids[: len(said)] == said]
        expected = {ids[0] for ids in rest if ids} | (tokenizer.stop_ids if [] in rest else frozenset())
        assert permitted(constraint) == expected, f"after {said} of {spelled}: {permitted(constraint)}"
        assert constraint.done == (expected <= tokenizer.stop_ids), f"done after {said}"
        common = [tokens[0] for tokens in itertools.takewhile(lambda c: len({*c}) == 1, zip(*rest, strict=False))]
        assert constraint.forced() == common, f"forced after {said}: {constraint.forced()}, not {common}"
        constraint.advance(token := rng.choice(sorted(expected)))
        said.append(token)
    assert constraint.done
    assert permitted(constraint) == tokenizer.stop_ids


def _random_regex(rng: random.Random, depth: int = 3) -> tuple[str, set[str]]:
    """A pattern, and its language written out."""
    if depth == 0 or rng.random() < 0.2:
        text = rng.choice(["a", "b", "ca", "日", "é", "/", "\n", "\x7f", "\\."])
        return text, {text.replace("\\.", ".")}
    (one, ones), (two, twos) = _random_regex(rng, depth - 1), _random_regex(rng, depth - 1)
    match rng.randrange(4):
        case 0:
            return f"(?:{one}|{two})", ones | twos
        case 1:
            return f"(?:{one})?", ones | {""}
        case 2:
            return f"(?:{one}){{1,2}}", ones | {a + b for a in ones for b in ones}
    return one + two, {a + b for a in ones for b in twos}


def expressions() -> None:
    """Random regular expressions whose languages are finite, and some whose are not."""
    rng = random.Random(1)
    for seed in range(6):
        texts = _texts(rng)
        _walks(ConstraintSpec.regex("|".join(texts).replace("\\", r"\\")), listed(texts), seed)
    for seed in range(25):
        pattern, language = _random_regex(rng)
        if len(language) <= 3000:
            _walks(ConstraintSpec.regex(pattern), listed(language), seed, times=2)
    for seed, pattern in enumerate(
        ["(ab|c)*", "a+b?(ca)*", "[^a]", "(a|ab)(bc|c)*", "[a-c]{2,5}c", "a*/b*", r"\{\"[a-c]*\"\}"]
    ):
        _walks(ConstraintSpec.regex(pattern), matching(f"(?s:{pattern})") if "^" not in pattern else _not_a, seed)


def _not_a(text: bytes) -> tuple[bool, bool]:
    """One character other than "a"."""
    try:
        return (not text or (len(text.decode()) == 1 and text != b"a")), text != b"a" and len(text.decode()) == 1
    except UnicodeDecodeError:
        return any(_decodes(text + bytes(rest)) for k in (1, 2, 3) for rest in _completions(text, k)), False


def _completions(text: bytes, count: int) -> Iterator[tuple[int, ...]]:
    """Continuation bytes at the ends of their range, which is enough to complete what can be completed."""
    return itertools.product((0x80, 0x90, 0x9F, 0xA0, 0xBF), repeat=count) if len(text) + count <= 4 else iter(())


def _decodes(text: bytes) -> bool:
    try:
        return len(text.decode()) == 1
    except UnicodeDecodeError:
        return False


def words() -> None:
    """Nothing but the listed words, in either case, with what may stand between them."""
    for seed, (listed_words, between, gap) in enumerate(
        [
            (["ab", "abc", "cc"], " .", "[ .]"),
            (["a", "b-a"], "-,", "[-,]"),
            (["ca", "c a"], " ", "[ ]"),
            (['c"'], " ", "[ ]"),
        ]
    ):
        for capital in (False, True):
            forms = {*listed_words} | ({w[0].upper() + w[1:] for w in listed_words} if capital else set())
            word = f"(?:{'|'.join(forms)})"
            viable = matching(f"{gap}{{0,4}}{word}(?:{gap}{{1,4}}{word})*{gap}{{0,4}}")
            _walks(ConstraintSpec.words(listed_words, between, capital), viable, seed)


SCHEMAS: list[tuple[object, Callable[[], Iterator[object]]]] = [
    ({"enum": ["a", "ab", 1, 12, None, True, ["a"]]}, lambda: iter(["a", "ab", 1, 12, None, True, ["a"]])),
    ({"enum": ["a\\", '"/']}, lambda: iter(["a\\", '"/'])),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 8, "maximum": 112}, "ab": {"enum": ["c", "ca"]}},
            "required": ["a"],
            "additionalProperties": False,
        },
        lambda: ({"a": n} | more for n in range(8, 113) for more in ({}, {"ab": "c"}, {"ab": "ca"})),
    ),
    (
        {
            "type": "array",
            "items": {"$ref": "#/$defs/x"},
            "minItems": 1,
            "maxItems": 2,
            "$defs": {"x": {"enum": [1, "a"]}},
        },
        lambda: (list(v) for k in (1, 2) for v in itertools.product([1, "a"], repeat=k)),
    ),
    (
        {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^(ab|c){1,2}$"}, {"const": {"a": {"b": None}}}]},
        lambda: iter([True, False, "ab", "c", "abab", "abc", "cab", "cc", {"a": {"b": None}}]),
    ),
    (
        {"allOf": [{"type": "integer", "minimum": -3}, {"maximum": 4}]},
        lambda: iter(range(-3, 5)),
    ),
]


@cache
def without_spaces() -> Tokenizer:
    """A vocabulary that cannot say white space, so that a value has one spelling."""
    plain = [chr(b) for b in range(0x21, 0x7F)]
    more = [p for p in PIECES if " " not in p and p.isascii()]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*plain, *more]))}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    end = AddedToken(len(vocab), "<end>")
    return Tokenizer(Recipe("BPE", vocab, [], decoder=level, pre_tokenizer=level, added=[end], roles={"eos": end.id}))


def schemas() -> None:
    """Schemas whose values can be counted: every value can be said, as `json.dumps` spells it, and nothing else."""
    rng = random.Random(2)
    for schema, values in SCHEMAS:
        texts = [json.dumps(value, separators=(",", ":")) for value in values()]
        # Two spellings that are not those of `json.dumps`, but of the same values.
        texts += [text.replace("-0", "0") for text in texts] + ["-0"] * ("0" in texts)
        for _ in range(6):
            walk(without_spaces(), ConstraintSpec.schema(schema).compile(without_spaces()), listed(texts), rng, 40)


class _More(Exception):
    """The text ended before the value did."""


def _json(text: bytes) -> tuple[bool, bool]:
    """Whether some JSON value begins so, and whether this is one: a parser of RFC 8259 that may run out of text.

    Of the spellings that the standard has for a string, three are not offered: an escaped solidus, U+007F as it is, and
    lone surrogates. White space comes 64 characters at a time at most.
    """
    try:
        at = _value(text, 0)
    except _More:
        return True, False
    except (AssertionError, IndexError):
        return False, False
    return at == len(text), at == len(text)


def _byte(text: bytes, at: int) -> bytes:
    if at >= len(text):
        raise _More
    return text[at : at + 1]


def _skip(text: bytes, at: int) -> int:
    start = at
    while _byte(text, at) in b" \t\n\r":
        at += 1
        assert at - start <= 64
    return at


def _value(text: bytes, at: int) -> int:
    """Where a value ends."""
    first = _byte(text, at)
    for word in (b"true", b"false", b"null"):
        if word[:1] == first:
            assert word.startswith(text[at : at + len(word)])
            if len(text) - at < len(word):
                raise _More
            return at + len(word)
    if first == b'"':
        return _string(text, at)
    if first in b"[{":
        return _members(text, at, first == b"{")
    if _NUMBER.fullmatch(text, at, partial=True) and not _NUMBER.fullmatch(text, at):
        raise _More
    begun = _NUMBER.match(text, at)
    assert begun
    return begun.end()


_NUMBER = regex.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


def _members(text: bytes, at: int, named: bool) -> int:
    close, at = b"}" if named else b"]", _skip(text, at + 1)
    if _byte(text, at) == close:
        return at + 1
    while True:
        if named:
            at = _skip(text, _string(text, at))
            assert _byte(text, at) == b":"
            at = _skip(text, at + 1)
        at = _skip(text, _value(text, at))
        assert _byte(text, at) in (b",", close)
        if _byte(text, at) == close:
            return at + 1
        at = _skip(text, at + 1)


_CHARACTER = regex.compile(
    rb'[\x20\x21\x23-\x5b\x5d-\x7e]|\\(?:["\\bfnrt]|u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    rb"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
    rb"|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)


def _string(text: bytes, at: int) -> int:
    assert _byte(text, at) == b'"'
    at += 1
    while _byte(text, at) != b'"':
        one = _CHARACTER.match(text, at, partial=True)
        assert one
        if one.partial:
            raise _More
        at = one.end()
    return at + 1


def values() -> None:
    """Any JSON value: the masks of random replies, against a parser written for the purpose."""
    rng = random.Random(6)
    for make, _ in itertools.product((byte_level, unigram, without_spaces), range(3)):
        walk(make(), ConstraintSpec.json().compile(make()), _json, rng, 30)
    for text in (
        '{"a": [1, -0.5e+3, true, null, {}], "\\u00e9\\ud83d\\ude00\\n": "日"}',
        "[[[]],\n\n []\t]",
        "[" + 64 * "\n" + "1]",
        '"\\u000a"',
        "12",
    ):
        constraint, said = ConstraintSpec.json().compile(byte_level()), b""
        for token in vocabulary(byte_level())(text):
            assert permitted(constraint) == brute_force(byte_level(), said, _json), f"after {said!r}"
            constraint.advance(token)
            said += byte_level().token_bytes(token)


def grammars() -> None:
    """Context-free languages cut off at a depth that the walks do not reach, in both notations."""
    nested = {"a" * n + "b" + "c" * n for n in range(40)}
    for spec in (
        ConstraintSpec.grammar('start: "a" start "c" | "b"'),
        ConstraintSpec.grammar('root ::= "a" root "c" | "b"'),
    ):
        _walks(spec, listed(nested), 5)


def calls() -> None:
    """One tool call, or several, between texts or control tokens; without white space, for the same reason as above."""
    parameters = {"type": "object", "properties": {"c": {"$ref": "#/$defs/v"}}, "required": ["c"]}
    parameters |= {"additionalProperties": False, "$defs": {"v": {"enum": [1, 12]}}}
    tools = [{"name": "ab", "parameters": parameters}]
    one = [f'<t>{{"name":"ab","arguments":{{"c":{c}}}}}</t>' for c in (1, 12)]
    several = [*one, *map("".join, itertools.product(one, repeat=2)), *map("".join, itertools.product(one, repeat=3))]
    rng, tokenizer = random.Random(3), without_spaces()
    for many, language in ((False, one), (True, several)):
        for _ in range(4):
            spec = ConstraintSpec.tools(tools, "<t>", "</t>", several=many)
            walk(tokenizer, spec.compile(tokenizer), listed(language), rng, 60)
    free = ConstraintSpec.tools(tools, "<t>", "</t>", free=True).compile(tokenizer)
    text = f"ab<c{one[1]}c"
    for token in map(tokenizer.recipe.vocab.get, text):
        assert allowed(free.mask())[token], f"{text} should be allowed"  # type: ignore[index]
        free.advance(token)  # type: ignore[arg-type]
    made = byte_level()
    tool = made.recipe.added_by_content["<tool>"].id
    marked = ConstraintSpec.tools(tools, "<tool>", "<turn>").compile(made)
    assert permitted(marked) == {tool}, "a call begins with the control token"


def going_back() -> None:
    """After any advances, roll-backs, forks and looks ahead: the state of a constraint that only advanced."""
    rng = random.Random(4)
    sources = [
        ConstraintSpec.choices(["a", "ab", "abc", "日本", "日本b"]),
        ConstraintSpec.regex("(ab|c){2,6}日?"),
        ConstraintSpec.json(),
        ConstraintSpec.grammar('start: "a" start "c" | "b"'),
        ConstraintSpec.words(["ab", "c"]),
    ]
    for spec, make in itertools.product(sources, (byte_level, unigram)):
        moving, ids = spec.compile(make()), list[int]()
        for _ in range(60):
            _move(rng, moving, ids, make())
            if rng.random() < 0.2:
                left, moving = moving, moving.fork()
                left.advance(rng.choice(sorted(permitted(left))))
            fresh = spec.compile(make())
            for token in ids:
                fresh.advance(token)
            assert torch.equal(fresh.mask(), moving.mask()), f"{spec.source}: another mask after {ids}"
            assert (fresh.done, fresh.forced()) == (moving.done, moving.forced()), f"{spec.source} after {ids}"


def _move(rng: random.Random, constraint: Constraint, ids: list[int], tokenizer: Tokenizer) -> None:
    """One step on, one that is not allowed, or some back."""
    mask = allowed(constraint.mask())[: tokenizer.vocab_size]
    way = rng.random()
    if way < 0.25:
        count = rng.randint(0, len(ids))
        constraint.rollback(count)
        del ids[len(ids) - count :]
    elif way < 0.5 and not mask.all():
        try:
            constraint.advance(rng.choice((~mask).nonzero().flatten().tolist()))
        except CutawayError:
            return
        raise AssertionError(f"a forbidden token was taken after {ids}")
    else:
        token = rng.choice(mask.nonzero().flatten().tolist())
        constraint.advance(token)
        ids.append(token)


FORCED = [
    ("regex", "ab(ca|cb)abc日本(a|b)", ["abcaabc日本a", "abcbabc日本b"]),
    ("regex", "abc?", ["ab", "abc"]),
    ("grammar", 'start: "aab" x "日本日"\nx: "a" | "bcc"', ["aaba日本日", "aabbcc日本日"]),
    ("regex", "aab日本 a.*", ["aab日本 aab", "aab日本 a"]),
]


def forcing() -> None:
    """What is forced is what the tokenizer makes of every text that can follow; and it is told where it matters."""
    for make in (byte_level, unigram):
        told = 0
        for kind, source, texts in FORCED:
            for text in texts:
                constraint, ids = ConstraintSpec(kind, source).compile(make()), vocabulary(make())(text)
                for i, token in enumerate(ids):
                    forced = constraint.forced()
                    assert forced == ids[i : i + len(forced)], f"{text!r} after {ids[:i]}: {forced}, not {ids[i:]}"
                    told += len(forced)
                    constraint.advance(token)
        assert told >= 5, f"only {told} forced tokens"
    spelled = ConstraintSpec.regex("ab日本ca(a|b)").compile(byte_level())  # letter by letter, as no tokenizer cuts it
    for i, token in enumerate("ab日本c".encode()):
        said, whole = [*"ab日本c".encode()][:i], vocabulary(byte_level())("ab日本caa")
        forced = spelled.forced()
        assert not forced or whole[: i + len(forced)] == [*said, *forced], f"{forced} after {said}"
        spelled.advance(token)


def fencing() -> None:
    """Forbidden scores become minus infinity, the others stay; natively and not, with masks of any width."""
    generator = torch.Generator().manual_seed(0)
    for size, native in itertools.product((1, 64, 95, 200), (kernels(), None)):
        for words in (1, -(-size // 32), -(-size // 32) + 1):
            mask_W = torch.randint(-(2**31), 2**31, (words,), generator=generator).to(torch.int32)
            mask_W[0] = -1
            scores_V = torch.randn(size, generator=generator)
            found_V = scores_V.clone()
            with patch("cutaway.engine.sampler.kernels", lambda native=native: native):
                fence(found_V, mask_W)
            for token in range(size):
                bit = token < 32 * words and (int(mask_W[token // 32]) >> (token % 32)) & 1
                expected = float(scores_V[token]) if bit else -torch.inf
                assert float(found_V[token]) == expected, f"token {token} of {size}, {words} words, {native}"


def greedy() -> None:
    """At temperature 0: the best token that the mask allows, whether it is the best of all or not."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        values_V = torch.randn(70, generator=generator)
        mask_W = torch.randint(-(2**31), 2**31, (3,), generator=generator).to(torch.int32)
        found = sample(Logits.of(values_V), SamplingParams(temperature=0), [1], [], mask_W=mask_W)
        best = max((float(values_V[t]), t) for t in allowed(mask_W)[:70].nonzero().flatten().tolist())[1]
        assert found.token == best, f"{found.token}, not {best}"
        assert abs(found.logprob - float(values_V.log_softmax(0)[best])) < 1e-5


def writing() -> None:
    """A mask lands in the row it was given, which may be wider; a tokenizer without an end never shows one."""
    constraint = ConstraintSpec.regex("a*").compile(byte_level())
    rows_RW = torch.full((2, vocabulary(byte_level()).words + 3), -1, dtype=torch.int32)
    constraint.mask(rows_RW[1])
    assert torch.equal(rows_RW[1, :-3], constraint.mask())
    assert not rows_RW[1, -3:].any(), "beyond the vocabulary nothing is allowed"
    assert (rows_RW[0] == -1).all(), "another row was written to"
    endless = Tokenizer(Recipe("BPE", {"a": 0, "b": 1}, [], decoder={"type": "ByteLevel"}))
    made = ConstraintSpec.regex("ab"), ConstraintSpec.choices(["ab"]), ConstraintSpec.regex("a*")
    for spec, steps, rest in zip(
        made, ("ab", "ab", "aa"), ([[0], [1], []], [[0], [1], []], [[0], [0], [0]]), strict=True
    ):
        constraint, found = spec.compile(endless), []
        for letter in [*steps, ""]:
            found.append(sorted(permitted(constraint)))
            if letter:
                constraint.advance("ab".index(letter))
        assert found == rest, f"{spec.source}: {found}"
        assert constraint.done == (not rest[-1])


_NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
_LIST = {"type": "array", "items": {"$ref": "#/$defs/list"}, "minItems": 1}


def _tagged(tag: str) -> dict[str, object]:
    """One of a union."""
    return {"type": "object", "properties": {"tag": {"const": tag}, "x": {"type": "integer"}}, "required": ["tag"]}


REFUSED: list[tuple[object, str, str]] = [
    ({"$ref": "#/$defs/node", "$defs": {"node": _NODE}}, "schema", "must contain itself"),
    ({"$ref": "#/$defs/list", "$defs": {"list": _LIST}}, "schema", "must contain itself"),
    ({"$ref": "#"}, "schema", "must contain itself"),
    ({"properties": {"a": {"items": {"not": {}}}}}, "schema.properties.a.items", "not"),
    (
        {"anyOf": [{}, {"type": "string", "minLength": 3, "maxLength": 2}], "type": "string", "format": "ab"},
        "schema",
        "ab",
    ),
    ({"type": "object", "properties": {"a": {"type": "strin"}}}, "schema.properties.a", "strin"),
    ({"allOf": [{"type": "object"}, {"propertyNames": {}}]}, "schema.allOf[1]", "propertyNames"),
    (json.loads('{"items":' * 70 + "{}" + "}" * 70), "schema", "nested"),
    ({"properties": {f"p{i}": {} for i in range(1001)}}, "schema", "1,001"),
    ({"items": {"oneOf": [_tagged("a"), _tagged("b"), _tagged("a")]}}, "schema.items", "oneOf"),
    ({"oneOf": [_tagged("a"), *({**_tagged(t), "required": []} for t in "bc")]}, "schema", "oneOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema", "oneOf"),
    (False, "schema", "false"),
    ([], "schema", "list"),
]
ACCEPTED: list[object] = [
    {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": _tagged("a"), "b": _tagged("b")}},
    {"items": {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": ["null", "boolean"]}]}},
    {"oneOf": [{"const": 1}, {"enum": ["1", None]}]},
    {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"anyOf": [{"type": "null"}, {**_NODE, "properties": {"next": {"$ref": "#/$defs/n"}}}]}},
    },
    {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
    {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    {"type": "array", "prefixItems": [True], "items": {"$ref": "#"}, "minItems": 1},
    True,
    {},
]


def refusing() -> None:
    """What no reply can follow is refused and the part to blame named; what only could go on for ever is taken."""
    for schema, where, word in REFUSED:
        error = _refusal(schema)
        assert error, f"{schema} was taken"
        assert (error.where, word in error.what) == (where, True), f"{schema}: {error}"
    for schema in ACCEPTED:
        assert not _refusal(schema), f"{schema} was refused"


def _refusal(schema: object) -> CutawayError | None:
    try:
        ConstraintSpec.schema(schema).compile(byte_level())  # type: ignore[arg-type]
    except CutawayError as error:
        return error
    return None


def _fresh(proof: Callable[[], None]) -> None:
    """Run a proof on what is compiled for it alone; a refusal that it does not expect is a failure."""
    caches = (vocabulary, _compiled)
    for cache_ in caches:
        cache_.cache_clear()
    try:
        proof()
    except CutawayError as error:
        raise AssertionError(f"refused: {error}") from error
    finally:
        for cache_ in caches:
            cache_.cache_clear()


def _named() -> Iterator[tuple[str, Callable[[], None]]]:
    proofs = (choices, expressions, words, schemas, values, grammars, calls, going_back, forcing, fencing, writing)
    for proof in (*proofs, refusing, greedy):
        yield f"constraint {proof.__name__}", partial(_fresh, proof)


PROOFS = dict(_named())
