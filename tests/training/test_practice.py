"""Which tasks an update takes."""

from collections import Counter
from pathlib import Path

import pytest

from nbagent.errors import RunFolderError, StorageError
from nbagent.rollouts import Group
from nbagent.tasks import Task
from nbagent_training.curriculum import Curriculum


class Done:
    """Stands for a finished trajectory: all that rates need of one."""

    def __init__(self, reward):
        self.reward = reward


def tasks(families=4, each=5):
    return [Task(f"{f}-{i}", "?", Path(), None, family=f"f{f}") for f in range(families) for i in range(each)]


def practice(path, rule="uniform", seed=0, **more):
    path.mkdir(exist_ok=True)
    return Curriculum(path / "practice.json", tasks(), seed=seed, rule=rule, group_size=2, **more)


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
    source.after(version, groups)


def test_uncertain_takes_what_is_neither_mastered_nor_hopeless(tmp_path):
    source = practice(tmp_path / "run", "uncertain")
    seen = Counter()
    for version in range(60):
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
    wanted = [t.task_id for t in practice(tmp_path / "run", "uncertain").tasks_of(6, 4)]
    again = practice(tmp_path / "run", "uncertain")
    assert again.family_rates(4)["f0"] > 0.9
    assert [t.task_id for t in again.tasks_of(6, 4)] == wanted


@pytest.mark.parametrize("left", ["", "[[0, [", '{"x": 1}', "[[0, [[1, 2]]]]"])
def test_a_damaged_file_is_one_line_that_says_what_to_do(tmp_path, left):
    feed(practice(tmp_path / "run", "uncertain"), 0)
    (tmp_path / "run" / "practice.json").write_text(left)
    with pytest.raises(
        RunFolderError, match=r"practice\.json: is damaged \(.*; put a whole one there, or remove"
    ) as no:
        practice(tmp_path / "run", "uncertain")
    assert "\n" not in str(no.value)


def test_the_file_is_made_durable_and_a_full_disk_is_said(tmp_path, monkeypatch):
    source = practice(tmp_path / "run")
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    feed(source, 0)
    assert len(synced) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["practice.json"]
    (tmp_path / "run" / "practice.json").unlink()
    (tmp_path / "run").rmdir()
    with pytest.raises(StorageError, match=r"practice\.json: cannot write"):
        feed(source, 1)


def shares(source, version, updates=60):
    seen = Counter()
    for update in range(updates):
        seen.update(t.task_id for t in source.tasks_of(6, version + update))
    return seen


def test_mixed_takes_each_task_by_the_chance_that_its_group_is_mixed(tmp_path):
    source = practice(tmp_path / "run", "mixed")
    mastered = {"2-0"}
    for version in range(6):
        groups = [
            Group(t, [Done(1.0), Done(1.0 if t.task_id in mastered or t.family == "f0" else 0.0)]) for t in tasks()
        ]
        source.after(version, groups)
    chances = source.mixed_chances(6)
    assert chances["2-0"] < 0.3 < chances["2-1"]
    assert chances["0-0"] < chances["2-0"], "its family is mastered too"
    seen = shares(source, 6)
    assert seen["2-0"] < seen["2-1"] / 1.5
    assert min(seen.values()) > 0
    assert all(len({t.task_id for t in source.tasks_of(20, v)}) == 20 for v in range(6, 9))


def test_a_curriculum_starts_from_the_profile(tmp_path):
    start = {f"{f}-{i}": ((8.0, 8) if i else (4.0, 8)) for f in range(4) for i in range(5)}
    source = practice(tmp_path / "run", "mixed", start=start)
    assert source.family_rates(0)["f0"] == pytest.approx((4 + 4 * 8) / 40)
    chances = source.mixed_chances(0)
    assert chances["1-0"] > 0.4 > chances["1-1"]
    seen = shares(source, 0)
    assert all(seen[f"{f}-0"] > 2 * seen[f"{f}-1"] for f in range(4))


def test_an_update_that_is_made_again_replaces_what_it_had_brought(tmp_path):
    source = practice(tmp_path / "run", "mixed")
    feed(source, 0)
    once = source.mixed_chances(1)
    again = practice(tmp_path / "run", "mixed")
    feed(again, 0)
    assert again.mixed_chances(1) == once
    assert again.mixed_chances(0) != once
