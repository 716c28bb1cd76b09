"""The models before transformers against loops over their definitions, all paths of a chain, and torch.nn."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.classics import bayes, hmm
from cutaway.classics.ngram import KneserNey
from cutaway.classics.recurrent import Recurrent, RecurrentSpec
from cutaway.classics.seq2seq import Seq2Seq

LENGTHS = [3, 7, 1, 5, 7]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(count: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


def loud(module: nn.Module, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """Every parameter random and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=gain * parameter.shape[-1] ** -0.5, generator=generator)
    return module


def same(found: Tensor, expected: Tensor, what: str, atol: float = 1e-12) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    gap = (found - expected).abs().max().item()
    assert gap <= atol, f"{what}: {gap:.1e} apart"


# ---- n-grams


def zipf(count: int, vocab: int, seed: int) -> list[int]:
    """A text in which some n-grams come once, some twice, some often, and in which a token depends on the last one."""
    weights_VV = torch.rand(vocab, vocab, generator=torch.Generator().manual_seed(99)) ** 6
    weights_VV = weights_VV * torch.arange(1, vocab + 1) ** -1.0
    generator, text = torch.Generator().manual_seed(seed), [0]
    while len(text) < count:
        text.append(int(torch.multinomial(weights_VV[text[-1]], 1, generator=generator)))
    return text


TEXTS, VOCAB = [zipf(400, 149, 1), zipf(60, 149, 2), [3]], 150  # token 149 never occurs


def by_definition(order: int, modified: bool) -> Callable[[Sequence[int], int], float]:
    """Kneser-Ney as Chen & Goodman write it, from dictionaries of tuples: p(token | context)."""
    counts: dict[int, Counter] = {n: Counter() for n in range(1, order + 1)}
    for text in TEXTS:
        padded = ["<s>"] * (order - 1) + text
        counts[order].update(tuple(padded[i : i + order]) for i in range(len(text)))
    for n in range(order - 1, 0, -1):
        counts[n].update(gram[1:] for gram in counts[n + 1])
    amounts = {n: Counter(table.values()) for n, table in counts.items()}
    following: dict[tuple, list[int]] = defaultdict(list)
    for table in counts.values():
        for gram, count in table.items():
            following[gram[:-1]].append(count)

    def discount(n: int, count: int) -> float:
        of = amounts[n]
        share = of[1] / (of[1] + 2 * of[2])
        if not modified:
            return share
        i = min(count, 3)
        return i - (i + 1) * share * of[i + 1] / of[i]

    def p(context: tuple, token: int) -> float:
        lower = p(context[1:], token) if context else 1 / VOCAB
        if context not in following:
            return lower
        n, total = len(context) + 1, sum(following[context])
        count = counts[n][(*context, token)]
        taken = sum(discount(n, c) for c in following[context])
        return (count - discount(n, count) if count else 0) / total + taken / total * lower

    return lambda context, token: p((*["<s>"] * (order - 1), *context)[len(context) :], token)


def ngram_definition() -> None:
    """Probabilities of a new text, with either discount, at orders 1 to 3."""
    for order, modified in itertools.product((1, 2, 3), (False, True)):
        model = KneserNey(TEXTS, VOCAB, order, "modified" if modified else "absolute")
        reference, text = by_definition(order, modified), [*zipf(60, 149, 3), 149, 149, 2]
        found = model.probabilities(text)
        expected = [reference(text[max(0, i - order + 1) : i], token) for i, token in enumerate(text)]
        same(torch.tensor(found), torch.tensor(expected, dtype=torch.float64), f"order {order}, modified {modified}")


def ngram_sums() -> None:
    """Over the vocabulary they sum to 1 after any context, seen or not; and they are those of `probabilities`."""
    for order in (1, 2, 3, 5):
        model = KneserNey(TEXTS, VOCAB, order)
        for context in [[], [0], [149], [3, 3, 3, 3], TEXTS[0][:9], [1, 2, 3, 4, 5, 6, 7]]:
            p_V = model.distribution(context)
            assert abs(p_V.sum() - 1) < 1e-12, f"order {order} after {context}: sum {p_V.sum()}"
            assert p_V.min() > 0, "something became impossible"
            expected = [model.probabilities([*context, token])[-1] for token in range(VOCAB)]
            same(torch.tensor(p_V), torch.tensor(expected), "distribution against probabilities")


