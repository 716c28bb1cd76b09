"""Mistakes in rotations, their scalings, sinusoids and biases by distance."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from cutaway.models.families.table import split
from kit.mutants.models import exchanged, rows
from kit.mutation import edit, mutants

FAMILIES = "cutaway.models.families."
ROPE, SCALING, BIAS = "cutaway.nn.positions:", "cutaway.nn.rope_scaling:", "cutaway.nn.position_bias:"

# fmt: off
ROTATION = mutants(
    ("rotation: attention factor ignored", "rope table yarn", edit(ROPE + "rotation", "attention_factor(spec.scaling) if spec.scaling else 1.0", "1.0")),
    ("rotation: attention factor on cosines alone", "rope table longrope", edit(ROPE + "rotation", "(length * angle_TK.sin())", "angle_TK.sin()")),
    ("rotation: reach one too short", "rope table longrope", edit(ROPE + "rotation", "positions_T.max() + 1", "positions_T.max()")),
    ("rotation: one reach for all", "rope reach longrope", edit(ROPE + "rope_frequencies", "torch.as_tensor(reach, device=device)", "torch.as_tensor(reach, device=device).max()")),
    ("partial rotation: frequencies of the whole head", "rope complex partial", edit(ROPE + "rope_frequencies", "/ dim", "/ head_dim")),
    ("partial rotation: the last coordinates", "rope complex partial",
        edit(ROPE + "rotate", "torch.cat([turned_THK, still_THK], -1)", "torch.cat([still_THK, turned_THK], -1)")),
    ("partial rotation: the rest dropped to zero", "rope complex partial",
        edit(ROPE + "rotate", "torch.cat([turned_THK, still_THK], -1)", "torch.cat([turned_THK, 0 * still_THK], -1)")),
    ("rotation: position counted from the other end", "rope distance 64", edit(ROPE + "rotation", "positions_T.double()", "positions_T.double().square()")),
    ("rotation: a shear", "rope distance 2", edit(ROPE + "rotate", "[-b_THk, a_THk]", "[b_THk, a_THk]")),
    ("layouts: halves where pairs are", "rope layouts", edit(ROPE + "deinterleave", "(-1, 2)", "(2, -1)")),
    ("layouts: not put back", "rope layouts", edit(ROPE + "rotate_interleaved", "interleave(rotate(deinterleave(x_THK), turn))", "rotate(deinterleave(x_THK), turn)")),
    ("layouts: one pairing for the other", "rope layouts", edit(ROPE + "rotate_interleaved", "interleave(rotate(deinterleave(x_THK), turn))", "rotate(x_THK, turn)")),
)

SCALED = mutants(
    ("ntk: exponent forgotten", "rope ntk", edit(SCALING + "_slowest_by", "factor ** (1 / exponent_k[-1])", "factor")),
    ("ntk: every pair slowed", "rope ntk", edit(SCALING + "_slowest_by", "(base * factor ** (1 / exponent_k[-1])) ** (-exponent_k)", "base ** -exponent_k / factor")),
    ("dynamic: within the trained length too", "rope table dynamic", edit(SCALING + "_dynamic", "reach.clamp(min=s.original_context)", "reach")),
    ("dynamic: by the whole ratio", "rope table dynamic", edit(SCALING + "_dynamic", "1 + s.factor * excess", "s.factor * (1 + excess)")),
    ("dynamic: factor forgotten", "rope table dynamic", edit(SCALING + "_dynamic", "s.factor * excess", "excess")),
    ("yarn: ramp backwards", "rope table yarn", edit(SCALING + "_yarn", "1 - _ramp", "_ramp")),
    ("yarn: low and high swapped", "rope table yarn", edit(SCALING + "_yarn", "pair_making(s.high), pair_making(s.low)", "pair_making(s.low), pair_making(s.high)")),
    ("yarn: always truncated", "rope table yarn-gpt-oss", edit(SCALING + "_yarn", "if s.truncate", "if True")),
    ("yarn: never truncated", "rope table yarn", edit(SCALING + "_yarn", "if s.truncate", "if False")),
    ("yarn: rounded inward", "rope table yarn", edit(SCALING + "_yarn", "math.floor(first), math.ceil(last)", "math.ceil(first), math.floor(last)")),
    ("yarn: pairs of the whole head", "rope table yarn", edit(SCALING + "_yarn", "return pairs *", "return 2 * pairs *")),
    ("yarn: turns in radians", "rope table yarn", edit(SCALING + "_yarn", "turns * 2 * math.pi", "turns")),
    ("yarn: mscale ignored", "rope table yarn-deepseek", edit(SCALING + "_yarn_attention_factor", "s.mscale and s.mscale_all_dim", "False")),
    ("yarn: mscales swapped", "rope table yarn-deepseek",
        edit(SCALING + "_yarn_attention_factor", "yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim)",
             "yarn_mscale(s.factor, s.mscale_all_dim) / yarn_mscale(s.factor, s.mscale)")),
    ("yarn: stated attention factor ignored", "rope table yarn-stated", edit(SCALING + "attention_factor", "scaling.attention_factor is not None", "False")),
    ("yarn: log to another base", "rope table yarn", edit(SCALING + "yarn_mscale", "math.log(", "math.log2(")),
    ("longrope: short and long swapped", "rope table longrope", edit(SCALING + "_longrope", "long_k, short_k)", "short_k, long_k)")),
    ("longrope: long from the trained length on", "rope table longrope", edit(SCALING + "_longrope", "reach > s.original_context", "reach >= s.original_context")),
    ("longrope: multiplied", "rope table longrope", edit(SCALING + "_longrope", "plain(base, exponent_k) /", "plain(base, exponent_k) *")),
    ("longrope: attention factor without the root", "rope table longrope", edit(SCALING + "_longrope_attention_factor", "math.sqrt(", "(")),
    ("llama3: blended pairs left as they were", "rope table llama3", edit(SCALING + "_ramp", ".clamp(0, 1)", ".clamp(0, 1).ceil()")),
)

ADDED = mutants(
    ("sinusoids: cosines first", "sinusoids by hand", edit(ROPE + "sinusoids", "[angle_Tk.sin(), angle_Tk.cos()]", "[angle_Tk.cos(), angle_Tk.sin()]")),
    ("sinusoids: layouts exchanged", "sinusoids", edit(ROPE + "sinusoids", "layout == 'concatenated'", "layout != 'concatenated'")),
    ("sinusoids: another base", "sinusoids by hand", edit(ROPE + "sinusoids", "RopeSpec(base)", "RopeSpec(base / 10)")),
    ("alibi: slopes from one half on missing", "alibi slopes", edit(BIAS + "alibi_slopes", "torch.arange(1, below + 1)", "torch.arange(below)")),
    ("alibi: further heads' slopes in line", "alibi slopes", edit(BIAS + "alibi_slopes", "torch.arange(heads - below) + 0.5", "torch.arange(heads - below) + below + 1")),
    ("alibi: further heads' slopes every one", "alibi slopes", edit(BIAS + "alibi_slopes", "torch.arange(heads - below) + 0.5", "torch.arange(heads - below) / 2 + 0.5")),
    ("alibi: steps by the number of heads", "alibi slopes", edit(BIAS + "alibi_slopes", "power_H.double() / below", "power_H.double() / heads")),
    ("alibi: a reward", "alibi", edit(BIAS + "Alibi.forward", "-slope_H11 *", "slope_H11 *")),
    ("alibi: later keys rewarded", "alibi", edit(BIAS + "Alibi.forward", "-slope_H11 * distance_QS.abs()", "slope_H11 * distance_QS")),
    ("alibi: slopes backwards", "alibi", edit(BIAS + "Alibi.forward", "alibi_slopes(self.heads, q_HQK.device)", "alibi_slopes(self.heads, q_HQK.device).flip(0)")),
    ("buckets: sides exchanged", "t5 buckets", edit(BIAS + "buckets_of", "distance_QS > 0", "distance_QS < 0")),
    ("buckets: own position counted as later", "t5 buckets", edit(BIAS + "buckets_of", "distance_QS > 0", "distance_QS >= 0")),
    ("buckets: causal ones look ahead", "t5 buckets", edit(BIAS + "buckets_of", "(-distance_QS).clamp(min=0)", "distance_QS.clamp(min=0)")),
    ("buckets: one late", "t5 buckets", edit(BIAS + "buckets_of", "right=True", "right=False")),
    ("buckets: rounding skips a distance", "t5 buckets", edit(BIAS + "_starts", "(far - 1e-09).ceil()", "far.round()")),
    ("buckets: far ones linear", "t5 buckets", edit(BIAS + "_starts", "half * (max_distance / half) ** step", "half + (max_distance - half) * step")),
    ("buckets: no direction", "t5 buckets", edit(BIAS + "buckets_of", "if spec.bidirectional else 0", "if False else 0")),
    ("relative bias: heads and queries exchanged", "t5 bias", edit(BIAS + "RelativeBias.forward", ".permute(2, 0, 1)", ".permute(2, 1, 0)")),
    ("relative bias: half detached", "t5 bias causal", edit(BIAS + "RelativeBias.forward", "self.weight[", "(self.weight / 2 + self.weight.detach() / 2)[")),
)

READ = mutants(
    ("reach: one for the whole batch", "values phi3-long",
        edit("cutaway.nn.attention:BlockDiagonal.reach", "ends(positions_T, self.lengths)", "ends(positions_T, [len(positions_T)])")),
    ("reach: of the span, not of the text", "cache phi3-long", edit("cutaway.engine.cache:Spans.reach", ".maximum(told_T)", "")),
    ("reach: the engine does not say how long a text may become", "replies phi3-long",
        edit("cutaway.engine.runner:Modules._memory", "Paged(self.pool, sequence.limit)", "Paged(self.pool)")),
    ("reach: as if texts were longer", "values phi3-long", edit("cutaway.nn.attention:ends", "- 1] + 1)", "- 1] + 20)")),
    ("tables: partial rotation ignored", "values phi3", edit(FAMILIES + "rope:read_rope", "part != 1.0", "part > 1.0")),
    ("tables: a stated attention factor dropped", "values llama-yarn", edit(FAMILIES + "rope:_optional", "float(value)", "None")),
    ("tables: how far a model is extended, doubled", "values phi3-long", edit(FAMILIES + "rope:_extended", "float(", "2 * float(")),
    ("tables: gate and up exchanged, fused", "values phi3", rows("phi3", "gate_up_proj.weight", lambda r: r._replace(ours=r.ours[::-1]))),
    ("tables: fused q, k, v whole matrices for heads", "values bloom", rows("bloom", "query_key_value.*", lambda r: r._replace(via=split(0)))),
    ("tables: a window in every layer", "values gemma2", edit(FAMILIES + "gemma3:read_windows", "window if kind == LOCAL else None", "window")),
    ("tables: norms around OPT's sublayers exchanged", "values opt",
        rows("opt", "layers.*layer_norm*", exchanged("self_attn_layer_norm", "final_layer_norm"))),
)
# fmt: on

MUTANTS = (*ROTATION, *SCALED, *ADDED, *READ)
