"""Rendering a chat template that came with a model: Jinja as Hugging Face templates expect it, within limits.

Jinja's sandbox keeps a template from touching Python. It does not keep it from running for ever, so every
loop step and every call is counted and the clock is watched, and joining or repeating strings is refused
beyond a size. What
remains: a single filter (`center`, `join`, `replace` …) may still build one large string; only memory bounds
that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from cutaway.errors import CutawayError

MAX_TEMPLATE = 1 << 18  # characters
MAX_OUTPUT = 1 << 24  # characters
MAX_STEPS = 1_000_000  # loop steps and calls
MAX_SECONDS = 5.0


class _Meter:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self.steps, self.deadline = 0, time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS or time.monotonic() > self.deadline:
            raise TemplateError(f"it did not end within {MAX_STEPS:,} steps and {MAX_SECONDS:g} seconds")


_meter: ContextVar[_Meter] = ContextVar("meter")


def _metered(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _meter.get().tick()
        yield item


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise TemplateError(f"it builds a text of more than {MAX_OUTPUT:,} characters")


class _Meters(NodeTransformer):
    """Puts the meter into every loop, and the size check into every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # the visitor's naming
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_metered", [], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_joined", [], [], None, None)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}, which marks what the assistant said: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters |= {"tojson": _tojson, "_metered": _metered, "_joined": _joined}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Meters().visit(source), *args, **kwargs)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _meter.get().tick()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_size(_SIZES[operator](left, right))
        return super().call_binop(context, operator, left, right)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 1


def _power_size(base: Any, exponent: Any) -> int:
    return base.bit_length() * exponent if isinstance(base, int) and isinstance(exponent, int) else 0


def _product_size(left: Any, right: Any) -> int:
    counts = [abs(v) if isinstance(v, int) else _length(v) for v in (left, right)]
    numbers = all(isinstance(v, int | float) for v in (left, right))
    return 0 if numbers else counts[0] * counts[1]


_SIZES = {"+": lambda a, b: _length(a) + _length(b), "*": _product_size, "**": _power_size}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escaping, as templates for language models want it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    if len(template) > MAX_TEMPLATE:
        raise CutawayError(f"the chat template has more than {MAX_TEMPLATE:,} characters", "chat_template")
    try:
        return _Environment().from_string(template)
    except (TemplateError, RecursionError, MemoryError) as error:
        hint = "pass another template, or use completions"
        raise CutawayError(f"the chat template is not valid Jinja: {error}", "chat_template", hint) from None


def variables(template: str) -> frozenset[str]:
    """The names that a template asks its caller for. Errors: it is not valid Jinja."""
    _compiled(template)
    environment = _Environment()
    return frozenset(meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals))


def render(template: str, variables: dict[str, Any]) -> str:
    """The text that a template makes of its variables; CutawayError with its own message if it refuses."""
    compiled = _compiled(template)
    token, parts, size = _meter.set(_Meter()), [], 0
    try:
        for part in compiled.generate(variables):
            size += len(part)
            _check_size(size)
            parts.append(part)
    except Exception as error:  # whatever a foreign template does is the template's fault
        raise CutawayError(f"the chat template refused: {error}", "messages") from None
    finally:
        _meter.reset(token)
    return "".join(parts)
