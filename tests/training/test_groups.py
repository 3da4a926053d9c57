"""Invariants of groups and advantages: what must not change the loss does not."""

import random
from dataclasses import replace

import pytest
from attempts import groups, groups_of, rows, specs, trees_of
from hypothesis import given
from hypothesis import strategies as st

from nbagent_training.advantages import EPSILON, deviation
from nbagent_training.groups import batch_of, batch_of_trees
from nbagent_training.recipe import Grpo, TrainRecipe

NORMALISATIONS = [
    Grpo(),
    Grpo(normalisation="row_mean"),
    Grpo(normalisation="token_mean"),
    Grpo(normalisation="constant", constant_tokens=40),
]
GROUPINGS = [Grpo(), Grpo(grouping="state", gamma=0.9), Grpo(grouping="rollout"), Grpo(grouping="step_index")]


def named(settings):
    return f"{settings.grouping}-{settings.normalisation}"


def batch(samples, **settings):
    return batch_of(groups_of(samples), Grpo(**settings))


def total_weight(made):
    return sum(row.weight * len(row.completion_ids) for row in made.rows)


def content(made):
    """What the loss sees of a batch, whatever the order of its rows."""
    return sorted((r.prompt_ids, r.completion_ids, round(r.advantage, 9), round(r.weight, 12)) for r in made.rows)


def test_baseline_counts_trajectories_not_rows():
    made = batch(groups({"x": [(20, 1.0), (5, 0.0), (5, 0.0), (5, 0.0)]}), sigma="none")
    assert {round(row.advantage, 12) for row in made.rows} == {0.75, -0.25}
    assert made.stats["reward"] == 0.25


@given(specs, st.sampled_from(["mean", "leave_one_out"]))
def test_advantages_of_a_group_sum_to_zero_over_trajectories(spec, baseline):
    for task, members in spec.items():
        made = batch(groups({task: members}), baseline=baseline)
        assert sum(row.advantage for row in made.rows if row.prompt_ids[2] == 0) == pytest.approx(0, abs=1e-9)
        assert all(row.advantage != 0 for row in made.rows)


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.0, 1.0])), min_size=2, max_size=6))
def test_leave_one_out_moves_the_mean_and_keeps_the_groups_deviation(members):
    samples = groups({"x": members})
    n = len(members)
    for one, two in zip(batch(samples).rows, batch(samples, baseline="leave_one_out").rows, strict=True):
        assert two.advantage == pytest.approx(one.advantage * n / (n - 1))


@given(specs)
def test_every_trajectory_with_a_gradient_weighs_the_same(spec):
    live = {t: len(m) for t, m in spec.items() if len({reward for _, reward in m}) > 1}
    made = batch(groups(spec))
    expected = sum(
        1
        for task, members in spec.items()
        if task in live
        for _, reward in members
        if reward != pytest.approx(sum(r for _, r in members) / len(members))
    )
    n = sum(live.values())
    assert total_weight(made) == pytest.approx(expected / n if n else 0)


@pytest.mark.parametrize("normalisation", ["rollout_token_mean", "row_mean"])
@given(first=st.integers(1, 30), second=st.integers(1, 30))
def test_the_number_of_turns_does_not_change_a_trajectorys_weight(normalisation, first, second):
    made = batch(groups({"x": [(first, 1.0), (second, 0.0)]}), normalisation=normalisation)
    for sign in (1, -1):
        assert sum(r.weight * len(r.completion_ids) for r in made.rows if sign * r.advantage > 0) == pytest.approx(0.5)


def test_normalisations_are_what_they_say():
    samples = groups({"x": [(3, 1.0), (1, 0.0)]})  # 3 + 4 + 3 tokens and 3
    weights = {s.normalisation: [row.weight for row in batch_of(groups_of(samples), s).rows] for s in NORMALISATIONS}
    assert weights["rollout_token_mean"] == pytest.approx([1 / 20] * 3 + [1 / 6])
    assert weights["row_mean"] == pytest.approx([1 / 18, 1 / 24, 1 / 18, 1 / 6])
    assert weights["token_mean"] == pytest.approx([1 / 13] * 4)
    assert weights["constant"] == pytest.approx([1 / 80] * 4)


