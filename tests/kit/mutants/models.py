"""Mistakes in mechanisms, blocks, family tables and cache."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch

import torch.nn.functional as F

from cutaway.models.families.table import Family, Row
from kit.mutation import Change, edit, mutants, put

NORMS, ROPE, ATTENTION = "cutaway.nn.norms:", "cutaway.nn.positions:", "cutaway.nn.attention:"
SCALING = "cutaway.nn.rope_scaling:"
BLOCK, AROUND = "cutaway.models.block:Block.forward", "cutaway.models.block:Block._around"
STACK, HEAD = "cutaway.models.block:Stack.", "cutaway.nn.heads:Head.forward"
FFN, GATED = "cutaway.nn.feed_forward:FeedForward.forward", "cutaway.nn.feed_forward:gated"
EMBEDDING = "cutaway.nn.embedding:Embedding.forward"
CACHE = "cutaway.engine.cache:"


def rows(family: str, like: str, other: Callable[[Row], Row]) -> Change:
    """Replace the rows of a family's table whose foreign name contains `like` (a shell pattern)."""

    def changed(table: Family) -> Family:
        return replace(table, rows=tuple(other(r) if fnmatch(r.theirs, f"*{like}*") else r for r in table.rows))

    return put("cutaway.models.families:FAMILIES", family, changed)


def exchanged(a: str, b: str) -> Callable[[Row], Row]:
    """Exchange `a` and `b` in foreign names."""
    return lambda r: r._replace(theirs=b.join(part.replace(b, a) for part in r.theirs.split(a)))


# fmt: off
NORM = mutants(
    ("rms norm: weight ignored", "values llama", edit(NORMS + "RMSNorm.forward", "self.weight * unit_TD", "unit_TD")),
    ("rms norm: epsilon a thousand times too large", "values qwen2", edit(NORMS + "RMSNorm.forward", "self.eps", "1e-2")),
    ("rms norm: epsilon a thousand times too small", "values qwen2", edit(NORMS + "RMSNorm.forward", "self.eps", "1e-8")),
    ("rms norm: epsilon outside the root", "values qwen2",
        edit(NORMS + "RMSNorm.forward", "keepdim=True) + self.eps)", "keepdim=True)) / (1 + self.eps)")),
    ("rms norm: sum for mean", "values llama", edit(NORMS + "RMSNorm.forward", ".mean(", ".sum(")),
    ("rms norm: mean subtracted", "values llama",
        edit(NORMS + "RMSNorm.forward", "at_least_float32(x_TD)", "at_least_float32(x_TD - x_TD.mean(-1, keepdim=True))")),
    ("rms norm: over all tokens", "values llama", edit(NORMS + "RMSNorm.forward", ".mean(-1,", ".mean((0, -1),")),
    ("rms norm: offset of one dropped", "values gemma3",
        edit(NORMS + "RMSNorm.forward", "1 + at_least_float32", "at_least_float32")),
    ("rms norm: statistics in bfloat16", "bfloat16 norms", edit(NORMS + "at_least_float32", "x.float()", "x")),
    ("rms norm: statistics in float32", "values llama",
        edit(NORMS + "at_least_float32", "x if x.dtype == torch.float64 else x.float()", "x.float()")),
    ("layer norm: weight ignored", "values gpt2", edit(NORMS + "LayerNorm.forward", "self.weight,", "None,")),
    ("layer norm: bias ignored", "values gpt2", edit(NORMS + "LayerNorm.forward", "self.bias", "None")),
    ("layer norm: epsilon ignored", "values gpt2", edit(NORMS + "LayerNorm.forward", "self.eps", "0.0")),
    ("layer norm: mean not subtracted", "values bert",
        edit(NORMS + "LayerNorm.forward", "F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)",
             "F.rms_norm(x_TD, self.weight.shape, self.weight, self.eps) + self.bias")),
    ("layer norm: unbiased variance", "values gpt2",
        edit(NORMS + "LayerNorm.forward", "F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)",
             "(x_TD - x_TD.mean(-1, True)) / (x_TD.var(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias")),
    ("final norm: skipped", "values llama", edit(STACK + "transform", "self.final_norm is None", "True")),
)

