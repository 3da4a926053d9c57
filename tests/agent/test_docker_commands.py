"""Commands whose cells run in containers: what a notebook wrote comes out, and attempts are run again."""

from __future__ import annotations

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from nbagent import backends
from nbagent.cli import app
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import open_tasks

RUN = CliRunner()
DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@pytest.fixture
def backend(request):
    try:
        backends.container_of(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


def notebook(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return str(path)


WRITE = """
import os
os.makedirs("out/deep")
open("out/deep/table.csv", "w").write("made")
open("changed.csv", "w").write("new")
os.symlink("/etc/passwd", "link"); os.symlink("/etc", "folder"); os.mkfifo("pipe")
open("large", "w").truncate(257 << 20)
"""


@pytest.mark.parametrize("backend", ["fork", DOCKER], indirect=True)
def test_what_a_notebook_wrote_is_kept_without_links_up_to_a_size(backend, tmp_path):
    files, kept = tmp_path / "data", tmp_path / "kept" / "here"
    files.mkdir()
    for name in ("same.csv", "changed.csv"):
        (files / name).write_text("old")
    words = ["exec", notebook(tmp_path / "a.ipynb", WRITE, "1/0"), "--out", str(tmp_path / "b.ipynb")]
    result = RUN.invoke(app, [*words, "--backend", backend, "--files", str(files), "--keep", str(kept)])
    assert result.exit_code == 1, result.output
    assert f"2 files kept in {kept}" in result.stdout
    found = {str(path.relative_to(kept)): path.read_text() for path in kept.rglob("*") if not path.is_dir()}
    assert found == {"out/deep/table.csv": "made", "changed.csv": "new"}


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["docker,memory=1.5,cpus=0.5,work=0.25"], indirect=True)
def test_what_a_container_may_use_is_the_users(backend, tmp_path):
    cell = (
        "import pathlib, shutil\nprint(shutil.disk_usage('/work').total >> 20)\n"
        "print(*(p.read_text().strip() for p in (pathlib.Path('/sys/fs/cgroup', n) for n in "
        "('memory.max', 'memory/memory.limit_in_bytes')) if p.exists()))"
    )
    out = tmp_path / "b.ipynb"
    result = RUN.invoke(app, ["exec", notebook(tmp_path / "a.ipynb", cell), "--out", str(out), "--backend", backend])
    assert result.exit_code == 0, result.output
    said = nbformat.read(out, 4).cells[0].outputs[0].text.split()
    assert said[0] == "256"
    assert said[1:] in ([], [str(3 << 29)])


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["docker,memory=0.25,cpus=0.1,work=0.001"], indirect=True)
def test_a_kernel_starts_with_the_least_that_may_be_set(backend, tmp_path):
    out = tmp_path / "b.ipynb"
    result = RUN.invoke(app, ["exec", notebook(tmp_path / "a.ipynb", "6*7"), "--out", str(out), "--backend", backend])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("setting", ["cpus=100000", "cpus=1e-10", "memory=0.004", "work=1e-10"])
def test_a_setting_that_no_engine_takes_is_one_line(setting, tmp_path):
    words = [notebook(tmp_path / "a.ipynb", "1"), "--out", str(tmp_path / "b.ipynb"), "--backend", f"docker,{setting}"]
    command = [sys.executable, "-m", "nbagent.cli", "exec", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nbagent: --backend docker,{setting}: {setting} is not within ")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["docker"], indirect=True)
def test_an_attempt_of_a_container_is_run_again_in_one(backend, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x\n4\n")
    row = {"id": "x", "question": "What is x?", "answer": "4", "data_folder": "data"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    source = open_tasks(str(tmp_path / "q.jsonl"))
    run = RunFolder.create(tmp_path / "run", "")
    run.add_tasks(source.fingerprint())
    code = "import os, random\nprint(open('a.csv').read(), random.random(), os.getcwd(), os.path.exists('/work'))"
    script = [("run_cell", {"code": code}), ("submit_answer", {"answer": "4"})]
    said = [f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>" for name, given in script]
    settings = RolloutSettings(policy="full", limits=EnvLimits(cell_timeout_s=60.0), backend=backend)
    with Rollouts() as rollouts:
        rollouts.run([(source.tasks()[0], "r")], ScriptedModel(said), settings, run)
    words = ["replay", str(run.path), "--rollout", "r", "--out", str(tmp_path / "r.ipynb"), "--execute"]
    result = RUN.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1 cells in" in result.stdout
    assert "none with other outputs than before" in result.stdout
    assert "cells run in containers" in result.stderr
