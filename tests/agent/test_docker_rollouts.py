"""Rollouts in containers: what an attempt wrote is kept, and an engine that ends a sandbox is the host's failure."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from dataclasses import dataclass, replace

import nbformat
import pytest
from docker.errors import APIError
from nbformat.v4 import new_code_cell, new_notebook

from nbagent import backends
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.execute_notebook import exec_notebook
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.sandbox.clean import clean
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_kernels.container import RUN_LABEL, WORK
from nbagent_kernels.engineclient import client
from nbagent_kernels.leftovers import containers

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
def test_a_sandbox_that_clean_ends_by_its_run_costs_another_try_and_no_reward(backend, task, tmp_path, capsys):
    run = RunFolder.create(tmp_path / f"run-{secrets.token_hex(4)}", "seed = 0\n")
    wait = call("run_cell", code="import time\nopen('began', 'w')\ntime.sleep(600)")
    model = ScriptedModel([wait, call("submit_answer", answer="4")])

    def end_all() -> None:
        api = client().api
        while not ended.wait(0.5):
            for found in containers(run.name):
                with contextlib.suppress(APIError):  # it may not run yet
                    if "began" in str(api.exec_start(api.exec_create(found.id, f"ls {WORK}/1/work")["Id"])):
                        clean(run.name, everything=True, dry_run=False)
                        return

    ended = threading.Event()
    ender = threading.Thread(target=end_all)
    ender.start()
    with Rollouts() as rollouts:
        (made,) = rollouts.run([(task, "r-0")], model, replace(SETTINGS, backend=backend), run)
    ended.set()
    ender.join()
    assert made.outcome is Outcome.CORRECT
    assert made.start["attempt"] == 1
    assert f"of run {run.name}, process {os.getpid()}" in capsys.readouterr().out


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["docker"], indirect=True)
def test_a_notebook_is_executed_under_its_own_name(backend, tmp_path):
    notebook = tmp_path / f"work-{secrets.token_hex(4)}.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import socket\nprint(socket.gethostname())")]), notebook)
    made = client().api.events(filters={"event": "create", "label": f"{RUN_LABEL}={notebook.stem}"}, decode=True)
    report = exec_notebook(notebook, notebook, backend)
    assert not report.failed
    printed = nbformat.read(notebook, as_version=4).cells[0].outputs[0]["text"].strip()
    with contextlib.closing(made):
        assert next(iter(made))["id"].startswith(printed)
