"""Batches of elision: a pure function of the items, whose places stay while the items grow."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.elide import batches


def standing(whole, lines, dropped, lined):
    return sum(lines[dropped:lined]) + sum(whole[lined:])


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=200), st.integers(0, 400), st.integers(0, 400)
)
def test_what_stands_is_never_above_the_high_mark(sizes, one, two):
    low, high = sorted((one, two))
    whole = [max(size) for size in sizes]
    lines = [min(size) for size in sizes]
    before = (0, 0)
    for n in range(len(sizes) + 1):
        dropped, lined = batches(whole[:n], lines[:n], high, low)
        assert 0 <= dropped <= lined <= n
        total = standing(whole[:n], lines[:n], dropped, lined)
        assert total <= high or (dropped == n)
        # Nothing comes back.
        assert dropped >= before[0]
        assert lined >= before[1]
        before = (dropped, lined)


def test_elision_comes_in_batches():
    places = [batches([10] * n, [2] * n, 300, 200) for n in range(400)]
    changes = sum(one != two for one, two in pairwise(places))
    assert changes < 45
    assert places[30] == (0, 0)
    assert places[31][1] > 0
