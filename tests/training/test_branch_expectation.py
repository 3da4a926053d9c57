"""What the estimator of branched attempts is in expectation: every outcome enumerated, against the true gradient."""

import itertools
from math import prod

import pytest

from nbagent.samples import StepSample
from nbagent_training.groups import batch_of_trees
from nbagent_training.recipe import Grpo
from nbagent_training.tree import Tree, leaf_of

# Two steps of two actions each, a logit for the first and one for the second after either first action.
FIRST, SECOND = 0.3, {0: 0.6, 1: 0.2}
RETURNS = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.25, (1, 1): 0.0}


def chance(p, action):
    return p if action else 1 - p


def slope(p, action):
    """d log π / d logit."""
    return action - p


def true_gradient():
    found = [0.0, 0.0, 0.0]
    for first, second in itertools.product((0, 1), repeat=2):
        weight = chance(FIRST, first) * chance(SECOND[first], second) * RETURNS[first, second]
        found[0] += weight * slope(FIRST, first)
        found[1 + first] += weight * slope(SECOND[first], second)
    return found


def expected_gradient(alternatives, baseline):
    """E of the batch's gradient; root r goes on in alternatives[r](its first action) ways before its second step."""
    settings = Grpo(grouping="branch", sigma="none", baseline=baseline, normalisation="constant", constant_tokens=1)
    found = [0.0, 0.0, 0.0]
    for firsts in itertools.product((0, 1), repeat=len(alternatives)):
        ways = [number(first) for number, first in zip(alternatives, firsts, strict=True)]
        for seconds in itertools.product(*(itertools.product((0, 1), repeat=number) for number in ways)):
            p = prod(chance(FIRST, first) for first in firsts)
            leaves, slopes = [], {}
            for root, (first, own) in enumerate(zip(firsts, seconds, strict=True)):
                slopes[root,] = (0, slope(FIRST, first))
                for number, second in enumerate(own):
                    p *= chance(SECOND[first], second)
                    slopes[root, number] = (1 + first, slope(SECOND[first], second))
                    name = f"{root}+{number}" if number else f"{root}"
                    reward = RETURNS[first, second]
                    calls = [
                        # The prompt says which call it is.
                        StepSample("t", name, 0, 2, (root,), (first,), (0.0,), reward, origin=f"{root}"),
                        StepSample("t", name, 1, 2, (root, number), (second,), (0.0,), reward),
                    ]
                    leaves.append(leaf_of(name, reward, False, calls))
            for row in batch_of_trees([Tree(leaves)], settings).rows:
                logit, own_slope = slopes[row.prompt_ids]
                found[logit] += p * row.weight * row.advantage * own_slope
    return found


def always(number):
    return lambda first: number


@pytest.mark.parametrize(
    "alternatives",
    [(2, 2), (4, 4), (1, 3), (2, 1, 4), (1, 1, 1), (4, 2)],
    ids=str,
)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_steps_before_and_after_a_branching_weigh_alike(alternatives, baseline):
    """The true gradient by leave-one-out; by the mean of n attempts (n - 1)/n of it, as without any branching."""
    n = sum(alternatives)
    scale = (n - 1) / n if baseline == "mean" else 1.0
    found = expected_gradient([always(number) for number in alternatives], baseline)
    assert found == pytest.approx([scale * slope for slope in true_gradient()])


def test_leave_one_out_bears_branchings_that_hang_on_what_was_done():
    found = expected_gradient([lambda first: 3 if first else 1, always(2)], "leave_one_out")
    assert found == pytest.approx(true_gradient())


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_of_one_root_nothing_before_the_branching_is_learned(baseline):
    """Which is why a recipe with one is refused."""
    found = expected_gradient([always(4)], baseline)
    scale = 0.75 if baseline == "mean" else 1.0
    assert found == pytest.approx([0.0, *(scale * slope for slope in true_gradient()[1:])])
