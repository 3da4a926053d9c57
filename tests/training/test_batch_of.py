"""Batches from trajectories: what is in the statistics, and what in the loss."""

from pathlib import Path

import pytest

from nbagent.blobs import Blobs
from nbagent.models.base import Completion, Prompt
from nbagent.rollouts import Group
from nbagent.tasks import Task
from nbagent.trajectory import Recorder
from nbagent_training.groups import batch_of
from nbagent_training.recipe import Grpo

TASK = Task("t", "?", Path(), None)


def attempt(name, given, calls=2, truncated=False, **answer):
    recorder = Recorder(Blobs())
    recorder.record("start", rollout_id=name, task_id="t", parent=None)
    for step in range(calls):
        recorder.call(
            step,
            Prompt([], ids=(1, 2, step)),
            Completion("x", "stop", (3, 4), (-0.1, -0.2)),
            version=3,
            seconds=0.0,
            elisions=(),
            state_key="",
            notice="",
        )
        recorder.record("observation", step=step, **{"error": "", "failed": False, **answer})
    outcome = "infrastructure" if given is None else "correct" if given else "incorrect"
    recorder.record("end", outcome=outcome, reward=given, truncated=truncated)
    return recorder.trajectory()


def test_a_host_side_failure_is_in_no_statistics_and_in_no_loss():
    sound = [attempt("a", 1.0), attempt("b", 0.0), attempt("c", 0.0)]
    without = batch_of([Group(TASK, sound)], Grpo())
    failed = batch_of([Group(TASK, [*sound, attempt("d", None)])], Grpo())
    assert failed == without
    assert without.stats["trajectories"] == 3
    assert without.stats["reward"] == pytest.approx(1 / 3)


def test_an_attempt_without_any_call_counts_in_the_statistics():
    """Its first prompt did not fit: an answer that was not given, and nothing to train on."""
    batch = batch_of([Group(TASK, [attempt("a", 1.0), attempt("b", 0.0, calls=0, truncated=True)])], Grpo(sigma="none"))
    assert [row.advantage for row in batch.rows] == [0.5, 0.5]
    assert sum(row.weight * len(row.completion_ids) for row in batch.rows) == pytest.approx(0.5)


def test_two_groups_of_one_task_are_two():
    """Other weights may have made them, or the ids of two sets be the same."""
    batch = batch_of([Group(TASK, [attempt("a", 1.0)]), Group(TASK, [attempt("b", 0.0)])], Grpo())
    assert (batch.stats["groups"], batch.stats["groups_live"]) == (2, 0)


def test_nothing_at_all_is_an_empty_batch():
    batch = batch_of([Group(TASK, [])], Grpo())
    assert (batch.rows, batch.stats["groups"], batch.stats["trajectories"]) == ([], 0, 0)


def test_what_the_log_says_of_a_step_reaches_the_estimators():
    attempts = [attempt("a", 1.0, reward=0.25, failed=True), attempt("b", 0.0, error="no call", failed=True)]
    batch = batch_of([Group(TASK, attempts)], Grpo(grouping="step_index", sigma="none", malformed_penalty=0.5))
    # Step 1: 1.25 against −0.5; from step 0 on: 0.25 and 1.25 against twice −0.5.
    assert [row.advantage for row in batch.rows] == [1.25, 0.875, -1.25, -0.875]
    assert {row.version for row in batch.rows} == {3}


def test_what_the_source_counted_is_summed_up():
    groups = [Group(TASK, [attempt("a", 1.0)], counts={"looks": 2.0}), Group(TASK, [], counts={"looks": 3.0})]
    assert batch_of(groups, Grpo()).stats["looks"] == 5.0