@pytest.mark.parametrize("settings", [*GROUPINGS, *NORMALISATIONS[1:]], ids=named)
@given(spec=specs, rng=st.randoms(use_true_random=False))
def test_order_of_tasks_and_attempts_changes_nothing(settings, spec, rng: random.Random):
    made = groups_of(groups(spec))
    shuffled = [
        replace(group, trajectories=rng.sample(group.trajectories, len(group.trajectories)))
        for group in rng.sample(made, len(made))
    ]
    assert content(batch_of(made, settings)) == content(batch_of(shuffled, settings))


@given(spec=specs, rng=st.randoms(use_true_random=False))
def test_order_and_repetition_of_rows_change_nothing(spec, rng: random.Random):
    made = groups(spec)
    shuffled = made + rng.sample(made, rng.randint(0, len(made)))
    rng.shuffle(shuffled)
    assert content(batch(made)) == content(batch_of_trees(trees_of(shuffled), Grpo()))


@pytest.mark.parametrize("settings", [*GROUPINGS, *NORMALISATIONS[1:]], ids=named)
@given(spec=specs, rng=st.randoms(use_true_random=False))
def test_splitting_rows_changes_nothing(settings, spec, rng: random.Random):
    """Calls cut in two rows with the same tokens in all: every token keeps its advantage and its weight."""
    samples = groups(spec)
    split = []
    for row in samples:
        cut = rng.randint(0, len(row.completion_ids) - 1)
        ends = [(0, cut), (cut, None)] if cut else [(0, None)]
        for start, end in ends:
            split.append(replace(row, completion_ids=row.completion_ids[start:end], logprobs=row.logprobs[start:end]))

    def tokens(made):
        return [(round(r.advantage, 9), round(r.weight, 12)) for r in made.rows for _ in r.completion_ids]

    one, two = batch_of(groups_of(samples), settings), batch_of_trees(trees_of(split), settings)
    assert tokens(one) == tokens(two)
    assert one.stats["reward"] == two.stats["reward"]
    assert one.stats["completion_tokens"] == two.stats["completion_tokens"]


def test_discount_is_per_remaining_call():
    made = batch(groups({"x": [(3, 1.0), (1, 0.0)]}), gamma=0.5, sigma="none")
    assert [row.advantage for row in made.rows if row.advantage > 0] == [0.125, 0.25, 0.5]


def test_groups_without_variance_are_dropped_and_counted():
    made = batch(groups({"easy": [(2, 1.0)] * 3, "hard": [(2, 0.0)] * 3, "live": [(1, 1.0), (1, 0.0)]}))
    counted = [made.stats[f"groups_{name}"] for name in ("too_easy", "too_hard", "live")]
    assert counted == [1, 1, 1]
    assert len(made.rows) == 2


@given(st.floats(0.01, 0.99), st.integers(2, 9))
def test_equal_returns_have_no_variance_whatever_rounding_says(reward, n):
    made = batch(groups({"x": [(2, reward)] * n}))
    assert (made.rows, made.stats["reward_std"]) == ([], 0.0)


def test_a_call_without_an_advantage_stays_where_the_loss_has_more_than_advantages():
    samples = groups({"x": [(1, 1.0), (1, 0.5), (1, 0.0)], "dead": [(1, 1.0), (1, 1.0)]})
    assert len(batch(samples).rows) == 2
    for loss in ({"kl_coef": 0.1}, {"entropy_coef": 0.1}):
        kept = batch(samples, loss=loss)
        assert [round(row.advantage, 2) for row in kept.rows] == [1.0, 0.0, -1.0]
        assert total_weight(kept) == pytest.approx(1)


