"""Pages: what is shared, what is given away, and that a broken book is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cutaway.engine import pages as module
from cutaway.engine.pages import Chain, Pages
from kit.proofs.pages import PROOFS


@pytest.mark.parametrize("name", [name for name in PROOFS if name.startswith("pages")])
def test_proof(name: str) -> None:
    PROOFS[name]()


def test_sizes_that_do_not_fit_each_other() -> None:
    pages = Pages(3, 5)
    assert [pages.needed(n) for n in (0, 1, 5, 6)] == [0, 1, 1, 2]
    assert (pages.free, pages.cached, pages.held, pages.available) == (3, 0, 0, 3)
    assert pages.find([1], Chain()) == []
    table: list[int] = []
    assert pages.grow(table, 15)
    assert sorted(table) == [0, 1, 2]
    assert pages.grow(table, 3), "a table that is long enough needs nothing"
    assert len(table) == 3
    assert not pages.grow(table, 16)


def test_names_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoded token costs no more than its own page, however long the text is."""
    made, name_of = [], module.name_of
    monkeypatch.setattr(module, "name_of", lambda *args: made.append(args) or name_of(*args))
    pages, tokens, table, chain = Pages(64, 4), [], [], Chain()
    for position in range(200):
        tokens.append(position)
        assert pages.grow(table, position + 1)
        pages.seal(table, tokens, position, position + 1, chain)
    assert len(made) == 51  # the salt's, and one a page
    pages.release(table)
    pages.match(tokens, chain)
    assert len(made) == 51


def test_names_have_128_bits_and_a_key_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[bytes]:
        return Chain(b"salt").reach([*range(8)], 4, 2)

    assert {len(name) for name in names()} == {16}
    assert names() == names()
    before = names()
    monkeypatch.setattr(module, "KEY", b"another")
    assert not set(before) & set(names())


def broken(change: Callable[[Pages], object]) -> str:
    """What `check` says of a book with a table, a cached page and free ones, after a change."""
    pages, chain, table, other = Pages(8, 2), Chain(), [], []
    assert pages.grow(table, 4)
    pages.seal(table, [1, 2, 3, 4], 0, 4, chain)
    assert pages.grow(other, 2)
    pages.seal(other, [9, 9], 0, 2, Chain())
    pages.release(other)
    pages.check([table])
    change(pages)
    with pytest.raises(AssertionError) as error:
        pages.check([table])
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pages: pages.holders.__setitem__(0, 2), "holders are not the tables"),
        (lambda pages: pages._free.append(pages._free[0]), "free twice"),
        (lambda pages: pages._free.append(next(iter(pages._cached))), "free and cached"),
        (lambda pages: pages._free.append(0), "held and may be given away"),
        (lambda pages: pages._free.pop(), "lost"),
        (lambda pages: pages._name_of.pop(next(iter(pages._cached))), "has no name"),
        (lambda pages: pages._page_of.popitem(), "disagree"),
        (lambda pages: pages._name_of.__setitem__(pages._free[0], b"x"), "a free one has"),
    ],
)
def test_check_says_what_is_broken(change: Callable[[Pages], object], said: str) -> None:
    assert said in broken(change)


def test_check_knows_pages_that_do_not_exist() -> None:
    with pytest.raises(AssertionError, match="does not exist"):
        Pages(2, 2).check([[5]])
