"""The algorithms by hand: small vocabularies whose results can be worked out on paper, and counted work."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cutaway.text.added import AddedToken, Finder
from cutaway.text.alphabet import BYTE_OF_LETTER, LETTER_OF_BYTE, from_letters, to_letters
from cutaway.text.bpe import BPE, Pair, by_rank, by_score, merge
from cutaway.text.unigram import UNKNOWN_PENALTY, Unigram
from cutaway.text.wordpiece import WordPiece


def ids(*tokens: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


# ---- byte-level alphabet


def test_alphabet_is_printable_and_reversible() -> None:
    assert len(set(LETTER_OF_BYTE.values())) == len(BYTE_OF_LETTER) == 256
    assert all(letter.isprintable() and not letter.isspace() for letter in LETTER_OF_BYTE.values())
    assert (LETTER_OF_BYTE[0x20], LETTER_OF_BYTE[0x0A], LETTER_OF_BYTE[0xAD], LETTER_OF_BYTE[0x41]) == (
        "Ġ",
        "Ċ",
        "Ń",
        "A",
    )
    text = "aé世🌈\0\n"
    assert from_letters(to_letters(text)) == text.encode()
    assert from_letters("世") == "世".encode()


# ---- BPE


def naive_merge(symbols: list[str], ranks: dict[Pair, float]) -> list[str]:
    """Look at all pairs, join the best (leftmost on a tie), again and again."""
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def test_merging_by_hand() -> None:
    trace: list[Pair] = []
    merges = [("l", "o"), ("e", "r"), ("lo", "w"), ("w", "er"), ("low", "er")]
    assert merge(list("lower"), by_rank(merges), trace=trace) == ["lower"]
    assert trace == [("l", "o"), ("e", "r"), ("lo", "w"), ("low", "er")]
    assert merge(list("aaa"), by_rank([("a", "a")])) == ["aa", "a"]  # leftmost first
    assert merge([], by_rank([])) == []


@pytest.mark.parametrize("seed", range(20))
def test_merging_against_the_obvious_loop(seed: int) -> None:
    rng = random.Random(seed)
    parts = ["".join(p) for n in (1, 2, 3) for p in itertools.product("ab", repeat=n)]
    pairs = [(x, y) for x in parts for y in parts]
    ranks = {pair: float(rng.randrange(12)) for pair in rng.sample(pairs, 30)}  # with ties
    for _ in range(50):
        word = [rng.choice("ab") for _ in range(rng.randrange(1, 25))]
        assert merge(word, ranks.get) == naive_merge(word, ranks)


def test_a_long_word_is_not_quadratic() -> None:
    """The pairs looked at grow with the length, not with its square."""

    def looked_at(n: int) -> int:
        count = 0

        def priority(pair: Pair) -> float | None:
            nonlocal count
            count += 1
            return {("a", "a"): 0.0, ("aa", "aa"): 1.0, ("aaaa", "aaaa"): 2.0}.get(pair)

        merge(["a"] * n, priority)
        return count

    assert looked_at(40_000) < 4.2 * looked_at(10_000)


def test_scores_rank_tokens() -> None:
    """SentencePiece joins the pair whose token scores best, though its letters need not be tokens."""
    assert merge(list("abc"), by_score({"ab": -2.0, "bc": -1.0})) == ["a", "bc"]
    assert merge(list("abc"), by_score({"ab": -1.0, "bc": -1.0})) == ["ab", "c"]


def test_bpe_unknown_letters() -> None:
    vocab, none = ids("a", "?", "<0xC3>", "<0xA9>"), by_rank([])
    assert BPE(vocab, none).tokens("aéa") == ["a", "a"]
    assert BPE(vocab, none, unk="?").tokens("xya") == ["?", "?", "a"]
    assert BPE(vocab, none, unk="?", fuse_unk=True).tokens("xyax") == ["?", "a", "?"]
    assert BPE(vocab, none, unk="?", byte_fallback=True).tokens("éx") == ["<0xC3>", "<0xA9>", "?"]


def test_bpe_marks_and_whole_words() -> None:
    marked = BPE(ids("a", "##b", "a##", "ab"), by_rank([("a", "##b")]), prefix="##")
    assert marked.tokens("ab") == ["ab"]
    ended = BPE(ids("a", "b", "b</w>", "ab</w>"), by_rank([("a", "b</w>")]), suffix="</w>")
    assert ended.tokens("ab") == ["ab</w>"]
    vocab = ids("a", "b", "ab")
    assert BPE(vocab, by_rank([])).tokens("ab") == ["a", "b"]
    assert BPE(vocab, by_rank([]), whole=True).tokens("ab") == ["ab"]
    assert BPE(vocab, by_rank([]), whole=True, hidden={"ab"}).tokens("ab") == ["a", "b"]


def test_cutting_before_spaces_changes_nothing() -> None:
    """Tokens across "x▁" keep those places whole; all others may be cut."""
    scores = {"▁": -9.0, "▁a": -3.0, "ab": -2.0, "b▁": -1.0, "b▁a": -4.0, "▁▁": -5.0, "a": -9.0, "b": -9.0}
    bpe = BPE({t: i for i, t in enumerate(scores)}, by_score(scores))
    rng = random.Random(5)
    for _ in range(500):
        word = "".join(rng.choice("ab▁") for _ in range(12))
        assert bpe.tokens(word) == merge(list(word), by_score(scores))
    assert bpe._cut is not None
    assert bpe._cut.split("b▁a▁b") == ["b▁a", "▁b"]


# ---- Unigram


def best_by_trying(word: str, scores: dict[str, float]) -> float:
    """The best score over all ways to cut the word."""
    unknown = min(scores.values()) - UNKNOWN_PENALTY
    best = -math.inf
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        pieces = [word[a:b] for a, b in itertools.pairwise(places)]
        if all(p in scores or len(p) == 1 for p in pieces):
            best = max(best, sum(scores.get(p, unknown) for p in pieces))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_viterbi_against_all_cuts(seed: int) -> None:
    rng = random.Random(seed)
    tokens = {"".join(rng.choice("abc") for _ in range(rng.randrange(1, 5))) for _ in range(12)}
    scores = {token: -rng.uniform(1, 20) for token in tokens}
    model = Unigram({t: i for i, t in enumerate(["?", *scores])}, scores, unk="?")
    unknown = model.unknown
    for _ in range(30):
        word = "".join(rng.choice("abcd") for _ in range(rng.randrange(1, 10)))
        pieces = model._pieces(word)
        assert "".join(pieces) == word
        got = sum(scores[p] if p in scores else unknown * len(p) for p in pieces)
        assert got == pytest.approx(best_by_trying(word, scores), abs=1e-9)


def test_unigram_unknown_letters() -> None:
    scores = {"a": -1.0, "?": 0.0}
    vocab = ids("?", "a", "<0xC3>", "<0xA9>")
    assert Unigram(vocab, scores, unk="?", hidden={"?"}).tokens("axya?") == ["a", "?", "a", "?"]
    assert Unigram(vocab, scores, unk="?", byte_fallback=True).tokens("aéa") == ["a", "<0xC3>", "<0xA9>", "a"]
    assert Unigram(vocab, scores).tokens("xa") == ["a"]


# ---- WordPiece


def test_wordpiece_by_hand() -> None:
    model = WordPiece(ids("[UNK]", "un", "##aff", "##able", "##a", "unaf"), longest_word=10)
    assert model.tokens("unaffable") == ["[UNK]"]  # greedy: "unaf", then nothing begins with "fable"
    model = WordPiece(ids("[UNK]", "un", "##aff", "##able", "##a"), longest_word=10)
    assert model.tokens("unaffable") == ["un", "##aff", "##able"]
    assert model.ids("unx") == [0]
    assert model.tokens("unaffableaa") == ["[UNK]"]
    assert WordPiece(ids("[UNK]", "x"), hidden={"x"}).tokens("x") == ["[UNK]"]


# ---- added tokens


def cut(text: str, *tokens: AddedToken, parse_special: bool = True) -> list[str | int]:
    return [s.token.id if s.token else s.text for s in Finder(tokens).split(text, parse_special)]


def test_longest_added_token_from_the_left() -> None:
    tokens = [AddedToken(1, "<a"), AddedToken(2, "<ab>"), AddedToken(3, "b>c"), AddedToken(4, "!")]
    assert cut("x<ab>c<ab!", *tokens) == ["x", 2, "c", 1, "b", 4]
    assert cut("<ab>", *tokens, parse_special=False) == ["<ab>"]
    assert cut("", *tokens) == []
    assert cut("text") == ["text"]


def test_flags_of_added_tokens() -> None:
    assert cut("a  <m>  b", AddedToken(1, "<m>", lstrip=True)) == ["a", 1, "  b"]
    assert cut("a  <m>  b", AddedToken(1, "<m>", rstrip=True)) == ["a  ", 1, "b"]
    word = AddedToken(1, "and", special=False, single_word=True)
    assert cut("sand and and_ (and)", word, parse_special=False) == ["sand ", 1, " and_ (", 1, ")"]


def test_thousands_of_added_tokens() -> None:
    tokens = [AddedToken(i, f"<unused{i}>") for i in range(5000)]
    assert cut("a<unused12>b<unused4999><unused5000>", *tokens) == ["a", 12, "b", 4999, "<unused5000>"]
    assert [t.id for _, t in Finder([*tokens, AddedToken(-1, "<un")]).occurrences("<unused7>")] == [7, -1]
