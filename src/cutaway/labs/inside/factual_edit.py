"""One fact rewritten in a trained model by changing one matrix by rank one (ROME; Meng et al. 2022, arXiv:2202.05262).

Facts that the model knows are given another answer, one at a time, at several layers. Told are the fact itself; the
same fact in other words, which should follow; facts about other subjects, which should stay; and the loss on ordinary
text, which should not move.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.inside.editing import CONTEXTS, WINDOW, Fact, ask, wishes_of
from cutaway.inside.rome import Place, Search, covariance, edit
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, loss_of, reading, subject
from cutaway.labs.training import prose
from cutaway.weights.checkpoint import Loaded


class Case(NamedTuple):
    """A fact with its new answer, in other words, and facts beside it."""

    fact: Fact
    paraphrases: tuple[str, ...]
    neighbors: tuple[str, ...]


CASES = (
    Case(
        Fact("The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome"),
        ("To see the Eiffel Tower you travel to the city of", "The Eiffel Tower can be found in"),
        (
            "The Louvre is located in the city of",
            "The Colosseum is located in the city of",
            "The Statue of Liberty is located in the city of",
        ),
    ),
    Case(
        Fact("The capital of France is", "France", "London"),
        ("The capital city of France is called", "The government of France sits in"),
        ("The capital of Italy is", "The capital of Germany is", "The capital of Spain is"),
    ),
    Case(
        Fact("The Great Wall is located in the country of", "The Great Wall", "Mexico"),
        ("People who visit the Great Wall travel to the country of", "The Great Wall was built in"),
        ("The Taj Mahal is located in the country of", "The Pyramids of Giza are located in the country of"),
    ),
    Case(
        Fact("The telephone was invented by", "The telephone", "Thomas"),
        ("The inventor of the telephone was", "The telephone is an invention of"),
        ("The light bulb was invented by", "The theory of relativity was developed by"),
    ),
    Case(
        Fact("The theory of relativity was developed by", "The theory of relativity", "Charles"),
        ("The theory of relativity was first proposed by", "The father of the theory of relativity is"),
        ("The theory of evolution was developed by", "The theory of gravity was developed by"),
    ),
)


class Result(NamedTuple):
    """Of one edit. before, after: probability of the new answer. followed: share of paraphrases whose likeliest token
    is now the new answer. kept: share of neighbors whose likeliest token is what it was. kl: of neighbors, nats.
    loss: change on ordinary text, nats per token. size: of the change, relative to the matrix."""

    before: float
    after: float
    followed: float
    kept: float
    kl: float
    loss: float
    size: float
    steps: float


Results = dict[tuple[int, str], Result]
"""By layer and fact."""


@lab(
    "factual-edit",
    title=both("Rewriting one fact", "改写一条知识"),
    question=both(
        "Can one fact be rewritten in a trained model, and what else does that change?",
        "能在训练好的模型里只改写一条知识吗？还会牵动什么？",
    ),
    seconds={"quick": 4, "full": 180},
)
def factual_edit(
    run: Run,
    *,
    facts: Annotated[int, Knob("facts rewritten, 5 at most", "改写几条知识，最多 5", quick=1, min=1, max=5)] = 5,
    layers: Annotated[str, Knob("layers whose matrix is changed", "改哪些层的矩阵", quick="5")] = "2,5,9,13,17,21",
    contexts: Annotated[
        int,
        Knob(
            "contexts that the key is averaged over, 5 at most", "键在几种上下文里取平均，最多 5", quick=1, min=1, max=5
        ),
    ] = 3,
    length: Annotated[
        int, Knob("tokens of text for the keys' covariance", "估计键协方差的文本词元数", quick=128, min=32, max=8192)
    ] = 2048,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
) -> Finding:
    bench, places = Bench(subject(model), CONTEXTS[:contexts]), [Place(n) for n in numbers(layers)]
    results: Results = {}
    for place, covariance_NN in bench.covariances(places, length, run):
        for case in run.each(CASES[:facts], f"rewriting facts in layer {place.layer}"):
            results[place.layer, case.fact.prompt] = bench.rewritten(place, case, covariance_NN)
    return Finding(table=_table(results), plot=_plot(results), verdict=_verdict(results), checks=_checks(results))


def numbers(text: str) -> list[int]:
    """ "2, 5" -> [2, 5]. Errors: anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CutawayError(f"expected numbers with commas between them, got {text!r}", "knob layers") from None


