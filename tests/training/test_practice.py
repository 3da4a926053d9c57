"""Which tasks an update takes."""

from collections import Counter
from pathlib import Path

import pytest

from nbagent.rollouts import Group
from nbagent.runfolder import RunFolder
from nbagent.tasks import Task
from nbagent_training.practice import Practice


class Done:
    """Stands for a finished trajectory: all that rates need of one."""

    def __init__(self, reward):
        self.reward = reward


def tasks(families=4, each=5):
    return [Task(f"{f}-{i}", "?", Path(), None, family=f"f{f}") for f in range(families) for i in range(each)]


def practice(path, curriculum="uniform", seed=0, resume=False):
    run = RunFolder.create(path, "x = 1\n", resume=resume)
    return Practice(tasks(), None, None, None, run, group_size=2, seed=seed, curriculum=curriculum)


def test_uniform_takes_every_family_alike(tmp_path):
    source = practice(tmp_path / "run")
    for version in range(5):
        chosen = source.tasks_of(8, version)
        assert Counter(t.family for t in chosen) == {f"f{f}": 2 for f in range(4)}
        assert len({t.task_id for t in chosen}) == 8


def test_the_same_seed_and_update_take_the_same_tasks(tmp_path):
    one, two = practice(tmp_path / "a"), practice(tmp_path / "b")
    other = practice(tmp_path / "c", seed=1)
    ids = lambda source, version: [t.task_id for t in source.tasks_of(6, version)]  # noqa: E731
    assert ids(one, 3) == ids(two, 3)
    assert ids(one, 3) != ids(one, 4)
    assert ids(one, 3) != ids(other, 3)


def feed(source, version):
    """f0 always right, f1 always wrong, the others half."""
    rewards = {"f0": [1.0, 1.0], "f1": [0.0, 0.0], "f2": [1.0, 0.0], "f3": [0.0, 1.0]}
    groups = [Group(task, [Done(r) for r in rewards[task.family]]) for task in tasks()]
    source._rates.after(version, groups)


def test_uncertain_takes_what_is_neither_mastered_nor_hopeless(tmp_path):
    source = practice(tmp_path / "run", "uncertain")
    seen = Counter()
    for version in range(60):
        source._rates.before(version)
        feed(source, version)
        seen.update(t.family for t in source.tasks_of(6, version + 1))
    share = {family: n / sum(seen.values()) for family, n in seen.items()}
    assert share["f2"] == pytest.approx(0.5 / 1.2, abs=0.05)
    assert share["f0"] == pytest.approx(0.1 / 1.2, abs=0.05)
    assert share["f1"] > 0


def test_a_resumed_run_takes_what_it_would_have_taken(tmp_path):
    source = practice(tmp_path / "run", "uncertain")
    for version in range(6):
        feed(source, version)
    wanted = [t.task_id for t in practice(tmp_path / "run", "uncertain", resume=True).tasks_of(6, 4)]
    again = practice(tmp_path / "run", "uncertain", resume=True)
    feed_from = again._rates.before(4)
    assert feed_from["f0"] > 0.9
    assert [t.task_id for t in again.tasks_of(6, 4)] == wanted