POSITION = mutants(
    ("rope: none", "values llama", edit(ROPE + "rotate", "return torch.cat", "return x_THK\n    return torch.cat")),
    ("rope: pairs interleaved", "values llama",
        edit(ROPE + "rotate", "torch.cat([-b_THk, a_THk], -1)",
             "torch.stack([-turning_THK[..., 1::2], turning_THK[..., ::2]], -1).flatten(-2)")),
    ("rope: turned the other way", "gradients llama", edit(ROPE + "rotate", "[-b_THk, a_THk]", "[b_THk, -a_THk]")),
    ("rope: values of one half swapped", "values llama", edit(ROPE + "rotate", "[-b_THk, a_THk]", "[-a_THk, b_THk]")),
    ("rope: keys one position on", "values llama",
        edit(ATTENTION + "Attention.forward", "rotate(k_TGK, place.turn)",
             "rotate(k_TGK, place.turn._replace(cos_TK=place.turn.cos_TK.roll(-1, 0), sin_TK=place.turn.sin_TK.roll(-1, 0)))")),
    ("rope: keys not turned", "values llama",
        edit(ATTENTION + "Attention.forward", "rotate(k_TGK, place.turn)", "k_TGK")),
    ("rope: frequencies by K + 2", "values llama", edit(ROPE + "rope_frequencies", "/ dim", "/ (dim + 2)")),
    ("rope: another base", "values llama", edit(SCALING + "plain", "base **", "(base + 1) **")),
    ("rope: angles in bfloat16", "bfloat16 llama",
        edit(ROPE + "rotation", "positions_T.double()", "positions_T.to(dtype)")),
    ("rope: angles in float32", "values llama",
        edit(ROPE + "rotation", "torch.cat([angle_Tk, angle_Tk], -1)", "torch.cat([angle_Tk, angle_Tk], -1).float()")),
    ("rope scaling: linear ignored", "values llama-linear",
        edit(SCALING + "_linear", "/ s.factor", "")),
    ("rope scaling: linear multiplied", "values llama-linear",
        edit(SCALING + "_linear", "/ s.factor", "* s.factor")),
    ("rope scaling: llama3 blended backwards", "values llama-3",
        edit(SCALING + "_llama3", "kept_k=_ramp(", "kept_k=1 - _ramp(")),
    ("rope scaling: llama3 without blending", "values llama-3", edit(SCALING + "_ramp", ".clamp(0, 1)", ".clamp(0, 1).round()")),
    ("rope scaling: llama3 low and high swapped", "values llama-3",
        edit(SCALING + "_llama3", "s.low, s.high", "s.high, s.low")),
    ("rope scaling: llama3 divides everything", "values llama-3",
        edit(SCALING + "_blend", "kept_k * frequency_k + (1 - kept_k) * frequency_k / s.factor", "frequency_k / s.factor")),
    ("rope: local and global swapped", "values gemma3",
        edit("cutaway.models.families.gemma3:read_ropes", "by_kind[kind]", "by_kind[LOCAL if kind == GLOBAL else GLOBAL]")),
    ("rope: one for all layers", "values gemma3",
        edit(STACK + "places", "turns.get(a.rope)", "next(iter(turns.values()))")),
    ("positions: counted through the batch", "values gpt2",
        edit("cutaway.models.block:positions_of", "torch.cat([torch.arange(n, device=device) for n in lengths])",
             "torch.arange(sum(lengths))")),
    ("positions: learned ones off by one", "values gpt2",
        edit(EMBEDDING, "positions_T + self.spec.first)", "positions_T + self.spec.first + 1)")),
    ("positions: learned ones dropped", "values bert", edit(EMBEDDING, "self.positions(positions_T + self.spec.first)", "0")),
    ("positions: from the row, not from the caller", "values gpt2",
        edit(EMBEDDING, "positions_T + self.spec.first)", "positions_T - positions_T.min() + self.spec.first)")),
)

