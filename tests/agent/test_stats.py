import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbagent.stats import (
    bootstrap_mean,
    constant_bound,
    mcnemar_exact,
    mean_of_tasks,
    paired_difference,
    pass_at_k,
    ratio_of_tasks,
    wilson,
)

counts = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # The last two rows are the worked intervals of reference tables for 84.2 % and 32.5 % of 240.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (202, 240, 0.790, 0.882), (78, 240, 0.269, 0.387)],
)
def test_wilson_gives_known_intervals(successes, n, low, high):
    estimate = wilson(successes, n)
    assert estimate.low == pytest.approx(low, abs=5e-4)
    assert estimate.high == pytest.approx(high, abs=5e-4)


@given(counts)
def test_wilson_ends_solve_the_score_equation(pair):
    n, c = pair
    e = wilson(c, n)
    z = 1.959963984540054
    assert 0 <= e.low <= e.value <= e.high <= 1
    for end in (e.low, e.high):
        if 0 < end < 1:
            assert (e.value - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-9)


@given(counts, st.data())
def test_pass_at_k_equals_the_share_of_all_subsets(pair, data):
    n, c = pair
    k = data.draw(st.integers(1, n))
    right = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=40), st.integers(0, 5))
@settings(max_examples=30)
def test_bootstrap_is_seeded_ordered_and_blind_to_order(values, seed):
    e = bootstrap_mean(values, seed=seed, resamples=500)
    assert e == bootstrap_mean(list(reversed(values)), seed=seed, resamples=500)
    assert 0 <= e.low <= e.value + 1e-9
    assert e.value - 1e-9 <= e.high <= 1
    assert e.value == pytest.approx(sum(values) / len(values))


def test_bootstrap_agrees_with_drawing_tasks_one_by_one():
    values = np.array([0.0] * 20 + [0.5] * 7 + [1.0] * 13)
    rng = np.random.default_rng(5)
    means = values[rng.integers(0, len(values), size=(20_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    e = bootstrap_mean(values.tolist(), seed=1)
    assert e.low == pytest.approx(low, abs=0.013)
    assert e.high == pytest.approx(high, abs=0.013)


def test_tasks_that_all_gave_the_same_do_not_claim_certainty():
    assert bootstrap_mean([0.0] * 50).high == pytest.approx(wilson(0, 50).high)
    assert bootstrap_mean([1.0] * 50).low == pytest.approx(wilson(50, 50).low)
    same = paired_difference([1.0] * 50, [1.0] * 50).difference
    assert same.low == -same.high != 0
    assert constant_bound(1.0, 9, (-1.0, 1.0)).high == 1.0


def test_one_attempt_per_task_uses_wilson_and_several_use_tasks_as_units():
    assert mean_of_tasks([(1, 1), (1, 0)]).method == "wilson"
    several = mean_of_tasks([(4, 4), (4, 0), (4, 2), (1, 1)], k=2)
    assert several.method == "bootstrap"
    assert several.n == 3
    with pytest.raises(ValueError, match="no task has 5"):
        mean_of_tasks([(4, 4)], k=5)


@given(st.integers(0, 8), st.integers(0, 8))
def test_mcnemar_equals_counting_all_coin_tosses(better, worse):
    n = better + worse
    extreme = abs(better - worse)
    tosses = itertools.product((1, -1), repeat=n) if n <= 10 else None
    if tosses is None:
        share = sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= extreme) / 2**n
    else:
        share = sum(abs(sum(toss)) >= extreme for toss in tosses) / 2**n
    assert mcnemar_exact(better, worse) == pytest.approx(share)


def test_paired_difference_counts_and_covers():
    before = [0.0] * 60 + [1.0] * 40
    after = [1.0] * 45 + [0.0] * 15 + [1.0] * 35 + [0.0] * 5
    d = paired_difference(before, after, seed=3)
    assert (d.better, d.worse) == (45, 5)
    assert d.difference.value == pytest.approx(0.40)
    # Normal theory for pairs: sd of the differences is sqrt(.5 - .16).
    half = 1.96 * math.sqrt(0.34 / 100)
    assert d.difference.low == pytest.approx(0.40 - half, abs=0.02)
    assert d.difference.high == pytest.approx(0.40 + half, abs=0.02)
    assert d.p_value is not None
    assert d.p_value < 1e-6
    assert d == paired_difference(before, after, seed=3)
    assert paired_difference([0.5, 0.0], [1.0, 0.0]).p_value is None
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference([0.0], [])


def test_a_share_of_attempts_weighs_attempts_alike_and_draws_tasks():
    assert ratio_of_tasks([(1, 1), (1, 0), (0, 0), (1, 1)]) == wilson(2, 3)
    pairs = [(1, 1), (4, 0), (2, 1), (3, 3), (2, 0)]
    estimate = ratio_of_tasks(pairs, seed=3)
    assert (estimate.value, estimate.n, estimate.method) == (5 / 12, 5, "bootstrap")
    rng = np.random.default_rng(0)
    drawn = np.array(pairs)[rng.integers(0, 5, size=(20_000, 5))].sum(axis=1)
    ends = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ends), abs=0.01)
    assert ratio_of_tasks([(2, 1), (4, 2)]).method == "bound"
    with pytest.raises(ValueError, match="no attempts"):
        ratio_of_tasks([(0, 0)])
