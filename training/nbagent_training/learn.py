"""The GRPO phase: trainer, model and practice put together, with checkpoints and an orderly end on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbagent.models.hf import HFModel
from nbagent.trajectory import Trajectory
from nbagent_training.attention import use_own_attention
from nbagent_training.checkpoints import last_whole_checkpoint
from nbagent_training.groups import Batch, batch_of
from nbagent_training.practice import Practice
from nbagent_training.recipe import Grpo
from nbagent_training.recorded import Recorded
from nbagent_training.trainer import StepGRPOTrainer, settings


def learn(
    model: Any,
    tokenizer: Any,
    sampler: HFModel,
    practice: Practice | Recorded,
    recipe: Grpo,
    *,
    out: Path,
    seed: int,
    bf16: bool,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place for `recipe.updates` updates, going on from the last checkpoint in `out`.

    Raises:
        KeyboardInterrupt: after a checkpoint was saved, where the weights were whole.
    """
    seconds: dict[str, float] = {}
    use_own_attention(model)

    def make_batch(update: int) -> Batch:
        begin = time.monotonic()
        sampler.refresh(update)
        groups = practice.next_groups(recipe.tasks_per_update, update)
        batch = batch_of(groups, recipe)
        batch.stats["infrastructure"] = float(
            len(groups) * practice.group_size - sum(len(g.trajectories) for g in groups)
        )
        batch.stats["malformed"] = float(sum(_malformed(t) for group in groups for t in group.trajectories))
        seconds["rollout_s"] = time.monotonic() - begin
        seconds["update_from"] = time.monotonic()
        return batch

    def logged(update: int, logs: dict[str, float]) -> None:
        took = {
            "rollout_s": seconds.get("rollout_s", 0.0),
            "train_s": time.monotonic() - seconds.get("update_from", time.monotonic()),
        }
        report(update, {**logs, **took})

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)

    def scale(update: int) -> float:
        rise = min(1.0, (update + 1) / max(1, recipe.warmup))
        return rise * (1 - (1 - recipe.final_lr) * update / max(1, recipe.updates))

    trainer = StepGRPOTrainer(
        model,
        tokenizer,
        settings(
            out,
            steps=recipe.updates,
            seed=seed,
            bf16=bf16,
            gradient_checkpointing=recipe.recompute,
            save_strategy="steps",
            save_steps=recipe.save_every,
            save_total_limit=2,
            ignore_data_skip=True,
            max_grad_norm=1.0,
        ),
        make_batch,
        token_budget=recipe.token_budget,
        loss=recipe.loss,
        temperature=recipe.temperature,
        kernel=recipe.attention,
        report=logged,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)),
    )
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))
    except KeyboardInterrupt:
        trainer.save_if_whole()
        raise
    sampler.refresh(recipe.updates)


def _malformed(trajectory: Trajectory) -> int:
    """Steps whose text was no action."""
    return sum(bool(e.get("error")) for e in trajectory.events if e["kind"] == "observation")
