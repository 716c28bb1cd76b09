"""`cutaway budget`: what a model costs before anybody runs it, every number with its formula."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from cutaway.cli.models import Json

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.budget.figures import Figure
    from cutaway.models.cost import Cost

app = typer.Typer(no_args_is_help=True, help="Count parameters, FLOPs, bytes and time, each with its formula.")

Model = Annotated[str, typer.Argument(help="A published shape (see `budget models`), or what `inspect` takes.")]
Context = Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences at once.")]
Source = Annotated[int, typer.Option(min=0, help="Tokens of the source, in an encoder-decoder.")]
Dtype = Annotated[str, typer.Option(help="Of weights and cache: float32, bfloat16, float16.")]
ChipName = Annotated[str, typer.Option("--chip", help="See `budget chips`; this-machine measures it.")]


@app.command()
def models(as_json: Json = False) -> None:
    """List the published shapes: parameters, of a token, KV bytes. Example: cutaway budget models"""
    from cutaway.budget.counting import parameters
    from cutaway.budget.figures import named
    from cutaway.budget.published import PUBLISHED
    from cutaway.models.cost import Cost

    columns = {"model": "", "parameters": "", "active per token": "", "KV per token": "bytes", "source": ""}
    rows: list[list[str | float | None]] = []
    for name, shape in PUBLISHED.items():
        cost = Cost(shape.spec)
        counted, kept = named(parameters(cost)), cost.kv_bytes_per_token("bfloat16").value
        rows.append([name, counted["parameters"], counted["active per token"], kept, shape.source])
    _listed(columns, rows, as_json)


@app.command()
def chips(as_json: Json = False) -> None:
    """List the chips that are known, by their data sheets. Example: cutaway budget chips"""
    from cutaway.budget.chips import CHIPS

    columns = {"chip": "", "bfloat16": "FLOP/s", "float32": "FLOP/s", "memory": "B", "bandwidth": "B/s", "source": ""}
    rows: list[list[str | float | None]] = [
        [c.name, c.flops.get("bfloat16"), c.flops.get("float32"), c.memory, c.bandwidth, c.source]
        for c in CHIPS.values()
    ]
    _listed(columns, rows, as_json)


@app.command()
def parameters(model: Model, parts: bool = False, as_json: Json = False) -> None:
    """Parameters: in all, of a token, shares. Example: cutaway budget parameters deepseek-v3 --parts"""
    from cutaway.budget import counting

    cost = _cost(model)
    _shown([*(counting.by_part(cost) if parts else []), *counting.parameters(cost)], as_json)


@app.command()
def flops(model: Model, context: Context = 1024, source: Source = 0, as_json: Json = False) -> None:
    """FLOPs: of a token, a prompt, a training step; attention's share.

    Example: cutaway budget flops llama-3-8b --context 8192
    """
    from cutaway.budget import running

    cost = _cost(model)
    _shown([*running.flops(cost, context, source), *running.attention_share(cost, context)], as_json)


@app.command()
def kv(
    model: Model,
    *,
    context: Context = 8192,
    batch: Batch = 1,
    source: Source = 0,
    dtype: Dtype = "bfloat16",
    chip: ChipName = "a100-80gb",
    as_json: Json = False,
) -> None:
    """Bytes of the key/value cache, what sharing heads saves, how many sequences fit a chip.

    Example: cutaway budget kv llama-3-8b --context 32768
    """
    from cutaway.budget import running
    from cutaway.budget.chips import chip as find

    cost = _cost(model)
    shared = running.kv_by_sharing(cost, dtype)
    fitting = running.fit(cost, find(chip), context, dtype)
    _shown([*running.kv(cost, context, batch, dtype, source), *shared, *fitting], as_json)


@app.command()
def memory(model: Model, context: Context = 4096, batch: Batch = 1, as_json: Json = False) -> None:
    """Memory of training: state, activations with and without checkpointing.

    Example: cutaway budget memory llama-3-8b --context 4096
    """
    from cutaway.budget import training

    _shown(training.training_memory(_cost(model), context, batch), as_json)


@app.command()
def roofline(
    model: Model,
    *,
    chip: ChipName = "h100-sxm",
    context: Context = 1024,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    as_json: Json = False,
) -> None:
    """Time at best of a prompt and of a step, and the batch at which a chip stops waiting for memory.

    Example: cutaway budget roofline llama-3-8b --chip h100-sxm --context 256
    """
    from cutaway.budget import roofline as best
    from cutaway.budget.chips import chip as find

    cost, found = _cost(model), find(chip)
    step = best.roofline(cost, found, dtype, batch=batch, context=context)
    _shown([*step, *best.latency(cost, found, dtype, context)], as_json)


@app.command()
def context(
    model: Model,
    factor: Annotated[float, typer.Option(min=1, help="How many times as long.")] = 4,
    dtype: Dtype = "bfloat16",
    as_json: Json = False,
) -> None:
    """What a longer context takes: interpolation, NTK, YaRN, cache.

    Example: cutaway budget context llama-3-8b --factor 4
    """
    from cutaway.budget import shape

    _shown(shape.context_of(_cost(model), factor, dtype), as_json)


@app.command()
def scale(
    factor: Annotated[float, typer.Argument(min=1, help="How many times the parameters.")] = 10, as_json: Json = False
) -> None:
    """How much deeper and wider a larger budget makes a model. Example: cutaway budget scale 10"""
    from cutaway.budget import shape

    _shown(shape.growth(factor), as_json)


@app.command()
def experts(model: Model, batch: Batch = 1, as_json: Json = False) -> None:
    """Experts: how many a batch reads, ways of routing, bytes exchanged.

    Example: cutaway budget experts deepseek-v3 --batch 32
    """
    from cutaway.budget import shape

    _shown(shape.experts_of(_cost(model), batch), as_json)


@app.command()
def attention(
    tokens: Annotated[int, typer.Argument(min=1, help="n")] = 4096,
    width: Annotated[int, typer.Option(min=1, help="Of one head, d.")] = 64,
    as_json: Json = False,
) -> None:
    """Bytes that attention moves, naively and in tiles. Example: cutaway budget attention 4096"""
    from cutaway.budget import shape

    _shown(shape.attention_traffic(tokens, width), as_json)


@app.command()
def rows(
    vocab: Annotated[int, typer.Argument(min=1, help="Words.")] = 50_000,
    width: Annotated[int, typer.Option(min=1, help="Of a dense row.")] = 300,
    narrow: Annotated[int, typer.Option(min=0, help="Of a factorized row, 0 for none.")] = 0,
    as_json: Json = False,
) -> None:
    """What a table of words costs: one-hot, dense, factorized. Example: cutaway budget rows 30000 --width 768"""
    from cutaway.budget import counting

    _shown(counting.rows(vocab, width, narrow), as_json)


# ---- showing


def _cost(model: str) -> Cost:
    from cutaway.budget.published import spec_named
    from cutaway.models.cost import Cost

    return Cost(spec_named(model))


def _shown(figures: list[Figure], as_json: bool) -> None:
    """Name, value, formula = numbers."""
    if as_json:
        typer.echo(json.dumps({"figures": [f._asdict() for f in figures]}, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify, overflow="fold")  # type: ignore[arg-type]
    for f in figures:
        said = f"{f.formula} = {f.numbers}" if f.formula != f.numbers else f.formula
        table.add_row(escape(f.name), Text(spelled(f.value, f.unit), "bold"), Text(said, "dim"))
    Console().print(table)


def spelled(value: float, unit: str) -> str:
    """With the unit, rounded to where a reader stops reading: "1.00 GiB", "7.88 ms", "754.8"."""
    from cutaway.cli.portrait import UNITS, amount

    if unit in UNITS:
        return amount(round(value), unit) if unit == "bytes" else amount(value, unit)
    if unit == "s":
        scales = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9))
        small = next((scale for scale in scales if value * scale[1] >= 1), scales[0])
        return f"{value * small[1]:,.3g} {small[0]}"
    number = f"{value:,.0f}" if float(value).is_integer() or value >= 1e4 else f"{value:,.4g}"
    return f"{number} {unit}".strip()


def _listed(columns: dict[str, str], rows: list[list[str | float | None]], as_json: bool) -> None:
    """columns: titles and units of their numbers; a row holds one cell for each."""
    if as_json:
        typer.echo(json.dumps({"rows": [dict(zip(columns, row, strict=True)) for row in rows]}, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in columns:
        text = isinstance(rows[0][[*columns].index(title)], str)
        table.add_column(title, justify="left" if text else "right", no_wrap=title != "source")
    for row in rows:
        table.add_row(*(escape(_cell(*pair)) for pair in zip(row, columns.values(), strict=True)))
    Console().print(table)


def _cell(value: str | float | None, unit: str) -> str:
    """Rates and sizes of chips in powers of 1000, as their makers state them."""
    if value is None or isinstance(value, str):
        return value or ""
    if unit in ("FLOP/s", "B", "B/s"):
        power = next(p for p in (12, 9, 6, 3, 0) if value >= 10**p)
        prefix = {12: "T", 9: "G", 6: "M", 3: "k", 0: ""}[power]
        return f"{value / 10**power:,.4g} {prefix}{unit}"
    return spelled(value, unit)
