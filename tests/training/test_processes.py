"""Two processes under `accelerate launch` give the gradients of one, whoever made how many rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nbagent.runfolder import RunFolder
from nbagent_training.checkpoints import last_whole_checkpoint, step_of

HERE = Path(__file__).parent
SOURCES = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": SOURCES}
pytestmark = pytest.mark.slow
# accelerate starts several processes on a CPU by MPI only; by the name of GPUs it starts them itself.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def test_two_processes_give_the_gradients_of_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from two_processes import gradients

    script = [str(HERE / "two_processes.py"), str(tmp_path / "two.pt")]
    done = subprocess.run(
        [*LAUNCH, *script], env=ENVIRONMENT, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), gradients()
    assert set(two) == set(one)
    for name, (alone, watched) in one.items():
        together, seen = two[name]
        off = sum((a - b).double().square().sum() for a, b in zip(together, alone, strict=True))
        assert float((off / sum(b.double().square().sum() for b in alone)).sqrt()) < 1e-5, name
        for number in ("tokens_trained", "entropy", "ratio_max", "logp_gap"):
            assert seen[number] == pytest.approx(watched[number], rel=1e-4), (name, number)
        assert seen["micro_batches"] % 2 == 0


def test_a_run_under_accelerate_launch_learns_what_one_process_learns(tmp_path):
    script = [str(HERE / "launched.py"), str(tmp_path)]
    for words in ([sys.executable], LAUNCH):
        done = subprocess.run(
            [*words, *script], env=ENVIRONMENT, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
    one, two = (RunFolder(tmp_path / name) for name in ("1", "2"))
    for alone, together in zip(one.read_metrics(), two.read_metrics(), strict=True):
        for name in ("reward", "grad_norm", "learning_rate", "tokens_trained", "rows", "attempts"):
            assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert len(one.read_metrics()) == 2
    assert any(line["grad_norm"] > 0 for line in one.read_metrics())
    a, b = (load_file(run.checkpoints / "final" / "model.safetensors") for run in (one, two))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_an_interrupted_run_of_two_processes_saves_and_goes_on_to_what_it_would_have_learned(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from lives import teach
    from test_resume import RECIPE, questions

    questions(tmp_path)
    teach(tmp_path / "model")
    recipe = RECIPE.format(folder=tmp_path).replace("updates = 5", "updates = 3").replace("size = 4", "size = 6")
    (tmp_path / "recipe.toml").write_text(recipe.replace("save_every = 2", "save_every = 10"))

    def live(name, place="nowhere", number=1, *more):
        command = ["train", "recipe.toml", "--out", name, "--backend", "fork", *more]
        words = [*LAUNCH, str(HERE / "interrupted.py"), place, str(number), *command]
        done = subprocess.run(
            words, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
        )
        assert (done.returncode == 0) == (place == "nowhere"), done.stderr
        return [line for line in done.stderr.splitlines() if line.startswith("nbagent: ")]

    interrupted = ["nbagent: interrupted; what is done is saved in cut; the same command with --resume goes on"]
    assert live("whole") == []
    # Amid the rollouts of update 3 the first process has whole weights, and the other waits for their rows.
    assert live("cut", "rollouts", 2 * 12 + 5) == interrupted
    grpo = tmp_path / "cut" / "checkpoints" / "grpo"
    assert step_of(last_whole_checkpoint(grpo)) == 2
    # Amid update 3 there is nothing whole to save.
    assert live("cut", "update", 1, "--resume") == interrupted
    assert [step_of(path) for path in grpo.iterdir()] == [2]
    assert live("cut", "nowhere", 1, "--resume") == []
    cut, whole = (RunFolder(tmp_path / name) for name in ("cut", "whole"))
    for got, wanted in zip(cut.read_metrics(), whole.read_metrics(), strict=True):
        for name in ("step", "reward", "grad_norm", "learning_rate", "tokens_trained", "rows", "attempts", "stale"):
            assert got[name] == wanted[name], name
    assert [line["read_back"] for line in cut.read_metrics()] == [0, 0, 12]
    a, b = (load_file(run.checkpoints / "final" / "model.safetensors") for run in (cut, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)
