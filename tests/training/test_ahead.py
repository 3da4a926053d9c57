"""Training while rollouts run ahead: a whole run in this process, and the copy of the weights that it samples from."""

import asyncio

import pytest
import torch
from lives import teach
from rich.console import Console
from test_resume import questions

from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.hf import HFModel
from nbagent.recipe import load_recipe, to_toml
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent_training.recipe import TrainRecipe
from nbagent_training.run import TrainingRun

RECIPE = """
concurrency = 4
bf16 = false
[tasks]
train = "{folder}/questions.csv"
n_heldout = 0
[model]
folder = "{folder}/model"
[agent]
action_format = "fenced"
max_steps = 3
warn_steps = 0
max_new_tokens = 16
[grpo]
updates = 6
tasks_per_update = 2
group_size = 4
lr = 1e-3
loss = {{ correction = "truncate" }}
[sampler]
staleness = 1
"""


@pytest.mark.slow
def test_rollouts_begin_an_update_ahead_and_say_so(tmp_path):
    teach(tmp_path / "model")
    questions(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.toml", TrainRecipe)
    run = RunFolder.create(tmp_path / "run", to_toml(recipe.model_dump(mode="json")), resume=False)
    TrainingRun(recipe, run, Console(quiet=True)).go()
    behind = [int(t.rollout_id.split("-")[1]) - call.event["version"] for t in run.trajectories() for call in t.calls()]
    assert set(behind) == {0, 1}
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["attempts"] == 8 for line in lines)
    assert max(line.get("staleness_max", 0) for line in lines) == 1
    assert any(line["grad_norm"] > 0 for line in lines)


def test_a_copy_is_sampled_from_while_the_model_is_trained(tiny, tokenizer):
    """In place changes of the model show only after a refresh; completions say which weights made them."""
    model = HFModel(tiny, tokenizer, "tiny", copies=True)
    prompt = list(range(5, 30))

    def ask():
        async def one():
            return await model.sample(Prompt([], ids=prompt), SamplingParams(max_new_tokens=8, seed=1))

        return rollouts.call(one())

    def trainers(completion):
        with torch.no_grad():
            logits = tiny(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]

    with Rollouts() as rollouts:
        model.refresh(4)
        before = ask()
        assert torch.allclose(trainers(before), torch.tensor(before.logprobs, dtype=torch.double), atol=1e-4)
        with torch.no_grad():
            for p in tiny.parameters():
                p.add_(0.05 * torch.randn_like(p))
        assert ask() == before
        model.refresh(5)
        after = ask()
        assert torch.allclose(trainers(after), torch.tensor(after.logprobs, dtype=torch.double), atol=1e-4)
        assert (before.version, after.version) == (4, 5)
        assert after.logprobs != before.logprobs
        rollouts.call(asyncio.wait_for(model.close(), 30))
