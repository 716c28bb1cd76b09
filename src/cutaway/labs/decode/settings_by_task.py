"""Temperature and top-p chosen by measurement: a sweep, three tasks that score themselves, and an honest second half.

The best of twenty settings on some prompts is partly the luckiest. So settings are picked on one half of the prompts
and scored on the other, where luck is new; how far to trust that score, a bootstrap over prompts says (Efron 1979).
A prompt has the same luck under all settings, so that settings differ by what they do, not by what they drew.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.labs.decode.speaker import STARTS, Speaker, speaker
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL

WORDS = (
    "river stone cloud bread candle window horse garden silver winter letter music paper forest mirror bottle "
    "island hammer pocket spider copper basket harbor meadow ladder button kitchen valley feather bridge "
    "lantern pepper saddle marble pillow orchard ribbon shovel temple wagon blanket cotton desert engine falcon "
    "glacier helmet jacket"
)
SWAPPED = "red, dog -> dog and red\nhat, tree -> tree and hat\nfish, road -> road and fish\n{}, {} ->"
IDEAS = {
    "Animals: {}, {},":
        "dog cat horse cow pig sheep goat lion tiger bear wolf fox rabbit mouse rat elephant giraffe zebra monkey "
        "deer bird fish duck chicken goose eagle hawk owl snake frog turtle lizard whale dolphin shark bee ant "
        "spider",
    "Countries: {}, {},":
        "france japan germany italy spain england canada mexico brazil india china russia australia egypt kenya "
        "norway sweden finland denmark poland greece turkey portugal ireland austria belgium netherlands "
        "switzerland argentina chile peru cuba iran iraq israel thailand vietnam korea nigeria uk usa",
    "Fruits: {}, {},":
        "apple banana orange grape pear lemon lime peach plum cherry mango melon watermelon strawberry blueberry "
        "raspberry pineapple kiwi apricot fig grapefruit papaya coconut date cranberry blackberry avocado",
    "Colors: {}, {},":
        "red blue green yellow orange purple black white brown pink gray grey violet indigo gold silver turquoise "
        "beige magenta cyan maroon teal",
    "Sports: {}, {},":
        "tennis football basketball soccer baseball hockey golf rugby cricket volleyball swimming running cycling "
        "boxing skiing badminton gymnastics wrestling rowing sailing surfing archery fencing",
    "Vegetables: {}, {},":
        "carrot onion potato tomato cabbage lettuce spinach broccoli cauliflower pea bean corn garlic pepper "
        "cucumber celery pumpkin squash radish beet turnip leek kale asparagus eggplant zucchini",
    "Jobs: {}, {},":
        "teacher nurse doctor engineer lawyer farmer driver cook chef artist writer musician actor builder "
        "carpenter plumber electrician pilot soldier scientist dentist accountant librarian baker butcher tailor "
        "manager",
    "Tools: {}, {},":
        "hammer saw screwdriver drill wrench pliers chisel axe knife scissors shovel rake ladder file clamp level "
        "nail screw tape ruler",
    "Musical instruments: {}, {},":
        "piano violin guitar drums flute trumpet cello clarinet saxophone harp trombone viola oboe bassoon tuba "
        "organ drum bass banjo accordion harmonica percussion",
    "Metals: {}, {},":
        "iron gold silver copper tin lead zinc aluminum nickel platinum steel titanium mercury chromium cobalt "
        "tungsten magnesium brass bronze palladium",
    "Parts of the body: {}, {},":
        "arm leg head hand foot neck chest back knee elbow shoulder hip ankle wrist finger toe eye ear nose mouth "
        "stomach heart torso abdomen thigh chin",
    "Furniture: {}, {},":
        "table chair bed sofa desk couch bench shelf bookcase cabinet wardrobe dresser stool lamp drawer armchair "
        "cupboard nightstand bookshelf rug",
}  # fmt: skip
DRAWS = 2000  # bootstrap samples


class Reply(NamedTuple):
    """perplexity: the model's own, of what it said."""

    text: str
    tokens: list[int]
    perplexity: float


class Task(NamedTuple):
    """score: of a reply to prompt i."""

    name: str
    prompts: list[str]
    length: int
    score: Callable[[int, Reply], float]


