"""What stands at the end of an encoder: for each class of transformers a head or a task, in both directions.

    BertModel                      hidden states, of which `pooling` makes a vector
    BertForMaskedLM                Spec.head: the words behind the masks
    BertForSequenceClassification  Spec.task at the first token
    BertForTokenClassification     Spec.task at each token
    BertForQuestionAnswering       Spec.task that gives a span

The class in config.json's `architectures` says which; a model is written under the class whose end it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cutaway.errors import CutawayError
from cutaway.models.families.table import BRACKETS, Config, Field, Row
from cutaway.models.spec import Spec

VOCABULARY = "vocabulary"


class Ending(NamedTuple):
    """One class. at: `VOCABULARY` for a language-model head, else what `TaskSpec.at` says; "" for neither.

    transform: a `TransformSpec` before the scores, from the configuration. labels: how many, where the class fixes it.
    rows: the tensors that no other class has, or has under other names. entries: of the configuration, which tell two
    ends of one class apart; without them it is the first.
    """

    name: str
    at: str = ""
    transform: Callable[[Config], dict[str, Any]] | None = None
    labels: int | None = None
    rows: tuple[Row, ...] = ()
    entries: Mapping[str, Any] = {}

    def fits(self, at: str, before: bool, labels: int | None) -> bool:
        """Is this the end that reads at `at`, with or without a layer before its `labels`?"""
        return (at, before) == (self.at, self.transform is not None) and self.labels in (None, labels)


def end_of(spec: Spec) -> tuple[str, bool, int | None]:
    """What `Ending.fits` takes."""
    if spec.task:
        return spec.task.at, spec.task.transform is not None, spec.task.labels
    return (VOCABULARY, spec.head.transform is not None, None) if spec.head else ("", False, None)


def named(endings: tuple[Ending, ...], config: Config) -> Ending:
    """The one that the configuration names; the first, which is the bare model, if it names none of them."""
    stated = config.get("architectures") or ()
    meant = (e for e in endings if all(config.get(key, value) == value for key, value in e.entries.items()))
    return next((e for e in meant if e.name in stated), endings[0])


def ending_fields(endings: tuple[Ending, ...]) -> tuple[Field, ...]:
    """The fields `head`, `task` and `pooling` of an encoder's configuration."""

    def head(config: Config) -> dict[str, Any] | None:
        e = named(endings, config)
        if e.at != VOCABULARY:
            return None
        if not config.get("tie_word_embeddings", True):
            raise CutawayError("tie_word_embeddings = False is not implemented for encoders", "config.json")
        return {"tied": True, "bias": True, **_transform(e, config)}

    def task(config: Config) -> dict[str, Any] | None:
        e = named(endings, config)
        if e.at in ("", VOCABULARY):
            return None
        return {"at": e.at, **({"labels": e.labels} if e.labels else _labels(config)), **_transform(e, config)}

    def write_head(value: dict[str, Any] | None) -> dict[str, Any]:
        return {"architectures": [_ending(endings, VOCABULARY, bool(value["transform"])).name]} if value else {}

    def write_task(value: dict[str, Any] | None) -> dict[str, Any]:
        if not value:
            return {}
        e = _ending(endings, value["at"], bool(value["transform"]), value["labels"])
        return {"architectures": [e.name], **e.entries, **({} if e.labels else _named_labels(value))}

    return (
        Field("head", head, write_head),
        Field("task", task, write_task),
        Field("pooling", lambda c: c.get("cutaway_pooling", {}), lambda value: {"cutaway_pooling": value}),
    )


def _ending(endings: tuple[Ending, ...], at: str, before: bool, labels: int | None = None) -> Ending:
    found = next((e for e in endings if e.fits(at, before, labels)), None)
    if found is None:
        raise CutawayError(f"has no class with such a head at {at!r}", "this family", "save it without")
    return found


def ending_rows(endings: tuple[Ending, ...]) -> tuple[Row, ...]:
    """The rows of all classes, each for specs with that end alone."""

    def only(ending: Ending) -> Callable[[Spec], bool]:
        return lambda spec: ending.fits(*end_of(spec))

    return tuple(row._replace(when=only(e)) for e in endings for row in e.rows)


def observed(
    endings: tuple[Ending, ...], pooler: Iterable[Row], prefix: str
) -> Callable[[Config, Mapping[str, Any]], dict[str, Any]]:
    """`Family.observed`: is there a pooler, and does the file hold the head of the class that it names?

    Sentence encoders are often published under the class that they were trained as, without its head.
    """

    def read(config: Config, names: Mapping[str, Any]) -> dict[str, Any]:
        held = {name.removeprefix(prefix) for name in names}
        e = named(endings, config)
        own = [bare(r) for r in e.rows if str(r.ours).startswith(("head.", "task.out."))]
        e = e if held.intersection(own) else endings[0]
        dense = bool(held.intersection(map(bare, pooler)) - {bare(r) for r in e.rows})
        return {"architectures": [e.name], "cutaway_pooling": {"dense": dense}}

    return read


def bare(row: Row) -> str:
    """The foreign name as the bare model has it."""
    return BRACKETS.sub("", row.theirs)


def _transform(ending: Ending, config: Config) -> dict[str, Any]:
    return {"transform": ending.transform(config)} if ending.transform else {}


def _labels(config: Config) -> dict[str, Any]:
    """How many labels, and their names unless those are the ones that transformers makes up."""
    stated = dict(config.get("id2label") or {})
    names = [str(name) for _, name in sorted(stated.items(), key=lambda item: int(item[0]))]
    made_up = names == _made_up(len(names))
    return {"labels": len(names) or config.get("num_labels", 2), "names": () if made_up else tuple(names)}


def _named_labels(task: Mapping[str, Any]) -> dict[str, Any]:
    names = task["names"] or _made_up(task["labels"])
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _made_up(count: int) -> list[str]:
    return [f"LABEL_{i}" for i in range(count)]
