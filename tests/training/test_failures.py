"""Host-side failures: their classes, and when a run stops for them."""

import pickle
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.errors import InfrastructureError, ModelError
from nbagent.models.endpoint import Endpoint
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Group, Rollouts
from nbagent.tasks import Outcome, Task
from nbagent.trajectory import Trajectory
from nbagent_images.errors import ImageError
from nbagent_kernels.errors import KernelError
from nbagent_training.errors import TooManyFailures
from nbagent_training.failures import Failures, check_failures, count_failures, failure_class

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


class Asking(ScriptedModel):
    """Asks an endpoint, as remote models do."""

    def __init__(self, url):
        super().__init__([], ByteTokenizer())
        self._endpoint = Endpoint(url, max_retries=0)

    async def sample(self, prompt, params):
        await self._endpoint.ask("POST", "/v1/completions", {})


class Mute(BaseHTTPRequestHandler):
    """A server that has no such model."""

    def do_POST(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    """Of a server that answers everything with 404."""
    with HTTPServer(("127.0.0.1", 0), Mute) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_real_rollouts_fail_of_is_named_rightly(tmp_path, url):
    """A server that is gone or has no such model is no bug of ours; what no one foresaw is."""
    task = replace(TASK, capsule=tmp_path)
    settings = RolloutSettings(policy="full", infrastructure_retries=0)

    def bug(prompt):
        raise ZeroDivisionError("division by zero")

    with Rollouts() as rollouts:

        def played(name, model):
            return rollouts.call(roll(task, name, model, settings))

        failed = {
            "UnreachableError": played("r-0", Asking("http://127.0.0.1:9")),
            "MissingError": played("r-1", Asking(url)),
            "ModelError": played("r-2", ScriptedModel([], ByteTokenizer())),
            "ZeroDivisionError": played("r-3", ScriptedModel(bug, ByteTokenizer())),
        }
    assert all(made.outcome is Outcome.INFRASTRUCTURE for made in failed.values())
    assert all(made.error.startswith(f"{name}: ") for name, made in failed.items())
    assert [failure_class(made) for made in failed.values()] == ["model", "model", "model", "other"]


@pytest.mark.parametrize("root", [ModelError, InfrastructureError, KernelError, ImageError])
def test_every_error_of_the_host_has_a_class_that_is_no_bug(root):
    errors = [root]
    for error in errors:
        errors += error.__subclasses__()
        wanted = "model" if issubclass(error, ModelError) else "sandbox"
        assert failure_class(ended("infrastructure", f"{error.__name__}: words")) == wanted


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
