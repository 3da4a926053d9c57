"""Rollouts in containers: what an attempt wrote is kept, and an engine that ends a sandbox is the host's failure."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, replace

import pytest
from docker.errors import APIError

from nbagent import backends
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_kernels.container import OWNER_LABEL, client, labels

SETTINGS = RolloutSettings(
    sampling=SamplingParams(max_new_tokens=400),
    policy="full",
    artefact_bytes=1000,
    limits=EnvLimits(cell_timeout_s=60.0),
)


@dataclass(frozen=True)
class Always:
    """Everything is right."""

    def verify(self, answer: str) -> Verdict:
        """The outcome."""
        return Verdict(Outcome.CORRECT, "always")


@pytest.fixture
def task(tmp_path):
    capsule = tmp_path / "capsule"
    (capsule / "sub").mkdir(parents=True)
    (capsule / "same.csv").write_text("same")
    (capsule / "sub" / "changed.csv").write_text("old")
    return Task("t-1", "What?", capsule, Always(), seed=3)


@pytest.fixture
def backend(request):
    try:
        backends.container_of(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


WRITE = (
    "import os\nos.makedirs('out/deep'); open('out/deep/plot.txt', 'w').write('plot')\n"
    "open('sub/changed.csv', 'w').write('new'); open('large', 'w').write('x' * 2000)\n"
    "os.symlink('/etc/passwd', 'link'); os.mkfifo('pipe')"
)


@pytest.mark.parametrize("backend", ["fork", pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_what_an_attempt_wrote_is_kept(backend, task, tmp_path, caplog):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    model = ScriptedModel([call("run_cell", code=WRITE), call("submit_answer", answer="4")])
    with Rollouts() as rollouts:
        (made,) = rollouts.run([(task, "r-0")], model, replace(SETTINGS, backend=backend), run)
    assert made.outcome is Outcome.CORRECT
    kept = {str(p.relative_to(run.artefacts / "r-0")): p.read_text() for p in run.artefacts.rglob("*") if p.is_file()}
    assert kept == {"out/deep/plot.txt": "plot", "sub/changed.csv": "new"}
    assert "'large': 2000 bytes" in caplog.text


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["docker"], indirect=True)
def test_an_engine_that_ends_a_sandbox_costs_another_try_and_no_reward(backend, task, tmp_path):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    wait = call("run_cell", code="import time\nopen('began', 'w')\nprint('began', flush=True)\ntime.sleep(600)")
    model = ScriptedModel([wait, call("submit_answer", answer="4")])

    def kill_all() -> None:
        api, ours = client().api, {"label": f"{OWNER_LABEL}={labels('')[OWNER_LABEL]}"}
        while not ended.wait(0.5):
            for found in api.containers(filters=ours):
                with contextlib.suppress(APIError):  # warm ones come and go
                    if "began" in str(api.exec_start(api.exec_create(found["Id"], "ls /work/1/work")["Id"])):
                        api.kill(found["Id"])
                        return

    ended = threading.Event()
    killer = threading.Thread(target=kill_all)
    killer.start()
    with Rollouts() as rollouts:
        (made,) = rollouts.run([(task, "r-0")], model, replace(SETTINGS, backend=backend), run)
    ended.set()
    killer.join()
    assert made.outcome is Outcome.CORRECT
    assert made.start["attempt"] == 1
