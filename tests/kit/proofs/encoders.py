"""What is particular to encoders: token types, padding that is not there, the input sum, heads, distances, masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal, Place, attention_weights
from cutaway.nn.disentangled import DisentangledAttention, DisentangledSpec, log_buckets
from cutaway.nn.heads import TaskHead, TaskSpec
from kit import twins
from kit.precision import all_float64
from kit.proofs.models import agree, bound

TYPED = ("bert", "bert-masked", "albert-groups", "electra", "deberta-to-content")
EXACT = bound(torch.float64)


def types_of(lengths: tuple[int, ...]) -> list[Tensor]:
    """Each sequence as a pair of texts: its first two fifths of type 0, the rest of type 1."""
    return [(torch.arange(n) >= 2 * n / 5).long() for n in lengths]


def typed(name: str) -> float:
    """Values and gradients when tokens are of two types, the reference being asked one sequence at a time."""
    twin, lengths = twins.twin(name), twins.RAGGED
    with all_float64():
        twin.reference.zero_grad()
        pairs = zip(twins.prompts(lengths), types_of(lengths), strict=True)
        expected = [twins.answer(twin.reference(input_ids=t[None], token_type_ids=s[None])) for t, s in pairs]
        twins.weighted(expected).backward()
        kept = {n: p.grad.clone() for n, p in twins.parameters(twin.reference).items() if p.grad is not None}
    model, spans = twins.ours(twin), list(lengths)
    hidden_TD = model(
        torch.cat(twins.prompts(lengths)), positions_of(spans), BlockDiagonal(spans), torch.cat(types_of(lengths))
    )
    found = twins.said(model, hidden_TD, lengths)
    twins.weighted(found).backward()
    gradients, saved = twins.foreign_gradients(twin, model), twin.saved(kept)
    named = next(name for name in saved if name.endswith("token_type_embeddings.weight"))
    assert named in gradients, "no gradient for the types"
    agree([gradients[named]], [saved[named]], EXACT)
    return agree([x.detach() for x in found], [x.detach() for x in expected], EXACT)


def padded(name: str = "bert-masked") -> float:
    """The reference gets one padded batch and a mask, ours the same sequences laid end to end."""
    twin, lengths = twins.twin(name), twins.RAGGED
    with all_float64(), torch.no_grad():
        ids = torch.nn.utils.rnn.pad_sequence(twins.prompts(lengths), batch_first=True)
        mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
        whole = twin.reference(input_ids=ids, attention_mask=mask.long())[0]
    expected = [row[:n] for row, n in zip(whole, lengths, strict=True)]
    return agree([x.detach() for x in twins.ragged(twins.ours(twin), lengths)], expected, EXACT)


def input_sum(name: str = "bert") -> float:
    """What enters the first block is the norm of three rows' sum, taken here from the reference's tables by hand."""
    twin, lengths = twins.twin(name), twins.RAGGED
    model, tables = twins.ours(twin), twin.reference.embeddings
    tokens_T, types_T = torch.cat(twins.prompts(lengths)), torch.cat(types_of(lengths))
    positions_T = torch.cat([torch.arange(n) for n in lengths])
    rows_TD = (
        tables.word_embeddings.weight[tokens_T]
        + tables.token_type_embeddings.weight[types_T]
        + tables.position_embeddings.weight[positions_T]
    )
    mean_T1, variance_T1 = rows_TD.mean(-1, keepdim=True), rows_TD.var(-1, keepdim=True, correction=0)
    normed_TD = (rows_TD - mean_T1) / (variance_T1 + tables.LayerNorm.eps).sqrt()
    expected_TD = normed_TD * tables.LayerNorm.weight + tables.LayerNorm.bias
    found_TD = model.embedding(tokens_T, positions_of(list(lengths)), types_T)
    return agree([found_TD.detach()], [expected_TD.detach()], EXACT)


def task_rows() -> float:
    """Each kind of task, sequence by sequence and by hand, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(5)
    hidden_TD = torch.randn(sum(twins.RAGGED), 6, generator=generator, dtype=torch.float64)
    rows = hidden_TD.split(twins.RAGGED)
    read: dict[str, Callable[[Tensor], Tensor]] = {
        "first": lambda x: x[:1],
        "last": lambda x: x[-1:],
        "mean": lambda x: x.sum(0, keepdim=True) / len(x),
        "each": lambda x: x,
        "span": lambda x: x,
    }
    worst = 0.0
    for at, chosen in read.items():
        head = TaskHead(6, TaskSpec(2, at)).double()  # type: ignore[arg-type]
        expected = torch.cat([chosen(x) @ head.out.weight.T + head.out.bias for x in rows])
        worst = max(worst, agree([head(hidden_TD, list(twins.RAGGED))], [expected], EXACT))
    return worst


def buckets() -> float:
    """The rows for distances, against the code that DeBERTa was published with, from one end to the other."""
    for count, reach in ((256, 512), (8, 12), (32, 128), (6, 100)):
        distance = torch.arange(-reach - 40, reach + 41)
        expected = twins.deberta.make_log_bucket_position(distance, count, reach).long()
        assert torch.equal(log_buckets(distance, count, reach), expected), f"{count} buckets for {reach}"
    return 0.0


def disentangled(to_position: bool, to_content: bool) -> float:
    """Weights of every query and key, the score added up term by term as the paper writes it."""
    torch.manual_seed(0)
    terms = 1 + to_position + to_content
    spec = DisentangledSpec(2, 5, (terms * 5) ** -0.5, reach=4, to_position=to_position, to_content=to_content)
    module = DisentangledAttention(7, spec).double()
    x_TD, table_ND = torch.randn(9, 7).double(), torch.randn(8, 7).double()
    q, k = ((x_TD @ p.weight.T + p.bias).view(9, 2, 5) for p in (module.q, module.k))
    at_q, at_k = ((table_ND @ p.weight.T + p.bias).view(8, 2, 5) for p in (module.q, module.k))
    scores = torch.empty(2, 9, 9, dtype=torch.float64)
    for i, j, h in torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).tolist():
        row = min(max(i - j + 4, 0), 7)
        score = q[i, h] @ k[j, h]
        score = score + q[i, h] @ at_k[row, h] * to_position + k[j, h] @ at_q[row, h] * to_content
        scores[h, i, j] = score / (terms * 5) ** 0.5
    asked = Asked(module, x_TD, table_ND)
    return agree([asked.weights_HQS.detach()], [F.softmax(scores, -1).detach()], EXACT)


class Asked(BlockDiagonal):
    """A context that keeps the weights of the only question it is asked."""

    def __init__(self, module: DisentangledAttention, x_TD: Tensor, table_ND: Tensor) -> None:
        super().__init__([len(x_TD)])
        module(x_TD, 0, Place(relative_ND=table_ND), self)

    def attend(self, layer, q_THK, k_TGK, v_TGK, question):  # type: ignore[no-untyped-def]
        """See `Context.attend`."""
        self.weights_HQS = attention_weights(q_THK.transpose(0, 1), k_TGK.transpose(0, 1), question)
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


PROOFS: dict[str, Callable[[], float]] = {
    **{f"types {name}": partial(typed, name) for name in TYPED},
    "padding bert": padded,
    "input sum": input_sum,
    "task rows": task_rows,
    "distance buckets": buckets,
    "distance terms": partial(disentangled, True, True),
    "distance to position": partial(disentangled, True, False),
    "distance to content": partial(disentangled, False, True),
}