ATTEND = mutants(
    ("attention: scale missing", "values llama", edit(ATTENTION + "attend", "scale=question.scale", "scale=1.0")),
    ("attention: scale by width of the head, not by the configured scalar", "values gemma3",
        edit(ATTENTION + "attend", "scale=question.scale", "scale=q_BHQK.shape[-1] ** -0.5")),
    ("attention: scale by 1/K for 1/sqrt(K)", "values llama", edit(ATTENTION + "attend", "scale=question.scale", "scale=question.scale**2")),
    ("causal mask: none", "values llama", edit(ATTENTION + "attend", "is_causal=fast", "is_causal=False")),
    ("causal mask: one too far", "cache llama", edit(ATTENTION + "visible", "ahead_QS <= 0", "ahead_QS <= 1")),
    ("causal mask: blind to itself", "cache llama",
        edit(ATTENTION + "visible", "ahead_QS <= 0", "(ahead_QS < 0) | (ahead_QS == queries - keys)")),
    ("causal mask: queries at the first keys", "cache llama",
        edit(ATTENTION + "distances", "torch.arange(keys - queries, keys, device=device)", "torch.arange(queries, device=device)")),
    ("causal mask: encoder made causal", "values bert", edit(ATTENTION + "attend", "whole = question.causal and", "whole = True and")),
    ("causal mask: decoder with a window made bidirectional", "values gemma3",
        edit(ATTENTION + "visible", "(key_S < prefix) if question.causal else", "(key_S < prefix) if False else")),
    ("window: one too wide", "values gemma3", edit(ATTENTION + "visible", "abs() < limit", "abs() <= limit")),
    ("window: one too narrow", "values gemma3", edit(ATTENTION + "visible", "abs() < limit", "abs() < limit - 1")),
    ("window: ignored", "values gemma3", edit(ATTENTION + "visible", "mask_QS &= near_QS", "pass")),
    ("window: on global layers", "values gemma3",
        edit("cutaway.models.families.gemma3:read_windows", "if kind == LOCAL", "if kind == GLOBAL")),
    ("window: on every layer", "values gemma3",
        edit("cutaway.models.families.gemma3:read_windows", "if kind == LOCAL else None", "if kind else None")),
    ("window: pattern off by one", "values gemma3",
        edit("cutaway.models.families.gemma3:layer_types", "config.get('layer_types') or [LOCAL if (i + 1)", "[LOCAL if (i + 2)")),
    ("grouped heads: repeated in turn", "values llama",
        edit(ATTENTION + "attend", "q_BHQK, k_BGSK, v_BGSK, mask",
             "q_BHQK, *(t.repeat(1, heads // kv_heads, 1, 1) for t in (k_BGSK, v_BGSK)), mask")),
    ("grouped heads: only the first used", "values llama",
        edit(ATTENTION + "attend", "q_BHQK, k_BGSK, v_BGSK, mask",
             "q_BHQK, *(t[:, :1] for t in (k_BGSK, v_BGSK)), mask")),
    ("heads: split as [K, H] for [H, K]", "values gpt2",
        edit(ATTENTION + "Attention.forward", "p(x_TD).unflatten(-1, (-1, self.spec.head_dim))",
             "p(x_TD).unflatten(-1, (self.spec.head_dim, -1)).transpose(1, 2)")),
    ("q/k norm: skipped", "values qwen3", edit(ATTENTION + "Attention.forward", "self.q_norm is not None", "False")),
    ("q/k norm: skipped on keys", "values gemma3", edit(ATTENTION + "Attention.forward", "self.k_norm(k_TGK)", "k_TGK")),
    ("q/k norm: swapped", "values qwen3",
        edit(ATTENTION + "Attention.forward", "self.q_norm(q_THK), self.k_norm(k_TGK)", "self.k_norm(q_THK), self.q_norm(k_TGK)")),
    ("q/k norm: after the rotation", "values qwen3",
        edit(ATTENTION + "Attention.forward",
             "q_THK, k_TGK = (self.q_norm(q_THK), self.k_norm(k_TGK))\n    if place.turn is not None:\n        "
             "q_THK, k_TGK = (rotate(q_THK, place.turn), rotate(k_TGK, place.turn))",
             "q_THK, k_TGK = (self.q_norm(rotate(q_THK, place.turn)), self.k_norm(rotate(k_TGK, place.turn)))")),
    ("ragged batch: one sequence sees the next", "values bert",
        edit(ATTENTION + "BlockDiagonal.attend", "attend(q[None], k[None], v[None], question, prefix)",
             "attend(q[None], *(t.transpose(0, 1)[None] for t in (k_TGK, v_TGK)), question, prefix)")),
    ("ragged batch: rows of the even batch mixed", "values llama",
        edit(ATTENTION + "BlockDiagonal.attend", "t.unflatten(0, (count, -1)).transpose(1, 2)",
             "t.unflatten(0, (-1, count)).transpose(0, 1).transpose(1, 2)")),
)

