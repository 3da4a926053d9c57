"""Estimators and weights against numbers computed by hand, each setting where it makes a difference."""

from dataclasses import replace

import pytest
from attempts import branch, groups, groups_of, rows

from nbagent_training.groups import batch_of
from nbagent_training.recipe import Grpo


def batch(samples, **settings):
    return batch_of(groups_of(samples), Grpo(**settings))


def advantages(samples, **settings):
    return [row.advantage for row in batch(samples, **settings).rows]


def near(*numbers):
    """To 1e-3: ε = 1e-4 beside a deviation is not in the numbers."""
    return pytest.approx(numbers, abs=1e-3)


# R = 1 sees s, s, z, with returns from there of 1/4, 1/2, 1 at γ = 1/2; R = 0 sees s, u, with returns of 0. In s are
# two attempts, with means 3/8 and 0: their mean is 3/16, their deviation 0.2652. Nobody else is in z or u.
STATES = rows("x", 0, 3, 1.0, state_key=["s", "s", "z"]) + rows("x", 1, 2, 0.0, state_key=["s", "u"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sigma": "none"}, (0.5 + 1 / 16, 0.5 + 5 / 16, 0.5, -0.5 - 3 / 16, -0.5)),
        ({"sigma": "none", "state_weight": 2}, (0.5 + 2 / 16, 0.5 + 10 / 16, 0.5, -0.5 - 6 / 16, -0.5)),
        ({"sigma": "none", "baseline": "leave_one_out"}, (1 + 0.25, 1 + 0.5, 1, -1 - 0.375, -1)),
        # 0.5 / 0.7071 of the attempt; 0.0625, 0.3125 and -0.1875 over 0.2652 of the state.
        ({}, (0.7071 + 0.2357, 0.7071 + 1.1785, 0.7071, -0.7071 - 0.7071, -0.7071)),
    ],
    ids=str,
)
def test_state(settings, expected):
    assert advantages(STATES, grouping="state", gamma=0.5, **settings) == near(*expected)


def test_state_counts_step_rewards_and_penalties_in_the_return_from_there():
    one = rows("x", 0, 2, 1.0, state_key=["s", "y"], step_reward=[0.5, 0.0])
    two = rows("x", 1, 2, 0.0, state_key=["s", "z"], failed=[False, True])
    # From s on: 1/2 + 1/2 against 0 - 1/4 / 2. The failed step is of a failed attempt, which cannot get worse.
    found = advantages(one + two, grouping="state", gamma=0.5, sigma="none", failed_penalty=0.25)
    assert found == near(0.5 + 9 / 16, 0.5, -0.5 - 9 / 16, -0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sigma": "none"}, (-0.5, 0.5)),
        ({"sigma": "none", "baseline": "leave_one_out"}, (-0.75, 0.75)),
        ({}, (-1, 1)),
    ],
    ids=str,
)
def test_rollout(settings, expected):
    """Steps of 1/2, 0 and 1: mean and deviation 1/2, so the first step has no gradient."""
    samples = rows("x", 0, 3, 1.0, step_reward=[0.5, 0.0, 0.0])
    assert advantages(samples, grouping="rollout", **settings) == near(*expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sigma": "none"}, (1 / 3, 0.5, -1 / 6, -0.5, -1 / 6)),
        ({"sigma": "none", "baseline": "leave_one_out"}, (0.5, 1, -0.25, -1, -0.25)),
        # Deviations 0.2887 of 1/2, 0, 0 and 0.7071 of 1, 0.
        ({}, (1.1547, 0.7071, -0.5774, -0.7071, -0.5774)),
    ],
    ids=str,
)
def test_step_index(settings, expected):
    samples = groups({"x": [(2, 1.0), (2, 0.0), (1, 0.0)]})
    assert advantages(samples, grouping="step_index", gamma=0.5, **settings) == near(*expected)


def branched(first_failed=False):
    """A right root of three calls, what was branched from it before its second, wrong, and another wrong root.

    Shares 3/4, 3/4 and 3/2; values of the task's node 1/2 and 0, of the branching 1 and 0.
    """
    root = rows("x", "r", 3, 1.0, failed=[first_failed, False, False])
    return [*root, *branch(root, "l", 1, 2, 0.0, length=5), *rows("x", "s", 1, 0.0, length=9)]


def test_deviation_of_a_tree():
    # (3/4 · 9/16 + 3/4 · 1/16 + 3/2 · 1/16) / (3 - (9/16 + 9/16 + 9/4) / 3) = 9/16 / (15/8) = 3/10
    assert batch(branched(), grouping="branch").stats["reward_std"] == pytest.approx(0.3**0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1 / 3, 2 / 3, 2 / 3, -2 / 3, -1 / 3)),
        ({"baseline": "leave_one_out"}, (0.5, 1, 1, -1, -0.5)),
        # The first call's subtree is worth 1/2, a quarter less where the call failed.
        ({"failed_penalty": 0.25}, (1 / 3 - 1 / 4, 2 / 3, 2 / 3, -2 / 3, -1 / 3)),
        ({"failed_penalty": 1, "baseline": "leave_one_out"}, (0.5 - 0.5, 1, 1, -1, -0.5)),
    ],
    ids=str,
)
def test_branch(settings, expected):
    samples = branched(first_failed=True)
    # An entropy bonus keeps rows without an advantage.
    assert advantages(samples, grouping="branch", sigma="none", loss={"entropy_coef": 0.1}, **settings) == near(
        *expected
    )


def test_row_mean_counts_a_memory_by_its_weight():
    written = [
        replace(row, kind=kind) for row, kind in zip(rows("x", 0, 3, 1.0), ["action", "summary", "action"], strict=True)
    ]
    made = batch([*written, *rows("x", 1, 1, 0.0)], normalisation="row_mean", summary_weight=0.5)
    # Two attempts; 1 + 1/2 + 1 calls of 3, 4 and 3 tokens, and one of 3.
    assert [row.weight for row in made.rows] == pytest.approx([1 / 15, 1 / 40, 1 / 15, 1 / 6])


def test_token_mean_counts_branched_tokens_by_their_share():
    made = batch(branched(), grouping="branch", normalisation="token_mean")
    # 3/4 · 10 + 3/4 · 9 + 3/2 · 9 tokens = 111/4; the first call is in two attempts.
    assert [row.weight for row in made.rows] == pytest.approx([2 / 37, 1 / 37, 1 / 37, 1 / 37, 2 / 37])
