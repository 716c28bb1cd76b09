"""Two models side by side, module by module: where do they part?

Both compute the same tokens, hooks write down what enters and what leaves every module, and the first module whose
output differs is named. If what enters it differs already, the fault lies in what stands between it and the modules
before it: rotation, mask, softmax and cache have no module of their own and come to light at `attention.out`.

The other model may be someone else's: which of its modules corresponds to which of ours follows from the table that
translates its tensors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.models.families.table import Binding, Row, Via, rows_of
from cutaway.models.spec import Spec

FLOAT32 = 1e-6  # numbers that differ by less are the same one, written by formats of different precision


class Trace(NamedTuple):
    """What a module got and what it gave, one row per token; `entered_TN` is of its first argument."""

    entered_TN: Tensor
    left_TN: Tensor


class Difference(NamedTuple):
    """absolute: the largest. relative: the norm of the difference over the norm of the second tensor."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Divergence:
    """How far one module's output differs, and how far what entered it did."""

    module: str
    entered: Difference
    left: Difference

    def exceeds(self, tolerance: float) -> bool:
        """Beyond a relative tolerance, or not a number."""
        return not self.left.relative <= tolerance

    def where(self, tolerance: float) -> str:
        """In words, whether the fault is this module's own."""
        if self.entered.relative <= tolerance:
            return f"inside {self.module}: what enters it agrees"
        return f"between {self.module} and the modules before it: what enters it differs already"


def difference(a: Tensor, b: Tensor) -> Difference:
    """Of two tensors of equal shape; infinitely large if the shapes differ."""
    if a.shape != b.shape:
        return Difference(math.inf, math.inf)
    if torch.equal(a, b):
        return Difference(0.0, 0.0)
    gap, size = a.double() - b.double(), b.double().norm().item()
    return Difference(gap.abs().max().item(), gap.norm().item() / size if size else math.inf)


def compare(a: Mapping[str, Trace], b: Mapping[str, Trace]) -> list[Divergence]:
    """Every module that both sides have, in the order in which the first finished them."""
    return [
        Divergence(name, *(difference(mine, other) for mine, other in zip(a[name], b[name], strict=True)))
        for name in a
        if name in b
    ]


def first(divergences: list[Divergence], tolerance: float) -> Divergence | None:
    """Where the two part, None if they do not."""
    return next((d for d in divergences if d.exceeds(tolerance)), None)


def trace(
    model: nn.Module, run: Callable[[], Any], tokens: int, names: Mapping[str, str] | None = None
) -> dict[str, Trace]:
    """Call `run`, which must run `model` on one sequence of `tokens`, and record modules as they finish.

    names: which modules to record and what to call them; without it every module, by its own name.
    """
    traces: dict[str, Trace] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            entered, left = (_rows(x, tokens) for x in (next(iter((*arguments, *named.values())), None), output))
            if entered is not None and left is not None:
                traces[name] = Trace(entered, left)

        return record

    chosen = names or {name: name for name, _ in model.named_modules() if name}
    handles = [
        model.get_submodule(own).register_forward_hook(recorder(name), with_kwargs=True) for own, name in chosen.items()
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _rows(x: Any, tokens: int) -> Tensor | None:
    """A copy of x with a row per token, of [T, ...], or of others' [1, T, ...] and [1, H, T, K]; None for all else.

    Of several things that a module gives at once, the first: a router's logits.
    """
    x = x[0] if isinstance(x, tuple) and x else x
    if not isinstance(x, Tensor) or (x.dim() == 4 and x.shape[1] == x.shape[2]):  # heads or tokens first?
        return None
    if x.dim() == 4 and x.shape[2] == tokens:
        x = x.transpose(1, 2)
    return x.detach().clone().reshape(tokens, -1) if tokens in x.shape[:2] else None


class Counterpart(NamedTuple):
    """Our modules for one of theirs, several where theirs is fused; via: how what it gives becomes what ours give."""

    ours: tuple[str, ...]
    via: Via | None

    def split(self, whole: Trace, spec: Spec) -> Iterator[tuple[str, Trace]]:
        """Our modules' traces from theirs; a layer's outputs are laid out as the rows of its matrix."""
        parts = (whole.left_TN.T,) if self.via is None else self.via.load(whole.left_TN.T, spec)
        for name, left_NT in zip(self.ours, parts, strict=True):
            yield name, Trace(whole.entered_TN, left_NT.T)


def modules_of(rows: tuple[Row, ...], spec: Spec) -> dict[str, Counterpart]:
    """Their module -> ours, for every module that holds parameters. Experts are not told apart: the whole layer is."""
    found: dict[str, Counterpart] = {}
    bound = list(rows_of(rows, spec))
    apart = _apart(bound, spec)
    for row in bound:
        if row.ours[0] in apart:
            continue
        theirs, _, part = row.theirs[0].rpartition(".")
        ours = tuple(_site(name.rpartition(".")[0], spec) for name in row.ours)
        if ours[0].endswith(".ffn"):
            found[theirs.partition(".experts")[0]] = Counterpart(ours[:1], None)
        elif part == "bias" or theirs not in found:  # the bias tells more, if there is one: no matrix is turned by it
            found[theirs] = Counterpart(ours, None if ours[0].startswith("embedding") else row.via)
    return found


def _apart(bound: list[Binding], spec: Spec) -> set[str]:
    """Parameters whose modules do more in ours than in theirs: a head that scales, caps or adds; biases by distance."""
    at = {row.ours[0]: row.theirs[0].rpartition(".")[0] for row in bound}
    more = spec.head is not None and (spec.head.softcap is not None or spec.head.scale != 1.0)
    more |= at.get("head.bias", at.get("head.weight")) != at.get("head.weight")
    return {name for name in at if "position_bias" in name or (more and name == "head.weight")}


def _site(module: str, spec: Spec) -> str:
    """Where nothing else is added to the token rows, theirs are scaled already, as our whole embedding is."""
    e = spec.embedding
    return "embedding" if module == "embedding.tokens" and not (e.positions or e.types or e.norm) else module


class Setting(NamedTuple):
    """A field of the spec in which the sides differ; "layers[*]" if they do so in every layer."""

    field: str
    a: Any
    b: Any


def settings(a: Spec, b: Spec) -> list[Setting]:
    """The fields of two specs that differ; one that does in all layers alike is named once."""
    left, right = (dict(_flat(s.to_dict())) for s in (a, b))
    differing = [k for k in dict.fromkeys([*left, *right]) if not _alike(left.get(k), right.get(k))]
    groups: dict[tuple[str, str], list[Setting]] = defaultdict(list)
    for key in differing:
        general = "layers[*]" + key.partition("]")[2] if key.startswith("layers[") else key
        one = Setting(key, left.get(key), right.get(key))
        groups[general, repr(one[1:])].append(one)
    depth = min(len(a.layers), len(b.layers))
    return [
        s
        for (general, _), found in groups.items()
        for s in ([found[0]._replace(field=general)] if len(found) == depth > 1 else found)
    ]


def _flat(value: Any, at: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested values with their paths: ("layers[0].attention.heads", 9)."""
    if isinstance(value, Mapping):
        return [leaf for k, v in value.items() for leaf in _flat(v, f"{at}.{k}" if at else k)]
    if isinstance(value, list | tuple):
        return [leaf for i, v in enumerate(value) for leaf in _flat(v, f"{at}[{i}]")]
    return [(at, value)]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=FLOAT32)
    return a == b
