"""Views into a model, against transformers' own outputs and hooks on its modules, scipy, and sums written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from cutaway.inside import geometry, rome
from cutaway.inside.ablation import Target, without
from cutaway.inside.attention import flow, maps, max_flow, reach, rollout
from cutaway.inside.induction import repeated, score
from cutaway.inside.lens import lens_logits
from cutaway.inside.patching import patched
from cutaway.inside.sites import states
from cutaway.models.decoder import Decoder
from kit import twins
from kit.precision import all_float64
from kit.proofs.models import agree, bound

EXACT = bound(torch.float64)
FAMILIES = ("llama", "gemma3", "gpt2")
LENGTH = 11


@cache
def prompt(seed: int = 0) -> Tensor:
    """Token ids for every model."""
    return torch.randint(twins.VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(seed))


def model_of(name: str) -> Decoder:
    """Ours with the twin's weights."""
    model = twins.ours(twins.twin(name))
    assert isinstance(model, Decoder)
    return model


def asked(name: str, tokens_T: Tensor, **settings: bool) -> Any:
    """What the reference answers."""
    with all_float64(), torch.no_grad():
        return twins.twin(name).reference(tokens_T[None], **settings)


def attention_maps(name: str) -> None:
    """Weights of every layer and head are those that transformers returns."""
    expected = [weights[0] for weights in asked(name, prompt(), output_attentions=True).attentions]
    found = maps(model_of(name), prompt())
    agree(found, expected, EXACT)
    agree([reach(found[1])], [_reach(expected[1])], EXACT)


def _reach(weights_HQS: Tensor) -> Tensor:
    p = weights_HQS.numpy()
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return torch.from_numpy(np.exp(-(p * logs).sum(-1)).mean(-1))


def logit_lens(name: str) -> None:
    """transformers' hidden states after each block, through its own norm and head."""
    reference: Any = twins.twin(name).reference
    out = asked(name, prompt(), output_hidden_states=True)
    norm = reference.transformer.ln_f if name == "gpt2" else reference.model.norm
    with all_float64(), torch.no_grad():
        expected = [*(reference.lm_head(norm(h[0])) for h in out.hidden_states[:-1]), out.logits[0]]
    model = model_of(name)
    agree([lens_logits(model, x_TD) for x_TD in states(model, prompt())], expected, EXACT)


# ---- attention over layers


def random_maps(layers: int, tokens: int) -> list[Tensor]:
    """Causal weights of three heads."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(layers, 3, tokens, tokens, generator=generator, dtype=torch.float64) * 2
    return [*scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf).softmax(-1)]


def _pipes(layers: list[Tensor]) -> np.ndarray:
    """Half from the heads' mean, half from the residual stream, by loops: [layer][to][from]."""
    heads, tokens = layers[0].shape[:2]
    pipes = np.zeros((len(layers), tokens, tokens))
    for n, to, start in itertools.product(range(len(layers)), range(tokens), range(tokens)):
        pipes[n, to, start] = 0.5 * sum(float(layers[n][h, to, start]) for h in range(heads)) / heads + 0.5 * (
            to == start
        )
    return pipes


def attention_rollout() -> None:
    """The sum over all ways from an input to an output of the product of their weights."""
    layers = random_maps(3, 4)
    pipes, expected = _pipes(layers), np.zeros((4, 4))
    for a, b, c, d in itertools.product(range(4), repeat=4):
        expected[d, a] += pipes[0, b, a] * pipes[1, c, b] * pipes[2, d, c]
    agree([rollout(layers)], [torch.from_numpy(expected)], 1e-12)


def attention_flow() -> None:
    """scipy's largest flow through the same graph, in whole numbers."""
    layers, unit = random_maps(3, 5), 2**28
    pipes = _pipes(layers)
    graph = np.zeros((20, 20), dtype=np.int32)
    for n, to, start in itertools.product(range(3), range(5), range(5)):
        graph[5 * n + start, 5 * (n + 1) + to] = round(pipes[n, to, start] * unit)
    expected = [maximum_flow(csr_array(graph), token, 15 + 3).flow_value / unit for token in range(5)]
    agree([torch.tensor(flow(layers, 3))], [torch.tensor(expected)], 1e-6)


