"""Batches of elision: a pure function of the items, whose places stay while the items grow."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.elide import batches


def standing(whole, old, lines, places):
    dropped, lined, aged = places
    return sum(lines[dropped:lined]) + sum(old[lined:aged]) + sum(whole[aged:])


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(0, 20)), max_size=200),
    st.integers(0, 400),
    st.integers(0, 400),
)
def test_what_stands_is_never_above_the_high_mark(sizes, one, two):
    low, high = sorted((one, two))
    lines, old, whole = zip(*map(sorted, sizes), strict=True) if sizes else ((), (), ())
    before = (0, 0, 0)
    for n in range(len(sizes) + 1):
        places = batches(whole[:n], old[:n], lines[:n], high, low)
        dropped, lined, aged = places
        assert 0 <= dropped <= lined <= aged <= n
        assert standing(whole[:n], old[:n], lines[:n], places) <= high or dropped == n
        # Nothing comes back.
        assert all(now >= then for now, then in zip(places, before, strict=True))
        before = places


def test_elision_comes_in_batches():
    places = [batches([10] * n, [5] * n, [2] * n, 300, 200) for n in range(400)]
    changes = sum(one != two for one, two in pairwise(places))
    assert changes < 45
    assert places[30] == (0, 0, 0)
    assert places[31][2] > 0


def test_lines_come_after_old_items_and_leave_some_of_them():
    dropped, lined, aged = batches([10] * 200, [5] * 200, [2] * 200, 300, 200)
    assert 0 < dropped < lined < aged < 200
    assert sum([2] * (lined - dropped)) <= 200 / 3 + 2
    assert sum([5] * (aged - lined)) <= 200 / 3 + 5


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=100), st.integers(0, 400))
def test_items_that_have_no_old_form_go_as_if_there_were_none(sizes, high):
    whole, lines = [max(size) for size in sizes], [min(size) for size in sizes]
    dropped, lined, _ = batches(whole, whole, lines, high, high // 2)
    assert (dropped, lined) == two_levels(whole, lines, high, high // 2)


def two_levels(whole, lines, high, low):
    """How many of the first items are dropped, and how many are at most a line, where there is nothing between."""
    dropped = lined = total = of_lines = 0
    for number, tokens in enumerate(whole):
        total += tokens
        if total <= high:
            continue
        while total > low and dropped <= number:
            if dropped < lined and (of_lines > low / 3 or lined > number):
                total -= lines[dropped]
                of_lines -= lines[dropped]
                dropped += 1
            else:
                total -= whole[lined] - lines[lined]
                of_lines += lines[lined]
                lined += 1
    return dropped, lined
