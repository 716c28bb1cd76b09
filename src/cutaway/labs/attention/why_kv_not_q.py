"""Why the cache holds K and V but not Q.

Row t of attention is made of query t and of the keys and values up to t:

              k0 k1 k2 k3         a step of decoding adds one row; the rows above it are finished, and what
        q0    x                   they gave is already inside the keys and values of the layers above
        q1    x  x
        q2    x  x  x             so K and V are read by every later step, and an old query by none
  new   q3    x  x  x  x

To see rather than to believe it, a step here keeps all three and computes the whole grid, old rows too. Then
old queries, keys and values are overwritten, position by position and all at once, and the step's gradient is
taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.budget.chips import CHIPS
from cutaway.budget.published import spec_named
from cutaway.budget.running import fit
from cutaway.engine.cache import KVCache
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, Cached, decoder, reading, subject
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Question, attention_weights

LARGE, CARD, DTYPE, CONTEXT, USABLE = "llama-3-8b", "a100-80gb", "bfloat16", 8192, 0.9

Memory = dict[str, list[Tensor]]
"""q, k and v of the tokens so far: per name and layer [T, heads, K]."""

Change = Callable[[str, Tensor], Tensor]
"""What a step reads instead of a remembered tensor, given its name."""


class Traffic(NamedTuple):
    """What the engine's own cache holds and reads, in bytes: per token held; per name read by one step."""

    held: float
    read: int


class Room(NamedTuple):
    """Bytes of a sequence, how many sequences fit, and bytes that are left for them beside the weights."""

    each: float
    sequences: int
    left: float


@lab(
    "why-kv-not-q",
    title=both("Why the cache holds K and V but not Q", "缓存里为什么有 K、V 而没有 Q"),
    question=both("Which of Q, K and V does a later decode step still need?", "解码步还需要 Q、K、V 中的哪些？"),
    seconds={"quick": 4, "full": 30},
)
def why_kv_not_q(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that decodes", "用来解码的模型")] = MODEL,
    prompt: Annotated[int, Knob("tokens of the prompt", "提示词的词元数", quick=12, min=2, max=1024)] = 48,
    generate: Annotated[int, Knob("tokens decoded greedily", "贪心解码的词元数", quick=8, min=2, max=512)] = 64,
) -> Finding:
    loaded = subject(model)
    subject_model, prompt_T = decoder(loaded), reading(loaded, prompt)
    with torch.inference_mode():
        engine, traffic = engine_greedy(subject_model, prompt_T, generate)
        replies = {
            name: greedy(subject_model, prompt_T, generate, zeroed(name))
            for name in run.each(["nothing", "q", "k", "v"], f"decoding {generate} tokens, deleted at each step")
        }
        changes = overwritten(subject_model, prompt_T, run)
    gradients = gradient_norms(subject_model, prompt_T)
    same = {name: _agreement(reply, replies["nothing"]) for name, reply in replies.items()}
    sizes = {name: _numbers_per_token(subject_model, name) for name in "qkv"}
    return Finding(
        table=_table(sizes, traffic, gradients, changes, same),
        plot=_plot(changes),
        verdict=_verdict(sizes, changes, same, generate, room()),
        checks=[
            *_checks(gradients, changes, same, generate),
            _engine_check(Cost(subject_model.spec), traffic, engine == replies["q"]),
        ],
    )