BLOCKS = mutants(
    ("feed-forward: gate and up swapped", "values llama",
        edit(GATED, "activation(gate_TF) * up_TF", "activation(up_TF) * gate_TF")),
    ("feed-forward: gate not activated", "values qwen2", edit(GATED, "activation(gate_TF) * up_TF", "gate_TF * up_TF")),
    ("feed-forward: both activated", "values llama", edit(GATED, "* up_TF", "* activation(up_TF)")),
    ("feed-forward: plain one not activated", "values gpt2", edit(FFN, "self.activation(self.up(x_TD))", "self.up(x_TD)")),
    ("activation: exact gelu for the tanh form", "values gpt2",
        put("cutaway.nn.feed_forward:ACTIVATIONS", "gelu_tanh", lambda _: F.gelu)),
    ("activation: exact gelu for the tanh form, gated", "values gemma3",
        put("cutaway.nn.feed_forward:ACTIVATIONS", "gelu_tanh", lambda _: F.gelu)),
    ("activation: tanh form for exact gelu", "values bert",
        put("cutaway.nn.feed_forward:ACTIVATIONS", "gelu", lambda _: lambda x: F.gelu(x, approximate="tanh"))),
    ("activation: relu for silu", "values llama", put("cutaway.nn.feed_forward:ACTIVATIONS", "silu", lambda _: F.relu)),
    ("activation: gelu_new read as gelu", "values gpt2",
        put("cutaway.models.families.llama:ACTIVATION_NAMES", "gelu_new", lambda _: "gelu")),
    ("block: post norm skipped after attention", "values gemma3", edit(BLOCK, "self.attention_norm, self.attention_post_norm)", "self.attention_norm)")),
    ("block: post norm skipped after feed-forward", "values gemma3", edit(BLOCK, "self.ffn_norm, self.ffn_post_norm)", "self.ffn_norm)")),
    ("block: post norms swapped", "values gemma3", edit(BLOCK, "self.attention_norm, self.attention_post_norm)", "self.attention_norm, self.ffn_post_norm)")),
    ("block: residual dropped", "values llama", edit(AROUND, "return kept_TD + self._dropped", "return self._dropped")),
    ("block: norms swapped", "values llama", edit(BLOCK, "self.ffn_norm, self.ffn_post_norm)", "self.attention_norm, self.ffn_post_norm)")),
    ("block: normalized twice", "values qwen2",
        edit(BLOCK, "return self._around(x_TD, self.ffn,", "return self._around(x_TD, lambda x: self.ffn(self.ffn_norm(x)),")),
    ("block: norm before for norm after", "values bert",
        edit(AROUND, "return norm(kept_TD + made_TD)", "return kept_TD + f(norm(x_TD))")),
    ("block: residual dropped under the norm", "values bert",
        edit(AROUND, "norm(kept_TD + made_TD)", "norm(made_TD)")),
    ("stack: last layer skipped", "values llama", edit(STACK + "transform", "context.reach(positions_T))", "context.reach(positions_T))[:-1]")),
    ("stack: layers backwards", "values llama",
        edit(STACK + "transform", "self.block(i)", "self.block(len(self.layers) - 1 - i)")),
    ("embedding: scale dropped", "values gemma3", edit(EMBEDDING, "self.spec.scale != 1.0", "False")),
    ("embedding: scale by D for sqrt(D)", "values gemma3", edit(EMBEDDING, "torch.full((), self.spec.scale,", "torch.full((), self.spec.scale**2,")),
    ("embedding: token type dropped", "values bert", edit(EMBEDDING, "self.types.weight[0]", "x_TD.new_zeros(())")),
    ("embedding: wrong token type", "values bert", edit(EMBEDDING, "self.types.weight[0]", "self.types.weight[1]")),
    ("embedding: norm skipped", "values bert", edit(EMBEDDING, "self.norm is None", "True")),
    ("embedding: detached", "gradients llama", edit(EMBEDDING, "self.tokens(tokens_T)", "self.tokens(tokens_T).detach()")),
    ("head: scaled like the embedding", "values gemma3",
        edit(STACK + "logits", "self.head(hidden_RD,", "self.head(hidden_RD * self.spec.embedding.scale,")),
    ("head: tied one detached", "gradients llama-3",
        edit(STACK + "logits", "self.embedding.tokens.weight", "self.embedding.tokens.weight.detach()")),
    ("head: embedding used though untied", "values llama",
        edit(HEAD, "self.weight is None", "True")),
)