def largest_flow() -> None:
    """scipy's on random graphs, and 2 through one where the shortest way, s a b t, must be given up again."""
    ways = ("sa", "ab", "bt", "sc", "ce", "eb", "ax", "xy", "yt")
    assert max_flow({((0, ord(a)), (0, ord(b))): 1.0 for a, b in ways}, (0, ord("s")), (0, ord("t"))) == 2
    generator = np.random.default_rng(4)
    for _ in range(40):
        graph = generator.integers(1, 40, (8, 8)) * (generator.random((8, 8)) < 0.4)
        graph = graph.astype(np.int32) * (1 - np.eye(8, dtype=np.int32))
        pipes = {((0, a), (0, b)): float(graph[a, b]) for a, b in zip(*np.nonzero(graph), strict=True)}
        expected = maximum_flow(csr_array(graph), 0, 7).flow_value
        found = max_flow(pipes, (0, 0), (0, 7))
        assert abs(found - expected) < 1e-9, f"{found} flows, {expected} is the most"


def induction_score() -> None:
    """The weights of the token after the first copy, one by one, of transformers' maps."""
    tokens_T = repeated(twins.VOCAB, 8, torch.Generator().manual_seed(5))
    assert torch.equal(tokens_T[:8], tokens_T[8:])
    theirs = [weights[0] for weights in asked("llama", tokens_T, output_attentions=True).attentions]
    expected = [torch.stack([w[:, i, i - 7] for i in range(8, 16)]).mean(0) for w in theirs]
    agree([score(w) for w in maps(model_of("llama"), tokens_T)], expected, EXACT)


# ---- interventions


@contextmanager
def hooked(module: nn.Module, change: Callable[[Tensor], Tensor], entering: bool = False) -> Iterator[None]:
    """`change` what enters or leaves a module of the reference, [1, T, N]."""
    if entering:
        handle = module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
    else:
        handle = module.register_forward_hook(
            lambda _, inputs, out: change(out) if isinstance(out, Tensor) else (change(out[0]), *out[1:])
        )
    try:
        yield
    finally:
        handle.remove()


def blocks(name: str) -> Any:
    """The reference's blocks."""
    reference: Any = twins.twin(name).reference
    return reference.transformer.h if name == "gpt2" else reference.model.layers


def columns(first: int, end: int, fill: Callable[[Tensor], Tensor | float]) -> Callable[[Tensor], Tensor]:
    """Numbers first ... end - 1 of every token are replaced."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., first:end] = fill(x[..., first:end])
        return x

    return change


FILLS: dict[str, Callable[[Tensor], Tensor | float]] = {
    "zero": lambda x: 0.0,
    "mean": lambda x: x.mean(1, keepdim=True),
}


def ablation(name: str, part: str, how: str) -> None:
    """A head, a neuron or a sublayer of layer 1 taken out of transformers' model by a hook."""
    block, model = blocks(name)[1], model_of(name)
    own = name == "gpt2"
    width = model.spec.layers[1].attention.head_dim  # type: ignore[union-attr]
    places: dict[str, tuple[nn.Module, tuple[int, int], bool, int | None]] = {
        "heads": (block.attn.c_proj if own else block.self_attn.o_proj, (3 * width, 4 * width), True, 3),
        "neurons": (block.mlp.c_proj if own else block.mlp.down_proj, (17, 18), True, 17),
        "attention": (
            block.attn if own else _added(block, "self_attn", "post_attention_layernorm"),
            (0, 48),
            False,
            None,
        ),
        "ffn": (block.mlp if own else _added(block, "mlp", "post_feedforward_layernorm"), (0, 48), False, None),
    }
    module, (first, end), entering, index = places[part]
    with hooked(module, columns(first, end, FILLS[how]), entering):
        expected = asked(name, prompt()).logits[0]
    targets = [[], [Target(part, 1, index)]]  # type: ignore[arg-type]
    whole_TD, less_TD = without(model, prompt(), targets, how)  # type: ignore[arg-type]
    agree([model.logits(whole_TD), model.logits(less_TD)], [asked(name, prompt()).logits[0], expected], EXACT)


def _added(block: Any, sublayer: str, norm: str) -> nn.Module:
    """What a sublayer of Gemma adds has gone through a further norm."""
    return getattr(block, norm if "Gemma" in type(block).__name__ else sublayer)


