"""One run of a language model from text to the next token, with every tensor on the way.

    text ─ bytes ─ ids ─ vectors ─ blocks ─ logits ─ probabilities ─ one token

What a language model is can be read off it: a function with `parameters` numbers that turns a text of at most
`context` tokens into a probability for every token that could come next.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Logits, sample
from cutaway.errors import CutawayError
from cutaway.inside.attention import Recorder
from cutaway.inside.prompt import Guess, Prompt, decoder, guesses, read
from cutaway.inside.sites import altered, finished, run, states, through
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Question
from cutaway.weights.checkpoint import Loaded

AXES = {"q": "T, H·K", "k": "T, G·K", "v": "T, G·K", "gate": "T, F", "up": "T, F", "weights": "H, T, T"}
SHOWN = 4  # numbers of a tensor that are shown
STRIDE = 0.01  # length of the step that shows what training does

MEANINGS = {
    "token": ("a piece of the text; the model knows it by its id", "文本的一个片段，模型只认它的编号"),
    "parameter": ("a number that training has set", "由训练定下的一个数"),
    "layer": ("a block of attention and feed-forward that every token passes", "每个词元都要经过的一层：注意力加前馈"),
    "context": ("the most tokens that it can read at once", "一次最多能读入的词元数"),
    "logit": ("a score for each token that could come next", "给每个可能的下一词元打的分"),
    "perplexity": ("as if it had hesitated between so many tokens at each place", "相当于在每处在多少个词元之间犹豫"),
    "training": (
        f"steps that lower the loss: by so much, after one of length {STRIDE} by the last block alone",
        f"一步步降低损失：仅最后一层走一步（步长 {STRIDE}）便降低这么多",
    ),
    "inference": ("running the model as it is: the work of this run", "模型不变、只做前向：这一次的计算量"),
}


@dataclass(frozen=True)
class Step:
    """A tensor on its way, named by the module that gives it. axes: see `cutaway.nn`; "" if it has none of its own.

    parameters: of the module, with those inside it. rms: root mean square of the numbers. first: the first of them
    in the last token's row.
    """

    name: str
    axes: str
    shape: list[int]
    bytes: int
    parameters: int
    rms: float
    first: list[float]


@dataclass(frozen=True)
class Term:
    """A word and what it is in this run. at: the step where it can be seen, "" if it is the whole."""

    name: str
    value: float
    unit: str
    at: str
    en: str
    zh: str


@dataclass(frozen=True)
class Journey:
    """choice: the token that was drawn. loss: mean over the prompt's tokens after the first, nats."""

    text: str
    bytes: list[int]
    ids: list[int]
    tokens: list[str]
    steps: list[Step]
    loss: float
    best: list[Guess]
    choice: Guess
    glossary: list[Term]


class Journal(Recorder):
    """A recorder that writes attention weights down among the outputs of modules, in order."""

    def __init__(self, tokens: int, written: dict[str, Tensor]) -> None:
        super().__init__(BlockDiagonal([tokens]))
        self.written = written

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        out_THK = super().attend(layer, q_THK, k_TGK, v_TGK, question)
        self.written[f"layers.{layer}.attention.weights"] = self.weights[layer]
        return out_THK


def journal(model: Decoder, tokens_T: Tensor) -> dict[str, Tensor]:
    """Every tensor that a module or attention gives when the model reads a sequence, in order; logits_TV last."""
    twin, written = altered(model, {}), dict[str, Tensor]()

    def writer(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def write(module: nn.Module, inputs: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                written[name] = out

        return write

    for name, module in twin.named_modules():
        if name and any(True for _ in module.parameters()):
            module.register_forward_hook(writer(name))
    hidden_TD = run(twin, tokens_T, Journal(len(tokens_T), written))
    return {**written, "logits": twin.logits(hidden_TD)}


@torch.no_grad()
def follow(loaded: Loaded, text: str, params: SamplingParams | None = None, top: int = 5) -> Journey:
    """Follow a prompt through the model to one drawn token. Errors: see `read`; fewer than two tokens."""
    model, prompt = decoder(loaded), read(loaded, text)
    if len(prompt.ids) < 2:
        raise CutawayError("has one token: nothing is predicted within it", "prompt", "give a few words")
    tokens_T = prompt.tensor(model.device)
    written = journal(model, tokens_T)
    logits_TV = written["logits"].float()
    drawn = sample(Logits.of(logits_TV[-1]), params or SamplingParams(), prompt.ids, [])
    loss = float(F.cross_entropy(logits_TV[:-1], tokens_T[1:]))
    tokenizer = loaded.tokenizer
    return Journey(
        text=text,
        bytes=list(text.encode()),
        ids=prompt.ids,
        tokens=prompt.tokens,
        steps=[_step(model, name, tensor) for name, tensor in written.items()],
        loss=loss,
        best=guesses(tokenizer, logits_TV[-1], top),
        choice=Guess(drawn.token, tokenizer.display(drawn.token), math.exp(drawn.logprob)),
        glossary=glossary(model, prompt, loss),
    )


def _step(model: Decoder, name: str, tensor: Tensor) -> Step:
    last = name.rpartition(".")[2]
    modules = dict(model.named_modules())
    return Step(
        name=name,
        axes=AXES.get(last, "T, V" if name in ("logits", "head") else "T, D"),
        shape=list(tensor.shape),
        bytes=tensor.numel() * tensor.element_size(),
        parameters=sum(p.numel() for p in modules[name].parameters()) if name in modules else 0,
        rms=float(tensor.double().square().mean().sqrt()),
        first=(tensor[0, -1] if last == "weights" else tensor[-1]).flatten()[:SHOWN].tolist(),
    )


def glossary(model: Decoder, prompt: Prompt, loss: float) -> list[Term]:
    """The words that a reader meets first, each with its value in this run."""
    spec, tokens, last = model.spec, len(prompt.ids), f"layers.{len(model.spec.layers) - 1}"
    learned = stepped(model, prompt.tensor(model.device))
    sizes: dict[str, tuple[float, str, str]] = {
        "token": (tokens, "", "embedding.tokens"),
        "parameter": (model.cost.parameters, "", ""),
        "layer": (len(spec.layers), "", last),
        "context": (spec.context, "tokens", "embedding"),
        "logit": (spec.vocab, "", "logits"),
        "perplexity": (math.exp(loss), "", "logits"),
        "training": (loss - learned, "nats", last),
        "inference": (model.cost.flops(tokens, rows=1), "FLOP", ""),
    }
    return [Term(name, *sizes[name], *said) for name, said in MEANINGS.items()]


def stepped(model: Decoder, tokens_T: Tensor) -> float:
    """The loss after a step of length `STRIDE` against its gradient, by the last block's parameters alone."""
    last, length, twin = len(model.spec.layers) - 1, [len(tokens_T)], altered(model, {})
    x_TD = states(model, tokens_T)[last]
    twin.layers[model.spec.block_of(last)] = copy.deepcopy(model.block(last))
    parameters = list(twin.block(last).parameters())

    def loss() -> Tensor:
        hidden_TD = finished(twin, through(twin, x_TD, length, last))
        return F.cross_entropy(twin.logits(hidden_TD[:-1]).float(), tokens_T[1:])

    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.sub_(gradient * (STRIDE / norm))
    return float(loss())
