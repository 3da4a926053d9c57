"""From attempts to the gradient, under every normalisation, against its formula written attempt by attempt."""

import copy
import random

import pytest
import torch
from attempts import groups_of
from test_trainer import error, gradients, log_probs

from nbagent.samples import StepSample
from nbagent_training.groups import batch_of
from nbagent_training.recipe import Grpo

REWARDS, CALLS = [1.0, 0.0, 0.0, 0.5], [5, 1, 2, 2]


def attempts():
    """Attempts at one task, of different numbers of calls; an attempt is a list of its calls."""
    rng = random.Random(5)

    def ids(n):
        return tuple(rng.randrange(5, 250) for _ in range(n))

    task, made = ids(50), []
    for place, (reward, calls) in enumerate(zip(REWARDS, CALLS, strict=True)):
        spoken = [ids(rng.randint(2, 15)) for _ in range(calls)]
        prompts = [task + ids(3 * step) for step in range(calls)]
        made.append(
            [
                StepSample("task", f"r{place}", step, calls, prompt, said, (-5.0,) * len(said), reward)
                for step, (prompt, said) in enumerate(zip(prompts, spoken, strict=True))
            ]
        )
    return made


@pytest.mark.parametrize("normalisation", ["rollout_token_mean", "row_mean", "token_mean", "constant"])
def test_gradients_equal_the_formula(tiny, tokenizer, tmp_path, normalisation):
    with torch.no_grad():
        for p in tiny.parameters():
            p.mul_(0.6)
    settings = Grpo(normalisation=normalisation, constant_tokens=100 if normalisation == "constant" else None)
    given, model = attempts(), copy.deepcopy(tiny)
    rewards = torch.tensor(REWARDS)
    loss = torch.zeros(())
    for made, advantage in zip(given, (rewards - rewards.mean()) / (rewards.std() + 1e-4), strict=True):
        said = [-advantage * log_probs(model, row.prompt_ids, row.completion_ids)[0] for row in made]
        own = torch.cat(said)
        if normalisation == "rollout_token_mean":
            loss = loss + own.mean() / len(given)
        elif normalisation == "row_mean":
            loss = loss + torch.stack([call.mean() for call in said]).mean() / len(given)
        elif normalisation == "token_mean":
            loss = loss + own.sum() / sum(len(row.completion_ids) for made in given for row in made)
        else:
            loss = loss + own.sum() / 100 / len(given)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    rows = batch_of(groups_of([row for made in given for row in made]), settings).rows
    got, _ = gradients(tiny, tokenizer, tmp_path, rows, settings.loss, budget=200)
    assert error(got, wanted) < 1e-5
