"""Mistakes in block formats and in the layout of GGUF files."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch

from cutaway.models.families.table import Family, Row, interleaved
from kit.mutation import Change, edit, mutants, put

BLOCKS = "cutaway.weights.blocks:"


def gguf_rows(family: str, like: str, other: Callable[[Row], Row]) -> Change:
    """Replace the rows of a family's GGUF table whose foreign name matches a shell pattern."""

    def changed(table: Family) -> Family:
        return replace(table, gguf_rows=tuple(other(r) if fnmatch(r.theirs, like) else r for r in table.gguf_rows))

    return put("cutaway.models.families:FAMILIES", family, changed)


def plain(row: Row) -> Row:
    return row._replace(via=None)


# fmt: off
MUTANTS = mutants(
    ("blocks: low and high halves exchanged", "decoding Q4_0",
        edit(BLOCKS + "_unfold", "torch.arange(0, 8, bits, dtype=torch.uint8, device=field_BN.device)",
             "torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=field_BN.device)")),
    ("blocks: codes of a byte are neighbors", "decoding Q4_1",
        edit(BLOCKS + "_split_q4_1", "_unfold(blocks[:, 4:], 4, 16)", "_unfold(blocks[:, 4:], 4, 1)")),
    ("blocks: Q4_0 centered at 7", "decoding Q4_0", edit(BLOCKS + "_split_q4_0", "None, 8", "None, 7")),
    ("blocks: Q4_1 without its minimum", "decoding Q4_1", edit(BLOCKS + "_split_q4_1", "_half(blocks, 2)", "None")),
    ("blocks: Q4_1 with step and minimum exchanged", "decoding Q4_1",
        edit(BLOCKS + "_split_q4_1", "_half(blocks, 0), _half(blocks, 2)", "_half(blocks, 2), _half(blocks, 0)")),
    ("blocks: Q5_0 without its fifth bits", "decoding Q5_0", edit(BLOCKS + "_five_bits", "<< 4", "<< 8")),
    ("blocks: Q5_0 centered at 8", "decoding Q5_0", edit(BLOCKS + "_split_q5_0", "None, 16", "None, 8")),
    ("blocks: Q5_1 with its fifth bits backwards", "decoding Q5_1",
        edit(BLOCKS + "_five_bits", "_unfold(field[:, :4], 1, 1)", "_unfold(field[:, :4], 1, 1).flip(1)")),
    ("blocks: Q8_0 read without sign", "decoding Q8_0", edit(BLOCKS + "_split_q8_0", " ^ 128", "")),
    ("blocks: scale of the wrong sign", "decoding Q8_0", edit(BLOCKS + "_half", ".float()", ".float().neg()")),
    ("blocks: scale read as bfloat16", "decoding Q4_0", edit(BLOCKS + "_half", "torch.float16", "torch.bfloat16")),
    ("blocks: Q4_K adds its minima", "decoding Q4_K", edit(BLOCKS + "_sub_blocks", "-_half(blocks, 2)", "_half(blocks, 2)")),
    ("blocks: Q4_K with steps and minima exchanged", "decoding Q4_K",
        edit(BLOCKS + "_sub_blocks", "scales, minima = _six_bits", "minima, scales = _six_bits")),
    ("blocks: Q4_K without the high bits of its scales", "decoding Q4_K",
        edit(BLOCKS + "_six_bits", "rest & 15 | first >> 6 << 4", "rest & 15")),
    ("blocks: Q4_K with the high bits of its minima taken from its scales", "decoding Q4_K",
        edit(BLOCKS + "_six_bits", "rest >> 4 | second >> 6 << 4", "rest >> 4 | first >> 6 << 4")),
    ("blocks: Q4_K in runs of 64", "decoding Q4_K", edit(BLOCKS + "_split_q4_k", "4, 32)", "4, 64)")),
    ("blocks: Q5_K without its fifth bits", "decoding Q5_K", edit(BLOCKS + "_split_q5_k", "<< 4", "<< 8")),
    ("blocks: Q6_K centered at 31", "decoding Q6_K", edit(BLOCKS + "_split_q6_k", "None, 32", "None, 31")),
    ("blocks: Q6_K with scales read without sign", "decoding Q6_K",
        edit(BLOCKS + "_split_q6_k", "_as(torch.int8, blocks[:, 192:208])", "blocks[:, 192:208]")),
    ("blocks: Q6_K in runs of 32", "decoding Q6_K",
        edit(BLOCKS + "_split_q6_k", "_unfold(blocks[:, :128], 4, 64)", "_unfold(blocks[:, :128], 4, 32)")),
    ("blocks: bfloat16 read as float16", "decoding BF16", edit(BLOCKS + "_decode_bf16", "torch.bfloat16", "torch.float16")),
    ("blocks: Q8_0 written with codes cut, not rounded", "encoding Q8_0",
        edit(BLOCKS + "_encode_q8_0", "size.floor() + (size.frac() >= 0.5)", "size.floor()")),
    ("blocks: Q8_0 scaled to 128", "encoding Q8_0", edit(BLOCKS + "_encode_q8_0", "/ 127", "/ 128")),
    ("blocks: Q4_0 written with a positive step", "encoding Q4_0", edit(BLOCKS + "_symmetric", "extreme / -center", "extreme.abs() / center")),
    ("blocks: Q4_0 written with codes cut, not rounded", "encoding Q4_0", edit(BLOCKS + "_symmetric", "center + 0.5", "center")),
    ("blocks: Q4_1 written with sixteen steps for fifteen", "encoding Q4_1", edit(BLOCKS + "_affine", "/ top", "/ (top + 1)")),
    ("gguf: rows of llama's queries not permuted", "gguf llama", gguf_rows("llama", "*.attn_q.*", plain)),
    ("gguf: rows of llama's keys not permuted", "gguf llama", gguf_rows("llama", "*.attn_k.*", plain)),
    ("gguf: keys permuted as if they had as many heads as queries", "gguf llama",
        gguf_rows("llama", "*.attn_k.*", lambda r: r._replace(via=interleaved(lambda s: 1)))),
    ("gguf: values permuted too", "gguf llama",
        gguf_rows("llama", "*.attn_v.*", lambda r: r._replace(via=interleaved(lambda s: s.layers[0].attention.kv_heads)))),
    ("gguf: qwen permuted like llama", "gguf qwen2",
        gguf_rows("qwen2", "*.attn_q.*", lambda r: r._replace(via=interleaved(lambda s: s.layers[0].attention.heads)))),
    ("gguf: gemma's norms without their offset", "gguf gemma3-published", gguf_rows("gemma3", "*_norm.weight", plain)),
    ("gguf: gemma's query norms without their offset", "gguf gemma3-published", gguf_rows("gemma3", "*attn_q_norm*", plain)),
    ("gguf: gemma's post norms exchanged", "gguf gemma3-published",
        gguf_rows("gemma3", "*post_*", lambda r: r._replace(theirs=r.theirs
            .replace("post_attention", "?").replace("post_ffw", "post_attention").replace("?", "post_ffw")))),
    ("gguf: gate and up exchanged", "gguf qwen3",
        gguf_rows("qwen3", "*.ffn_*.weight", lambda r: r._replace(theirs=r.theirs
            .replace("ffn_gate", "?").replace("ffn_up", "ffn_gate").replace("?", "ffn_up")))),
)
# fmt: on
