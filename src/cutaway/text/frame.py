"""What stands before and after a text: BOS, EOS, [CLS], [SEP], as tokenizer.json's post-processors say it."""

from __future__ import annotations

from typing import NamedTuple

from cutaway.errors import CutawayError
from cutaway.text.recipe import Json


def template_ids(processor: Json | None) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer.json post-processor puts before and after a single text."""
    kind = processor["type"] if processor else None
    if processor is None or kind == "ByteLevel":
        return [], []
    if kind == "Sequence":
        sides = [template_ids(part) for part in processor["processors"]]
        return [i for side in reversed(sides) for i in side[0]], [i for side in sides for i in side[1]]
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind != "TemplateProcessing":
        raise CutawayError(f"post-processor {kind!r} is not supported", "tokenizer.json")
    ids: tuple[list[int], list[int]] = ([], [])
    after = 0
    for item in processor["single"]:
        if "Sequence" in item:
            after = 1
        else:
            ids[after].extend(processor["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return ids


class Slot(NamedTuple):
    """A stretch of a framed pair: the first text (0), the second (1), or special tokens. type: its segment, to BERT."""

    text: int | None
    ids: tuple[int, ...]
    type: int


def pair_slots(processor: Json | None) -> list[Slot]:
    """How a post-processor packs a pair of texts. Errors: several templates, one around the other."""
    kind = processor["type"] if processor else None
    if processor is None or kind == "ByteLevel":
        return [Slot(0, (), 0), Slot(1, (), 1)]
    if kind == "Sequence":
        framing = [part for part in processor["processors"] if part["type"] != "ByteLevel"]
        if len(framing) > 1:
            raise CutawayError("a pair inside several templates is not supported", "tokenizer.json")
        return pair_slots(framing[0] if framing else None)
    if kind == "BertProcessing":
        cls, sep = (processor["cls"][1],), (processor["sep"][1],)
        return [Slot(None, cls, 0), Slot(0, (), 0), Slot(None, sep, 0), Slot(1, (), 1), Slot(None, sep, 1)]
    if kind == "RobertaProcessing":
        cls, sep = (processor["cls"][1],), (processor["sep"][1],)
        return [Slot(None, cls, 0), Slot(0, (), 0), Slot(None, sep * 2, 0), Slot(1, (), 0), Slot(None, sep, 0)]
    return [_slot(item, processor["special_tokens"]) for item in processor["pair"]]


def _slot(item: Json, special: Json) -> Slot:
    if text := item.get("Sequence"):
        return Slot({"A": 0, "B": 1}[text["id"]], (), text["type_id"])
    return Slot(None, tuple(special[item["SpecialToken"]["id"]]["ids"]), item["SpecialToken"]["type_id"])


def template(before: list[tuple[str, int]], after: list[tuple[str, int]], *, once: bool = False) -> Json:
    """The post-processor that puts these (token, id) before and after a text, and around each text of a pair;
    with `once`, the ones before stand only at the head of the pair, as BERT has it."""

    def marks(side: list[tuple[str, int]], kind: int) -> list[Json]:
        return [{"SpecialToken": {"id": token, "type_id": kind}} for token, _ in side]

    first = [*marks(before, 0), {"Sequence": {"id": "A", "type_id": 0}}, *marks(after, 0)]
    second = [*marks([] if once else before, 1), {"Sequence": {"id": "B", "type_id": 1}}, *marks(after, 1)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in before + after},
    }
