"""Rollouts that run ahead of the trainer: never too far, in order, and with an end."""

import threading

import pytest

from nbagent.errors import RecipeError
from nbagent.recipe import load_recipe
from nbagent_training.overlap import Overlap
from nbagent_training.recipe import TrainRecipe


class Source:
    """Makes an update's groups when it is told to; says which it has begun."""

    def __init__(self):
        self.begun, self.go = [], threading.Semaphore(0)
        self.state = threading.Condition()
        self.cancelled = False

    def next_groups(self, n, version):
        with self.state:
            self.begun.append(version)
            self.state.notify_all()
        self.go.acquire()
        if self.cancelled:
            raise RuntimeError("cancelled")
        return [(n, version)]

    def cancel(self):
        self.cancelled = True
        self.go.release()

    def begins(self, version):
        with self.state:
            assert self.state.wait_for(lambda: version in self.begun, 30)


@pytest.fixture
def source():
    return Source()


def test_the_next_groups_are_begun_before_they_are_asked_for(source):
    ahead = Overlap(source, staleness=1, updates=4)
    source.go.release()
    assert ahead.next_groups(3, 0) == [(3, 0)]
    source.begins(1)
    source.go.release(3)
    assert [ahead.next_groups(3, version) for version in (1, 2, 3)] == [[(3, 1)], [(3, 2)], [(3, 3)]]
    ahead.close()
    assert source.begun == [0, 1, 2, 3]


@pytest.mark.parametrize("staleness", [1, 3])
def test_it_never_runs_further_ahead_than_allowed(source, staleness):
    """An update's groups begin only when the trainer has reached `staleness` updates before it."""
    source.go.release(100)
    ahead = Overlap(source, staleness=staleness, updates=8)
    for version in range(8):
        ahead.next_groups(1, version)
        with source.state:
            assert max(source.begun) <= version + staleness
        if version + staleness < 8:
            source.begins(version + staleness)
    ahead.close()
    assert source.begun == list(range(8))


def test_a_run_that_goes_on_begins_where_it_is(source):
    source.go.release(2)
    ahead = Overlap(source, staleness=2, updates=7)
    assert ahead.next_groups(2, 5) == [(2, 5)]
    assert ahead.next_groups(2, 6) == [(2, 6)]
    ahead.close()


def test_closing_ends_what_the_source_is_at(source):
    source.go.release()
    ahead = Overlap(source, staleness=2, updates=9, cancel=source.cancel)
    ahead.next_groups(1, 0)
    source.begins(1)
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name == "nbagent-overlap"]


def test_what_stops_the_source_stops_the_trainer(source):
    ahead = Overlap(source, staleness=1, updates=9)
    source.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        ahead.next_groups(1, 0)
    with pytest.raises(ValueError, match="update 3 were asked for after those of update 0"):
        ahead.next_groups(1, 3)
    ahead.close()


def recipe(tmp_path, more):
    path = tmp_path / "r.toml"
    path.write_text(f'[model]\nfolder = "m"\n{more}')
    return load_recipe(path, TrainRecipe)


def test_running_ahead_needs_a_correction(tmp_path):
    with pytest.raises(RecipeError, match=r"sampler\.staleness"):
        recipe(tmp_path, "[sampler]\nstaleness = 1")
    for loss in ('correction = "truncate"', 'correction = "mask"', 'old = "sampler"'):
        made = recipe(tmp_path, f"[sampler]\nstaleness = 1\n[grpo.loss]\n{loss}")
        assert made.sampler.staleness == 1


def test_settings_of_a_server_need_one(tmp_path):
    with pytest.raises(RecipeError, match='engine = "vllm"'):
        recipe(tmp_path, '[sampler]\nurl = "http://localhost:8000"')
    with pytest.raises(RecipeError, match="one of the run's own"):
        recipe(tmp_path, '[sampler]\nengine = "vllm"\nurl = "http://localhost:8000"\ndevices = "1"')
