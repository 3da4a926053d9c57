"""Invariants of groups and advantages: what must not change the loss does not."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.samples import StepSample
from nbagent_training.groups import EPSILON, group_statistics, trajectory_batch


def rows(task, rollout, turns, reward, length=3, truncated=False):
    return [
        StepSample(
            task_id=task,
            rollout_id=f"{task}-{rollout}",
            step=t,
            n_steps=turns,
            prompt_ids=(1, 2, t),
            completion_ids=tuple(range(length + t % 2)),
            logprobs=(0.0,) * (length + t % 2),
            reward=reward,
            truncated=truncated,
        )
        for t in range(turns)
    ]


def groups(spec):
    """spec: {task: [(turns, reward), …]}"""
    return [
        r
        for task, members in spec.items()
        for i, (turns, reward) in enumerate(members)
        for r in rows(task, i, turns, reward)
    ]


def total_weight(batch):
    return sum(row.weight * len(row.completion_ids) for row in batch.rows)


specs = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=6),
    min_size=1,
)


def test_baseline_counts_trajectories_not_rows():
    batch = trajectory_batch(groups({"x": [(20, 1.0), (5, 0.0), (5, 0.0), (5, 0.0)]}), sigma="none")
    assert {round(row.advantage, 12) for row in batch.rows} == {0.75, -0.25}
    assert batch.stats["reward"] == 0.25


@given(specs)
def test_advantages_of_a_group_sum_to_zero_over_trajectories(spec):
    samples = groups(spec)
    batch = trajectory_batch(samples)
    by_rollout = {}
    for sample in samples:
        by_rollout.setdefault(sample.task_id, {})[sample.rollout_id] = sample
    for members in by_rollout.values():
        mean, deviation = group_statistics([s.reward for s in members.values()])
        if deviation:
            total = sum((s.reward - mean) / (deviation + EPSILON) for s in members.values())
            assert total == pytest.approx(0, abs=1e-9)
    assert all(row.advantage != 0 for row in batch.rows)


@given(specs)
def test_every_trajectory_with_a_gradient_weighs_the_same(spec):
    samples = groups(spec)
    live = {t: len(m) for t, m in spec.items() if len({reward for _, reward in m}) > 1}
    batch = trajectory_batch(samples)
    expected = sum(
        1
        for task, members in spec.items()
        if task in live
        for _, reward in members
        if reward != pytest.approx(sum(r for _, r in members) / len(members))
    )
    n = sum(live.values())
    assert total_weight(batch) == pytest.approx(expected / n if n else 0)


@given(st.integers(1, 30), st.integers(1, 30))
def test_the_number_of_turns_does_not_change_a_trajectorys_weight(first, second):
    batch = trajectory_batch(groups({"x": [(first, 1.0), (second, 0.0)]}))
    good = sum(r.weight * len(r.completion_ids) for r in batch.rows if r.advantage > 0)
    bad = sum(r.weight * len(r.completion_ids) for r in batch.rows if r.advantage < 0)
    assert good == pytest.approx(0.5)
    assert bad == pytest.approx(0.5)


@given(specs, st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(spec, rng: random.Random):
    samples = groups(spec)
    shuffled = samples[:]
    rng.shuffle(shuffled)

    def key(r):
        return (r.prompt_ids, r.completion_ids, round(r.advantage, 9), round(r.weight, 12))

    assert sorted(map(key, trajectory_batch(samples).rows)) == sorted(map(key, trajectory_batch(shuffled).rows))


def test_splitting_rows_changes_nothing():
    """A call cut in two rows with the same tokens in all: same statistics, same weight per token."""
    whole = groups({"x": [(1, 1.0), (2, 0.0)]})
    first = whole[0]
    halves = [
        replace(first, completion_ids=first.completion_ids[:1], logprobs=(0.0,)),
        replace(first, completion_ids=first.completion_ids[1:], logprobs=first.logprobs[1:]),
    ]
    one, two = trajectory_batch(whole), trajectory_batch([*halves, *whole[1:]])
    assert one.stats["reward"] == two.stats["reward"]
    assert {r.weight for r in one.rows if r.advantage > 0} == {r.weight for r in two.rows if r.advantage > 0}
    assert total_weight(one) == pytest.approx(total_weight(two))


def test_discount_is_per_remaining_call():
    batch = trajectory_batch(groups({"x": [(3, 1.0), (1, 0.0)]}), gamma=0.5, sigma="none")
    assert [row.advantage for row in batch.rows if row.advantage > 0] == [0.125, 0.25, 0.5]


def test_groups_without_variance_are_dropped_and_counted():
    batch = trajectory_batch(groups({"easy": [(2, 1.0)] * 3, "hard": [(2, 0.0)] * 3, "live": [(1, 1.0), (1, 0.0)]}))
    assert batch.stats["groups_too_easy"] == 1
    assert batch.stats["groups_too_hard"] == 1
    assert batch.stats["groups_live"] == 1
    assert len(batch.rows) == 2


def test_truncated_trajectories_count_but_may_be_masked():
    samples = rows("x", 0, 2, 1.0) + rows("x", 1, 4, 0.0, truncated=True)
    kept, masked = trajectory_batch(samples), trajectory_batch(samples, mask_truncated=True)
    assert len(kept.rows) == 6
    assert [r.advantage for r in masked.rows] == [r.advantage for r in kept.rows if r.advantage > 0]


def test_sigma_is_the_sample_deviation():
    mean, deviation = group_statistics([1.0, 0.0, 0.0, 0.0])
    assert (mean, deviation) == (0.25, 0.5)
    assert math.isclose(group_statistics([3.0])[1], 0.0)


@given(st.floats(0, 8), st.lists(st.sampled_from(["action", "summary"]), min_size=2, max_size=6))
def test_a_weight_for_memories_moves_weight_within_a_trajectory_only(weight, kinds):
    written = [replace(row, kind=kind) for row, kind in zip(rows("x", 0, len(kinds), 1.0), kinds, strict=True)]
    others = rows("x", 1, 3, 0.0)
    batch = trajectory_batch([*written, *others], summary_weight=weight)
    mine = [row for row in batch.rows if row.advantage > 0]
    total = sum(row.weight * len(row.completion_ids) for row in mine)
    if not weight and "action" not in kinds:
        assert not mine
    else:
        assert total == pytest.approx(0.5)
    assert batch.stats["summaries"] == kinds.count("summary")
    if weight and len(set(kinds)) == 2:
        share = {row.prompt_ids: row.weight for row in mine}
        by_kind = {kind: share[row.prompt_ids] for row, kind in zip(written, kinds, strict=True)}
        assert by_kind["summary"] == pytest.approx(weight * by_kind["action"])
