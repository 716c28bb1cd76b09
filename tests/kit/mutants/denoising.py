"""Mistakes in the noise of T5 and BART."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

NOISE = "cutaway.nn.denoising:"

# fmt: off
MUTANTS = mutants(
    ("span corruption: one sentinel for all", "span corruption", edit(NOISE + "corrupt_spans", "sentinels[:spans]", "[sentinels[0]] * spans")),
    ("span corruption: each span behind another's sentinel", "span corruption",
        edit(NOISE + "corrupt_spans", "for _, mark, lose in triples", "for (_, _, lose), (_, mark, _) in zip(triples, triples[::-1])")),
    ("span corruption: hidden tokens read too", "span corruption",
        edit(NOISE + "corrupt_spans", "for keep, mark, _ in triples for part in (keep, mark)", "for keep, mark, lose in triples for part in (keep, mark, lose)")),
    ("span corruption: hidden spans first", "span corruption",
        edit(NOISE + "corrupt_spans", "zip(kept, lost, strict=True)", "zip(lost, kept, strict=True)")),
    ("span corruption: as many spans as hidden tokens", "span corruption", edit(NOISE + "corrupt_spans", "hidden / length", "hidden / 1")),
    ("span corruption: one hidden token too few", "span corruption", edit(NOISE + "corrupt_spans", "round(share * len(tokens_T))", "round(share * len(tokens_T)) - 1")),
    ("span corruption: places cut unevenly", "span corruption", edit(NOISE + "_cut", "count - 1", "max(count - 2, pieces - 1)")),
    ("fill spans: the first word of each alone", "span corruption",
        edit(NOISE + "fill_spans", "said.get(token, []) if token in sentinels", "said.get(token, [])[:1] if token in sentinels")),
    ("infilling: a mask per token", "infilling", edit(NOISE + "infill", "masked if span", "masked.expand(len(part)) if span")),
    ("infilling: empty spans dropped", "infilling", edit(NOISE + "infill", "min(left, int(", "min(left, 1 + int(")),
    ("infilling: all spans of the mean length", "infilling",
        edit(NOISE + "infill", "torch.poisson(torch.tensor(length), generator=generator)", "length")),
    ("infilling: spans at the end", "infilling", edit(NOISE + "infill", "torch.randperm(kept + len(spans), generator=generator)", "torch.arange(kept + len(spans)).flip(0)")),
    ("infilling: the last span not cut to fit", "infilling",
        edit(NOISE + "infill", "min(left, int(torch.poisson(torch.tensor(length), generator=generator)))", "min(len(tokens_T) - sum(spans), int(torch.poisson(torch.tensor(length), generator=generator)))")),
    ("sentence permutation: full stop goes to the next", "sentence permutation", edit(NOISE + "permute_sentences", " + 1", " + 0")),
    ("sentence permutation: words permuted", "sentence permutation", edit(NOISE + "permute_sentences", "torch.tensor_split(tokens_T, closed)", "tokens_T.split(1)")),
    ("sentence permutation: only reversed or not", "sentence permutation",
        edit(NOISE + "permute_sentences", "torch.randperm(len(sentences), generator=generator)", "torch.arange(len(sentences)).roll(int(torch.randint(9, (), generator=generator)))")),
    ("deletion: the share that is kept", "deletion and rotation", edit(NOISE + "delete_tokens", ">= share", "< share")),
    ("rotation: never to the last token", "deletion and rotation", edit(NOISE + "rotate_document", "max(len(tokens_T), 1)", "max(len(tokens_T) - 1, 1)")),
    ("denoising: the shuffled text is the target", "denoising whole",
        edit(NOISE + "denoise", "share=share, length=length), tokens_T)", "share=share, length=length), shuffled_T)")),
    ("denoising: not shuffled", "denoising whole", edit(NOISE + "denoise", "infill(shuffled_T", "infill(tokens_T")),
)
# fmt: on