# ---- hidden Markov models


def paths(model: hmm.HMM, tokens: list[int]) -> tuple[float, list[Tensor]]:
    """p(tokens), and how often each start, move and emission is expected, by going through every path of states."""
    states, total = len(model.start_S), 0.0
    counts = [torch.zeros_like(table) for table in model]
    for path in itertools.product(range(states), repeat=len(tokens)):
        p = float(model.start_S[path[0]])
        p *= math.prod(float(model.move_SS[a, b]) for a, b in itertools.pairwise(path))
        p *= math.prod(float(model.emit_SV[z, x]) for z, x in zip(path, tokens, strict=True))
        total += p
        counts[0][path[0]] += p
        for a, b in itertools.pairwise(path):
            counts[1][a, b] += p
        for z, x in zip(path, tokens, strict=True):
            counts[2][z, x] += p
    return total, [count / total for count in counts]


SENTENCES = [[0, 2, 1, 1], [3], [2, 2, 0, 3, 1], [1, 0]]


def hmm_paths() -> None:
    """The forward algorithm is the sum over all paths, for each beginning of each sequence."""
    model, tokens = hmm.fresh(3, 5, seed=4), torch.tensor([*itertools.chain(*SENTENCES)])
    found = hmm.log_probabilities(model, tokens, [len(s) for s in SENTENCES]).split([len(s) for s in SENTENCES])
    for log_p_T, sentence in zip(found, SENTENCES, strict=True):
        whole = [paths(model, sentence[: i + 1])[0] for i in range(len(sentence))]
        same(log_p_T.cumsum(0), torch.tensor(whole, dtype=torch.float64).log(), "log p of a beginning")


def hmm_learning() -> None:
    """A step of Baum-Welch is the expected counts, normalized; and it never makes the text less likely."""
    model, tokens = hmm.fresh(3, 5, seed=4), torch.tensor([*itertools.chain(*SENTENCES)])
    lengths = [len(s) for s in SENTENCES]
    each = [paths(model, sentence) for sentence in SENTENCES]
    for prior in (0.0, 0.5):
        better, log_p = hmm.baum_welch(model, tokens, lengths, prior)
        assert abs(log_p - sum(math.log(p) for p, _ in each)) < 1e-11
        for i, table in enumerate(better):
            counts = sum(c[i] for _, c in each) + prior
            same(table, counts / counts.sum(-1, keepdim=True), f"table {i}, prior {prior}")
    before = -math.inf
    for _ in range(25):
        model, log_p = hmm.baum_welch(model, tokens, lengths)
        assert log_p > before - 1e-9, "less likely than before"
        before = log_p


# ---- recurrence

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
NAMES = {
    "weight_ih": "input.weight",
    "weight_hh": "recurrent.weight",
    "bias_ih": "input.bias",
    "bias_hh": "recurrent.bias",
}


def theirs(kind: str, ours: Recurrent) -> nn.Module:
    """torch.nn's stack with our weights."""
    layers, width, inputs = len(ours.layers), ours.spec.width, ours.layers[0].input.in_features
    reference = TORCH[kind](inputs, width, layers, batch_first=True).double()
    weights = ours.state_dict()
    reference.load_state_dict(
        {f"{theirs}_l{i}": weights[f"layers.{i}.{name}"] for i in range(layers) for theirs, name in NAMES.items()}
    )
    return reference


