"""Step samples from trajectories; those of whole rollouts are in test_rollout.py."""

import pytest

from nbagent.blobs import Blobs
from nbagent.errors import UsageError
from nbagent.samples import samples
from nbagent.trajectory import Trajectory


def call(step, shared, suffix, ids=(5,), kind="action", logprobs=(-0.5,)):
    return {
        "kind": "call",
        "step": step,
        "prompt": {"shared": shared, "suffix": suffix},
        "completion_ids": ids,
        "logprobs": logprobs,
        "call_kind": kind,
        "version": 3,
        "state_key": f"s{step}",
    }


def trajectory(*calls, reward=1.0, end=True, truncated=False):
    start = {"kind": "start", "task_id": "t", "rollout_id": "r"}
    last = {"kind": "end", "reward": reward, "truncated": truncated}
    return Trajectory([start, *calls, *([last] if end else [])], Blobs())


def test_one_row_per_call_with_its_own_prompt():
    rows = samples(trajectory(call(0, 0, [1, 2]), call(1, 1, [9]), truncated=True))
    assert [row.prompt_ids for row in rows] == [(1, 2), (1, 9)]
    assert [(row.step, row.n_steps, row.reward, row.truncated) for row in rows] == [
        (0, 2, 1.0, True),
        (1, 2, 1.0, True),
    ]
    assert [(row.version, row.state_key, row.kind) for row in rows] == [(3, "s0", "action"), (3, "s1", "action")]


def test_a_summary_is_a_row_of_its_own_and_steps_number_the_calls():
    rows = samples(trajectory(call(0, 0, [1]), call(1, 0, [2], kind="summary"), call(1, 0, [3])))
    assert [(row.step, row.kind) for row in rows] == [(0, "action"), (1, "summary"), (2, "action")]


@pytest.mark.parametrize("made", [trajectory(call(0, 0, [1]), reward=None), trajectory(call(0, 0, [1]), end=False)])
def test_what_has_no_reward_has_no_rows(made):
    assert samples(made) == []


def test_rows_without_log_probs_are_refused():
    with pytest.raises(UsageError, match="train on rollouts of a local model"):
        samples(trajectory(call(0, 0, [1], logprobs=None)))