def test_truncated_trajectories_count_but_may_be_masked():
    samples = rows("x", 0, 2, 1.0) + rows("x", 1, 4, 0.0, truncated=True)
    kept, masked = batch(samples, mask_truncated=False), batch(samples)
    assert len(kept.rows) == 6
    assert [r.advantage for r in masked.rows] == [r.advantage for r in kept.rows if r.advantage > 0]


def test_deviation_is_the_samples():
    assert batch(groups({"x": [(1, 1.0), (1, 0.0), (2, 0.0), (1, 0.0)]})).stats["reward_std"] == 0.5
    assert deviation([3.0]) == 0


@given(st.just(0.0) | st.floats(0.01, 8), st.lists(st.sampled_from(["action", "summary"]), min_size=2, max_size=6))
def test_a_weight_for_memories_moves_weight_within_a_trajectory_only(weight, kinds):
    written = [replace(row, kind=kind) for row, kind in zip(rows("x", 0, len(kinds), 1.0), kinds, strict=True)]
    made = batch([*written, *rows("x", 1, 3, 0.0)], summary_weight=weight)
    mine = [row for row in made.rows if row.advantage > 0]
    total = sum(row.weight * len(row.completion_ids) for row in mine)
    if not weight and "action" not in kinds:
        assert not mine
    else:
        assert total == pytest.approx(0.5)
    assert made.stats["summaries"] == kinds.count("summary")
    if weight and len(set(kinds)) == 2:
        share = {row.prompt_ids: row.weight for row in mine}
        by_kind = {kind: share[row.prompt_ids] for row, kind in zip(written, kinds, strict=True)}
        assert by_kind["summary"] == pytest.approx(weight * by_kind["action"])
    assert {row.kind for row in mine} <= set(kinds)


def test_the_process_term_is_bounded_and_leaves_the_statistics_alone():
    flags = {"failed": [True, False], "malformed": [False, False]}
    samples = rows("x", 0, 2, 1.0, **flags) + rows("x", 1, 2, 0.0, **flags)
    made = batch(samples, failed_penalty=0.25, sigma="none")
    assert [row.advantage for row in made.rows] == [0.25, 0.5, -0.5, -0.5]
    assert made.stats["reward"] == 0.5


def test_states_compare_attempts_that_met_the_same_notebook():
    # Both good attempts pass through s; the bad one passes through s and goes on to a state of its own.
    samples = (
        rows("x", 0, 2, 1.0, state_key=["", "s"])
        + rows("x", 1, 3, 1.0, state_key=["", "s", "s"])
        + rows("x", 2, 3, 0.0, state_key=["", "s", "z"])
    )
    made = batch(samples, grouping="state", sigma="none", state_weight=0.5)
    # 1/3 for the attempt, and half of 1/3 for each of the states that all three met, one visit or two.
    assert [round(row.advantage, 9) for row in made.rows[:2]] == [0.5, 0.5]
    assert [round(row.advantage, 9) for row in made.rows[2:5]] == [0.5, 0.5, 0.5]
    assert [round(row.advantage, 9) for row in made.rows[5:]] == [-1.0, -1.0, round(-2 / 3, 9)]
    assert (made.stats["states"], made.stats["states_met_once"]) == (3, 1)


@given(specs)
def test_with_no_state_met_twice_states_add_nothing(spec):
    alone = [replace(row, state_key=f"{row.rollout_id} {row.step}") for row in groups(spec)]
    assert content(batch(alone, grouping="state")) == content(batch(alone))


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=4))
def test_steps_of_one_rollout_sum_to_zero(given_rewards):
    samples = [row for i, r in enumerate(given_rewards) for row in rows("x", i, len(r), float(i % 2), step_reward=r)]
    made = batch(samples, grouping="rollout")
    assert sum(row.advantage for row in made.rows) == pytest.approx(0, abs=1e-6)
    for i, values in enumerate(given_rewards):
        whole = [*values[:-1], values[-1] + i % 2]
        mean, spread = sum(whole) / len(whole), deviation(whole)
        expected = [(v - mean) / (spread + EPSILON) for v in whole if spread and v != mean]
        if len(given_rewards) == 1:
            assert [row.advantage for row in made.rows] == pytest.approx(expected)


