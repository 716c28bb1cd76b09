"""Mistakes in how scores become weights, in cross-attention and in latent attention."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

ATTENTION, LATENT, CACHE = "cutaway.nn.attention:", "cutaway.nn.latent:LatentAttention.", "cutaway.engine.cache:"
CROSS = ATTENTION + "CrossAttention."

# fmt: off
MUTANTS = mutants(
    ("softcap: ignored", "question softcap", edit(ATTENTION + "attend", "question.softcap is not None", "False")),
    ("softcap: not multiplied back", "question softcap",
        edit(ATTENTION + "attention_weights", "question.softcap * torch.tanh(", "torch.tanh(")),
    ("softcap: before the scale", "question softcap",
        edit(ATTENTION + "attention_weights", "torch.tanh(scores_HQS / question.softcap)", "torch.tanh(scores_HQS / question.scale / question.softcap) * question.scale")),
    ("softcap: without the window", "question softcap in a window",
        edit(ATTENTION + "attention_weights", "mask is not None", "False")),
    ("sinks: ignored", "question sinks", edit(ATTENTION + "attend", "if question.sinks_H is not None:", "if False:")),
    ("sinks: of another head", "question sinks",
        edit(ATTENTION + "_with_sinks", "sinks_H[:, None, None]", "sinks_H.flip(0)[:, None, None]")),
    ("sinks: give the last value", "question sinks",
        edit(ATTENTION + "attend", "(F.pad(t, (0, 0, 0, 1)) for t in (k_BGSK, v_BGSK))", "(F.pad(k_BGSK, (0, 0, 0, 1)), torch.cat([v_BGSK, v_BGSK[:, :, -1:]], 2))")),
    ("sinks: written out, kept among the weights", "question sinks",
        edit(ATTENTION + "attention_weights", "return torch.cat([scores_HQS, sinks_HQ1], -1).softmax(-1)[..., :-1]", "return scores_HQS.softmax(-1)")),
    ("sinks: the mask is lost", "question sinks in a window",
        edit(ATTENTION + "_with_sinks", "masked_fill(~added, -torch.inf)", "masked_fill(~added, 0)")),
    ("anchors: not seen", "question anchors", edit(ATTENTION + "visible", "(key_S < question.anchors)", "(key_S < 0)")),
    ("anchors: one too many", "question anchors", edit(ATTENTION + "visible", "(key_S < question.anchors)", "(key_S <= question.anchors)")),
    ("anchors: do not see everything", "question global tokens",
        edit(ATTENTION + "visible", "key_S[keys - queries:, None] < question.anchors", "key_S[keys - queries:, None] < 0")),
    ("prefix: causal all the same", "question prefix", edit(ATTENTION + "visible", "(key_S < prefix)", "(key_S < 0)")),
    ("prefix: one too long", "question prefix", edit(ATTENTION + "visible", "(key_S < prefix)", "(key_S <= prefix)")),
    ("prefix: the first sequence's for all", "question prefixes",
        edit(ATTENTION + "BlockDiagonal.attend", "zip(parts, self.prefixes, strict=True)", "zip(parts, self.prefixes[:1] * len(self.prefixes), strict=True)")),
    ("bias: ignored", "question bias", edit(ATTENTION + "_mask", "question.bias is None", "True")),
    ("bias: distances the other way", "question bias",
        edit(ATTENTION + "distances", "torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]",
             "torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)")),
    ("bias: the mask is lost", "question bias in a window",
        edit(ATTENTION + "_mask", "bias if mask_QS is None else", "bias if True else")),
    ("cross-attention: keys from the values' matrix", "values bart", edit(CROSS + "project", "(self.k, self.v)", "(self.v, self.v)")),
    ("cross-attention: causal", "values t5", edit(CROSS + "forward", "causal=False", "causal=True")),
    ("cross-attention: scaled by sqrt(K) in T5", "values t5",
        edit(CROSS + "forward", "Question(self.spec.scale,", "Question(self.spec.head_dim ** -0.5,")),
    ("cross-attention: everybody reads the first source", "values bart",
        edit(ATTENTION + "BlockDiagonal.recall", "t.transpose(0, 1).split(self.sources, 1)", "[t.transpose(0, 1)[:, :self.sources[0]]] * len(self.sources)")),
    ("cross-attention: cached source of another layer", "cache t5",
        edit(CACHE + "KVCache.source", "return self.sources[layer]", "return self.sources[0]")),
    ("latent: unfolded heads interleaved", "latent forms",
        edit(LATENT + "naive", "unflatten(-1, (s.heads, -1))", "unflatten(-1, (-1, s.heads)).transpose(-1, -2)")),
    ("latent: the shared part left out of folded scores", "latent forms",
        edit(LATENT + "absorbed", "torch.cat([p.latent_TC[:, None], p.k_T1R], -1)", "torch.cat([p.latent_TC[:, None], 0 * p.k_T1R], -1)")),
    ("latent: folded with another head's matrix", "latent forms",
        edit(LATENT + "absorbed", "p.q_THN, up_HNC)", "p.q_THN, up_HNC.roll(1, 0))")),
    ("latent: norm skipped", "values deepseek_v3", edit(LATENT + "project", "self.kv_norm(latent_TC)", "latent_TC")),
    ("latent: key not turned", "values deepseek_v3", edit(LATENT + "project", "rotate(k_T1R, place.turn)", "k_T1R")),
)
# fmt: on
