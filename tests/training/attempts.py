"""Attempts at tasks as rows, for tests of groups."""

from dataclasses import replace

from hypothesis import strategies as st

from nbagent.samples import StepSample


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
