"""Mistakes in the models before transformers."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

NGRAM, HMM = "cutaway.classics.ngram:", "cutaway.classics.hmm:"
RECURRENT, SEQ2SEQ, BAYES = "cutaway.classics.recurrent:", "cutaway.classics.seq2seq:", "cutaway.classics.bayes:"

# fmt: off
MUTANTS = mutants(
    ("n-gram: lower levels count occurrences, not continuations", "ngram definition",
        edit(NGRAM + "KneserNey.__init__", "np.unique(grams % self.base ** length, return_counts=True)",
             "np.unique(np.repeat(grams, counts) % self.base ** length, return_counts=True)")),
    ("n-gram: what was taken is not handed on", "ngram sums", edit(NGRAM + "KneserNey._interpolate", "kept + taken * p", "kept")),
    ("n-gram: more handed on than was taken", "ngram sums", edit(NGRAM + "KneserNey._interpolate", "taken * p", "p")),
    ("n-gram: an unknown gram takes its neighbor's count", "ngram sums",
        edit(NGRAM + "KneserNey._interpolate", "level.kept[at] * known", "level.kept[at]")),
    ("n-gram: an unknown context takes its neighbor's", "ngram definition",
        edit(NGRAM + "KneserNey._interpolate", "np.where(met, (kept + taken * p) / level.total[where], p)", "(kept + taken * p) / level.total[where]")),
    ("n-gram: one discount for all in the modified form", "ngram definition",
        edit(NGRAM + "discounts_of", "if kind == 'absolute':\n        return np.full(3, share)", "if share:\n        return np.full(3, share)")),
    ("n-gram: discounts off by one count", "ngram definition", edit(NGRAM + "_level", "counts.clip(max=3) - 1", "counts.clip(max=3) - 2")),
    ("n-gram: the share of singletons without its two", "ngram definition", edit(NGRAM + "discounts_of", "n1 + 2 * n2", "n1 + n2")),
    ("n-gram: the beginning looks like token 0", "ngram definition",
        edit(NGRAM + "KneserNey._keys", "np.full(self.order - 1, self.vocab)", "np.full(self.order - 1, 0)")),
    ("n-gram: the digits of a key in reverse", "ngram definition",
        edit(NGRAM + "KneserNey._keys", "keys * self.base + padded[i:i + len(text)]", "keys + padded[i:i + len(text)] * self.base ** i")),
    ("n-gram: one token of context too few", "ngram sums", edit(NGRAM + "KneserNey.distribution", "-self.order:", "-self.order + 1 or len(context):")),

    ("hmm: the state moves before its first token", "hmm paths",
        edit(HMM + "_forward", "model.start_S.expand", "(model.start_S @ model.move_SS).expand")),
    ("hmm: moves the other way round", "hmm paths", edit(HMM + "_forward", "@ model.move_SS", "@ model.move_SS.T")),
    ("hmm: belief is not normalized", "hmm paths", edit(HMM + "_forward", "joint_BS / p_B[:, None]", "joint_BS")),
    ("hmm: rows in order of steps, not of the text", "hmm paths",
        edit(HMM + "log_probabilities", "steps.order_T.argsort()", "steps.order_T")),
    ("hmm: slopes taken for counts", "hmm learning", edit(HMM + "baum_welch", "table.detach() * slope", "slope")),
    ("hmm: the prior is left out", "hmm learning", edit(HMM + "baum_welch", "slope + prior", "slope")),
    ("hmm: columns sum to one", "hmm learning", edit(HMM + "_rows", "counts.sum(-1, keepdim=True)", "counts.sum(0, keepdim=True)")),

    ("rnn: no squashing", "recurrent rnn", edit(RECURRENT + "elman", "torch.tanh(x_BG + h_BG)", "x_BG + h_BG")),
    ("rnn: forgets its state", "recurrent rnn", edit(RECURRENT + "elman", "x_BG + h_BG", "x_BG")),
    ("lstm: input and forget gate swapped", "recurrent lstm", edit(RECURRENT + "lstm", "i_BD, f_BD, g_BD, o_BD =", "f_BD, i_BD, g_BD, o_BD =")),
    ("lstm: candidate squashed by a sigmoid", "recurrent lstm", edit(RECURRENT + "lstm", "g_BD.tanh()", "g_BD.sigmoid()")),
    ("lstm: says the cell itself", "recurrent lstm", edit(RECURRENT + "lstm", "c_BD.tanh()", "c_BD")),
    ("lstm: what it says comes from the old cell", "recurrent lstm", edit(RECURRENT + "lstm", "c_BD.tanh()", "state[1].tanh()")),
    ("lstm: no gate on the output", "recurrent lstm", edit(RECURRENT + "lstm", "o_BD.sigmoid() * ", "")),
    ("gru: keeps what it should replace", "recurrent gru", edit(RECURRENT + "gru", "keep_BD * state[0] + (1 - keep_BD)", "(1 - keep_BD) * state[0] + keep_BD")),
    ("gru: the reset gate on the input's part too", "recurrent gru", edit(RECURRENT + "gru", "xn + (xr + hr).sigmoid() * hn", "(xr + hr).sigmoid() * (xn + hn)")),
    ("gru: reset and update swapped", "recurrent gru", edit(RECURRENT + "gru", "keep_BD = (xz + hz).sigmoid()", "keep_BD = (xr + hr).sigmoid()")),
    ("recurrence: states given in the order of the text, used in that of length", "recurrent lstm",
        edit(RECURRENT + "RecurrentLayer.forward", "tuple((part[steps.order_N] for part in state))", "state")),
    ("recurrence: last states in the order of length", "recurrent lstm",
        edit(RECURRENT + "RecurrentLayer.forward", "part[back_N]", "part")),
    ("recurrence: given states are ignored", "recurrent gru",
        edit(RECURRENT + "RecurrentLayer.forward", "if state is None", "if True")),
    ("recurrence: gradients stop after one step", "recurrent rnn",
        edit(RECURRENT + "RecurrentLayer.step", "self.recurrent(state[0])", "self.recurrent(state[0].detach())")),
    ("recurrence: sequences that ended go on", "recurrent lstm",
        edit(RECURRENT + "advanced", "torch.cat([b, a[ended:]])", "torch.cat([b, b[:1].expand(len(a) - ended, -1)])")),

    ("seq2seq: the decoder begins with nothing", "seq2seq plain",
        edit(SEQ2SEQ + "Seq2Seq.forward", "memory.state, []", "tuple((0 * part for part in memory.state)), []")),
    ("seq2seq: each target reads its neighbor's source", "seq2seq attention",
        edit(SEQ2SEQ + "Seq2Seq.forward", "memory = memory.rows(steps.order_N)", "memory = memory.rows(steps.order_N.roll(1))")),
    ("seq2seq: padding is looked at", "seq2seq attention",
        edit(SEQ2SEQ + "AdditiveAttention.shares", ".masked_fill(~memory.is_NS, -torch.inf)", "")),
    ("seq2seq: scores without tanh", "seq2seq attention",
        edit(SEQ2SEQ + "AdditiveAttention.shares", "torch.tanh(self.query(asks_BD)[:, None] + memory.keys_NSD)", "self.query(asks_BD)[:, None] + memory.keys_NSD")),
    ("seq2seq: shares over the batch", "seq2seq attention", edit(SEQ2SEQ + "AdditiveAttention.shares", "softmax(-1)", "softmax(0)")),
    ("seq2seq: looks up the keys instead of the states", "seq2seq attention",
        edit(SEQ2SEQ + "AdditiveAttention.forward", "memory.hidden_NSD", "memory.keys_NSD")),
    ("seq2seq: asks with the new state, not with the last", "seq2seq attention",
        edit(SEQ2SEQ + "Seq2Seq.step", "return (torch.cat([state[0], found_BD], -1), state)",
             "return (torch.cat([state[0], self.attention(state[0], memory)], -1), state)")),
    ("seq2seq: decodes the same token for ever", "seq2seq writing",
        edit(SEQ2SEQ + "Seq2Seq.write", "hidden_BD, state = self.step(tokens_B, state, memory)", "hidden_BD, state = self.step(tokens_B * 0 + begin, state, memory)")),
    ("seq2seq: goes on after the end", "seq2seq writing", edit(SEQ2SEQ + "Seq2Seq.write", "row[:row.index(end)] if end in row else row", "row")),
    ("seq2seq: all stop with the first", "seq2seq writing", edit(SEQ2SEQ + "Seq2Seq.write", ".any(0).all()", ".any(0).any()")),

    ("bayes: no prior", "bayes fractions", edit(BAYES + "NaiveBayes.joint", "self.prior_C + ", "0 * self.prior_C + ")),
    ("bayes: classes are not smoothed", "bayes fractions", edit(BAYES + "fit_naive_bayes", "member_NC.sum(0) + smoothing", "member_NC.sum(0)")),
    ("bayes: words normalized over classes", "bayes fractions", edit(BAYES + "fit_naive_bayes", "words_CV.sum(-1, keepdim=True)", "words_CV.sum(0, keepdim=True)")),
    ("bayes: a word counts once however often it stands there", "bayes fractions", edit(BAYES + "NaiveBayes.joint", "counts_NV @", "counts_NV.clamp(max=1) @")),
    ("logistic: the bias is penalized too", "bayes newton",
        edit(BAYES + "fit_logistic", "weights_CV.square().sum()", "(weights_CV.square().sum() + bias_C.square().sum())")),
    ("logistic: the mean is penalized as if it were the sum", "bayes newton", edit(BAYES + "fit_logistic", "reduction='sum'", "reduction='mean'")),
    ("logistic: the penalty without its half", "bayes newton", edit(BAYES + "fit_logistic", "penalty / 2 * w", "penalty * w")),
)
# fmt: on
