"""Alarms: each on its case, none on a run as the demo's, once as long as it lasts."""

import random

import pytest

from nbagent_training import alarms
from nbagent_training.recipe import TrainRecipe


def healthy(n=60, seed=0):
    """Like the demo's run: entropy falls by two thirds, reward rises, mixed groups get fewer, the gradient grows."""
    rng = random.Random(seed)
    lines = []
    for step in range(n):
        t = step / n
        lines.append(
            {
                "step": step + 1,
                "entropy": (0.06 - 0.04 * t) * rng.uniform(0.5, 1.7),
                "reward": 0.4 + 0.45 * min(1, 2.5 * t) + rng.gauss(0, 0.05),
                "groups_live": 1 + round(11 * (1 - t)),
                "share_mixed": max(0, round(12 * (0.9 - 0.75 * t) + rng.gauss(0, 1))) / 12,
                "share_all_1": 0.5 * t,
                "share_all_0": 0.1,
                "logp_gap": 0.004 * rng.uniform(0.6, 1.5),
                "trajectory_tokens_mean": 52 * rng.uniform(0.9, 1.1),
                "truncated_share": 0.08 * (1 - t),
                "attempts": 96,
                "infrastructure": int(rng.random() < 0.3),
                "grad_norm": (0.07 + 0.2 * t) * rng.choice((0.6, 1, 1, 1.6)),
            }
        )
    return lines


def ill(**changed):
    """A healthy history whose last 20 updates are changed by functions of their place."""
    lines = healthy(40)
    for place, line in enumerate(lines[20:]):
        line.update({name: change(place) if callable(change) else change for name, change in changed.items()})
    return lines


CASES = {
    alarms.entropy_collapse: ill(entropy=0.001),
    alarms.no_mixed_groups: ill(groups_live=0.0, share_mixed=0.0, share_all_1=0.9),
    alarms.gap_growing: ill(logp_gap=lambda place: 0.004 * (1 + place)),
    alarms.lengths_running_away: ill(trajectory_tokens_mean=300.0, reward=0.4),
    alarms.reward_collapse: ill(reward=0.1),
    alarms.truncation_high: ill(truncated_share=0.5),
    alarms.infrastructure_failures: ill(infrastructure=12),
    alarms.gradient_exploding: ill(grad_norm=lambda place: 30.0 if place >= 16 else 0.1),
}


@pytest.mark.parametrize("check", alarms.ALARMS, ids=lambda check: check.__name__)
def test_each_alarm_knows_its_case(check):
    words = check(CASES[check])
    assert words
    assert "\n" not in words
    assert words.index(":") < words.index(";"), "what is wrong, then what to do"
    # The reason of its threshold is written down.
    assert len(check.__doc__.splitlines()) > 2


@pytest.mark.parametrize("seed", range(20))
def test_no_alarm_in_a_healthy_run(seed):
    lines = healthy(seed=seed)
    for end in range(1, len(lines) + 1):
        assert alarms.begun(lines[:end]) == []


def test_every_alarm_is_silent_about_nothing_and_missing_numbers():
    for check in alarms.ALARMS:
        assert check([]) == ""
        assert check([{"step": step} for step in range(50)]) == ""


def test_an_alarm_is_said_once_while_it_lasts():
    lines = ill(truncated_share=0.5)
    said = [words for end in range(1, len(lines) + 1) for words in alarms.begun(lines[:end])]
    assert len(said) == 1
    assert said[0].startswith("truncation:")


def test_longer_answers_that_pay_are_no_alarm():
    lines = ill(trajectory_tokens_mean=300.0, reward=0.9)
    assert alarms.lengths_running_away(lines) == ""


def test_a_single_peak_of_the_gradient_is_no_alarm():
    assert alarms.gradient_exploding(ill(grad_norm=lambda place: 50.0 if place == 18 else 0.1)) == ""


def test_a_steady_gap_is_no_alarm():
    assert alarms.gap_growing(ill(logp_gap=0.005)) == ""


def test_a_gap_that_was_there_from_the_start_is_said_at_the_third_update():
    lines = [{"logp_gap": 3.0} for _ in range(3)]
    assert alarms.gap_growing(lines[:2]) == ""
    assert "of 3 updates is 3;" in alarms.gap_growing(lines)


def test_groups_of_equal_returns_that_have_a_gradient_are_no_alarm():
    """As under grouping `rollout`, or with a penalty on failed steps."""
    assert alarms.no_mixed_groups([{"share_mixed": 0.0, "groups_live": 2.0, "groups": 4.0}] * 9) == ""
    assert alarms.no_mixed_groups([{"share_mixed": 1.0, "groups_live": 0.0, "groups": 4.0}] * 3)
    assert alarms.no_mixed_groups([{"share_mixed": 0.0}] * 3), "lines of older runs say nothing of live groups"
    assert alarms.no_mixed_groups([{"groups_live": 0.0, "groups": 0.0}] * 9) == "", "no rollout had a reward"


def said_of(history, **recipe):
    """What the alarms of a run with this recipe say of it."""
    checks = alarms.checks_of(TrainRecipe.model_validate({"model": {"folder": "m"}, **recipe}))
    return [words for check in checks if (words := check(history))]


def test_after_a_collapse_it_is_said_which_checkpoints_there_are():
    history = CASES[alarms.reward_collapse]
    (words,) = said_of(history)
    assert "Only the newest two checkpoints are kept: where one" in words
    (words,) = said_of(history, grpo={"keep_every": 50})
    assert "Checkpoints of every 50 updates are kept, and the newest two: where one" in words


def test_a_gap_that_is_meant_is_no_alarm():
    """Other weights made the rollouts: what `check the weight sync` says of it would be wrong."""
    history = CASES[alarms.gap_growing]
    assert said_of(history)[0].startswith("sampler-trainer gap:")
    sampler = {"loss": {"old": "sampler"}}
    assert said_of(history, grpo={"from_run": "runs/a", **sampler}) == []
    assert said_of(history, grpo=sampler, sampler={"staleness": 1}) == []


def test_a_teacher_needs_no_groups_that_differ():
    history = CASES[alarms.no_mixed_groups]
    assert said_of(history)[0].startswith("no mixed groups:")
    assert said_of(history, distill={"teacher": "t"}) == []