@dataclass(frozen=True)
class Bench:
    """The model that facts are rewritten in. contexts: what stands before a fact while its key is taken."""

    loaded: Loaded
    contexts: tuple[str, ...]

    def covariances(self, places: Sequence[Place], length: int, run: Run) -> Iterator[tuple[Place, Tensor]]:
        """Each place with the covariance of its keys, over text on which no loss is taken."""
        text = bytes(prose()[: 6 * length].tolist()).decode(errors="ignore")
        windows = torch.tensor(self.loaded.tokenizer.encode(text)[:length]).split(WINDOW)
        for place in places:
            run.report(0, 1, f"covariance of keys, layer {place.layer}")
            yield place, covariance(decoder(self.loaded), place, windows)

    def rewritten(self, place: Place, case: Case, covariance_NN: Tensor) -> Result:
        """One fact rewritten in a copy, and what became of everything else."""
        wishes = wishes_of(self.loaded.tokenizer, case.fact, self.contexts)
        answer = wishes[0].ids[-wishes[0].answer]
        edited = edit(decoder(self.loaded), place, wishes, covariance_NN, search=Search())
        models = self.loaded, replace(self.loaded, make=lambda: edited.model)
        fact = ask(models, "fact", case.fact.prompt, answer)
        followed = [ask(models, "paraphrase", prompt, answer) for prompt in case.paraphrases]
        kept = [ask(models, "neighbor", prompt, answer) for prompt in case.neighbors]
        text_T = reading(self.loaded, WINDOW)
        with torch.inference_mode():
            before, after = (loss_of(logits_of(decoder(m), text_T), text_T) for m in models)
        return Result(
            before=fact.before,
            after=fact.after,
            followed=statistics.mean(a.best_after[0].id == answer for a in followed),
            kept=statistics.mean(a.best_after[0].id == a.best_before[0].id for a in kept),
            kl=statistics.mean(a.kl for a in kept),
            loss=after - before,
            size=edited.size,
            steps=len(edited.losses),
        )


# ---- what it comes to


def means(results: Results) -> dict[int, Result]:
    """By layer, over facts."""
    layers = dict.fromkeys(layer for layer, _ in results)
    of = {n: [result for (layer, _), result in results.items() if layer == n] for n in layers}
    return {n: Result._make(statistics.mean(column) for column in zip(*found, strict=True)) for n, found in of.items()}


def best(results: Results) -> int:
    """The layer where most paraphrases follow and most neighbors stay."""
    by_layer = means(results)
    return max(by_layer, key=lambda n: (by_layer[n].followed + by_layer[n].kept, -by_layer[n].kl))


def _table(results: Results) -> Table:
    columns = {"layer": "", "fact": "", "new answer before": "", "after": "", "paraphrases that follow": ""}
    columns |= {"neighbors that stay": "", "KL of neighbors": "nats", "loss on text": "nats/token"}
    columns |= {"change of the matrix": "", "steps": ""}
    rows: list[list[Cell]] = [[layer, prompt, *result] for (layer, prompt), result in results.items()]
    rows += [[layer, "mean", *values] for layer, values in means(results).items()]
    return table(columns, rows)


def _plot(results: Results) -> Plot:
    by_layer = means(results)
    named = {"new answer's probability": 1, "paraphrases that follow": 2, "neighbors that stay": 3}
    x = [float(n) for n in by_layer]
    series = [Series(name=name, x=x, y=[values[i] for values in by_layer.values()]) for name, i in named.items()]
    return Plot(kind="line", x=Axis(label="layer whose matrix is changed"), y=Axis(label="share"), series=series)


def _checks(results: Results) -> list[Check]:
    layer = best(results)
    here = [result for (n, _), result in results.items() if n == layer]
    least, kept = min(r.after for r in here), statistics.mean(r.kept for r in here)
    most = max(abs(r.loss) for r in here)
    return [
        check(
            least > 0.5,
            f"in layer {layer} every edit takes: the new answer's probability is at least {least:.2f}",
            f"在第 {layer} 层每次改写都成功：新答案的概率至少 {least:.2f}",
        ),
        check(
            kept > 0.5,
            f"most neighbors stay what they were ({kept:.0%})",
            f"相邻的知识多数没变（{kept:.0%}）",
        ),
        check(
            most < 0.1,
            f"ordinary text hardly notices: its loss moves by at most {most:.3f} nats per token",
            f"普通文本几乎不受影响：每词元损失至多变化 {most:.3f} 奈特",
        ),
    ]


def _verdict(results: Results) -> Words:
    by_layer, layer = means(results), best(results)
    r, facts = by_layer[layer], len(results) // len(by_layer)
    follow = ", ".join(f"{n}: {mean.followed:.0%} / {mean.kept:.0%}" for n, mean in by_layer.items())
    return both(
        f"{facts} facts, one rank-one change each. Best is layer {layer}: the new answer goes from {r.before:.3f} to "
        f"{r.after:.3f}, {r.followed:.0%} of the paraphrases follow and {r.kept:.0%} of the neighbors keep their "
        f"likeliest token (KL {r.kl:.3f} nats); the matrix changes by {r.size:.1%} of its norm and the loss on "
        f"ordinary text by {r.loss:+.4f} nats per token. Paraphrases that follow / neighbors that stay, by layer: "
        f"{follow}.",
        f"{facts} 条知识，每条只做一次秩一改动。第 {layer} 层最好：新答案的概率从 {r.before:.3f} 升到 {r.after:.3f}，"
        f"{r.followed:.0%} 的换说法跟着变，{r.kept:.0%} 的相邻知识最可能的词元不变（KL {r.kl:.3f} 奈特）；矩阵改动为其"
        f"范数的 {r.size:.1%}，普通文本每词元损失变化 {r.loss:+.4f} 奈特。各层“跟着变 / 保持不变”：{follow}。",
    )
