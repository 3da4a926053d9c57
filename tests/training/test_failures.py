"""Host-side failures: their classes, and when a run stops for them."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.rollouts import Group
from nbagent.tasks import Task
from nbagent.trajectory import Trajectory
from nbagent_training.errors import TooManyFailures
from nbagent_training.failures import Failures, check_failures, count_failures

TASK = Task("t", "?", Path(), None)


def ended(outcome, error="", attempt=0):
    reward = {"correct": 1.0, "incorrect": 0.0}.get(outcome)
    start = {"kind": "start", "rollout_id": "r", "task_id": "t", "attempt": attempt}
    return Trajectory([start, {"kind": "end", "outcome": outcome, "reward": reward, "error": error}], None)


def update(failed, attempts=8, worst="sandbox"):
    return {"attempts": attempts, "infrastructure": failed, f"failures_{worst}": failed}


def test_failures_are_counted_by_class():
    group = Group(
        TASK,
        [ended("correct"), ended("incorrect", attempt=1)],
        failed=[
            ended("infrastructure", "InfrastructureError: KernelStartError: no kernel", attempt=2),
            ended("infrastructure", "KernelTimeout: no answer", attempt=2),
            ended("infrastructure", "ModelError: the server is gone", attempt=2),
            ended("infrastructure", "ZeroDivisionError: division by zero"),
            ended("ungraded"),
        ],
    )
    assert count_failures([group]) == {
        "attempts": 7,
        "infrastructure": 4,
        "failures_sandbox": 2,
        "failures_model": 1,
        "failures_other": 1,
        "ungraded": 1,
        "retries": 7,
    }


def test_a_broken_host_stops_the_run_with_one_line():
    with pytest.raises(TooManyFailures) as raised:
        check_failures([update(0), update(0)], update(7, worst="model"), Failures())
    words = str(raised.value)
    assert "7 of 24 rollouts (updates: the last 3)" in words
    assert "`model`" in words
    assert "server" in words
    assert "\n" not in words
    assert str(pickle.loads(pickle.dumps(raised.value))) == words


def test_an_update_of_which_nothing_is_left_stops_the_run_by_itself():
    with pytest.raises(TooManyFailures, match="8 of 8 rollouts"):
        check_failures([update(0)] * 10, update(8), Failures())


def test_a_few_failures_do_not():
    check_failures([update(2)] * 5, update(2), Failures())
    check_failures([], update(0), Failures())
    check_failures([], {"attempts": 0, "infrastructure": 0}, Failures())


@given(st.lists(st.integers(0, 8), max_size=20), st.floats(0.05, 1), st.integers(1, 6))
def test_a_mended_host_always_goes_on(failed, limit, window):
    history, settings = [], Failures(limit=limit, window=window)
    for number in failed:
        try:
            check_failures(history, update(number), settings)
        except TooManyFailures:
            check_failures(history, update(0), settings)
            history.append(update(0))
        else:
            history.append(update(number))
