"""Mistakes in losses and output layers."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants, put

LOSSES, ADAPTIVE, CAPSULES = (
    "cutaway.nn.losses:",
    "cutaway.nn.adaptive_softmax:AdaptiveSoftmax.",
    "cutaway.nn.capsules:",
)
DIVERGENCE = "cutaway.nn.divergence:"
CAPPED = "chunked bias, soft-cap, z-loss"

# fmt: off
MUTANTS = mutants(
    ("cross-entropy: gradient is p alone", "cross-entropy", edit(LOSSES + "_slopes", "-1.0", "0.0")),
    ("cross-entropy: gradient is y - p", "cross-entropy",
        edit(LOSSES + "_CrossEntropy.backward", "mul_(upstream_R[:, None])", "mul_(-upstream_R[:, None])")),
    ("cross-entropy: upstream gradient dropped", "cross-entropy",
        edit(LOSSES + "_CrossEntropy.backward", ".mul_(upstream_R[:, None])", "")),
    ("cross-entropy: probability of the wrong token", "cross-entropy",
        edit(LOSSES + "_losses", "logits_RV.gather(-1, targets_R[:, None])", "logits_RV.gather(-1, (targets_R[:, None] - 1).clamp(min=0))")),
    ("cross-entropy: mean over all rows", "cross-entropy",
        edit(LOSSES + "mean_loss", "(targets_T != IGNORED).sum()", "len(targets_T)")),
    ("cross-entropy: losses in the wrong rows", "cross-entropy",
        edit(LOSSES + "cross_entropy", "masked_scatter(asked_T, losses_R)", "masked_scatter(asked_T.flip(0), losses_R)")),
    ("z-loss: gradient without its factor of two", "cross-entropy z-loss", edit(LOSSES + "_slopes", "1 + 2 * z_loss", "1 + z_loss")),
    ("z-loss: no gradient", "cross-entropy z-loss", edit(LOSSES + "_slopes", "1 + 2 * z_loss * lse_R", "1 + 0 * lse_R")),
    ("z-loss: not squared", "cross-entropy z-loss", edit(LOSSES + "_losses", "lse_R.square()", "lse_R")),
    ("z-loss: y is scaled with p", "cross-entropy z-loss",
        edit(LOSSES + "_slopes", "slopes_RV.new_full((len(targets_R), 1), -1.0)", "-(1 + 2 * z_loss * lse_R)[:, None]")),
    ("chunked: upstream gradient dropped", "chunked plain",
        edit(LOSSES + "_Chunked.backward", ".mul_(upstream_R[rows, None])", "")),
    ("chunked: every chunk's upstream is the first's", "chunked plain",
        edit(LOSSES + "_Chunked.backward", "upstream_R[rows, None]", "upstream_R[:len(logits_RV), None]")),
    ("chunked: table's gradient of the last chunk alone", "chunked plain",
        edit(LOSSES + "_Chunked.backward", "to_table_VD.addmm_(", "to_table_VD.zero_().addmm_(")),
    ("chunked: bias's gradient of the last chunk alone", CAPPED,
        edit(LOSSES + "_Chunked.backward", "to_bias_V += slopes_RV.sum(0)", "to_bias_V.copy_(slopes_RV.sum(0))")),
    ("chunked: normalizers of the first chunk", "chunked plain",
        edit(LOSSES + "_Chunked.backward", "lse_R[rows]", "lse_R[:len(logits_RV)]")),
    ("chunked: bias forgotten", CAPPED, edit(LOSSES + "_logits", "table_VD, bias_V)", "table_VD)")),
    ("chunked: soft-cap's slope forgotten", CAPPED,
        edit(LOSSES + "_Chunked.backward", "if softcap is not None:", "if False:")),
    ("chunked: soft-cap's slope of the uncapped", CAPPED,
        edit(LOSSES + "_Chunked.backward", "logits_RV.div_(softcap).square_()", "logits_RV.square_()")),
    ("chunked: soft-cap clips", CAPPED,
        edit(LOSSES + "_logits", "torch.tanh(logits_RV.div_(softcap)).mul_(softcap)", "logits_RV.clamp(-softcap, softcap)")),
    ("adaptive softmax: cluster's own probability forgotten", "adaptive softmax",
        edit(ADAPTIVE + "log_probs", "head_TV[:, self.shortlist + i, None] + tail", "0 * head_TV[:, self.shortlist + i, None] + tail")),
    ("adaptive softmax: clusters exchanged", "adaptive softmax",
        edit(ADAPTIVE + "forward", "self.shortlist + i", "self.shortlist + 1 - i")),
    ("adaptive softmax: cluster instead of token in training", "adaptive softmax",
        edit(ADAPTIVE + "forward", "first_T[:, None])[:, 0] + inside_T", "first_T[:, None])[:, 0]")),
    ("adaptive softmax: token not counted from its cluster", "adaptive softmax",
        edit(ADAPTIVE + "forward", "targets_T[rows_R, None] - first", "(targets_T[rows_R, None] - first).flip(0)")),
    ("adaptive softmax: all clusters equally narrow", "adaptive softmax",
        edit(ADAPTIVE + "__init__", "factor ** (i + 1)", "factor")),
    ("capsules: softmax over tokens", "capsules", edit(CAPSULES + "route", "agreement_TJ.softmax(-1)", "agreement_TJ.softmax(0)")),
    ("capsules: agreement replaced, not added", "capsules",
        edit(CAPSULES + "route", "agreement_TJ = agreement_TJ + ", "agreement_TJ = ")),
    ("capsules: one round fewer", "capsules", edit(CAPSULES + "route", "range(rounds)", "range(max(1, rounds - 1))")),
    ("capsules: gradient stopped between rounds", "capsules",
        edit(CAPSULES + "route", "out_NJK[sequence_T]", "out_NJK.detach()[sequence_T]")),
    ("capsules: sequences share their parents", "capsules",
        edit(CAPSULES + "route", "torch.repeat_interleave(torch.tensor(lengths, device=votes_TJK.device))", "torch.zeros(len(votes_TJK), dtype=torch.long)")),
    ("capsules: not squashed", "capsules", edit(CAPSULES + "squash", "x_NJK * length_NJ1 / (1 + length_NJ1.square())", "x_NJK")),
    ("capsules: squashed by the length alone", "capsules", edit(CAPSULES + "squash", "1 + length_NJ1.square()", "1 + length_NJ1")),
    ("attention pooling: a plain mean", "attention pooling",
        edit(CAPSULES + "AttentionPooling.forward", "score_T1.softmax(0)", "(0 * score_T1).softmax(0)")),
    ("attention pooling: softmax over the wrong axis", "attention pooling",
        edit(CAPSULES + "AttentionPooling.forward", "score_T1.softmax(0)", "score_T1.softmax(-1)")),
    ("divergence: weighted by the other", "divergence", edit(DIVERGENCE + "kl_divergence", "p_RV.exp()", "q_RV.exp()")),
    ("divergence: impossible tokens count", "divergence",
        edit(DIVERGENCE + "kl_divergence", ".masked_fill(p_RV == -torch.inf, 0)", "")),
    ("divergence: logits taken for log-probabilities", "divergence",
        edit(DIVERGENCE + "kl_divergence", "p_RV.log_softmax(-1), q_RV.log_softmax(-1)", "p_RV.log_softmax(-1), q_RV")),
    ("divergence: k1 with the wrong sign", "divergence", put(DIVERGENCE + "ESTIMATORS", "k1", lambda _: lambda log_r: log_r)),
    ("divergence: k3 of the inverse ratio", "divergence",
        put(DIVERGENCE + "ESTIMATORS", "k3", lambda k3: lambda log_r: k3(-log_r))),
)
# fmt: on