def patching(name: str, part: str) -> None:
    """One activation of one position, taken from transformers' own run on the clean prompt."""
    clean_T, corrupt_T = prompt(1), prompt(2)
    found = patched(model_of(name), clean_T, corrupt_T, part).unflatten(0, (-1, LENGTH))  # type: ignore[arg-type]
    model = model_of(name)
    for layer, position in ((0, 3), (1, LENGTH - 1), (2, 0), (2, 7)):
        block = blocks(name)[layer]
        module, entering = (block, True) if part == "residual" else (_sublayer(block, part), False)
        kept: list[Tensor] = []
        with hooked(module, lambda x, kept=kept: (kept.append(x), x)[1], entering):
            asked(name, clean_T)

        def patch(x: Tensor, kept: list[Tensor] = kept, position: int = position) -> Tensor:
            x = x.clone()
            x[:, position] = kept[0][:, position]
            return x

        with hooked(module, patch, entering):
            expected = asked(name, corrupt_T).logits[0, -1]
        agree([model.logits(found[layer, position])], [expected], EXACT)


def _sublayer(block: Any, part: str) -> nn.Module:
    sublayer, norm = {
        "attention": ("self_attn", "post_attention_layernorm"),
        "ffn": ("mlp", "post_feedforward_layernorm"),
    }[part]
    return _added(block, sublayer, norm)


# ---- rewriting a fact


def _least(weight_DN: Tensor, key_N: Tensor, change_D: Tensor, covariance_NN: Tensor, ridge: float) -> Tensor:
    """The conditions of the minimum as one linear system: C Delta^T + k lambda^T = 0, Delta k = change."""
    n = len(key_N)
    system, right = torch.zeros(n + 1, n + 1), torch.zeros(n + 1, len(change_D))
    system[:n, :n] = covariance_NN + ridge * covariance_NN.diagonal().mean() * torch.eye(n)
    system[:n, n] = system[n, :n] = key_N
    right[n] = change_D
    return weight_DN + torch.linalg.solve(system, right)[:n].T


def rank_one() -> None:
    """Equal to the minimum under the condition, found by solving for it and its multipliers."""
    generator = torch.Generator().manual_seed(6)
    keys_RN, weight_DN = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (40, 5))
    key_N, change_D = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (7, 5))
    covariance_NN = keys_RN.T @ keys_RN / 40
    with all_float64():
        expected = _least(weight_DN, key_N, change_D, covariance_NN, 0.1)
    agree([rome.rank_one(weight_DN, key_N, change_D, covariance_NN, 0.1)], [expected], 1e-10)


def wishes() -> list[rome.Wish]:
    """A fact in two contexts, its answer two tokens long, and two continuations to keep."""
    ids = prompt(7).tolist()
    fact = [*ids[:6], 11, 13]
    return [rome.Wish(fact, 3, 2), rome.Wish([5, 9, *fact], 5, 2), rome.Wish(ids[2:7], 1), rome.Wish(ids[2:5], 1)]


def keys_of_text(matrix: str) -> None:
    """Mean outer product of what enters the matrix of transformers' layer 1."""
    texts = [prompt(8), prompt(9)[:5]]
    found = rome.covariance(model_of("llama"), rome.Place(1, matrix), texts)  # type: ignore[arg-type]
    agree([found], [_outer(_matrix(matrix), texts)], EXACT)


def _matrix(matrix: str) -> Any:
    """The reference's matrix in layer 1."""
    block = blocks("llama")[1]
    return block.mlp.down_proj if matrix == "ffn" else block.self_attn.o_proj


def _outer(module: nn.Module, texts: list[Tensor]) -> Tensor:
    keys = [key_N for tokens_T in texts for key_N in _entered(module, tokens_T.tolist())]
    return torch.stack([torch.outer(key_N, key_N) for key_N in keys]).mean(0)


SEARCH = rome.Search(steps=4, rate=0.3, essence=0.5, decay=0.7, limit=0.03, enough=0.0)


def search(matrix: str) -> None:
    """The whole edit done again with hooks on transformers' model, each sequence by itself."""
    model, module = model_of("llama"), _matrix(matrix)
    place, asking, texts = rome.Place(1, matrix), wishes()[:2], [prompt(8)]  # type: ignore[arg-type]
    found = rome.edit(model, place, wishes(), rome.covariance(model, place, texts), search=SEARCH)
    with all_float64():
        keys = torch.stack([_entered(module, w.ids)[w.subject] for w in asking])
        plain_D, mean_D = (module(key_N).detach() for key_N in (keys[0], keys.mean(0)))
        wished_D, losses = _sought(twins.twin("llama").reference, module, plain_D)
        covariance_NN = _outer(module, texts)
        weight = _least(module.weight, keys.mean(0), wished_D - mean_D, covariance_NN, SEARCH.ridge)
    agree([torch.tensor(found.losses)], [torch.tensor(losses)], EXACT)
    agree([rome.matrix_of(found.model, place).weight], [weight], EXACT)
    assert torch.equal(rome.matrix_of(model, place).weight, module.weight), "the given model has been changed"


