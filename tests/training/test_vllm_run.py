"""A training run whose rollouts come from a real vLLM server, an update ahead of the trainer, and the server dies."""

import os
import signal
import threading
import time

import lives
import pytest
import torch
from rich.console import Console
from served import INTERPRETER, NEEDS_VLLM, SIZE

from nbagent.models.hf import load
from nbagent.recipe import load_recipe, to_toml
from nbagent.runfolder import RunFolder
from nbagent.samples import samples
from nbagent_training.recipe import TrainRecipe
from nbagent_training.run import TrainingRun

pytestmark = NEEDS_VLLM
RECIPE = """
threads = 1
concurrency = 4
bf16 = false
score_greedy = false
[tasks]
train = "{folder}/questions.csv"
n_heldout = 0
[model]
folder = "{folder}/model"
[agent]
action_format = "fenced"
backend = "fork"
max_steps = 1
warn_steps = 0
max_new_tokens = 16
[sampler]
engine = "vllm"
python = "{python}"
staleness = 1
[grpo]
updates = 3
tasks_per_update = 2
group_size = 4
save_every = 10
lr = 1e-3
[grpo.loss]
correction = "truncate"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lives, "Size", lambda **size: SIZE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lives.teach(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x\n1\n")
    rows = [f"What is {n}?,{1 + n % 2},data" for n in range(6)]
    (tmp_path / "questions.csv").write_text("question,answer,data_folder\n" + "\n".join(rows) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path, python=INTERPRETER.python))
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_run_through_vllm_ahead_of_the_trainer_survives_its_servers_death(folder):
    recipe = load_recipe(folder / "recipe.toml", TrainRecipe)
    run = RunFolder.create(folder / "run", to_toml(recipe.model_dump(mode="json")), resume=False)
    with (folder / "said.txt").open("w") as said:
        training = TrainingRun(recipe, run, Console(file=said, width=200))
        killer = threading.Thread(target=kill_after_an_update, args=(training,))
        killer.start()
        training.go()
        killer.join()
    lines = [line for line in run.read_metrics() if line["phase"] == "grpo"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert sum(line["infrastructure"] for line in lines) == 0
    assert max(line["staleness_max"] for line in lines) == 1
    assert any(line["grad_norm"] > 0 for line in lines)
    trajectories = [run.load(path.stem) for path in sorted(run.rollouts.glob("*.jsonl"))]
    assert len(trajectories) == 3 * 2 * 4
    rows = [row for trajectory in trajectories for row in samples(trajectory)]
    assert {row.version for row in rows} <= {0, 1, 2}
    begun, _ = load(folder / "model")
    for row in (row for row in rows if row.version == 0):
        logits = begun(input_ids=torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
        found = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        own = found.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
        assert (own - torch.tensor(row.logprobs)).abs().mean() < 1e-3
    ended, _ = load(run.checkpoints / "final")
    assert any(not torch.equal(a, b) for a, b in zip(begun.parameters(), ended.parameters(), strict=True))
    assert not list((run.path / "sampler").glob("weights-*"))


def kill_after_an_update(training):
    while not training.run.metrics.is_file() or not training.run.metrics.read_text().count("\n"):
        time.sleep(0.01)
    server = training.engine._server
    os.killpg(server._process.pid, signal.SIGKILL)
    while server.starts == 1:
        assert not server.failure
        time.sleep(0.01)
