"""A call that attempts share, in the trainer: once with its summed weight, or a copy in every attempt."""

import random

import pytest
from test_trainer import error, gradients

from nbagent.samples import StepSample
from nbagent_training.advantages import outcome
from nbagent_training.groups import TrainingRow, batch_of_trees
from nbagent_training.loss_settings import Loss
from nbagent_training.recipe import Grpo
from nbagent_training.tree import Tree, leaf_of
from nbagent_training.weights import token_weights


def attempts(seed):
    """Two roots, one branched twice; each prompt is the last one with what was written and answered."""
    rng = random.Random(seed)
    draw = lambda n: tuple(rng.randrange(5, 250) for _ in range(n))  # noqa: E731
    stem = draw(60)

    def grow(name, before, turns, reward):
        rows = [(origin or before_name, p, c, lp) for before_name, origin, p, c, lp in before]
        history = (*rows[-1][1], *rows[-1][2], *draw(3)) if rows else stem
        while len(rows) < turns:
            completion = draw(rng.randint(2, 9))
            rows.append((name, history, completion, tuple(rng.uniform(-8, -4) for _ in completion)))
            history = (*history, *completion, *draw(3))
        return [
            StepSample("t", name, i, turns, p, c, lp, reward, origin=origin)
            for i, (origin, p, c, lp) in enumerate(rows)
        ]

    def shared(rows, at):
        return [(row.rollout_id, row.origin, row.prompt_ids, row.completion_ids, row.logprobs) for row in rows[:at]]

    root = grow("r", [], 4, 1.0)
    left = grow("l", shared(root, 1), 3, 0.0)
    return [root, left, grow("ll", shared(left, 2), 5, 1.0), grow("s", [], 2, 0.0)]


@pytest.mark.parametrize("loss", [{}, {"old": "sampler", "clip_high": 0.28}, {"entropy_coef": 0.1}], ids=str)
def test_merged_and_unmerged_calls_give_the_same_gradient(tiny, tokenizer, tmp_path, loss):
    made = attempts(0)
    tree = Tree([leaf_of(rows[0].rollout_id, rows[0].reward, False, rows) for rows in made])
    settings = Grpo(grouping="branch", gamma=0.9, loss=loss)
    merged = batch_of_trees([tree], settings).rows
    (weights,) = token_weights([tree], settings)
    apart = [
        TrainingRow(row.prompt_ids, row.completion_ids, row.logprobs, own[key], weight[key])
        for leaf, own, weight in zip(tree.leaves, outcome(tree, settings), weights, strict=True)
        for key, rows in leaf.calls.items()
        for row in rows
    ]
    assert (len(merged), len(apart)) == (11, 14)
    one, _ = gradients(tiny, tokenizer, tmp_path / "one", merged, Loss(**loss), budget=4096)
    two, _ = gradients(tiny, tokenizer, tmp_path / "two", apart, Loss(**loss), budget=150)
    assert error(one, two) < 1e-5
