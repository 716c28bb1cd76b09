"""Models at work: replies of the engine and sentence vectors, against what transformers computes for each alone."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.embed.sentences import encode_ids
from cutaway.engine.drafter import Asked, Drafter
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Sequence
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from kit import twins
from kit.precision import all_float64
from kit.proofs.models import agree, bound

LENGTHS = (19, 1, 8, 4)
REPLY = 9


def replies(name: str) -> None:
    """Greedy replies and their log-probabilities, though prompts come in pieces and sequences take turns.

    By induction a reply is right if each of its tokens is the most probable one after those before.
    """
    twin = twins.twin(name)
    model = twins.ours(twin)
    assert isinstance(model, Decoder)
    engine = Engine(model, twins.Tokenizerless(), budget=7, running=3)  # type: ignore[arg-type]
    params = SamplingParams(temperature=0, max_tokens=REPLY)
    sequences = [engine.add(tokens_T.tolist(), params) for tokens_T in twins.prompts(LENGTHS)]
    logprobs: dict[Sequence, list[float]] = {sequence: [] for sequence in sequences}
    for _ in range(200):
        for sequence, event in engine.step():
            if event.choice:
                logprobs[sequence].append(event.choice.logprob)
    for sequence in sequences:
        expected_TV = _next(twin, sequence.tokens)[len(sequence.prompt) - 1 : -1].log_softmax(-1)
        assert sequence.finish == "length", f"ended by {sequence.finish}"
        assert len(sequence.reply) == REPLY
        assert expected_TV.argmax(-1).tolist() == sequence.reply
        assert torch.allclose(torch.tensor(logprobs[sequence]).double(), expected_TV.max(-1).values, atol=1e-4)


class Said(Drafter):
    """Drafts that are right, wrong from some place on, or too many, one after the other; the true ones are `reply`."""

    def __init__(self, prompt: list[int], reply: list[int]) -> None:
        super().__init__()
        self.whole, self.asked = prompt + reply, 0

    def worth(self, sequence: Sequence, company: int) -> int:
        """Always five."""
        return 5

    def propose(self, asked: Asked) -> list[list[int]]:
        """Of five guesses the first few are right."""
        self.asked += 1
        (sequence, most), *_ = asked
        coming = self.whole[len(sequence.tokens) :][:most]
        return [[t if i != self.asked % 4 else t + 1 for i, t in enumerate(coming)]]


def speculated(name: str) -> None:
    """Whatever the drafts, the reply is the same, in fewer steps, and log-probabilities too."""
    model = twins.ours(twins.twin(name))
    assert isinstance(model, Decoder)
    prompt, params = twins.prompts((19,))[0].tolist(), SamplingParams(temperature=0, max_tokens=20)
    make = partial(Engine, model, twins.Tokenizerless())  # type: ignore[arg-type]
    plain, expected, _ = _run(make(), prompt, params)
    reply, logprobs, steps = _run(make(drafter=Said(prompt, plain)), prompt, params)
    assert reply == plain
    assert torch.allclose(logprobs, expected, atol=1e-5)
    assert steps < len(plain) * 3 // 4, f"{steps} steps for {len(plain)} tokens"


def _run(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], Tensor, int]:
    """The reply, its log-probabilities and how many steps it took; fifty at most, whatever is wrong."""
    sequence, events, steps = engine.add(prompt, params), [], 0
    while engine.busy and steps < 50:
        events += [event for _, event in engine.step()]
        steps += 1
    return sequence.reply, torch.tensor([event.choice.logprob for event in events]), steps


def _next(twin: twins.Twin, tokens: list[int]) -> Tensor:
    with all_float64(), torch.no_grad():
        return twin.reference(torch.tensor([tokens])).logits[0]


def sentences(name: str) -> float:
    """Mean of the hidden states, scaled to unit length, in the order of the texts whatever the batches."""
    twin = twins.twin(name)
    model, lengths = twins.ours(twin), (5, 19, 1, 8, 8, 2)
    assert isinstance(model, Encoder)
    hidden = twin.answers(lengths).values
    expected = [F.normalize(hidden_TD.mean(0), dim=0) for hidden_TD in hidden]
    found_ND = encode_ids(model, [tokens_T.tolist() for tokens_T in twins.prompts(lengths)], batch_tokens=12)
    return agree(list(found_ND), expected, bound(torch.float64))


PROOFS = {
    **{f"replies {name}": partial(replies, name) for name in ("llama", "gemma3", "gpt2")},
    "speculated llama": partial(speculated, "llama"),
    "sentences bert": partial(sentences, "bert"),
}
