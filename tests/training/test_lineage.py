"""Which rollouts a resumed run takes up again, and which it sets aside."""

import pytest

from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome
from nbagent.trajectory import Recorder
from nbagent_training.groups import TrainingRow
from nbagent_training.lineage import Lineage, practice_id


def rows(version, tail=0.0):
    kept = TrainingRow((1, 2, version), (3, 4), (-0.5, -0.25), 1.0, 0.5, version)
    return [kept, TrainingRow((9,), (8,), (tail,), -1, 0.5)]


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", "")


def log(run, name, outcome="correct", ended=True):
    """A rollout's log as a rollout writes it, all but what lies between its ends."""
    recorder = Recorder(run.blobs, run.rollout_path(name))
    recorder.record("start", rollout_id=name, task_id="t", attempt=0)
    if ended:
        recorder.record("end", outcome=outcome, reward=Outcome(outcome).reward, error="", truncated=False)
    recorder.close()
    return recorder.trajectory()


def played(run, lineage, version, n=4):
    """Names that had to be made."""
    jobs = [(None, practice_id(version, 0, "t", g)) for g in range(n)]
    made = []

    def make(left):
        made.extend(name for _, name in left)
        return [log(run, name) for _, name in left]

    got = lineage.play(jobs, version, make)
    assert [t.rollout_id for t in got] == [name for _, name in jobs]
    return made


def test_finished_rollouts_are_read_back_and_the_others_made(run):
    names = [practice_id(0, 0, "t", g) for g in range(4)]
    log(run, names[0])
    log(run, names[1], ended=False)
    log(run, names[2], "infrastructure")
    lineage = Lineage(run)
    assert played(run, lineage, 0) == names[1:]
    assert lineage.read_back == {0: 1}


def test_what_is_read_back_ahead_is_counted_for_its_own_update(run):
    """As a thread does that makes the next groups while an update is trained on."""
    first = Lineage(run)
    for version in range(3):
        played(run, first, version)
        first.made(version, rows(version))
    run.rollout_path(practice_id(1, 0, "t", 3)).unlink()
    again = Lineage(run)
    for version in range(3):
        played(run, again, version)
        if version:
            again.made(version - 1, rows(version - 1))
    assert again.read_back == {0: 4, 1: 3, 2: 4}


def test_what_had_failed_when_the_update_went_on_stays_failed(run):
    first = Lineage(run)
    played(run, first, 0)
    log(run, practice_id(0, 0, "t", 2), "infrastructure")
    first.made(0, rows(0))
    assert played(run, Lineage(run), 0) == []


def test_the_same_updates_lead_to_the_same_weights(run):
    first = Lineage(run)
    for version in range(3):
        played(run, first, version)
        assert first.made(version, rows(version)) == 0
    played(run, first, 3)
    again = Lineage(run)
    for version in range(3):
        assert played(run, again, version) == []
        assert again.made(version, rows(version)) == 0
    assert played(run, again, 3) == []
    assert not (run.path / "stale").exists()


def test_what_lost_weights_made_is_set_aside_and_counted(run):
    first = Lineage(run)
    for version in range(3):
        played(run, first, version)
        first.made(version, rows(version))
    played(run, first, 3)
    again = Lineage(run)
    assert again.made(0, rows(0)) == 0
    assert again.made(1, rows(1, tail=1e-9)) == 8
    assert len(list((run.path / "stale").rglob("*.jsonl"))) == 8
    assert len(played(run, again, 2)) == 4
    assert again.made(2, rows(2)) == 0
    assert len(run.rollout_ids()) == 12


def test_what_runs_ahead_in_this_life_is_not_set_aside(run):
    first = Lineage(run)
    for version in range(2):
        played(run, first, version)
        first.made(version, rows(version))
    played(run, first, 2)
    again = Lineage(run)
    again.made(0, rows(0))
    played(run, again, 2)
    assert again.made(1, rows(1, tail=2.0)) == 0
    assert len(run.rollout_ids()) == 12


def test_a_move_that_was_cut_off_is_finished_in_the_next_life(run):
    first = Lineage(run)
    for version in range(2):
        played(run, first, version)
        first.made(version, rows(version))
    played(run, first, 2)
    # As a kill amid the move leaves it: a rollout is gone, the old name still stands.
    moved = run.rollout_path(practice_id(2, 0, "t", 0))
    moved.rename(run.path / moved.name)
    again = Lineage(run)
    again.made(0, rows(0))
    assert again.made(1, rows(1, tail=2.0)) == 3
    assert len(played(run, Lineage(run), 2)) == 4


def test_a_torn_line_is_cut(run):
    first = Lineage(run)
    first.made(0, rows(0))
    path = run.path / "lineage.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"version": 2, "wei')
    again = Lineage(run)
    assert path.read_bytes() == whole
    again.made(0, rows(0))
    again.made(1, rows(1))
    assert path.read_bytes().startswith(whole + b'{"version": 2, "weights"')
