"""What `cutaway inspect` prints: figures, the module tree with like layers folded, parts, FLOPs, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cutaway.models.anatomy import Node
from cutaway.models.cost import Term
from cutaway.models.facts import Fact
from cutaway.weights.inspection import Inspection

UNITS = {"bytes": ("B", "KiB", "MiB", "GiB", "TiB"), "FLOP": ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP")}
STEP = {"bytes": 1024, "FLOP": 1000}


def portrait(name: str, found: Inspection, depth: int | None = None) -> RenderableType:
    """Ready to print. depth: levels of the tree, all if None."""
    stored = ", ".join(f"{count} × {kind}" for kind, count in found.stored.items())
    kind, file = f"  {found.family} {found.kind}\n", (f"{found.path}\n{stored}\n", "dim")
    title = Text.assemble((name, "bold"), kind, file)
    memory = f"memory in {found.dtype}, {found.batch} × {found.context:,} tokens"
    return Group(
        title,
        figures(found.facts),
        tree(found.tree, depth),
        breakdown("parameters", found.parts, ""),
        breakdown(f"FLOPs of a token that sees {found.context:,}", found.flops, "FLOP"),
        breakdown(memory, found.memory, "bytes"),
    )


def figures(facts: list[Fact]) -> Table:
    """Name, number and formula."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="left")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim", overflow="fold")
    for fact in facts:
        value = fact.value if isinstance(fact.value, str) else amount(fact.value, fact.unit)
        table.add_row(fact.key.replace("_", " "), value, fact.formula)
    return table


def breakdown(title: str, terms: list[Term], unit: str) -> Table:
    """Terms with their formulas, in symbols and in numbers; shares of the sum."""
    table = Table(title, "", "", "", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    total = sum(term.value for term in terms if term.name != "total")
    for term in terms:
        formula = f"{term.formula} = {term.numbers}" if term.formula else term.numbers
        table.add_row(term.name, amount(term.value, unit), f"{term.value / total:.1%}", Text(formula, "dim"))
    return table


def amount(value: float, unit: str) -> str:
    """1536 bytes -> "1.50 KiB"; plain numbers with separated thousands."""
    if unit not in UNITS:
        return f"{value:,}"
    step, power = STEP[unit], 0
    while value >= step and power < len(UNITS[unit]) - 1:
        value, power = value / step, power + 1
    return f"{value:.{2 if power else 0}f} {UNITS[unit][power]}"


# ---- the tree ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Children that differ in nothing but their place."""

    nodes: list[Node]

    @property
    def label(self) -> str:
        names = [node.name for node in self.nodes]
        return spans([int(name) for name in names]) if names[0].isdigit() else names[0]


def tree(root: Node, depth: int | None) -> Table:
    """A row per module. Numbers of a folded row are those of one module; "30 ×" says how many there are."""
    table = Table("module", "shape", "stored", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in ("parameters", "share", "FLOPs/token"):
        table.add_column(title, justify="right")
    for guide, fold in _walk(Fold([root]), "", "", depth):
        node, count = fold.nodes[0], len(fold.nodes)
        name = Text.assemble((guide, "dim"), fold.label, (f"  {node.kind}", "cyan"))
        times = f"{count} × " if count > 1 else ""
        table.add_row(
            name,
            " ".join("×".join(map(str, tensor.shape)) for tensor in node.tensors),
            ", ".join(sorted({t.stored for n in fold.nodes for t in n.tensors if t.stored})),
            f"{times}{node.parameters:,}" if node.parameters else "",
            f"{count * node.share:.1%}" if node.parameters else "",
            f"{times}{amount(node.flops_per_token, 'FLOP')}" if node.flops_per_token else "",
        )
    return table


def _walk(fold: Fold, guide: str, inner: str, depth: int | None) -> Iterator[tuple[str, Fold]]:
    """Rows with the lines that lead to them; inner: the lines before the children."""
    yield guide, fold
    if depth == 0:
        return
    folds = folded(fold.nodes)
    below = None if depth is None else depth - 1
    for child in folds[:-1]:
        yield from _walk(child, f"{inner}├ ", f"{inner}│ ", below)
    for child in folds[-1:]:
        yield from _walk(child, f"{inner}└ ", f"{inner}  ", below)


def folded(parents: list[Node]) -> list[Fold]:
    """Children of like parents: numbered ones that are alike together, others with their counterparts."""
    groups: dict[str, list[Node]] = {}
    for parent in parents:
        for child in parent.children:
            key = signature(child) if child.name.isdigit() else child.name
            groups.setdefault(key, []).append(child)
    return [Fold(nodes) for nodes in groups.values()]


def signature(node: Node) -> str:
    """Equal for modules that do the same with tensors of the same shapes, however stored."""
    shapes = [tensor.shape for tensor in node.tensors]
    return repr((node.kind, node.detail, shapes, [signature(child) for child in node.children]))


def spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5, 7, 8] -> "0-2, 5, 7-8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