def recurrent(kind: str) -> None:
    """Values, last states and gradients of a stack over unequal sequences that begin in given states."""
    ours = loud(Recurrent(5, RecurrentSpec(kind, 4, layers=2)))
    reference, count = theirs(kind, ours), len(ours.layers[0].start(1))
    x_TI, probe_TD = drawn(sum(LENGTHS), 5), drawn(sum(LENGTHS), 4, seed=1)
    begin = drawn(count, 2, len(LENGTHS), 4, seed=2)
    grads = []
    for run in (_ours, _theirs):
        x, start = x_TI.clone().requires_grad_(), begin.clone().requires_grad_()
        model = ours if run is _ours else reference
        out_TD, last = run(model, x, start)
        ((out_TD * probe_TD).sum() + (last * last).sum()).backward()
        grads.append([out_TD, last, x.grad, start.grad, *(p.grad for _, p in _ordered(model))])
    for i, (found, expected) in enumerate(zip(*grads, strict=True)):
        same(found, expected, f"{kind}, number {i}")


def _ours(model: Recurrent, x_TI: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    out_TD, states = model(x_TI, LENGTHS, [tuple(layer) for layer in start.transpose(0, 1)])
    return out_TD, torch.stack([torch.stack(state) for state in states], 1)


def _theirs(model: nn.Module, x_TI: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    packed = nn.utils.rnn.pack_sequence(x_TI.split(LENGTHS), enforce_sorted=False)
    out, last = model(packed, tuple(start) if len(start) == 2 else start[0])
    padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    rows = torch.cat([row[:n] for row, n in zip(padded, LENGTHS, strict=True)])
    return rows, torch.stack(last) if isinstance(last, tuple) else last[None]


def _ordered(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """In one order, by our names."""
    named = [(name, p) for name, p in model.named_parameters()]
    spelled = {f"{theirs}_l{i}": f"layers.{i}.{ours}" for i in range(2) for theirs, ours in NAMES.items()}
    return sorted((spelled.get(name, name), p) for name, p in named)


# ---- encoder and decoder

SOURCES, TARGETS, WORDS = [4, 1, 6], [3, 5, 2], 9


def seq2seq(attention: bool) -> None:
    """Values and gradients against loops over torch.nn.LSTMCell, one sequence and one step at a time."""
    ours = loud(Seq2Seq(WORDS, 4, attention))
    source_T, target_T = ids(sum(SOURCES), WORDS), ids(sum(TARGETS), WORDS, seed=1)
    hidden_TD = ours(ours.read(source_T, SOURCES), target_T, TARGETS)
    logits_TV = ours.logits(hidden_TD)
    probe_TV = drawn(*logits_TV.shape, seed=2)
    pairs = zip(source_T.split(SOURCES), target_T.split(TARGETS), strict=True)
    expected_TV = torch.cat([_alone(ours, source, target) for source, target in pairs])
    same(logits_TV, expected_TV, "logits")
    parameters = list(ours.parameters())
    mine, other = (torch.autograd.grad((x * probe_TV).sum(), parameters) for x in (logits_TV, expected_TV))
    for (name, _), found, expected in zip(ours.named_parameters(), mine, other, strict=True):
        same(found, expected, f"gradient of {name}")


def _cell(layer: nn.Module) -> Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    weights = [layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias]
    return lambda x, state: torch.lstm_cell(x[None], [s[None] for s in state], *weights)


def _alone(m: Seq2Seq, source: Tensor, target: Tensor) -> Tensor:
    read, write = _cell(m.encoder.layers[0]), _cell(m.decoder)
    state, hidden = (torch.zeros(4).double(), torch.zeros(4).double()), []
    for token in source:
        state = tuple(s[0] for s in read(m.source.weight[token], state))
        hidden.append(state[0])
    rows = []
    for token in target:
        x = m.target.weight[token]
        if m.attention is None:
            state = tuple(s[0] for s in write(x, state))
            rows.append(m.head.weight @ state[0] + m.head.bias)
            continue
        a = m.attention
        asks = a.query.weight @ state[0] + a.query.bias
        scores = torch.stack([a.score.weight[0] @ torch.tanh(asks + a.key.weight @ h) for h in hidden])
        found = sum(share * h for share, h in zip(scores.exp() / scores.exp().sum(), hidden, strict=True))
        state = tuple(s[0] for s in write(torch.cat([x, found]), state))
        rows.append(m.head.weight @ torch.cat([state[0], found]) + m.head.bias)
    return torch.stack(rows)


def seq2seq_writing() -> None:
    """Greedy decoding is teacher forcing with one's own words; it ends at the end, alone or in a batch."""
    m, begin, end = loud(Seq2Seq(WORDS, 4, True), seed=132, gain=3.0), 1, 2
    source_T = ids(sum(SOURCES), WORDS, seed=5)
    with torch.no_grad():
        memory = m.read(source_T, SOURCES)
        together = m.write(memory, begin, end, 12)
        assert {len(row) == 12 for row in together} == {True, False}, "some must end and some must not"
        for source, words in zip(source_T.split(SOURCES), together, strict=True):
            alone = m.read(source, [len(source)])
            assert m.write(alone, begin, end, 12) == [words]
            given = torch.tensor([begin, *words])
            best = m.logits(m(alone, given, [len(given)])).argmax(-1).tolist()
            assert best[: len(words)] == words
            assert len(words) == 12 or best[-1] == end


# ---- bags of words

BAGS = torch.tensor([[3, 0, 1, 0], [1, 1, 0, 0], [0, 2, 2, 1], [0, 0, 4, 0], [1, 0, 1, 1]])
LABELS = torch.tensor([0, 0, 1, 1, 2])


def bayes_fractions() -> None:
    """Naive Bayes in whole numbers and fractions."""
    model = bayes.fit_naive_bayes(BAGS, LABELS, 3, smoothing=2)
    rows = list(zip(BAGS.tolist(), LABELS.tolist(), strict=True))
    joint = []
    for c in range(3):
        mine = [bag for bag, label in rows if label == c]
        words = [sum(bag[w] for bag in mine) + 2 for w in range(4)]
        prior = Fraction(len(mine) + 2, len(rows) + 6)
        joint.append([prior * math.prod(Fraction(words[w], sum(words)) ** bag[w] for w in range(4)) for bag, _ in rows])
    for n in range(len(rows)):
        column = [joint[c][n] for c in range(3)]
        bag = BAGS[n : n + 1].double()
        exact = [torch.tensor([math.log(x) for x in values], dtype=torch.float64) for values in (column, [sum(column)])]
        same(model.joint(bag)[0], exact[0], "joint")
        same(model.evidence(bag), exact[1], "evidence")
        shares = torch.tensor([float(x / sum(column)) for x in column], dtype=torch.float64)
        same(model.posterior(bag)[0].exp(), shares, "posterior")


def bayes_newton() -> None:
    """Logistic regression against Newton's method on the same objective."""
    found = bayes.fit_logistic(BAGS, LABELS, 3, penalty=0.7)
    x_NV = torch.cat([BAGS, torch.ones(len(BAGS), 1)], 1).double()

    def loss(flat: Tensor) -> Tensor:
        weights = flat.view(3, 5)
        return F.cross_entropy(x_NV @ weights.T, LABELS, reduction="sum") + 0.35 * weights[:, :4].square().sum()

    flat = torch.zeros(15).double()
    for _ in range(12):
        slope, curve = torch.autograd.functional.jacobian(loss, flat), torch.autograd.functional.hessian(loss, flat)
        flat = flat - torch.linalg.lstsq(curve + 1e-12 * torch.eye(15), slope).solution
    same(found.posterior(BAGS.double()), F.linear(x_NV, flat.view(3, 5)).log_softmax(-1), "posterior", 1e-6)
    same(found.weights_CV, flat.view(3, 5)[:, :4], "weights", 1e-6)


PROOFS: dict[str, Callable[[], object]] = {
    "ngram definition": ngram_definition,
    "ngram sums": ngram_sums,
    "hmm paths": hmm_paths,
    "hmm learning": hmm_learning,
    "recurrent rnn": lambda: recurrent("rnn"),
    "recurrent lstm": lambda: recurrent("lstm"),
    "recurrent gru": lambda: recurrent("gru"),
    "seq2seq plain": lambda: seq2seq(attention=False),
    "seq2seq attention": lambda: seq2seq(attention=True),
    "seq2seq writing": seq2seq_writing,
    "bayes fractions": bayes_fractions,
    "bayes newton": bayes_newton,
}
