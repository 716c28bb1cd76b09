"""Each kind of constraint but a list of choices, rewritten as a Lark grammar for llguidance.

Where a kind is a regular language, the grammar is a single terminal: one automaton, whose masks are exact whatever the
ambiguities.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from cutaway.engine.constraints import json_schema, json_schema_check
from cutaway.engine.constraints.constraint import Memory, Vocabulary, first_line
from cutaway.errors import CutawayError

LONGEST_GAP = 4
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"  # JSON's, but not without end: models love to go on indenting
LIMITS = LLParserLimits(
    max_grammar_size=200_000, max_items_in_row=10_000, max_lexer_states=50_000, verbose_errors=False
)

# An engine that may force tokens by itself hides all other spellings of the same text from the model.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
# Options of a rule that cannot be taken back, or change the reply behind the engine's back.
REFUSED = re.compile(r"^\s*[?!]?[a-z_][\w-]*\s*\[[^\]\n]*\b(max_tokens|stop|temperature)\b", re.MULTILINE)


def _regex(source: str, _: Vocabulary) -> str:
    """In a pattern between slashes, some characters must be escaped unless they are."""
    escaped = {"/": r"\/", "\n": r"\n", "\\\n": r"\n", "\x7f": r"\x7f"}
    plain = re.sub(r"\\.|[/\n\x7f]", lambda found: escaped.get(found[0], found[0]), source, flags=re.DOTALL)
    return f"start: TEXT\nTEXT: /{plain}/"


def _words(source: str, _: Vocabulary) -> str:
    given = json.loads(source)
    gap = "".join(f"\\x{{{ord(letter):X}}}" for letter in sorted({*given["between"]}))
    rules = ("start: SAID", "SAID: GAP? WORD (GAP WORD)* GAP?", f"GAP: /[{gap}]{{1,{LONGEST_GAP}}}/")
    return "\n".join([*rules, f"WORD: {' | '.join(map(_quoted, _forms(given)))}"])


def _forms(given: dict[str, Any]) -> list[str]:
    """The words as they may be written."""
    capitals = {word[0].upper() + word[1:] for word in given["words"]} if given["capital"] else set()
    return sorted({*given["words"]} | capitals)


def words_memory(source: str) -> Memory | None:
    """After listed words, what may come depends on the last gap and the word begun after it.

    Not if a word contains what may stand between words: then a gap may be none. With thousands of words, a mask at the
    beginning of a word takes long, and a reply is at the beginning of a word all the time.
    """
    given = json.loads(source)
    if any(letter in word for word in _forms(given) for letter in given["between"]):
        return None
    gap = b"|".join(re.escape(letter.encode()) for letter in given["between"])
    tail = re.compile(b"(?:%b)*(?:(?!%b).)*\\Z" % (gap, gap), re.DOTALL)
    reach = 1 + max(len(word.encode()) for word in _forms(given)) + 4 * LONGEST_GAP

    def state(text: bytes, whole: bool) -> tuple[bytes, bool]:
        found = tail.search(text)
        assert found is not None
        return found[0], whole and found.start() == 0

    return Memory(state, reach)


def _schema(source: str, vocab: Vocabulary) -> str:
    schema = json_schema_check.parsed(source, "schema")
    json_schema_check.check(schema, "schema", partial(refusal, vocab))
    return f"start: {_json(schema)}"


def _grammar(source: str, _: Vocabulary) -> str:
    if refused := REFUSED.search(source):
        raise CutawayError(f"the option {refused[1]!r} of a rule is not supported", "grammar")
    try:
        return any_to_lark(source)
    except RecursionError:
        raise
    except Exception as error:  # the converter raises what it pleases
        raise CutawayError(f"is not a grammar: {first_line(str(error))}", "grammar") from None


def _tools(source: str, vocab: Vocabulary) -> str:
    given = json.loads(source)
    rules = [f"call: {_json(_calls(given['tools'], given['arguments'], vocab))} {_text(given['end'], vocab)}"]
    begin = _text(given["begin"], vocab)
    if not given["free"]:
        return "\n".join([f"start: ({begin} call){'+' if given['several'] else ''}", *rules])
    start = f"start: (head call){'*' if given['several'] else '?'} tail"
    head = f"head: TEXT {begin}" if begin.startswith("<") else f"head[lazy]: TEXT {begin}"
    return "\n".join([start, head, "tail: TEXT", "TEXT: /(?s:.*)/", *rules])


def _calls(tools: list[Any], arguments: str, vocab: Vocabulary) -> dict[str, Any]:
    """The schema of a call of one of the tools, each tool's own schema checked with its place in the request."""
    calls, parameters = [], {}
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise CutawayError("has no name", f"tools[{i}]")
        own = tool.get("parameters") or NO_PARAMETERS
        json_schema_check.check(own, f"tools[{i}].parameters", partial(refusal, vocab))
        parameters[f"tool{i}"] = json_schema.moved(own, f"#/$defs/tool{i}")
        properties = {"name": {"const": tool["name"]}, arguments: {"$ref": f"#/$defs/tool{i}"}}
        calls.append({**NO_PARAMETERS, "properties": properties, "required": [*properties]})
    return {"anyOf": calls, "$defs": parameters}


GRAMMARS: dict[str, Callable[[str, Vocabulary], str]] = {
    "regex": _regex,
    "words": _words,
    "schema": _schema,
    "grammar": _grammar,
    "tools": _tools,
}


def reason(matcher: LLMatcher, placed: bool = False) -> str:
    """llguidance's own words without its listing. placed: with line and column, if the grammar is the caller's."""
    words = re.split(r"\n\s+\d+ \| ", matcher.get_error())[0].strip()
    if "oneOf constraints are not supported" in words:
        return "oneOf is supported where no value can fit two of its parts"
    return words if placed else re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", words)


def refusal(vocab: Vocabulary, schema: Any) -> str:
    """Why llguidance cannot keep a schema; "" if it can."""
    matcher = LLMatcher(vocab.engine, f"start: {_json(schema)}", log_level=0, limits=LIMITS)
    return reason(matcher) if matcher.is_error() else ""


def _json(schema: Any) -> str:
    rules = {} if schema is True else json_schema.exclusive(schema)
    options = {"whitespace_pattern": WHITE_SPACE, "json_allow_general_unicode_escapes": True}
    return "%json " + _quoted({**rules, "x-guidance": options} if isinstance(rules, dict) else rules)


def _text(text: str, vocab: Vocabulary) -> str:
    """A text as a sequence of Lark's literals, control tokens by id."""
    names = sorted(vocab.names, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    return " ".join(f"<[{vocab.names[p]}]>" if p in vocab.names else _quoted(p) for p in parts if p)


def _quoted(value: Any) -> str:
    """As Lark reads it: its literals are the strings of JSON but for U+007F."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
