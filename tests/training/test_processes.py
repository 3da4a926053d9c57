"""Two processes under `accelerate launch` give the gradients of one, whoever made how many rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


def test_two_processes_give_the_gradients_of_one(tmp_path, monkeypatch):
    here = Path(__file__).parent
    monkeypatch.syspath_prepend(str(here))
    from two_processes import gradients

    # accelerate starts several processes on a CPU by MPI only; by the name of GPUs it starts them itself.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [str(here / "two_processes.py"), str(tmp_path / "two.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(here)}
    done = subprocess.run(
        [*launch, *script], env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), gradients()
    assert set(two) == set(one)
    for name, (alone, watched) in one.items():
        together, seen = two[name]
        off = sum((a - b).double().square().sum() for a, b in zip(together, alone, strict=True))
        assert float((off / sum(b.double().square().sum() for b in alone)).sqrt()) < 1e-5, name
        for number in ("tokens_trained", "entropy", "ratio_max", "logp_gap"):
            assert seen[number] == pytest.approx(watched[number], rel=1e-4), (name, number)
        assert seen["micro_batches"] % 2 == 0