class Grid(BlockDiagonal):
    """The context of one sequence that remembers q, k and v and lets every query ask again, as without a cache.

    Memory passes through `change` before it is read. `fresh` collects the memory after the step.
    """

    def __init__(self, length: int, memory: Memory, change: Change) -> None:
        super().__init__([length])
        self.memory, self.change = memory, change
        self.fresh: Memory = {"q": [], "k": [], "v": []}

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        assert v_TGK is not None, "latent attention has no keys and values to delete one by one"
        q_HSK, k_GSK, v_GSK = (
            self._with_past(name, layer, new).transpose(0, 1)
            for name, new in (("q", q_THK), ("k", k_TGK), ("v", v_TGK))
        )
        weights_HSS = attention_weights(q_HSK, k_GSK, question)
        v_HSK = v_GSK.repeat_interleave(len(q_HSK) // len(v_GSK), dim=0)
        return (weights_HSS @ v_HSK).transpose(0, 1)[-len(q_THK) :]

    def _with_past(self, name: str, layer: int, new: Tensor) -> Tensor:
        past = self.memory[name][layer] if self.memory else new[:0]
        self.fresh[name].append(torch.cat([past, new]))
        return torch.cat([self.change(name, past), new])


def keep(name: str, past: Tensor) -> Tensor:
    """Read what is remembered."""
    return past


def zeroed(which: str) -> Change:
    """Read zeros for everything remembered of one name."""
    return lambda name, past: torch.zeros_like(past) if name == which else past


def noised(which: str, position: int, noise: torch.Generator) -> Change:
    """Read noise as large as the original for one name at one position."""

    def change(name: str, past: Tensor) -> Tensor:
        if name != which:
            return past
        row = past[position]
        past = past.clone()
        past[position] = torch.randn(row.shape, generator=noise) * row.square().mean().sqrt()
        return past

    return change


def step(model: Decoder, tokens_T: Tensor, memory: Memory, change: Change = keep) -> tuple[Tensor, Memory]:
    """Compute T new tokens after those remembered: logits_V of the next, and the memory with the new ones."""
    start = len(memory["k"][0]) if memory else 0
    context = Grid(len(tokens_T), memory, change)
    hidden_TD = model(tokens_T, torch.arange(start, start + len(tokens_T)), context)
    return model.logits(hidden_TD[-1:])[0], context.fresh


def greedy(model: Decoder, prompt_T: Tensor, count: int, change: Change) -> list[int]:
    """`count` most probable tokens; every step after the prompt reads its memory through `change`."""
    logits_V, memory = step(model, prompt_T, {})
    reply = [int(logits_V.argmax())]
    while len(reply) < count:
        logits_V, memory = step(model, torch.tensor(reply[-1:]), memory, change)
        reply.append(int(logits_V.argmax()))
    return reply


def room() -> Room:
    """What the formula says of a large model on a card: found, not measured."""
    cost = Cost(spec_named(LARGE))
    found = {found.name: found.value for found in fit(cost, CHIPS[CARD], CONTEXT, DTYPE, USABLE)}
    sequences = found["sequences that fit"]
    return Room(found["KV of a sequence"], int(sequences), CHIPS[CARD].memory * USABLE - found["weights"])


class Tallied(KVCache):
    """The engine's cache, counting the bytes of K, and as many of V, that it hands out."""

    read = 0

    def get(self, layer: int, first: int, end: int) -> list[Tensor]:
        """See `KVCache.get`."""
        views = super().get(layer, first, end)
        self.read += views[0].nbytes
        return views


def engine_greedy(model: Decoder, prompt_T: Tensor, count: int) -> tuple[list[int], Traffic]:
    """The same reply by the engine's cache, which has no place for Q; and what its last step read."""
    capacity = len(prompt_T) + count
    cached = Cached(model, capacity)
    cached.cache = cache = Tallied(model.spec, model.dtype, model.device, capacity)
    tokens, read = prompt_T.tolist(), 0
    for _ in range(count):
        read = cache.read
        tokens.append(int(cached.logits(torch.tensor(tokens)).argmax()))
    held = sum(buffer.nbytes for buffers in cache.buffers for buffer in buffers) / capacity
    return tokens[len(prompt_T) :], Traffic(held, cache.read - read)


def overwritten(model: Decoder, prompt_T: Tensor, run: Run) -> dict[str, list[float]]:
    """Largest change of the next logits when q, k or v of an old position is replaced by noise, by position."""
    past_T, new_T, noise = prompt_T[:-1], prompt_T[-1:], run.generator()
    _, memory = step(model, past_T, {})
    logits_V, _ = step(model, new_T, memory)
    changes: dict[str, list[float]] = {"q": [], "k": [], "v": []}
    for position in run.each(range(len(past_T)), "overwriting position"):
        for name, record in changes.items():
            other_V, _ = step(model, new_T, memory, noised(name, position, noise))
            record.append(float((other_V - logits_V).abs().max()))
    return changes


def gradient_norms(model: Decoder, prompt_T: Tensor) -> dict[str, list[float]]:
    """Norm, by position, of the best token's log-probability's gradient at old q, k and v of all layers."""
    with torch.no_grad():
        _, memory = step(model, prompt_T[:-1], {})
    leaves = {name: [past.requires_grad_(True) for past in memory[name]] for name in "qkv"}
    logits_V, _ = step(model, prompt_T[-1:], leaves)
    flat = [leaf for name in "qkv" for leaf in leaves[name]]
    gradients = iter(torch.autograd.grad(logits_V.log_softmax(-1).max(), flat))
    per_layer = {name: torch.stack([next(gradients).flatten(1) for _ in leaves[name]]) for name in "qkv"}
    return {name: grad_LTN.square().sum((0, 2)).sqrt().tolist() for name, grad_LTN in per_layer.items()}


def _numbers_per_token(model: Decoder, name: str) -> int:
    specs = [layer.attention for layer in model.spec.layers]
    return sum((a.heads if name == "q" else a.kv_heads) * a.head_dim for a in specs)


def _agreement(reply: list[int], reference: list[int]) -> int:
    """Tokens before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(reply, reference, strict=True)) if a != b), len(reply))


def _table(
    sizes: dict[str, int],
    traffic: Traffic,
    gradients: dict[str, list[float]],
    changes: dict[str, list[float]],
    same: dict[str, int],
) -> Table:
    columns = {
        "tensor": "",
        "numbers": "per token",
        "16-bit size": "KiB/token",
        "read by the last step": "bytes",
        "smallest gradient": "over positions",
        "smallest change": "of logits, one position overwritten",
        "largest change": "of logits, one position overwritten",
        "same tokens": "all deleted",
    }
    read = {"q": 0, "k": traffic.read, "v": traffic.read}
    gradient = {name: min(norms) for name, norms in gradients.items()}
    change = {name: (min(moved), max(moved)) for name, moved in changes.items()}
    return table(
        columns,
        (
            [name.upper(), n, n * 2 / 1024, read[name], gradient[name], *change[name], same[name]]
            for name, n in sizes.items()
        ),
    )


def _plot(changes: dict[str, list[float]]) -> Plot:
    x = [float(i) for i in range(len(changes["q"]))]
    return Plot(
        kind="scatter",
        x=Axis(label="overwritten position"),
        y=Axis(label="largest change of a logit"),
        series=[Series(name=name.upper(), x=x, y=changes[name]) for name in "qkv"],
    )


def _checks(
    gradients: dict[str, list[float]], changes: dict[str, list[float]], same: dict[str, int], generate: int
) -> list[Check]:
    return [
        check(
            same["q"] == generate and max(same["k"], same["v"]) < generate,
            f"with every old query deleted, all {generate} greedy tokens stay; without keys or values they do not",
            f"删掉全部旧查询，{generate} 个贪心词元不变；删掉旧键或旧值则改变",
        ),
        check(
            max(changes["q"]) == 0 and min(changes["k"] + changes["v"]) > 0,
            "overwriting an old query changes no logit by anything; any old key or value changes some",
            "改写任一旧查询，logits 分毫不变；改写任一旧键或旧值，logits 都会变",
        ),
        check(
            max(gradients["q"]) == 0 and min(gradients["k"] + gradients["v"]) > 0,
            "the step's gradient is exactly 0 at every old query, and not 0 at any old key or value",
            "本步对每个旧查询的梯度恰为 0，对任何旧键、旧值都不为 0",
        ),
    ]


def _engine_check(cost: Cost, traffic: Traffic, same: bool) -> Check:
    """In float32, as the labs compute."""
    expected = cost.kv_bytes_per_token("float32").value
    return check(
        same and traffic.held == expected,
        "the engine's cache has no Q and gives the same "
        f"tokens; it holds {traffic.held:,.0f} bytes a token, the formula says {expected:,}",
        f"引擎的缓存没有 Q，生成的词元相同；每词元占 {traffic.held:,.0f} 字节，公式给出 {expected:,}",
    )


def _verdict(
    sizes: dict[str, int], changes: dict[str, list[float]], same: dict[str, int], generate: int, room: Room
) -> Words:
    q, kv = sizes["q"] * 2 / 1024, (sizes["k"] + sizes["v"]) * 2 / 1024
    ratio = sizes["q"] / sizes["k"]
    return both(
        f"A step asks with its own query only. Deleting all old queries left {same['q']} of {generate} "
        f"tokens as they were; deleting keys left {same['k']}, values {same['v']}. Overwriting one old key "
        f"moved a logit by up to {max(changes['k']):.2f}, one old value by up to {max(changes['v']):.2f}, "
        f"one old query by {max(changes['q']):.0f}. K and V take {kv:.2f} KiB a token in 16 bit; Q, "
        f"{ratio:.0f} times as wide as K here, would add {q:.2f} KiB that nothing reads. By the same formula {LARGE} "
        f"keeps {room.each / 2**30:g} GiB for {CONTEXT:,} tokens; of {CARD} {USABLE:.0%} without the weights are "
        f"{room.left / 1e9:.1f} GB: {room.sequences} such sequences, or more of shorter ones.",
        f"每一步只用自己的查询发问。删掉全部旧查询，{generate} 个词元中 {same['q']} 个不"
        f"变；删掉键剩 {same['k']} 个，删掉值剩 {same['v']} 个。改写一个旧键最多使 logit 变 "
        f"{max(changes['k']):.2f}，旧值 {max(changes['v']):.2f}，旧查询 {max(changes['q']):.0f}。16 位下 K "
        f"与 V 每词元占 {kv:.2f} KiB；Q 在此模型中宽度为 K 的 {ratio:.0f} 倍，若也缓存要多 {q:.2f} KiB，却"
        f"无人读取。按同一公式，{LARGE} 每 {CONTEXT:,} 个词元占 {room.each / 2**30:g} GiB；{CARD} 的 {USABLE:.0%} "
        f"减去权重剩 {room.left / 1e9:.1f} GB，容得下 {room.sequences} 个这样的序列，更短则更多。",
    )
