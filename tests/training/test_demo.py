"""The demo's whole path, cut short: as a person runs it, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbagent.errors import RecipeError, RunFolderError
from nbagent.recipe import load_recipe

pytestmark = pytest.mark.slow
NBAGENT = str(Path(sys.executable).with_name("nbagent"))


def nbagent(*words, cwd, timeout=240):
    return subprocess.run([NBAGENT, *words], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def kernels_of(pid):
    """Fork servers and kernels whose command line or parent names the run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    made = nbagent("demo", "--smoke", "--out", "run", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "run", made.stdout


def test_the_path_ends_with_scores_notebooks_and_a_report(run):
    folder, said = run
    names = {path.stem for path in (folder / "scores").glob("*.json")}
    assert names == {"untrained_sampled", "warm_sampled", "warm_greedy", "grpo_sampled", "grpo_greedy"}
    for name in names:
        score = json.loads((folder / "scores" / f"{name}.json").read_text())
        assert len(score["attempts"]) == 4
        for attempt in score["attempts"]:
            assert (folder / "notebooks" / f"{attempt['rollout_id']}.ipynb").is_file()
    assert {json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()} == {
        "sft",
        "grpo",
    }
    assert "<script" not in (folder / "report.html").read_text()
    assert "report:" in said
    assert (folder / "checkpoints" / "final" / "model.safetensors").is_file()


def test_attempts_of_a_model_that_runs_no_cell_replay_too(run, tmp_path):
    folder, _ = run
    for path in sorted((folder / "notebooks").glob("grpo_greedy-*.ipynb"))[:2]:
        out = tmp_path / "nb.ipynb"
        made = nbagent("replay", str(folder), "--rollout", path.stem, "--out", str(out), "--execute", cwd=tmp_path)
        assert made.returncode == 0, made.stdout + made.stderr
        assert out.is_file()


def test_event_logs_validate(run, tmp_path):
    made = nbagent("validate", str(run[0]), cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr


def test_another_run_is_never_overwritten(run, tmp_path):
    folder, _ = run
    before = sorted(path.name for path in folder.iterdir())
    made = nbagent("demo", "--smoke", "--out", str(folder), cwd=tmp_path)
    assert made.returncode == 2
    assert "holds another run" in made.stderr
    assert made.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_run_that_is_done_resumes_to_the_same_scores(run, tmp_path):
    folder, _ = run
    before = (folder / "scores" / "grpo_greedy.json").read_text()
    made = nbagent("demo", "--smoke", "--out", str(folder), "--resume", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (folder / "scores" / "grpo_greedy.json").read_text() == before


def test_ctrl_c_leaves_no_process_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [NBAGENT, "demo", "--smoke", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not list(out.glob("rollouts/*.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    children = kernels_of(process.pid)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, said + errors
    assert "--resume" in errors
    until = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    made = nbagent("demo", "--smoke", "--out", str(out), "--resume", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (out / "report.html").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        made = nbagent("demo", "--smoke", "--out", str(disk / "run"), cwd=tmp_path)
        assert made.returncode == 2, made.stdout + made.stderr
        said = [line for line in made.stderr.splitlines() if line.startswith("nbagent: ")]
        assert len(said) == 1, made.stderr
        assert "free some space" in said[0]
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        made = nbagent("demo", "--smoke", "--out", str(disk / "run"), "--resume", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_same_seed_on_one_thread_gives_the_same_numbers(tmp_path):
    from importlib.resources import files

    text = (files("nbagent_training") / "recipes" / "smoke.toml").read_text()
    recipe = tmp_path / "one.toml"
    recipe.write_text("threads = 1\n" + text)
    logs = []
    for name in ("a", "b"):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        made = subprocess.run(
            [NBAGENT, "train", str(recipe), "--out", str(tmp_path / name)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        keys = ("phase", "step", "loss", "reward", "grad_norm", "entropy", "rows", "completion_tokens")
        logs.append([{k: line.get(k) for k in keys} for line in lines])
    assert logs[0] == logs[1]
    final = [(tmp_path / name / "checkpoints" / "final" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert final[0] == final[1]


def test_recipes_are_checked_when_they_are_read(tmp_path):
    from nbagent_training.recipe import TrainRecipe

    path = tmp_path / "bad.toml"
    path.write_text("[grpo]\nupdatess = 3\n")
    with pytest.raises(RecipeError, match=r"updates"):
        load_recipe(path, TrainRecipe)
    made = nbagent("train", str(path), cwd=tmp_path)
    assert made.returncode == 2
    assert "updatess" in made.stderr
    assert made.stderr.count("\n") == 1


def test_resume_needs_a_run(tmp_path):
    from nbagent_training.commands import demo

    with pytest.raises(RunFolderError, match="no run to resume"):
        demo(tmp_path / "none", smoke=True, resume=True)
