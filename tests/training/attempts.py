"""Attempts at tasks as rows, and as what a rollout source gives, for tests of groups."""

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from nbagent.blobs import Blobs
from nbagent.models.base import Completion, Prompt
from nbagent.rollouts import Group
from nbagent.samples import StepSample
from nbagent.tasks import Task
from nbagent.trajectory import Recorder
from nbagent_training.tree import Tree, leaf_of


def rows(task, rollout, turns, reward, length=3, truncated=False, **more):
    """The rows of one attempt; step t has `length` tokens, one more where t is odd."""
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
            **{name: values[t] for name, values in more.items()},
        )
        for t in range(turns)
    ]


def groups(spec):
    """spec: {task: [(turns, reward), …]}"""
    return [
        row
        for task, members in spec.items()
        for i, (turns, reward) in enumerate(members)
        for row in rows(task, i, turns, reward)
    ]


def branch(parent, name, at, turns, reward, length=3):
    """An attempt that goes on from another before its call `at`: `turns` calls in all, those before it are shared."""
    task = parent[0].task_id
    own = rows(task, name, turns, reward, length)
    before = [
        replace(
            row,
            rollout_id=own[0].rollout_id,
            n_steps=turns,
            reward=reward,
            truncated=False,
            origin=row.origin or row.rollout_id,
        )
        for row in parent[:at]
    ]
    return [*before, *own[at:]]


def trajectory_of(own):
    """The attempt that has these rows, recorded as a rollout records it."""
    recorder, maker, step = None, "", 0
    for row in own:
        if (origin := row.origin or row.rollout_id) != maker:
            parent = recorder and {"rollout": maker, "step": step}
            recorder = recorder.branch(None, maker, step) if recorder else Recorder(Blobs())
            recorder.record("start", rollout_id=origin, task_id=row.task_id, parent=parent)
            maker = origin
        recorder.call(
            step,
            Prompt([], ids=row.prompt_ids),
            Completion("", "stop", row.completion_ids, row.logprobs),
            version=row.version,
            seconds=0.0,
            elisions=(),
            state_key=row.state_key,
            notice="",
            call_kind=row.kind,
        )
        if row.kind == "action":
            error = "no action" if row.malformed else ""
            recorder.record("observation", step=step, error=error, failed=row.failed, reward=row.step_reward)
            step += 1
    recorder.record("end", outcome="correct", reward=own[0].reward, truncated=own[0].truncated)
    return recorder.trajectory()


def groups_of(samples):
    """The groups that have these rows, in the order of the rows."""
    return [
        Group(Task(task, "?", Path(), None), [trajectory_of(own) for own in attempts.values()])
        for task, attempts in by_attempt(samples).items()
    ]


def trees_of(samples):
    """The trees of the same, without trajectories: these hold each row once, in order, and none in parts."""
    return [
        Tree([leaf_of(rollout, own[0].reward, own[0].truncated, own) for rollout, own in attempts.items()])
        for attempts in by_attempt(samples).values()
    ]


def by_attempt(samples):
    """{task: {rollout: rows}}"""
    tasks = {}
    for row in samples:
        tasks.setdefault(row.task_id, {}).setdefault(row.rollout_id, []).append(row)
    return tasks


rewards = st.sampled_from([0.0, 0.25, 1.0])
specs = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.tuples(st.integers(1, 6), rewards), min_size=1, max_size=6),
    min_size=1,
)


@st.composite
def trees(draw, task="x", most=4):
    """The attempts of a task, some of them branched, alternatives again: a list of lists of rows."""
    made = [rows(task, f"r{i}", draw(st.integers(1, 5)), draw(rewards)) for i in range(draw(st.integers(1, 3)))]
    for number in range(draw(st.integers(0, most))):
        parent = draw(st.sampled_from(made))
        at = draw(st.integers(0, len(parent) - 1))
        made.append(branch(parent, f"b{number}", at, draw(st.integers(at + 1, 6)), draw(rewards)))
    return made
