"""Invariants of branched attempts: nodes, shares, shared calls."""

from collections import defaultdict
from dataclasses import replace

import pytest
from attempts import branch, groups_of, rows, trajectory_of, trees
from hypothesis import given
from hypothesis import strategies as st

from nbagent.errors import UsageError
from nbagent.samples import samples
from nbagent_training.advantages import outcome
from nbagent_training.groups import batch_of, batch_of_trees
from nbagent_training.recipe import Grpo
from nbagent_training.tree import Tree, leaf_of
from nbagent_training.weights import token_weights

PLAIN, BRANCH = Grpo(sigma="none"), Grpo(grouping="branch", sigma="none")


def tree_of(attempts):
    return Tree([leaf_of(a[0].rollout_id, a[0].reward, a[0].truncated, a) for a in attempts])


@given(trees())
def test_what_a_rollout_records_is_the_rows_that_these_tests_give(attempts):
    for own in attempts:
        assert samples(trajectory_of(own)) == [replace(row, origin=row.origin or row.rollout_id) for row in own]


def test_a_node_compares_its_alternatives_and_shares_what_came_before():
    trunk = rows("x", "r", 3, 1.0)
    other = rows("x", "s", 1, 0.0, length=9)
    left = branch(trunk, "l", 1, 2, 0.0, length=5)
    batch = batch_of_trees([tree_of([trunk, left, other])], BRANCH)
    # The trunk's subtree is worth 1/2, the other root 0: the mean over the task is 1/4, not 1/3.
    assert batch.stats["reward"] == 0.25
    found = [(row.completion_ids[-1], row.advantage) for row in batch.rows]
    # Two alternatives each, so 2/1 times the distance to their mean; three attempts, so 2/3 of that.
    assert found == [
        (end, pytest.approx(a)) for end, a in [(2, 1 / 3), (3, 2 / 3), (2, 2 / 3), (5, -2 / 3), (8, -1 / 3)]
    ]
    assert batch.stats["branchings"] == 1
    assert batch.stats["trajectories"] == 3


@given(trees())
def test_shares_are_the_inverse_of_the_branching_and_sum_to_the_number_of_attempts(attempts):
    tree = tree_of(attempts)
    assert sum(tree.share(leaf) for leaf in tree.leaves) == pytest.approx(len(attempts))
    weighted = sum(tree.share(leaf) * leaf.reward for leaf in tree.leaves) / len(attempts)
    assert tree.mean == pytest.approx(weighted)


@given(trees())
def test_every_call_is_in_one_segment(attempts):
    tree = tree_of(attempts)
    found = [key for segment in tree.segments for key in segment.calls]
    assert len(found) == len(set(found))
    assert set(found) == {key for leaf in tree.leaves for key in leaf.calls}


@given(trees(), st.sampled_from(["mean", "leave_one_out"]))
def test_the_alternatives_of_a_node_sum_to_zero(attempts, baseline):
    tree = tree_of(attempts)
    found = outcome(tree, BRANCH.model_copy(update={"baseline": baseline}))
    advantages = {key: value for own in found for key, value in own.items()}
    nodes = defaultdict(list)
    for segment in tree.segments:
        nodes[id(segment.siblings)].append(segment)
    for segments in nodes.values():
        # An alternative that is over has no call to look at.
        if len(segments) == len(segments[0].siblings):
            assert sum(advantages[segment.calls[0]] for segment in segments) == pytest.approx(0, abs=1e-9)
            assert {segment.value for segment in segments} == set(segments[0].siblings)


@given(trees(), st.sampled_from(["rollout_token_mean", "row_mean", "token_mean"]), st.sampled_from([1.0, 0.8]))
def test_merged_and_unmerged_prefixes_give_the_same_gradient(attempts, normalisation, gamma):
    """A shared call once with its summed weight, or a copy in every attempt: weight times advantage of a call agree."""
    settings = BRANCH.model_copy(update={"normalisation": normalisation, "gamma": gamma})
    tree = tree_of(attempts)
    merged = batch_of_trees([tree], settings)
    apart = defaultdict(float)
    (weights,) = token_weights([tree], settings)
    for leaf, own, weight in zip(tree.leaves, outcome(tree, settings), weights, strict=True):
        for key in leaf.calls:
            apart[key] += own[key] * weight[key]
    calls = {key: rows[0] for leaf in tree.leaves for key, rows in leaf.calls.items()}
    expected = sorted(
        (calls[key].completion_ids, round(value, 12)) for key, value in apart.items() if abs(value) > 1e-15
    )
    assert sorted((row.completion_ids, round(row.advantage * row.weight, 12)) for row in merged.rows) == expected


@given(trees(), st.sampled_from(["rollout_token_mean", "row_mean"]))
def test_branching_moves_no_weight_between_attempts_of_the_first_step(attempts, normalisation):
    """Whatever was branched below it, what begins with one first call weighs as much as another."""
    tree = tree_of(attempts)
    (weights,) = token_weights([tree], BRANCH.model_copy(update={"normalisation": normalisation}))
    total = defaultdict(float)
    for leaf, own in zip(tree.leaves, weights, strict=True):
        first = next(iter(leaf.calls))
        total[first] += sum(own[key] * sum(len(r.completion_ids) for r in rows) for key, rows in leaf.calls.items())
    assert list(total.values()) == pytest.approx([1 / len(total)] * len(total))


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=6))
def test_branched_at_the_first_step_it_is_plain_grpo(members):
    plain = [rows("x", i, turns, reward, length=3 + 2 * i) for i, (turns, reward) in enumerate(members)]
    branched = [plain[0]] + [
        branch(plain[0], i, 0, turns, reward, length=3 + 2 * i) for i, (turns, reward) in enumerate(members) if i
    ]
    for settings in (Grpo(), Grpo(gamma=0.7, baseline="leave_one_out")):
        one = batch_of(groups_of([row for attempt in plain for row in attempt]), settings)
        two = batch_of(
            groups_of([row for attempt in branched for row in attempt]),
            settings.model_copy(update={"grouping": "branch"}),
        )
        assert [(r.completion_ids, r.advantage, r.weight) for r in one.rows] == [
            (r.completion_ids, r.advantage, r.weight) for r in two.rows
        ]


@given(trees())
def test_a_masked_attempt_takes_its_part_of_shared_calls_with_it(attempts):
    cut = [*attempts[:-1], [replace(row, truncated=True) for row in attempts[-1]]]
    whole = batch_of_trees([tree_of(attempts)], BRANCH)
    masked = batch_of_trees([tree_of(cut)], BRANCH.model_copy(update={"mask_truncated": True}))
    own = {row.completion_ids: row.advantage for row in whole.rows}
    assert sum(r.weight * len(r.completion_ids) for r in masked.rows) <= 1 + 1e-9
    for row in masked.rows:
        assert row.completion_ids in own
    assert masked.stats["reward"] == whole.stats["reward"]


def test_groupings_that_know_no_branches_refuse_them():
    trunk = rows("x", "r", 3, 1.0)
    attempts = [*trunk, *branch(trunk, "l", 1, 2, 0.0)]
    for grouping in ("state", "step_index", "rollout"):
        with pytest.raises(UsageError, match="branched"):
            batch_of(groups_of(attempts), Grpo(grouping=grouping))
