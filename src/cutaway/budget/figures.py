"""A number with its formula, which is written once: what is shown is what is computed.

figure("KV per token", "bytes", "2·L·G·K·b", L=32, G=8, K=128, b=2)
-> value 131072, formula "2·L·G·K·b", numbers "2 × 32 × 8 × 128 × 2"
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cutaway.errors import CutawayError
from cutaway.models.cost import Term

OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "ln": math.log,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "ceil": math.ceil,
    "choose": math.comb,
}
SIGNS = str.maketrans({"·": "*", "×": "*", "−": "-", "^": "**"})
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


class Figure(NamedTuple):
    """unit: "" for plain counts, else bytes, FLOP, s, tokens/s, %, ... numbers: the formula with numbers put in."""

    name: str
    value: float
    unit: str
    formula: str
    numbers: str


def figure(name: str, unit: str, formula: str, /, **symbols: float) -> Figure:
    """What `formula` comes to. It is made of numbers, the given symbols, + - · / ^, brackets and `FUNCTIONS`.

    Errors: a quotient or power that does not exist, by the name of the figure.
    """
    try:
        value = evaluate(formula, symbols)
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise CutawayError(f"{formula} does not exist for {_put(formula, symbols)}: {error}", name) from None
    return Figure(name, value, unit, formula, _put(formula, symbols))


def of_term(term: Term, unit: str) -> Figure:
    """A term of the cost model."""
    return Figure(term.name, term.value, unit, term.formula, term.numbers)


def evaluate(formula: str, symbols: Mapping[str, float] | None = None) -> float:
    """The value of a formula; thousands may be separated by commas. Errors: ValueError if it is none."""
    return _value(ast.parse(THOUSANDS.sub("", formula).translate(SIGNS), mode="eval").body, symbols or {})


def named(figures: Iterable[Figure]) -> dict[str, float]:
    """Values by name."""
    return {f.name: f.value for f in figures}


def _value(node: ast.expr, symbols: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.UnaryOp(op=sign, operand=operand):
            return OPERATORS[type(sign)](_value(operand, symbols))
        case ast.BinOp(left=left, op=sign, right=right):
            return OPERATORS[type(sign)](_value(left, symbols), _value(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(a, symbols) for a in arguments))
    raise ValueError(f"{ast.unparse(node)} is no part of a formula, or an unknown symbol")


def _put(formula: str, symbols: Mapping[str, float]) -> str:
    """ "2·L·b" -> "2 × 32 × 2"."""
    names = sorted(symbols, key=len, reverse=True)
    spelled = re.sub(
        rf"\b({'|'.join(names)})\b" if names else r"(?!)", lambda match: _spelled(symbols[match[1]]), formula
    )
    return spelled.replace("·", " × ")


def _spelled(number: float) -> str:
    """So many digits that the formula still comes to the same; thousands separated."""
    return f"{number:,.15g}"