FAMILY_TABLES = mutants(
    ("tables: epsilon of the final norm left at its default", "values llama",
        edit("cutaway.models.families.table:spec_of", "f.read(config) for f in family.fields",
             '(1e-6 if f.path == "final_norm.eps" else f.read(config)) for f in family.fields')),
    ("tables: epsilon of the query norm left at its default", "values qwen3",
        edit("cutaway.models.families.table:spec_of", "f.read(config) for f in family.fields",
             '(1e-6 if "qk_norm" in f.path else f.read(config)) for f in family.fields')),
    ("tables: head width from width over heads", "values qwen3",
        edit("cutaway.models.families.table:spec_of", "f.read(config) for f in family.fields",
             '(f.read(config) * 1.25**0.5 if f.path == "layer.attention.scale" else f.read(config)) for f in family.fields')),
    ("tables: layers share the first one's values", "values gemma3",
        edit("cutaway.models.families.table:_pick", "value[i]", "value[0]")),
    ("tables: two layers exchanged", "values llama",
        edit("cutaway.models.families.table:_bound", "{'e': e}", "{'e': e, **{k: (1, 0, 2)[v] for k, v in numbers.items()}}")),
    ("tables: fused q, k, v split in another order", "values gpt2",
        edit("cutaway.models.families.gpt2:FAMILY.rows.4.via.load", "t.split(sizes, axis)", "t.split(sizes, axis)[::-1]")),
    ("tables: fused q, k, v not transposed", "values gpt2",
        edit("cutaway.models.families.gpt2:FAMILY.rows.4.via.load", "p.T if transpose else p",
             "p.reshape(p.T.shape) if transpose else p")),
    ("tables: square matrix not transposed", "values gpt2", rows("gpt2", "attn.c_proj.weight", lambda r: r._replace(via=None))),
    ("tables: gate and up exchanged", "values qwen3", rows("qwen3", "mlp.*_proj", exchanged("gate_proj", "up_proj"))),
    ("tables: norms before attention and feed-forward exchanged", "values gemma3",
        rows("gemma3", "*layernorm*", exchanged("input_layernorm", "pre_feedforward_layernorm"))),
    ("tables: norms before and after feed-forward exchanged", "values gemma3",
        rows("gemma3", "*layernorm*", exchanged("pre_feedforward", "post_feedforward"))),
    ("tables: query and key norms exchanged", "values gemma3", rows("gemma3", "*_norm.weight", exchanged("q_norm", "k_norm"))),
    ("tables: query and key exchanged", "values bert", rows("bert", "self", exchanged("query", "key"))),
    ("tables: norms of BERT's block exchanged", "values bert",
        rows("bert", "LayerNorm", exchanged("{i}.output.LayerNorm", "{i}.attention.output.LayerNorm"))),
    ("tables: weight and bias of a norm exchanged", "values gpt2", rows("gpt2", "ln_f", exchanged("weight", "bias"))),
)

KV_CACHE = mutants(
    ("cache: written one place late", "cache llama", edit(CACHE + "KVCache.put", "buffers[i][:, start:end]", "buffers[i][:, start + 1 : end + 1]")),
    ("cache: keys kept before the rotation", "cache llama",
        edit(ATTENTION + "Attention.forward", "out_THK = context.attend(layer, q_THK, k_TGK,",
             "out_THK = context.attend(layer, q_THK, k_TGK if place.turn is None else rotate(k_TGK, place.turn._replace(sin_TK=-place.turn.sin_TK)),")),
    ("cache: last key not read", "cache llama",
        edit(CACHE + "Spans._one", "cache.get(layer, first, start + n)", "cache.get(layer, first, max(1, start + n - 1))")),
    ("cache: window one too short", "cache gemma3", edit(CACHE + "Spans._one", "start - window + 1", "start - window + 2")),
    ("cache: contents lost when it grows", "cache gpt2",
        edit(CACHE + "_larger", "fresh[:, :buffer.shape[1]] = buffer", "fresh.zero_()")),
    ("cache: sequences share one", "cache llama",
        edit(CACHE + "Spans._one", "cache, start, n = span", "cache, start, n = self.spans[0][0], *span[1:]")),
    ("cache: layers share one", "cache qwen2", edit(CACHE + "KVCache.get", "self.buffers[layer]", "self.buffers[0]")),
    ("cache: values for keys", "cache llama", edit(CACHE + "Spans.attend", "(k_TGK, v_TGK)", "(v_TGK, k_TGK)")),
    ("cache: spans answer each other", "cache llama",
        edit(CACHE + "Spans._each", "zip(self.spans, rows, strict=True)])", "zip(self.spans, rows, strict=True)][::-1])")),
)

# fmt: on

MUTANTS = (*NORM, *POSITION, *ATTEND, *BLOCKS, *FAMILY_TABLES, *KV_CACHE)
