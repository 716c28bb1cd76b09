"""The model that a lab looks at, the text it reads, and how: plain forward passes, greedy choices, losses."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.cache import KVCache, Spans
from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Context
from cutaway.weights.catalogue import DEFAULT
from cutaway.weights.checkpoint import Loaded, load

MODEL = DEFAULT

TEXT = """\
The lighthouse at the end of the harbor wall was built in the spring of 1841, after a storm had carried \
three fishing boats onto the rocks in a single night. For the first twenty years its lamp burned whale \
oil, and a keeper had to climb the ninety-two steps every four hours to trim the wick. Later the town \
changed to paraffin, then to gas, and at last to electricity, and with every change the keeper had less \
to do. The last of them, a quiet woman named Ruth Harper, kept a diary. She wrote down the wind, the \
height of the waves, the names of the ships, and sometimes what she had for supper.

From her diary we know how the tides were measured. A float in a stone well rose and fell with the sea, \
and a pencil tied to the float drew a line on a drum of paper that turned once a day. The line is never \
quite the same. The moon pulls the water, and so does the sun, although the sun is so far away that it \
counts for less than half as much. When both pull in one direction, at new moon and at full moon, the \
tide is high; when they pull across each other, in the weeks between, it is low. Wind and air pressure \
add their own small part, and a strong wind from the west can keep the water in the bay for hours after \
it should have gone.

Today a computer in the capital predicts the tides for the whole coast, a year ahead, to within the \
width of a hand. It does so with a method that is older than the lighthouse: the motion of the sea is \
taken apart into a sum of simple waves, each with its own period, and each of them is followed into the \
future. The children of the town still come to see the drum and the pencil, which are kept behind glass \
on the ground floor. The teacher asks them to find the night of the great storm on the paper. It is easy \
to find. The line climbs, and climbs again, and then it leaves the page.
"""
"""Plain English prose, written for this project: what losses are taken on."""


@lru_cache(maxsize=1)
def subject(source: str) -> Loaded:
    """The decoder that `source` names, in float32, kept until another is. Errors: an encoder; loading's."""
    with torch.inference_mode(False):  # kept for others, who may want gradients
        loaded = load(source)
    if not isinstance(loaded.model, Decoder):
        raise CutawayError("is an encoder, this lab needs a model that predicts tokens", source, f"try {MODEL}")
    return loaded


def decoder(loaded: Loaded) -> Decoder:
    """The model of `subject`, typed."""
    assert isinstance(loaded.model, Decoder)
    return loaded.model


def reading(loaded: Loaded, length: int) -> Tensor:
    """tokens_T of the text, over and over if it is too short. Errors: more than the model's context."""
    if length > loaded.model.spec.context:
        raise CutawayError(f"{length} tokens do not fit the context of {loaded.model.spec.context}", loaded.name)
    ids = torch.tensor(loaded.tokenizer.encode(TEXT))
    return ids.repeat(-(-length // len(ids)))[:length]


def logits_of(model: Decoder, tokens_T: Tensor, context: Context | None = None) -> Tensor:
    """Logits_TV of one sequence from its beginning."""
    hidden_TD = model(tokens_T, positions_of([len(tokens_T)]), context or BlockDiagonal([len(tokens_T)]))
    return model.logits(hidden_TD)


def last_logits(model: Decoder, tokens_T: Tensor) -> Tensor:
    """Logits_V of the token that follows, computed from scratch; the head is asked for that row alone."""
    hidden_TD = model(tokens_T, positions_of([len(tokens_T)]), BlockDiagonal([len(tokens_T)]))
    return model.logits(hidden_TD[-1:])[0]


def loss_of(logits_TV: Tensor, tokens_T: Tensor) -> float:
    """Mean negative log-probability of each token given those before it, in nats."""
    return float(F.cross_entropy(logits_TV[:-1].float(), tokens_T[1:]))


class Cached:
    """Decoding with a cache: only what is new in a sequence is computed."""

    def __init__(self, model: Decoder, capacity: int) -> None:
        self.model, self.done = model, 0
        self.cache = KVCache(model.spec, model.dtype, model.device, capacity)

    def logits(self, tokens_T: Tensor) -> Tensor:
        """Logits_V after tokens_T, the beginning of which may be in the cache already."""
        start, n = self.done, len(tokens_T) - self.done
        hidden_TD = self.model(tokens_T[start:], torch.arange(start, start + n), Spans([(self.cache, start, n)]))
        self.done = len(tokens_T)
        return self.model.logits(hidden_TD[-1:])[0]

    def again(self, tokens_T: Tensor) -> Tensor:
        """Forget the last token and compute it once more: what one step of decoding costs."""
        self.done = len(tokens_T) - 1
        return self.logits(tokens_T)
