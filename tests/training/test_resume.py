"""A run that is killed with SIGKILL, again and again, goes on to the very numbers of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nbagent.models.hf import load
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome
from nbagent_training.checkpoints import is_whole
from nbagent_training.export import export
from nbagent_training.metrics import METRICS

pytestmark = pytest.mark.slow

RECIPE = """
threads = 1
concurrency = 1
bf16 = false
score_greedy = false
[tasks]
train = "{folder}/questions.csv"
n_heldout = 0
[model]
folder = "{folder}/model"
[agent]
action_format = "fenced"
policy = "drop"
max_steps = 3
warn_steps = 0
max_new_tokens = 16
[grpo]
updates = 5
tasks_per_update = 2
group_size = 4
save_every = 2
lr = 1e-3
curriculum = "uncertain"
"""
SPENT = {"sync_s", "rollout_s", "wait_s", "train_s", "tokens_per_s", "train_tokens_per_s", "read_back"}
"""Metrics that say how a run went, not what it learned."""


def said(home):
    """The last line of the newest life."""
    return (home / "said.txt").read_text().splitlines()[-1]


class Lives:
    """The process that forks the lives."""

    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        script = Path(__file__).with_name("lives.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, **life):
        print(json.dumps(life), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


def questions(folder):
    (folder / "data").mkdir()
    (folder / "data" / "a.csv").write_text("x\n1\n")
    rows = [f"What is {n}?,{1 + n % 2},data,family{n % 2}" for n in range(6)]
    (folder / "questions.csv").write_text("question,answer,data_folder,family\n" + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lives")
    questions(folder)
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def live(home):
    lives = Lives()
    with lives.process:
        assert lives(teach=str(home / "model")) == 0
        yield lambda name, *death, recipe="recipe.toml": lives(
            recipe=str(home / recipe), out=str(home / name), **({"death": death} if death else {})
        )


@pytest.fixture(scope="module")
def whole(home, live):
    assert live("whole") == 0
    return RunFolder(home / "whole")


def learned(run):
    """What must be the same: metrics, rollouts, weights, what the curriculum knows."""
    metrics = [{k: v for k, v in line.items() if k not in SPENT} for line in run.read_metrics()]
    rollouts = {
        t.rollout_id: (
            t.outcome,
            t.answer,
            [(c.prompt_ids, c.event["completion_ids"], c.event["logprobs"], c.event["version"]) for c in t.calls()],
        )
        for t in run.trajectories()
    }
    weights = (run.checkpoints / "final" / "model.safetensors").read_bytes()
    return metrics, rollouts, weights, (run.path / "practice.json").read_text()


def test_the_run_that_is_compared_with_learns(whole):
    lines = whole.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(line["attempts"] == 8 for line in lines)
    assert {name for line in lines for name in line} - {"phase", "step", "alarms"} <= set(METRICS)
    assert any(line["share_mixed"] > 0 for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)


def same(name, home, live, whole):
    """The run is ended, and equals the one that was left alone."""
    assert live(name) == 0
    run = RunFolder(home / name)
    for got, wanted in zip(learned(run), learned(whole), strict=True):
        assert got == wanted
    return run


def test_killed_at_every_kind_of_place_it_learns_the_same(home, live, whole):
    deaths = [
        ("call", 5),  # amid the first rollouts
        ("metrics", 2),  # half a line, of update 2
        ("checkpoint", 2),  # half a file, of checkpoint-2
        ("update", 2),  # behind checkpoint-2: between gradient and step
        ("call", 3),  # the rollouts of updates 3 and 4 are read back; amid those of update 5
        ("final", 1),  # half of the folder of the final weights
    ]
    for death in deaths:
        assert live("killed", *death) == -9, death
    run = same("killed", home, live, whole)
    assert not (run.path / "stale").exists()
    begun = [line for path in run.rollouts.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum('"kind":"start"' in line for line in begun) == 5 * 8 + 2  # only the two that were cut off, made again
    lines = run.read_metrics()
    assert any(line["read_back"] == 8 for line in lines)
    assert all(("tokens_per_s" in line) == (line["read_back"] < 8) for line in lines), "read back is not sampled"


def test_sigterm_saves_like_ctrl_c(home, live, whole):
    assert live("ended", "sigterm", 25) == 130
    assert "interrupted; what is done is saved in" in said(home)
    updates = len(RunFolder(home / "ended").read_metrics())
    assert is_whole(home / "ended" / "checkpoints" / "grpo" / f"checkpoint-{updates}")
    same("ended", home, live, whole)


def test_a_server_that_is_gone_stops_the_run_which_goes_on_once_it_is_back(home, live, whole):
    assert live("failed", "server", 3) == 2
    words = said(home)
    assert "8 of 8 rollouts (updates: the last 1) failed for a cause on the host's side" in words
    assert "`model`" in words
    assert "--resume goes on" in words
    kept = RunFolder(home / "failed")
    failed = [t for t in kept.trajectories() if t.outcome is Outcome.INFRASTRUCTURE]
    assert failed
    assert all(t.start["attempt"] == 2 and t.reward is None for t in failed)
    same("failed", home, live, whole)


def test_a_server_that_takes_no_weights_stops_the_run_which_has_saved(home, live, whole):
    """The rollouts are well; it is the trainer that cannot give its weights away."""
    assert live("unheard", "refresh", 4) == 2
    assert "the server is gone; what is done is saved in" in said(home)
    assert "--resume goes on" in said(home)
    assert is_whole(home / "unheard" / "checkpoints" / "grpo" / "checkpoint-3"), "saved where save_every would not"
    same("unheard", home, live, whole)


def test_a_teacher_that_is_gone_stops_the_run_which_has_saved(home, live):
    recipe = RECIPE.format(folder=home) + f'[distill]\nteacher = "{home / "model"}"\n'
    (home / "taught.toml").write_text(recipe)
    assert live("taught", "teacher", 4, recipe="taught.toml") == 2
    assert "the server is gone; what is done is saved in" in said(home)
    assert is_whole(home / "taught" / "checkpoints" / "grpo" / "checkpoint-3")
    assert live("taught", recipe="taught.toml") == 0
    lines = RunFolder(home / "taught").read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(line["teacher_s"] > 0 and line["rollout_s"] <= line["wait_s"] for line in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full_stops_the_run_which_goes_on_once_it_has_room(home, live, whole):
    disk = home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], check=True)
    try:
        assert live("disk/run") == 2
        assert "free some space" in said(home)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        same("disk/run", home, live, whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_with_lora_it_learns_the_same_and_every_stage_can_be_exported(home, live):
    recipe = RECIPE.format(folder=home).replace("updates = 5", "updates = 3") + "keep_every = 2\n[lora]\nrank = 4\n"
    (home / "lora.toml").write_text(recipe)
    assert live("lora", recipe="lora.toml") == 0
    assert live("lora killed", "call", 14, recipe="lora.toml") == -9  # before there is a checkpoint
    assert live("lora killed", "update", 3, recipe="lora.toml") == -9  # behind checkpoint-2
    middle = logits(export(home / "lora killed", home / "middle", checkpoint="grpo/checkpoint-2"))
    assert live("lora killed", recipe="lora.toml") == 0
    runs = [RunFolder(home / name) for name in ("lora", "lora killed")]
    for got, wanted in zip(learned(runs[1]), learned(runs[0]), strict=True):
        assert got == wanted
    kept = logits(export(home / "lora killed", home / "kept", checkpoint="grpo/checkpoint-2"))
    assert torch.equal(kept, middle), "with keep_every, for good"
    assert [path.name for path in (home / "lora killed" / "checkpoints" / "grpo").iterdir()] == ["checkpoint-2"]
    first, last = logits(home / "model"), logits(export(home / "lora killed", home / "last"))
    adapted = logits(export(home / "lora killed", home / "adapted", checkpoint="adapter"))
    assert torch.allclose(adapted, last, atol=1e-5)
    assert not torch.allclose(first, middle, atol=1e-3)
    assert not torch.allclose(middle, last, atol=1e-3)


def logits(folder):
    with torch.no_grad():
        return load(folder)[0].eval()(torch.arange(5, 45)[None]).logits


def test_a_finished_run_says_so(home, live, whole):
    before = sorted(path.stat().st_mtime_ns for path in whole.path.rglob("*"))
    assert live("whole") == 0
    assert "this run is finished" in said(home)
    assert sorted(path.stat().st_mtime_ns for path in whole.path.rglob("*")) == before
