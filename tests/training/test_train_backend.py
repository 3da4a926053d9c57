"""Where the cells of a training run are executed: as the command says, and only where there are any."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from nbagent import backends
from nbagent.errors import UsageError
from nbagent.runfolder import RunFolder
from nbagent_kernels.leftovers import containers
from nbagent_training.commands import _with_backend
from nbagent_training.recipe import TrainRecipe

NBAGENT = str(Path(sys.executable).with_name("nbagent"))
SMALLEST = """
[tasks]
families = ["library_size"]
n_demonstrations = 4
n_train = 1
n_heldout = 0
[model.scratch]
vocabulary = 400
hidden = 32
layers = 1
heads = 2
intermediate = 64
[agent]
action_format = "fenced"
max_steps = 2
max_new_tokens = 12
[warm_start]
steps = 1
tokens = 2048
[grpo]
updates = 1
tasks_per_update = 1
group_size = 2
"""


@pytest.fixture
def trained(tmp_path):
    """Runs a command that trains in containers; gives its run, in which all rollouts were made there."""
    try:
        backends.container_of("docker")
    except UsageError as error:
        pytest.skip(str(error))

    def made(*words):
        name = f"run-{secrets.token_hex(4)}"
        command = [NBAGENT, *words, "--out", name, "--backend", "docker"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        run = RunFolder.open(tmp_path / name)
        assert 'backend = "docker"' in run.recipe.read_text()
        logs = sorted(run.rollouts.glob("*.jsonl"))
        started = [json.loads(log.read_text().splitlines()[0]) for log in logs]
        assert {start["backend"] for start in started} == {"docker"}
        assert {run.load(log.stem).outcome for log in logs} <= {"correct", "incorrect", "no_answer"}
        assert not containers(name)
        return logs

    return made


@pytest.mark.docker
@pytest.mark.slow
def test_a_run_trains_in_containers_where_the_command_says_so(trained, tmp_path):
    (tmp_path / "recipe.toml").write_text(SMALLEST)
    assert len(trained("train", "recipe.toml")) == 2


@pytest.mark.docker
@pytest.mark.slow
def test_the_demo_takes_its_whole_path_in_containers(trained):
    assert len(trained("demo", "--smoke")) == 28


@pytest.mark.parametrize(
    ("tables", "asked"),
    [
        ({"grpo": {"updates": 0}, "tasks": {"n_heldout": 0}, "warm_start": {"steps": 1}}, False),
        ({"grpo": {"from_run": "r", "loss": {"old": "sampler"}}, "tasks": {"n_heldout": 0}}, False),
        ({"grpo": {"updates": 0}, "warm_start": {"steps": 1}}, True),
        ({"tasks": {"n_heldout": 0}}, True),
    ],
    ids=["a warm start", "recorded rollouts", "a score", "rollouts"],
)
def test_an_engine_is_asked_for_only_where_cells_are_run(tmp_path, monkeypatch, tables, asked):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    backends.container_of.cache_clear()
    recipe = TrainRecipe.model_validate({"model": {"folder": "somebodys"}, **tables})
    if asked:
        with pytest.raises(UsageError, match="no Docker engine answers"):
            _with_backend(recipe, None)
    else:
        assert _with_backend(recipe, None).agent.backend == "docker"
    assert _with_backend(recipe, "fork").agent.backend == "fork"