def _entered(module: nn.Module, ids: list[int]) -> Tensor:
    kept: list[Tensor] = []
    with hooked(module, lambda x: (kept.append(x[0]), x)[1], entering=True):
        asked("llama", torch.tensor(ids))
    return kept[0]


def _add(change_D: Tensor, at: int, x: Tensor) -> Tensor:
    return x + F.one_hot(torch.tensor(at), x.shape[1])[None, :, None] * change_D


def _sought(reference: nn.Module, module: nn.Module, plain_D: Tensor) -> tuple[Tensor, list[float]]:
    change_D = torch.zeros_like(plain_D, requires_grad=True)
    optimizer, losses, before = torch.optim.Adam([change_D], lr=SEARCH.rate), [], list[Tensor]()
    for _ in range(SEARCH.steps):
        answers, moved, stays = [], [], []
        for w in wishes():
            with hooked(module, partial(_add, change_D, w.subject)):
                logits_TV = reference(torch.tensor([w.ids])).logits[0].log_softmax(-1)
            if w.answer:
                answers += [-logits_TV[-1 - i - 1][w.ids[-1 - i]] for i in range(w.answer)]
            else:
                stays.append(logits_TV[-1])
        before = before or [s.detach() for s in stays]
        moved = [(old.exp() * (old - new)).sum() for old, new in zip(before, stays, strict=True)]
        answer = sum(answers) / len(answers)
        losses.append(answer.item())
        loss = (
            answer
            + SEARCH.essence * sum(moved) / len(moved)
            + SEARCH.decay * (change_D / plain_D.norm()).square().sum()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            longest = SEARCH.limit * plain_D.norm()
            if change_D.norm() > longest:
                change_D *= longest / change_D.norm()
    return plain_D + change_D.detach(), losses


# ---- geometry


def token_geometry() -> None:
    """Directions, neighbors and principal components by numpy, from the reference's table."""
    reference: Any = twins.twin("llama").reference
    table = reference.model.embed_tokens.weight.detach().numpy()
    rows = table - table.mean(0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = geometry.directions(model_of("llama"))
    agree([found], [torch.from_numpy(rows)], 1e-6)
    cosine = rows @ rows[5] / np.linalg.norm(rows[5])
    best = [i for i in np.argsort(-cosine) if i not in (5, 8)][:6]
    ids, cosines = zip(*geometry.closest(found, 3 * found[5], 6, [5, 8]), strict=True)
    assert list(ids) == [int(i) for i in best], f"{ids} instead of {best}"
    agree([torch.tensor(cosines)], [torch.tensor([float(cosine[i]) for i in best])], 1e-6)
    few = rows[:9]
    values, vectors = np.linalg.eigh(np.cov(few.T))
    places = (few - few.mean(0)) @ vectors[:, [-1, -2]]
    places *= np.sign(places[np.abs(places).argmax(0), [0, 1]])
    coordinates, explained = geometry.principal(torch.from_numpy(few))
    agree([coordinates], [torch.from_numpy(places)], 1e-9)
    agree([torch.tensor(explained)], [torch.from_numpy(values[[-1, -2]] / values.sum())], 1e-6)


PROOFS = {
    **{f"attention maps {name}": partial(attention_maps, name) for name in FAMILIES},
    **{f"logit lens {name}": partial(logit_lens, name) for name in FAMILIES},
    "attention rollout": attention_rollout,
    "attention flow": attention_flow,
    "largest flow": largest_flow,
    "induction score": induction_score,
    **{
        f"ablation {name} {part} {how}": partial(ablation, name, part, how)
        for name in FAMILIES
        for part in ("heads", "neurons", "attention", "ffn")
        for how in FILLS
    },
    **{
        f"patching {name} {part}": partial(patching, name, part)
        for name in ("llama", "gemma3")
        for part in ("residual", "attention", "ffn")
    },
    "rank one": rank_one,
    **{f"keys of text {matrix}": partial(keys_of_text, matrix) for matrix in ("ffn", "attention")},
    **{f"edit {matrix}": partial(search, matrix) for matrix in ("ffn", "attention")},
    "token geometry": token_geometry,
}