def test_step_index_compares_with_those_who_went_on_as_long():
    samples = groups({"x": [(2, 1.0), (2, 0.0), (1, 0.0)]})
    made = batch(samples, grouping="step_index", sigma="none")
    found = [(row.prompt_ids[2], round(row.advantage, 9)) for row in made.rows]
    third = round(1 / 3, 9)
    assert found == [(0, round(2 / 3, 9)), (1, 0.5), (0, -third), (1, -0.5), (0, -third)]


def test_a_rows_version_and_kind_come_from_its_sample():
    samples = [replace(row, version=4) for row in groups({"x": [(1, 1.0), (1, 0.0)]})]
    assert {(row.version, row.kind) for row in batch(samples).rows} == {(4, "action")}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"branch": {"alternatives": 2}}, "grpo.branch"),
        ({"grouping": "branch", "group_size": 2}, "alternatives"),
        ({"grouping": "branch", "branch": {"roots": 3}}, "roots"),
        ({"grouping": "branch", "branch": {"roots": 8}}, "alternatives"),
        ({"grouping": "branch", "branch": {"roots": 4}}, "alternatives"),
        ({"grouping": "branch", "branch": {"roots": 2, "per_lineage": 2}}, "per_lineage"),
        ({"grouping": "branch", "branch": {"alternatives": 8}}, "roots"),
        ({"grouping": "branch", "branch": {"roots": 1}}, "roots"),
        ({"grouping": "branch", "branch": {"roots": 1, "where": "every", "calls": 30}}, "roots"),
        ({"grouping": "branch", "branch": {"where": "entropy", "entropy_weight": 0}}, "entropy_weight"),
        ({"grouping": "branch", "branch": {"where": "every", "probability": 0.9}}, "probability"),
        ({"grouping": "branch", "branch": {"entropy_weight": 0.9}}, "entropy_weight"),
        ({"grouping": "rollout", "gamma": 0.9}, "gamma"),
        ({"state_weight": 2.0}, "state_weight"),
        ({"normalisation": "constant"}, "constant_tokens"),
        ({"constant_tokens": 9}, "constant_tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        Grpo.model_validate(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"branch": {"where": "every", "roots": 1, "per_lineage": 2}},
        {"branch": {"alternatives": 2, "roots": 2, "per_lineage": 2}},
        {"from_run": "runs/a", "group_size": 2},
    ],
    ids=str,
)
def test_settings_of_branches_that_can_all_be_done_are_taken(settings):
    """Recorded rollouts are branched already, whatever made them."""
    Grpo.model_validate({"grouping": "branch", **settings})


def test_calls_that_branch_nothing_are_refused():
    table = {"grouping": "branch", "branch": {"calls": 45}}
    recipe = {"model": {"folder": "m"}, "agent": {"max_steps": 20}}
    # Before its 20th step a root has made 19 calls; it and three others may then make one each.
    with pytest.raises(ValueError, match=r"grpo\.branch\.calls: 45 .* it takes 46"):
        TrainRecipe.model_validate({**recipe, "grpo": table})
    TrainRecipe.model_validate({**recipe, "grpo": {**table, "branch": {"calls": 46}}})
    # By entropy each root takes two looks more, at its first step and at that one.
    with pytest.raises(ValueError, match=r"grpo\.branch\.calls: 49 .* it takes 50"):
        TrainRecipe.model_validate({**recipe, "grpo": {**table, "branch": {"where": "entropy", "calls": 49}}})
    TrainRecipe.model_validate({**recipe, "grpo": {**table, "branch": {"where": "entropy", "calls": 50}}})
