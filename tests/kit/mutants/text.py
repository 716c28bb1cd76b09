"""Mistakes in tokenizers."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

BPE, UNIGRAM, WORDPIECE = "cutaway.text.bpe:", "cutaway.text.unigram:Unigram.", "cutaway.text.wordpiece:WordPiece."
STREAM = "cutaway.text.stream:Detokenizer."

# fmt: off
MUTANTS = mutants(
    ("bpe: last merge first", "encoding smollm", edit(BPE + "by_rank", "{pair: rank", "{pair: -rank")),
    ("bpe: rightmost pair first", "encoding gemma", edit(BPE + "merge", "return (rank, i, left, right)", "return (rank, -i, left, right)")),
    ("bpe: stale candidates joined", "encoding smollm", edit(BPE + "merge", "if text[i] != left or text[j] != right:", "if text[i] is None or text[j] is None:")),
    ("bpe: new neighbor to the left forgotten", "encoding smollm", edit(BPE + "merge", "for k in (before[i], i):", "for k in (i,):")),
    ("bpe: new neighbor to the right forgotten", "encoding smollm", edit(BPE + "merge", "for k in (before[i], i):", "for k in (before[i],):")),
    ("bpe: whole words merged though they are tokens", "encoding llama 3", edit(BPE + "BPE.tokens", "if self.whole and", "if False and")),
    ("bpe: bytes of unknown characters left out", "encoding llama 2", edit(BPE + "BPE._bytes", "if self.byte_fallback", "if False")),
    ("bpe: unknown characters not fused", "encoding marked bpe, fused", edit(BPE + "BPE._known", "fusing and self.fuse_unk", "False")),
    ("bpe: continuations not marked", "encoding marked bpe, fused", edit(BPE + "BPE.spell", "self.prefix + letter", "letter")),
    ("bpe: mark kept when joined", "encoding marked bpe, fused", edit(BPE + "BPE._join", "right.removeprefix(self.prefix)", "right")),
    ("unigram: shortest tokens preferred", "encoding unigram with bytes",
        edit(UNIGRAM + "_starts", "here + score > best[end]", "here - score > best[end]")),
    ("unigram: greedy", "encoding unigram with bytes", edit(UNIGRAM + "_starts", "here + score > best[end]", "True")),
    ("unigram: unknown characters not fused", "encoding unigram",
        edit(UNIGRAM + "_pieces", "pieces and (not known) and (not pieces[-1][1])", "False")),
    ("unigram: no bytes for the unknown", "encoding unigram with bytes", edit(UNIGRAM + "_known", "self.byte_fallback and", "False and")),
    ("wordpiece: shortest match", "encoding wordpiece",
        edit(WORDPIECE + "_longest_match", "range(min(len(word), start + self._longest), start, -1)",
             "range(start + 1, min(len(word), start + self._longest) + 1)")),
    ("wordpiece: continuations not marked", "encoding wordpiece", edit(WORDPIECE + "_longest_match", "self.prefix if start else ''", "''")),
    ("wordpiece: known part of an unknown word kept", "encoding wordpiece",
        edit(WORDPIECE + "tokens", "if token is None:\n            return [self.unk]", "if token is None:\n            return [*tokens, self.unk]")),
    ("special tokens: none added", "encoding wordpiece",
        edit("cutaway.text.tokenizer:Tokenizer.encode", "if add_special else", "if False else")),
    ("stream: half characters come out", "text of smollm",
        edit(STREAM + "push", "self._utf8.decode(self._trimmed(self._bytes_of(id)))", "self._trimmed(self._bytes_of(id)).decode('utf-8', 'replace')")),
    ("stream: the end is lost", "text of smollm", edit(STREAM + "flush", "final=True)", "final=False)")),
    ("stream: every token's space dropped", "text of llama 2", edit(STREAM + "_trimmed", "if kept:\n        self._trim = 0", "if kept:\n        self._trim = 1")),
    ("stream: first space kept", "text of llama 2", edit(STREAM + "_trimmed", "while self._trim and", "while False and")),
    ("decoder: continuations kept apart", "text of wordpiece",
        edit("cutaway.text.decoding:_wordpiece", "token.removeprefix(prefix) if token.startswith(prefix) else ' ' + token", "' ' + token")),
)
# fmt: on
