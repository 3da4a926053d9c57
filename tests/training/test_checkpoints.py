"""Checkpoints: torn ones are passed over, and all random states come back."""

import copy
import random

import numpy as np
import pytest
import torch

from nbagent.errors import RecipeError
from nbagent.recipe import load_recipe
from nbagent_training import checkpoints
from nbagent_training.checkpoints import SEAL, is_whole, last_whole_checkpoint, leave_models, seal, step_of
from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.learn import grpo_trainer
from nbagent_training.recipe import Grpo, TrainRecipe
from nbagent_training.trainer import StepGRPOTrainer, settings


def checkpoint(folder, step, sealed=True):
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"x" * 100)
    (made / "trainer_state.json").write_text("{}")
    if sealed:
        seal(made)
    return made


def test_only_a_sealed_checkpoint_whose_files_are_whole_counts(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    assert step_of(None) == 0
    for step in (20, 100, 120, 140, 160):
        checkpoint(tmp_path, step, sealed=step != 140)
    (tmp_path / "checkpoint-120" / "model.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "checkpoint-160" / SEAL).write_text('{"model.safe')
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert step_of(last_whole_checkpoint(tmp_path)) == 100


def test_a_checkpoint_with_a_file_gone_is_not_whole(tmp_path):
    made = checkpoint(tmp_path, 5)
    assert is_whole(made)
    (made / "trainer_state.json").unlink()
    assert not is_whole(made)


class Draws:
    """Makes batches, and notes what the three global generators give."""

    def __init__(self, until=None):
        self.seen = {}
        self.until = until

    def __call__(self, update):
        if update == self.until:
            raise KeyboardInterrupt
        self.seen[update] = (random.random(), float(np.random.random()), float(torch.rand(())))
        rng = random.Random(update)
        return Batch([TrainingRow((5, 7, 9), (10, 11), (-2.0, -3.0), rng.gauss(0, 1), 0.5)], {})


def train(tiny, tokenizer, out, draws, **more):
    given = {"learning_rate": 1e-3, "save_strategy": "no", "ignore_data_skip": True, **more}
    config = settings(out, steps=4, seed=0, bf16=False, **given)
    trainer = StepGRPOTrainer(tiny, tokenizer, config, draws, token_budget=256)
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))
    except KeyboardInterrupt:
        assert trainer.save_if_whole()


def test_random_states_optimizer_and_weights_go_on(tiny, tokenizer, tmp_path):
    torch.set_num_threads(1)
    whole, cut, again = tiny, copy.deepcopy(tiny), copy.deepcopy(tiny)
    one = Draws()
    train(whole, tokenizer, tmp_path / "one", one)
    first, second = Draws(until=2), Draws()
    train(cut, tokenizer, tmp_path / "two", first)
    assert last_whole_checkpoint(tmp_path / "two") == str(tmp_path / "two" / "checkpoint-2")
    train(again, tokenizer, tmp_path / "two", second)
    assert {**first.seen, **second.seen} == one.seen
    assert sorted(second.seen) == [2, 3]
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_killed_behind_its_last_checkpoint_has_its_weights_back(tiny, tokenizer, tmp_path):
    torch.set_num_threads(1)
    again, draws = copy.deepcopy(tiny), Draws()
    train(tiny, tokenizer, tmp_path, Draws(), save_strategy="steps", save_steps=2)
    train(again, tokenizer, tmp_path, draws, save_strategy="steps", save_steps=2)
    assert draws.seen == {}
    for a, b in zip(tiny.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_that_is_there_is_not_written_again(tiny, tokenizer, tmp_path):
    train(tiny, tokenizer, tmp_path, Draws(until=2))
    before = (tmp_path / "checkpoint-2" / SEAL).stat().st_mtime_ns
    train(tiny, tokenizer, tmp_path, Draws(until=2))
    assert (tmp_path / "checkpoint-2" / SEAL).stat().st_mtime_ns == before


def test_what_a_trainer_saves_is_under_the_seal(tiny, tokenizer, tmp_path):
    train(tiny, tokenizer, tmp_path, Draws(until=1))
    made = tmp_path / "checkpoint-1"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        whole = (made / name).read_bytes()
        assert is_whole(made)
        (made / name).write_bytes(whole[:-1])
        assert not is_whole(made), name
        (made / name).write_bytes(whole)


def grpo(tiny, tokenizer, out, **given):
    recipe = Grpo(updates=5, save_every=1, token_budget=256, **given)
    trainer = grpo_trainer(tiny, tokenizer, recipe, Draws(), out=out, seed=0, bf16=False)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))


@pytest.mark.parametrize(("keep_every", "left"), [(0, [4, 5]), (2, [2, 4, 5]), (1, [1, 2, 3, 4, 5])])
def test_checkpoints_are_kept_beside_the_newest_two(tiny, tokenizer, tmp_path, keep_every, left):
    grpo(tiny, tokenizer, tmp_path, keep_every=keep_every)
    assert sorted(step_of(path) for path in tmp_path.iterdir()) == left
    assert all(is_whole(path) for path in tmp_path.iterdir())
    assert step_of(last_whole_checkpoint(tmp_path)) == 5


def test_once_grpo_is_over_the_models_of_those_kept_stay(tiny, tokenizer, tmp_path):
    grpo(tiny, tokenizer, tmp_path, keep_every=2)
    wanted = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    for _ in range(2):
        leave_models(tmp_path, 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
        left = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= left
        assert not left & {SEAL, "trainer_state.json"}
        assert not [name for name in left if name.endswith((".pt", ".pth", ".bin"))]
        assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() == wanted
    leave_models(tmp_path, 0)
    assert not tmp_path.exists()
    leave_models(tmp_path, 0)


def test_a_kill_before_a_checkpoint_is_sealed_leaves_the_one_before(tiny, tokenizer, tmp_path, monkeypatch):
    """Also where only one is kept, as in the warm start."""
    monkeypatch.setattr(StepGRPOTrainer, "newest", 1)
    sealed = []

    def killed(folder):
        if sealed:
            raise KeyboardInterrupt
        sealed.append(folder.name)
        seal(folder)

    monkeypatch.setattr(checkpoints, "seal", killed)
    with pytest.raises(KeyboardInterrupt):
        grpo(tiny, tokenizer, tmp_path)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_only_what_is_saved_can_be_kept(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nfolder = "m"\n[grpo]\nkeep_every = 15\n')
    with pytest.raises(RecipeError, match=r"grpo\.keep_every: .* a multiple of grpo\.save_every = 10"):
        load_recipe(path, TrainRecipe)
    path.write_text('[model]\nfolder = "m"\n[grpo]\nkeep_every = 15\nsave_every = 5\n')
    assert load_recipe(path, TrainRecipe).grpo.keep_every == 15
