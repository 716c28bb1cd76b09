"""Two texts in one sequence: ids and types identical to the `tokenizers` library's, for every way to pack them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import processors

from cutaway.errors import CutawayError
from cutaway.text import Tokenizer
from text.samples import TINY, byte_level, fuzz, saved

ROBERTA = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False, add_prefix_space=False)
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s>:1 $B:1 <s>:0 $A:1 </s>:0", special_tokens=[("<s>", 1), ("</s>", 2)]
)


def packed_by(processor: processors.PostProcessor) -> Reference:
    reference = byte_level()
    reference.post_processor = processor
    return reference


KINDS = {
    **TINY,
    "roberta": lambda: packed_by(ROBERTA),
    "second text first": lambda: packed_by(TEMPLATE),
    "in a sequence": lambda: packed_by(processors.Sequence([processors.ByteLevel(), ROBERTA])),
}


def pairs(count: int) -> list[tuple[str, str]]:
    texts = fuzz(2 * count, seed=21)
    return list(zip(texts[:count], texts[count : 2 * count], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_types_are_the_reference_s(kind: str, tmp_path: Path) -> None:
    reference = KINDS[kind]()
    ours = Tokenizer.from_dir(saved(reference, tmp_path))
    for first, second in pairs(200):
        expected = reference.encode(first, second)
        assert ours.encode_pair(first, second) == (expected.ids, expected.type_ids), (first, second)


def test_berts_pairs_are_the_reference_s(minilm_dir: Path) -> None:
    """The real vocabulary: [CLS] A [SEP] of type 0, B [SEP] of type 1."""
    reference = Reference.from_file(str(minilm_dir / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    ours = Tokenizer.from_dir(minilm_dir)
    for first, second in pairs(200):
        expected = reference.encode(first, second)
        assert ours.encode_pair(first, second) == (expected.ids, expected.type_ids), (first, second)
    ids, types = ours.encode_pair("a b", "c")
    assert [types.count(kind) for kind in (0, 1)] == [4, 2]
    assert ids[0] == 101
    assert ids[3] == ids[5] == 102


def test_templates_around_each_other_are_refused(tmp_path: Path) -> None:
    path = saved(KINDS["in a sequence"](), tmp_path)
    content = json.loads((path / "tokenizer.json").read_text())
    content["post_processor"]["processors"] *= 2
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CutawayError, match="several templates"):
        Tokenizer.from_dir(path).encode_pair("a", "b")
