"""What no number can be learned from stops a run, before the weights and the next checkpoint are ruined."""

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import make_rows, trainer_of

from nbagent_training.errors import TrainingDiverged
from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.loss_settings import Loss

# Recorded as next to impossible: the ratio is infinite and clipped, so the loss is a number and its gradient is none.
IMPOSSIBLE = TrainingRow((5, 7, 9), (10, 11), (-120.0, -120.0), 1.0, 0.1)


def test_a_loss_that_is_no_number_stops_the_run(tiny, tokenizer, tmp_path):
    row = TrainingRow((5, 7, 9), (10, 11), (0.0, 0.0), 1.0, 0.5)
    trainer = trainer_of(tiny, tokenizer, tmp_path, lambda update: Batch([row], {}), steps=1, save_strategy="no")
    with torch.no_grad():
        next(tiny.parameters())[7] = float("nan")
    with pytest.raises(TrainingDiverged, match="update 1: the loss is nan; no checkpoint was saved yet"):
        trainer.train()


def test_after_a_loss_that_is_no_number_the_last_checkpoint_can_be_begun_with(tiny, tokenizer, tmp_path):
    """--resume would repeat it, and refuses a recipe of another rate."""

    def make(update):
        if update:
            with torch.no_grad():
                next(tiny.parameters()).fill_(float("nan"))
        return Batch(make_rows(update, 4), {})

    trainer = trainer_of(tiny, tokenizer, tmp_path, make, steps=2, save_strategy="steps", save_steps=1)
    with pytest.raises(TrainingDiverged, match=r"`nbagent export RUN --checkpoint grpo/checkpoint-1 --out FOLDER`"):
        trainer.train()


@pytest.mark.parametrize("passes", [1, 2])
def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_in_a_checkpoint(tiny, tokenizer, tmp_path, passes):
    def make(update):
        return Batch([IMPOSSIBLE] if update else make_rows(update, 4, tiny), {})

    more = {"steps": 3, "learning_rate": 1e-4, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tiny, tokenizer, tmp_path, make, loss=Loss(old="sampler", passes=passes), **more)
    words = r"^update 2: the norm of the gradient is nan; .* --checkpoint grpo/checkpoint-1 --out FOLDER`[^\n]*$"
    with pytest.raises(TrainingDiverged, match=words):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-1"]
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(bool(weights.isfinite().all()) for weights in (*saved.values(), *tiny.parameters()))