class Setting(NamedTuple):
    temperature: float
    top_p: float

    def __str__(self) -> str:
        return f"T {self.temperature:g}, p {self.top_p:g}"


class Picked(NamedTuple):
    """What was picked on half `half` of a task's prompts: its mean score there and on the other half, with 95 %."""

    task: str
    half: str
    best: int
    there: float
    here: float
    low: float
    high: float


class Swap(NamedTuple):
    """Own pick less another task's, on the prompts that it was not picked on: mean difference, with 95 %."""

    task: str
    other: str
    gain: float
    low: float
    high: float


@lab(
    "settings-by-task",
    title=both("Sampling settings, task by task", "按任务选采样设置"),
    question=both(
        "How do I choose sampling settings per task by measurement instead of folklore?",
        "怎样靠测量而不是传闻为每个任务选采样设置？",
    ),
    seconds={"quick": 4, "full": 240},
)
def settings_by_task(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    temperatures: Annotated[str, Knob("with commas", "温度，逗号分隔", quick="0.1,1.3")] = "0.1,0.4,0.7,1,1.3",
    nuclei: Annotated[str, Knob("top-p, with commas", "top-p，逗号分隔", quick="0.5,1")] = "0.5,0.8,0.95,1",
    prompts: Annotated[int, Knob("prompts of each task", "每个任务的提示数", quick=8, min=4, max=24)] = 24,
    length: Annotated[int, Knob("tokens of a long reply", "长回答的词元数", quick=16, min=8, max=200)] = 40,
    low: Annotated[float, Knob("least perplexity of a good story", "合格故事的最低困惑度", min=1)] = 8.0,
    high: Annotated[float, Knob("largest", "最高困惑度", min=1)] = 35.0,
) -> Finding:
    settings = [Setting(t, p) for t in numbers("temperatures", temperatures) for p in numbers("nuclei", nuclei)]
    tasks = [copying(prompts), stories(prompts, length, low, high), ideas(prompts, length)]
    voice = speaker(model)
    scores = [
        torch.stack(scored) for scored in zip(
            *(tried(voice, tasks, s, run.seed) for s in run.each(settings, "setting")), strict=True
        )
    ]  # fmt: skip
    generator = run.generator()
    picked = [p for t, s in zip(tasks, scores, strict=True) for p in picks(t.name, s, generator)]
    swaps = exchanged([t.name for t in tasks], scores, generator)
    return Finding(
        table=_table(tasks, scores, settings, picked, swaps),
        plot=_plot(tasks, scores, settings),
        verdict=_verdict(tasks, settings, picked, swaps),
        checks=_checks(tasks, scores, settings, picked),
    )


def numbers(knob: str, given: str) -> list[float]:
    """Errors: not numbers with commas between them."""
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise CutawayError(f"should be numbers with commas, got {given!r}", f"knob {knob}") from None


# ---- tasks


def copying(prompts: int) -> Task:
    """Two words to be exchanged, as shown three times: right or wrong."""
    words = WORDS.split()
    pairs = [(words[2 * i], words[2 * i + 1]) for i in range(prompts)]

    def score(i: int, reply: Reply) -> float:
        return float(reply.text.split("\n")[0].strip() == f"{pairs[i][1]} and {pairs[i][0]}")

    return Task("copy", [SWAPPED.format(*pair) for pair in pairs], 12, score)


def stories(prompts: int, length: int, low: float, high: float) -> Task:
    """A text goes on: different pairs of tokens, as a share, if the text is neither too likely nor too strange."""

    def score(_: int, reply: Reply) -> float:
        return distinct(reply.tokens) if low <= reply.perplexity <= high else 0.0

    return Task("story", list(STARTS[:prompts]), length, score)


