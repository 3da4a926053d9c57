"""Kernels kept from one call of `run` to the next: warm containers are there, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbagent import backends, pools
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_kernels.leftovers import containers
from nbagent_kernels.live import LiveSession
from nbagent_kernels.pool import KernelPool

SETTINGS = RolloutSettings(
    policy="full", sampling=SamplingParams(max_new_tokens=400), limits=EnvLimits(cell_timeout_s=60.0), backend="docker"
)


class Always:
    """Everything is right."""

    def verify(self, answer):
        return Verdict(Outcome.CORRECT, "always")


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def act(prompt):
    """Draw a number, submit."""
    if "drawn" in prompt:
        return call("submit_answer", answer="4")
    return call("run_cell", code="import os, random\nprint('dra' + 'wn', random.random(), os.listdir())")


@pytest.fixture
def run(tmp_path):
    try:
        backends.container_of("docker")
    except UsageError as error:
        pytest.skip(str(error))
    return RunFolder.create(tmp_path / f"run-{secrets.token_hex(4)}", "seed = 0\n")


@pytest.fixture
def jobs(tmp_path):
    capsule = tmp_path / "capsule"
    capsule.mkdir()
    (capsule / "a.csv").write_text("a")

    def made(number, language="python"):
        return [(Task(f"t-{i}", "What?", capsule, Always(), language, seed=i), f"r-{number}-{i}") for i in range(2)]

    return made


@pytest.fixture
def warm(monkeypatch):
    """Sessions that were warm when they were handed out."""
    taken = []
    assign = LiveSession.assign

    async def counted(session, spec):
        taken.append(session)
        await assign(session, spec)

    monkeypatch.setattr(LiveSession, "assign", counted)
    return taken


def ready(rollouts):
    """Warm sessions that wait."""
    return sum(len(kept.pool._spare) for kept in rollouts._pools._kept.values())


def until(condition, seconds=120.0):
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.05)


@pytest.mark.docker
@pytest.mark.slow
def test_the_second_call_finds_warm_containers_and_none_is_left(run, jobs, warm):
    with Rollouts(2) as rollouts:
        first = rollouts.run(jobs(0), ScriptedModel(act), SETTINGS, run)
        assert not warm
        until(lambda: ready(rollouts) == 2)
        second = rollouts.run(jobs(1), ScriptedModel(act), SETTINGS, run)
        assert len(warm) == 2
        until(lambda: ready(rollouts) == 2)
        assert len(containers(run.name)) == 2
    assert not containers(run.name)
    assert [made.outcome for made in (*first, *second)] == [Outcome.CORRECT] * 4
    printed = [[made.outputs(event) for event in made.events if event["kind"] == "execution"] for made in first]
    assert printed == [[m.outputs(event) for event in m.events if event["kind"] == "execution"] for m in second]
    assert printed[0] != printed[1]


@pytest.mark.docker
@pytest.mark.slow
def test_a_call_that_is_cancelled_takes_warm_containers_along(run, jobs, monkeypatch):
    monkeypatch.setattr(pools, "REST_S", 0.0)

    with Rollouts(2) as rollouts:
        rollouts.run(jobs(0), ScriptedModel(act), SETTINGS, run)
        until(lambda: ready(rollouts) == 2)

        async def stop():
            async with rollouts._pools.call([task for task, _ in jobs(2)], "docker", None, run.name, 2):
                raise asyncio.CancelledError

        with contextlib.suppress(BaseException):
            rollouts.call(stop())
        assert not containers(run.name)


def test_languages_that_cannot_be_seeded_again_and_large_capsules_have_no_warm_sessions(jobs, tmp_path):
    async def warm_of(tasks, backend="docker"):
        kept = pools.Kept(KernelPool(2, 0, backend, pools.SessionSpec(language=tasks[0].language)))
        call = pools.Call(kept, tasks, 2)
        return call.n_warm

    tasks = [task for task, _ in jobs(0)]
    assert asyncio.run(warm_of(tasks)) == 2
    assert asyncio.run(warm_of(tasks, "fork")) == 0
    assert asyncio.run(warm_of([task for task, _ in jobs(0, "R")])) == 0
    with (tmp_path / "capsule" / "big").open("wb") as big:
        big.truncate(65 << 20)
    assert asyncio.run(warm_of(tasks)) == 0


def test_what_is_held_ready_follows_what_is_left_and_what_repeats(jobs):
    async def targets():
        kept = pools.Kept(KernelPool(2, 0, "docker"))
        tasks = [task for task, _ in (*jobs(0), *jobs(1))]
        seen = []
        for kept.n_calls in (0, 1):
            call = pools.Call(kept, tasks, 2)
            for task in tasks:
                call.begins(task)
                seen.append(kept.pool.warm)
        return seen

    assert asyncio.run(targets()) == [2, 2, 1, 0, 2, 2, 2, 2]


HOST = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_pools import SETTINGS, Always, Rollouts, RunFolder, ScriptedModel, Task, act, ready, until
run = RunFolder.create(sys.argv[2], "seed = 0\\n")
capsule = Path(sys.argv[2], "capsule")
capsule.mkdir()
with Rollouts(2) as rollouts:
    jobs = [(Task(f"t-{i}", "?", capsule, Always()), f"r-{i}") for i in range(2)]
    rollouts.run(jobs, ScriptedModel(act), SETTINGS, run)
    until(lambda: ready(rollouts))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_ends_takes_its_warm_containers_along(run, number):
    place = run.path.with_name(f"{run.name}-host")
    command = [sys.executable, "-c", HOST, str(Path(__file__).parent), str(place)]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert host.stdout.readline() == "ready\n"
    assert containers(place.name)
    host.send_signal(number)
    host.communicate(timeout=60)
    if number == signal.SIGINT:
        assert not containers(place.name)
    until(lambda: all(one.owner == "ended" and one.state != "running" for one in containers(place.name)))
