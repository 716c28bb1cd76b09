"""Mistakes in routers, experts and what keeps their load even."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from dataclasses import replace

from cutaway.models.families.table import Family, Via
from kit.mutants.models import exchanged, rows
from kit.mutation import edit, mutants, put

ROUTING, EXPERTS, BALANCE = "cutaway.nn.routing:", "cutaway.nn.experts:", "cutaway.nn.balance:"
ROUTER = ROUTING + "Router."
LATENT, AHEAD, PACKED = "cutaway.models.families.latent:", "cutaway.models.decoder:", "cutaway.weights.packed:"
FAMILIES = "cutaway.models.families:FAMILIES"


def via(load) -> Via:
    """A row's way in that is wrong; nothing goes out by it."""
    return Via(load, lambda ts, s: ts[0])


def with_wide_epsilon(table: Family) -> Family:
    return replace(table, constants={**table.constants, "layer.attention.norm.eps": 1e-3})


# fmt: off
MUTANTS = mutants(
    ("router: weights not normalized", "experts mixtral", edit(ROUTER + "forward", "self.spec.normalize", "False")),
    ("router: weights always normalized", "experts qwen2", edit(ROUTER + "forward", "self.spec.normalize", "True")),
    ("router: softmax before the choice, over the chosen alone after it", "experts qwen2",
        edit(ROUTER + "forward", "scores_TE.gather(1, chosen_TC)", "logits_TE.gather(1, chosen_TC).softmax(-1)")),
    ("router: scale forgotten", "experts deepseek2", edit(ROUTER + "forward", "weights_TC * self.spec.scale", "weights_TC")),
    ("router: bias forgotten", "experts gpt_oss", edit(ROUTER + "forward", "bias_E)", "None)")),
    ("router: no gradient through the weights", "experts mixtral",
        edit(ROUTER + "forward", "scores_TE.gather", "scores_TE.detach().gather")),
    ("router: sigmoid read as softmax", "experts deepseek3",
        put("cutaway.nn.routing:SCORES", "sigmoid", lambda _: lambda t: t.softmax(-1))),
    ("router: choice bias weighs too", "experts deepseek3",
        edit(ROUTER + "forward", "scores_TE.gather(1, chosen_TC)", "(scores_TE + (0 if self.choice_bias is None else self.choice_bias)).gather(1, chosen_TC)")),
    ("router: choice bias ignored", "experts deepseek3", edit(ROUTER + "_choose", "scores_TE + self.choice_bias", "scores_TE")),
    ("router: groups ignored", "experts deepseek2", edit(ROUTER + "_choose", "self.spec.kept_groups < self.spec.groups", "False")),
    ("router: a group is as good as its best two, where it is its best", "experts deepseek2",
        put("cutaway.nn.routing:GROUP_SCORES", "max", lambda _: lambda s: s.topk(2).values.sum(-1))),
    ("router: a group is as good as its best, where it is its best two", "experts deepseek3",
        put("cutaway.nn.routing:GROUP_SCORES", "top2", lambda _: lambda s: s.amax(-1))),
    ("router: a group is as good as all of its experts", "experts deepseek3",
        put("cutaway.nn.routing:GROUP_SCORES", "top2", lambda _: lambda s: s.sum(-1))),
    ("router: groups interleaved", "experts deepseek3",
        edit(ROUTER + "_open", "repeat_interleave(scores_TE.shape[1] // self.spec.groups, 1)", "repeat(1, scores_TE.shape[1] // self.spec.groups)")),
    ("router: experts of other groups get zero, which is above some scores", "experts deepseek3",
        edit(ROUTER + "_choose", "-torch.inf", "0.0")),
    ("capacity: one token too many", "experts capacity", edit(ROUTER + "forward", "places(chosen_TC) <", "places(chosen_TC) <=")),
    ("capacity: rounded down", "experts capacity", edit(EXPERTS + "ExpertsSpec.limit", "math.ceil", "int")),
    ("capacity: a token's choices queue together", "experts capacity",
        edit(ROUTING + "places", "chosen_TC.T.flatten()", "chosen_TC.flatten()")),
    ("capacity: the last of a token's choices first", "experts capacity",
        edit(ROUTING + "places", "chosen_TC.T.flatten()", "chosen_TC.T.flip(0).flatten()")),
    ("capacity: what is turned away is computed all the same", "experts capacity",
        edit(EXPERTS + "sorted_pairs", "routing.kept_TC is not None", "False")),
    ("experts: weights of the choices in another order", "experts mixtral",
        edit(EXPERTS + "Experts.mix", "routing.weights_TC.T[..., None]", "routing.weights_TC.flip(1).T[..., None]")),
    ("experts: pairs numbered token by token", "experts mixtral", edit(EXPERTS + "Experts.mix", "pair_P % tokens", "pair_P // choices")),
    ("experts: answers left in sorted order", "experts qwen3",
        edit(EXPERTS + "Experts.mix", "index_copy(0, pair_P, answer_PD)", "index_copy(0, pair_P.sort().values, answer_PD)")),
    ("experts: shared expert forgotten", "experts deepseek2", edit(EXPERTS + "Experts.forward", "self.shared is None", "True")),
    ("experts: gate of the shared expert forgotten", "experts qwen2", edit(EXPERTS + "Experts.forward", "self.shared_gate is None", "True")),
    ("experts: gate of the shared expert without sigmoid", "experts qwen2",
        edit(EXPERTS + "Experts.forward", "self.shared_gate(x_TD).sigmoid()", "self.shared_gate(x_TD)")),
    ("experts: every expert gets the bias of its neighbor", "experts gpt_oss",
        edit(EXPERTS + "grouped", "bias_EO.repeat_interleave", "bias_EO.roll(1, 0).repeat_interleave")),
    ("experts: limit ignored", "experts gpt_oss", edit(EXPERTS + "Experts._answers", "self.spec.expert.limit", "None")),
    ("clamped gate: the gate clamped from below too", "experts gpt_oss",
        edit("cutaway.nn.feed_forward:gated", "clamp(max=limit)", "clamp(-limit, limit)")),
    ("clamped gate: up not clamped from below", "experts gpt_oss",
        edit("cutaway.nn.feed_forward:gated", "clamp(-limit, limit)", "clamp(max=limit)")),
    ("clamped gate: the one forgotten", "experts gpt_oss", edit("cutaway.nn.feed_forward:gated", " + 1)", ")")),
    ("activation: silu for quick gelu", "experts gpt_oss",
        put("cutaway.nn.feed_forward:ACTIVATIONS", "quick_gelu", lambda f: lambda x: x * x.sigmoid())),
    ("balance loss: counts as shares of the choices", "experts losses",
        edit(BALANCE + "balance_loss", "/ tokens", "/ counts_E.sum()")),
    ("balance loss: layers weighed alike, not pooled", "experts losses",
        edit(BALANCE + "balance_loss", "torch.stack([r.counts_E for r in routings]).sum(0)", "2 * routings[0].counts_E")),
    ("balance loss: shares of the logits", "experts losses", edit(BALANCE + "balance_loss", "r.scores_TE / (", "r.logits_TE / (")),
    ("balance loss: counts in float32", "experts losses",
        edit(BALANCE + "balance_loss", "counts_E.to(shares_TE.dtype)", "counts_E.float()")),
    ("choice bias: moved towards the load", "experts bias",
        edit(BALANCE + "balance_step", "load_E.mean() - load_E", "load_E - load_E.mean()")),
    ("choice bias: moved by the distance", "experts bias", edit(BALANCE + "balance_step", ".sign()", "")),
    ("load: counted again when recomputed", "experts recomputed", edit(BALANCE + "recorded", "not _in_backward()", "True")),
    ("load: the first pass is forgotten where there is a second", "experts recomputed",
        edit(BALANCE + "recorded", "not _in_backward()", "_in_backward()")),
    ("choice bias: against the median", "experts bias", edit(BALANCE + "balance_step", "load_E.mean()", "load_E.median()")),
    ("z loss: not squared", "experts losses", edit(BALANCE + "z_loss", ".square()", "")),
    ("experts: read in another order", "values mixtral", edit("cutaway.models.families.table:Binding.load", "torch.stack(parts)", "torch.stack(parts[::-1])")),
    ("mixtral: gate and up exchanged", "values mixtral", rows("mixtral", "experts", exchanged("w1", "w3"))),
    ("qwen2-moe: gate and up of the shared expert exchanged", "values qwen2_moe",
        rows("qwen2_moe", "shared_expert.", exchanged("gate_proj", "up_proj"))),
    ("deepseek: turned part of queries left in pairs (2j, 2j + 1)", "values deepseek_v2",
        rows("deepseek_v2", "q_b_proj", lambda r: r._replace(via=None))),
    ("deepseek: turned part of keys left in pairs (2j, 2j + 1)", "values deepseek_v3",
        rows("deepseek_v3", "kv_a_proj_with_mqa.weight", lambda r: r._replace(via=None))),
    ("deepseek: all keys' rows before all values' rows", "values deepseek_v2",
        edit(LATENT + "apart", "t.unflatten(0, (a.heads, -1)).split([a.plain_dim, a.value_dim], 1)", "tuple(p.unflatten(0, (a.heads, -1)) for p in t.split([a.heads * a.plain_dim, a.heads * a.value_dim]))")),
    ("deepseek: scale without YaRN's factor", "values deepseek_v2",
        edit(LATENT + "read_scale", "not (scaling and scaling.get('mscale_all_dim'))", "True")),
    ("deepseek: YaRN's factor not squared", "values deepseek_v3", edit(LATENT + "read_scale", "['mscale_all_dim']) ** 2", "['mscale_all_dim'])")),
    ("deepseek: scale by the part without position alone", "values deepseek_v2-lite",
        edit(LATENT + "read_scale", "config['qk_nope_head_dim'] + config['qk_rope_head_dim']", "config['qk_nope_head_dim']")),
    ("deepseek: latents normalized with the model's epsilon", "values deepseek_v3", put(FAMILIES, "deepseek_v3", with_wide_epsilon)),
    ("deepseek: bias of the choice read as nothing", "values deepseek_v3",
        rows("deepseek_v3", "e_score_correction_bias", lambda r: r._replace(via=via(lambda t, s: (0 * t,))))),
    ("gpt-oss: gate and up exchanged", "values gpt_oss", rows("gpt_oss", "gate_up_proj", lambda r: r._replace(ours=r.ours[::-1]))),
    ("gpt-oss: biases of gate and up one after the other", "values gpt_oss",
        rows("gpt_oss", "gate_up_proj_bias", lambda r: r._replace(via=via(lambda t, s: t.chunk(2, 1))))),
    ("gpt-oss: sinks of other heads", "values gpt_oss",
        rows("gpt_oss", "sinks", lambda r: r._replace(via=via(lambda t, s: (t.roll(1),))))),
    ("ahead: norms of token and hidden state exchanged", "ahead deepseek_v3",
        rows("deepseek_v3", "{n}.?norm.weight", exchanged("enorm", "hnorm"))),
    ("ahead: hidden state before the token", "ahead deepseek_v3",
        edit(AHEAD + "Ahead.forward", "[self.token_norm(next_TD), self.hidden_norm(hidden_TD)]", "[self.hidden_norm(hidden_TD), self.token_norm(next_TD)]")),
    ("ahead: last norm skipped", "ahead deepseek_v3", edit(AHEAD + "Decoder.look_ahead", "ahead.final_norm(made_TD)", "made_TD")),
    ("mxfp4: high half of a byte first", "packed mxfp4", edit(PACKED + "mxfp4", "[codes & 15, codes >> 4]", "[codes >> 4, codes & 15]")),
    ("mxfp4: exponents off by one", "packed mxfp4", edit("cutaway.weights.blocks:microscaled", "exponents.float() - 128", "exponents.float() - 127")),
    ("mxfp4: signs dropped", "packed mxfp4", put("cutaway.weights.blocks:", "E2M1_DOUBLED", lambda codes: tuple(map(abs, codes)))),
    ("fp8: divided by the scales", "packed fp8", edit(PACKED + "fp8", "weights.float() * factors", "weights.float() / factors")),
    ("fp8: scales take turns", "packed fp8",
        edit(PACKED + "fp8", "repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)", "repeat(TILE, TILE)")),
    ("z loss: of the scores", "experts losses", edit(BALANCE + "z_loss", "routing.logits_TE", "routing.scores_TE")),
)
# fmt: on