def ideas(prompts: int, length: int) -> Task:
    """A list goes on: how many members of its kind are named that were not there yet."""
    kinds = [(begin, members.split()) for begin, members in IDEAS.items()]
    asked = [
        (begin, members, 2 * (i // len(kinds))) for i in range(prompts) for begin, members in [kinds[i % len(kinds)]]
    ]

    def score(i: int, reply: Reply) -> float:
        _, members, at = asked[i]
        return float(len(named(reply.text, members) - {*members[at : at + 2]}))

    return Task("ideas", [begin.format(*members[at : at + 2]) for begin, members, at in asked], length, score)


def distinct(tokens: Sequence[int], size: int = 2) -> float:
    """Different runs of `size` tokens over all such runs (Li et al. 2015, arXiv:1510.03055)."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return len(set(runs)) / max(1, len(runs))


def named(text: str, members: Collection[str]) -> set[str]:
    """The members that stand between commas, or the like, in one number or the other."""
    parts = [re.sub(r"^(and|or|the) ", "", part.strip().lower()) for part in re.split(r"[,.;:\n]| and ", text)]
    return {m for part in parts for m in members if part in (m, m + "s", m + "es")}


# ---- measuring


def tried(voice: Speaker, tasks: Sequence[Task], setting: Setting, seed: int) -> list[Tensor]:
    """For each task the scores_N of its prompts, all replies side by side."""
    owners, logprobs = [], defaultdict[int, list[float]](list)
    for task in tasks:
        for i, prompt in enumerate(task.prompts):
            params = SamplingParams(
                setting.temperature, top_p=setting.top_p, seed=1000 * seed + i, max_tokens=task.length
            )
            owners.append((task, i, voice.engine.add(voice.tokenizer.encode(prompt), params)))
    while voice.engine.busy:
        for sequence, event in voice.engine.step():
            if not isinstance(event, CutawayError):
                logprobs[id(sequence)].append(event.choice.logprob)
    found = defaultdict[str, list[float]](list)
    for task, i, sequence in owners:
        said = logprobs[id(sequence)]
        reply = Reply(sequence.text, sequence.reply, math.exp(-sum(said) / max(1, len(said))))
        found[task.name].append(task.score(i, reply))
    return [torch.tensor(found[task.name]) for task in tasks]


def halves(scores_SN: Tensor) -> tuple[Tensor, Tensor]:
    """Even prompts and odd ones."""
    return scores_SN[:, 0::2], scores_SN[:, 1::2]


def best(scores_SN: Tensor) -> int:
    """The setting with the highest mean, the first of equals."""
    return int(scores_SN.mean(1).argmax())


def interval(values_N: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """95 % of the means of samples of the values, drawn with replacement."""
    drawn_MN = torch.randint(len(values_N), (DRAWS, len(values_N)), generator=generator)
    low, high = values_N[drawn_MN].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def picks(task: str, scores_SN: Tensor, generator: torch.Generator) -> list[Picked]:
    """Picked on either half and scored on the other."""
    even, odd = halves(scores_SN)
    found = []
    for half, there, here in (("even", even, odd), ("odd", odd, even)):
        n = best(there)
        found.append(
            Picked(task, half, n, float(there[n].mean()), float(here[n].mean()), *interval(here[n], generator))
        )
    return found


def exchanged(names: Sequence[str], scores: Sequence[Tensor], generator: torch.Generator) -> list[Swap]:
    """What each task loses with the setting of another; both halves, each with the picks of the other half."""
    found = []
    for a, own in zip(names, scores, strict=True):
        for b, others in zip(names, scores, strict=True):
            pairs = zip(halves(own), reversed(halves(own)), reversed(halves(others)), strict=True)
            gain_N = torch.cat([here[best(there)] - here[best(foreign)] for here, there, foreign in pairs])
            if a != b:
                found.append(Swap(a, b, float(gain_N.mean()), *interval(gain_N, generator)))
    return found


# ---- what it comes to


COLUMNS = {
    "task": "", "setting": "", "picked on": "", "score there": "", "score on the other half": "", "from": "", "to": "",
}  # fmt: skip


def _table(
    tasks: list[Task], scores: list[Tensor], settings: list[Setting], picked: list[Picked], swaps: list[Swap]
) -> Table:
    rows: list[list[Cell]] = [
        [p.task, str(settings[p.best]), f"{p.half} prompts", p.there, p.here, p.low, p.high] for p in picked
    ]
    rows += [[s.task, f"own pick less that of {s.other}", "each half", None, s.gain, s.low, s.high] for s in swaps]
    for task, scores_SN in zip(tasks, scores, strict=True):
        even, odd = (half.mean(1).tolist() for half in halves(scores_SN))
        for setting, *means in zip(settings, even, odd, strict=True):
            rows.append([task.name, str(setting), "(even, odd)", *means, None, None])
    return table(COLUMNS, rows)


def _plot(tasks: list[Task], scores: list[Tensor], settings: list[Setting]) -> Plot:
    widest = max(s.top_p for s in settings)
    rows = [i for i, s in enumerate(settings) if s.top_p == widest]
    series = []
    for task, scores_SN in zip(tasks, scores, strict=True):
        mean_S = scores_SN.mean(1)
        most = max(float(mean_S.max()), 1e-9)
        x, y = [settings[i].temperature for i in rows], [float(mean_S[i]) / most for i in rows]
        series.append(Series(name=task.name, x=x, y=y))
    return Plot(
        kind="line", x=Axis(label="temperature"), y=Axis(label=f"share of the best score, p {widest:g}"), series=series
    )


def _ends(settings: list[Setting]) -> tuple[int, int]:
    """The most careful setting, and the freest."""
    return settings.index(min(settings)), settings.index(max(settings))


def _checks(tasks: list[Task], scores: list[Tensor], settings: list[Setting], picked: list[Picked]) -> list[Check]:
    cold, hot = _ends(settings)
    copy, count = scores[0].mean(1), sum(s.numel() for s in scores)
    sides = [len(half[0]) for s in scores for half in halves(s)]
    owns = [statistics.mean(p.here for p in picked if p.task == t.name) for t in tasks]
    worsts = [float(s.mean(1).min()) for s in scores]
    return [
        check(
            count == len(settings) * sum(len(t.prompts) for t in tasks) and min(sides) >= 2,
            f"{count:,} replies: {len(settings)} settings on the same prompts of {len(tasks)} tasks, and none is "
            f"picked on the {min(sides)} prompts that score it",
            f"{count:,} 个回答：{len(settings)} 种设置用于 {len(tasks)} 个任务的相同提示，打分的 {min(sides)} 个提示"
            "都没有参与挑选",
        ),
        check(
            float(copy[cold]) > float(copy[hot]),
            f"copying is better at {settings[cold]} ({copy[cold]:.0%}) than at {settings[hot]} ({copy[hot]:.0%})",
            f"照抄任务在 {settings[cold]}（{copy[cold]:.0%}）好于 {settings[hot]}（{copy[hot]:.0%}）",
        ),
        check(
            all(own > worst for own, worst in zip(owns, worsts, strict=True)),
            "on the other half every task's pick beats the worst setting: "
            + ", ".join(f"{t.name} {own:.2f} to {w:.2f}" for t, own, w in zip(tasks, owns, worsts, strict=True)),
            "在另一半上，每个任务选出的设置都胜过最差的设置："
            + "，".join(f"{t.name} {own:.2f} 对 {w:.2f}" for t, own, w in zip(tasks, owns, worsts, strict=True)),
        ),
    ]


def _verdict(tasks: list[Task], settings: list[Setting], picked: list[Picked], swaps: list[Swap]) -> Words:
    said = "; ".join(
        f"{t.name} {' and '.join(dict.fromkeys(str(settings[p.best]) for p in picked if p.task == t.name))}"
        for t in tasks
    )
    sure = [s for s in swaps if s.low > 0]
    losses = ", ".join(f"{s.task} with that of {s.other} -{s.gain:.2f} ({s.low:.2f} to {s.high:.2f})" for s in sure)
    optimism = sum(p.there - p.here for p in picked) / sum(p.there for p in picked)
    differs = (
        f"The setting matters by task: {losses}." if sure else "No task is surely worse off with another's setting."
    )
    differs_zh = f"设置因任务而异：{losses}。" if sure else "没有哪个任务换用别的任务的设置后确定变差。"
    return both(
        f"Score every setting on half of the prompts, pick, and believe the score of the other half. Picked on either "
        f"half: {said}. {differs} Of {len(swaps)} exchanges {len(sure)} cost something with 95 % certainty. The score "
        f"that a pick was picked for exceeds the one on new prompts by {optimism:.0%}.",
        f"用一半提示给每种设置打分并挑选，再相信另一半上的得分。两半各自选出：{said}。{differs_zh}{len(swaps)} "
        f"种互换中有 {len(sure)} 种以 95 % 的把握变差。挑选时的得分比新提示上的高 {optimism:.0%}。",
    )
