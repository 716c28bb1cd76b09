"""How many parameters, and which of them a token uses; what tables of rows cost."""

from __future__ import annotations

from cutaway.budget.figures import Figure, figure, of_term
from cutaway.models.cost import Cost

FLOAT32 = 4  # bytes


def parameters(cost: Cost) -> list[Figure]:
    """In all, of a token with and without the input table, and shares.

    Blocks ahead stand in a line of their own: the published totals leave them out.
    """
    spec = cost.spec
    ahead = sum(part.parameters for part in cost.parts if part.module.startswith("ahead."))
    table = spec.vocab * (spec.embedding.width or spec.width)
    tied = spec.head is not None and spec.head.tied
    untied = 0 if tied or spec.head is None else table
    total = figure("parameters", "", "N − A", N=cost.parameters, A=ahead)
    used = figure("active per token", "", "N", N=cost.active)
    beside = figure("active, with the input table", "", "N + V·E", N=cost.active, V=spec.vocab, E=table // spec.vocab)
    whole = used if tied else beside
    return [
        total,
        *([figure("in blocks ahead", "", "A", A=ahead)] if ahead else []),
        used,
        *([] if tied else [beside]),
        figure("active share", "%", "100·a/N", a=whole.value, N=total.value),
        figure("vocabulary's share", "%", "100·t/N", t=table + untied, N=total.value),
    ]


def by_part(cost: Cost) -> list[Figure]:
    """Every kind of module, see `Cost.by_part`."""
    return [of_term(term, "") for term in cost.by_part()]


def rows(vocab: int, width: int, narrow: int = 0) -> list[Figure]:
    """A table of words: as one-hot vectors, as dense rows, and factorized through `narrow` (Lan et al. 2019)."""
    sizes = {"V": vocab, "D": width}
    found = [
        figure("one-hot table", "bytes", "V·V·b", V=vocab, b=FLOAT32),
        figure("dense table", "bytes", "V·D·b", **sizes, b=FLOAT32),
        figure("numbers, dense", "", "V·D", **sizes),
    ]
    if not narrow:
        return found
    factorized = figure("numbers, factorized", "", "V·E + E·D", **sizes, E=narrow)
    return [*found, factorized, figure("dense over factorized", "", "V·D/(V·E + E·D)", **sizes, E=narrow)]


def adaptive_softmax(vocab: int, shortlist: int, rare: float, narrower: float = 4) -> list[Figure]:
    """Output layer in two parts (Grave et al. 2017, arXiv:1609.04309): common words in full, the rest when needed.

    rare: share of the text whose words are in the tail. narrower: by how much its rows are. Projections left out.
    """
    sizes = {"V": vocab, "S": shortlist, "p": rare, "n": narrower}
    share = figure("share of the full product", "%", "100·(S + p·(V − S)/n)/V", **sizes)
    return [share, figure("times less work", "", "V/(S + p·(V − S)/n)", **sizes)]


def pairwise(cost: Cost, documents: int, tokens: int, again: int) -> list[Figure]:
    """FLOPs of answering one query from many documents: vectors compared, or each pair read together by the model.

    tokens: of a query and a document together. again: documents that are read together after the vectors chose them.
    """
    layers = sum(part.parameters for part in cost.parts if part.module.startswith("layers."))
    sizes = {"N": layers, "T": tokens, "M": documents}
    return [
        figure("dot products", "FLOP", "2·D·M", D=cost.spec.width, M=documents),
        figure("every pair read together", "FLOP", "2·N·T·M", **sizes),
        figure("pairs over products", "", "N·T/D", N=layers, T=tokens, D=cost.spec.width),
        figure("reranking alone, of all pairs", "", "R/M", R=again, M=documents),
    ]
