"""Mistakes in reading GPTQ, AWQ and compressed-tensors."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants, put

GROUPED = "cutaway.weights.grouped:"

# fmt: off
MUTANTS = mutants(
    ("gptq: zeros of format v1 as those of v2", "gptq v1, 4 bits", edit(GROUPED + "gptq", "short() + less", "short()")),
    ("gptq: zeros of format v2 as those of v1", "gptq v2, 8 bits", edit(GROUPED + "gptq", "short() + less", "short() + 1")),
    ("gptq: zeros off by one the other way", "gptq blocks", edit(GROUPED + "gptq", "short() + less", "short() - less")),
    ("gptq: codes of a word go along the outputs", "gptq v1, 8 bits",
        edit(GROUPED + "gptq", "_codes(parts['.qweight'].T, bits)", "_codes(parts['.qweight'], bits).reshape(-1, len(parts['.qweight']) * 32 // bits)")),
    ("gptq: zeros wrap at the end of their range", "gptq v1, 4 bits", edit(GROUPED + "gptq", "short() + less", "short() + less & (1 << bits) - 1")),
    ("gptq: groups always in order", "gptq v2, 4 bits", edit(GROUPED + "gptq", "_checked(group_K, len(scale_SN))", "None")),
    ("codes: high half of a byte first", "gptq v2, 4 bits", edit(GROUPED + "_codes", "[octets & 15, octets >> 4]", "[octets >> 4, octets & 15]")),
    ("codes: low halves, then high ones", "awq", edit(GROUPED + "_codes", "octets >> 4], -1)", "octets >> 4], -2)")),
    ("awq: outputs as they lie", "awq", put(GROUPED, "INTERLEAVED", lambda order: tuple(range(8)))),
    ("awq: the order the other way", "awq", put(GROUPED, "INTERLEAVED", lambda order: (0, 2, 4, 6, 1, 3, 5, 7))),
    ("awq: zeros stored less one", "awq", edit(GROUPED + "awq", "zero_SN.T", "zero_SN.T + 1")),
    ("compressed-tensors: codes without half of the range", "compressed-tensors, 4 bits",
        edit(GROUPED + "_zeros", "1 << bits - 1", "0")),
    ("compressed-tensors: signed zeros without half of the range", "compressed-tensors, 8 bits",
        edit(GROUPED + "_zeros", "middle + stored", "stored.short()")),
    ("compressed-tensors: zeros packed along groups", "compressed-tensors, 4 bits",
        edit(GROUPED + "_zeros", "_codes(stored.T, bits)[:, :len(scale_NS)].T", "_codes(stored, bits).flatten()[:scale_NS.numel()].view(scale_NS.shape)")),
    ("compressed-tensors: inputs always in order", "compressed-tensors, 8 bits",
        edit(GROUPED + "packed_integers", "_checked(parts.get('.weight_g_idx'), scale_NS.shape[1])", "None")),
    ("compressed-tensors: signed codes as they are", "compressed-tensors, plain", edit(GROUPED + "integers", "view(torch.uint8) ^ 128", "view(torch.uint8)")),
    ("groups: inputs take turns", "awq", edit(GROUPED + "Grouped._in_order", "torch.arange(k) // (k // count)", "torch.arange(k) % count")),
    ("groups: zero added", "awq", edit(GROUPED + "Grouped.weights", "sub_(", "add_(")),
    ("blocks: the offset has the wrong sign", "gptq blocks", edit(GROUPED + "Grouped.blocks", "-scale_NS * self.zero_NS", "scale_NS * self.zero_NS")),
    ("blocks: zeros dropped", "gptq blocks", edit(GROUPED + "Grouped.blocks", "(self.zero_NS == 1 << self.bits - 1).all()", "True")),
    ("blocks: signed codes as they are", "compressed-tensors, 8 bits", edit(GROUPED + "Grouped.blocks", "codes_NB32 ^ 128", "codes_NB32")),
    ("blocks: inputs out of order as they lie", "gptq v1, 4 bits", edit(GROUPED + "Grouped.blocks", "not self._is_in_order()", "False")),
    ("blocks: neighbors in a byte", "awq", edit(GROUPED + "_nibbles", "codes_NB32[..., :16] | codes_NB32[..., 16:] << 4", "codes_NB32[..., ::2] | codes_NB32[..., 1::2] << 4")),
    ("blocks: scales take turns", "awq", edit(GROUPED + "_halves", "repeat_interleave(blocks, 1)", "repeat(1, blocks)")),
)
# fmt: on
