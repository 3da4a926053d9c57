"""Two processes under `accelerate launch` give the gradients of one, whoever made how many rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nbagent.runfolder import RunFolder

pytestmark = pytest.mark.slow
# accelerate starts several processes on a CPU by MPI only; by the name of GPUs it starts them itself.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def test_two_processes_give_the_gradients_of_one(tmp_path, monkeypatch):
    here = Path(__file__).parent
    monkeypatch.syspath_prepend(str(here))
    from two_processes import gradients

    script = [str(here / "two_processes.py"), str(tmp_path / "two.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(here)}
    done = subprocess.run(
        [*LAUNCH, *script], env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
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
    here = Path(__file__).parent
    script = [str(here / "launched.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(here)}
    for words in ([sys.executable], LAUNCH):
        done = subprocess.run(
            [*words, *script], env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
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
