"""The GRPO phase: trainer, model and practice put together, with checkpoints and an orderly end on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nbagent.errors import InfrastructureError, StorageError
from nbagent.rollouts import RolloutSource
from nbagent_kernels.errors import KernelError
from nbagent_training.attention import use_own_attention
from nbagent_training.checkpoints import last_whole_checkpoint, step_of
from nbagent_training.distill import Teacher, distillation_batch
from nbagent_training.engine import TrainedSampler
from nbagent_training.errors import TooManyFailures
from nbagent_training.failures import Failures, check_failures, count_failures
from nbagent_training.groups import Batch, batch_of
from nbagent_training.journal import Journal
from nbagent_training.metrics import known
from nbagent_training.overlap import Overlap
from nbagent_training.practice import Practice
from nbagent_training.recipe import Grpo
from nbagent_training.recorded import Recorded
from nbagent_training.rollout_stats import Timed, rollout_stats, sampled_tokens
from nbagent_training.rollout_stats import staleness as row_staleness
from nbagent_training.trainer import MakeBatch, StepGRPOTrainer, settings


def learn(
    model: Any,
    tokenizer: Any,
    sampler: TrainedSampler,
    practice: Practice | Recorded,
    recipe: Grpo,
    *,
    out: Path,
    seed: int,
    bf16: bool,
    journal: Journal,
    failures: Failures | None = None,
    teacher: Teacher | None = None,
    staleness: int = 0,
) -> None:
    """Train `model` in place for `recipe.updates` updates, going on from the last checkpoint in `out`.

    With a teacher, its log-probs are learned from and rewards are not. Rollouts may run `staleness` updates ahead.

    Raises:
        KeyboardInterrupt: after a checkpoint was saved, where the weights were whole.
        TooManyFailures: likewise; the host fails too many rollouts.
        InfrastructureError, KernelError: likewise; the sampler, the teacher or the engine is gone.
        StorageError: the disk is full, so nothing more is saved.
    """
    took: dict[str, float] = {}
    update_from = time.monotonic()
    limits = failures or Failures()
    timed = Timed(practice)
    source: RolloutSource = timed
    if staleness and isinstance(practice, Practice):
        source = Overlap(timed, staleness=staleness, updates=recipe.updates, cancel=practice.rollouts.cancel)

    def make_batch(update: int) -> Batch:
        nonlocal update_from
        took.clear()
        if not isinstance(practice, Recorded):
            with _clocked(took, "sync_s"):
                sampler.refresh(update)
        with _clocked(took, "wait_s"):
            groups = source.next_groups(recipe.tasks_per_update, update)
        took["rollout_s"] = timed.seconds.pop(update)
        sampled = 0.0 if isinstance(practice, Recorded) else sampled_tokens(groups, practice.lineage.taken_up)
        if sampled:
            # What was read back cost this life of the run nothing.
            took["tokens_per_s"] = sampled / max(took["rollout_s"], 1e-9)
        counts = count_failures(groups)
        check_failures(journal.lines, counts, limits)
        if teacher is None:
            batch = batch_of(groups, recipe)
        else:
            with _clocked(took, "teacher_s"):
                batch = distillation_batch(groups, teacher)
        observed = rollout_stats(groups)
        if not observed:
            # Nothing was rewarded, so there is no mean reward; certainly not one of 0.
            batch.stats.pop("reward", None)
        counts["read_back"] = float(practice.lineage.read_back.pop(update, 0))
        counts["stale"] = float(practice.lineage.made(update, batch.rows))
        # Recorded rows count the updates of another run.
        ages = {} if isinstance(practice, Recorded) else row_staleness(batch, update)
        batch.stats.update({**counts, **observed, **ages})
        update_from = time.monotonic()
        return batch

    def logged(update: int, logs: dict[str, float]) -> None:
        if "train_runtime" in logs:
            # The trainer's last line sums up the run; it is no update of its own.
            return
        # Counted from the beginning of this life of the run, so it is no number of the update's.
        logs.pop("epoch", None)
        train_s = time.monotonic() - update_from
        speed = logs.get("tokens_rows", 0.0) / max(train_s, 1e-9)
        journal.add(update, {**known(logs), **took, "train_s": train_s, "train_tokens_per_s": speed})

    longest = None if isinstance(practice, Recorded) else sampler.context_length
    trainer = grpo_trainer(
        model, tokenizer, recipe, make_batch, out=out, seed=seed, bf16=bf16, longest=longest, report=logged
    )
    checkpoint = last_whole_checkpoint(out)
    journal.begin(step_of(checkpoint))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except StorageError:
        raise
    except (KeyboardInterrupt, TooManyFailures, InfrastructureError, KernelError):
        trainer.save_if_whole()
        raise
    finally:
        if isinstance(source, Overlap):
            source.close()
    sampler.refresh(recipe.updates)


@contextmanager
def _clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - begin


def follow(model: Any, tokenizer: Any, recipe: Grpo, *, out: Path, seed: int, bf16: bool) -> None:
    """What every process but the first does under `accelerate launch`: its share of each update's rows.

    The first one makes all rollouts and does all that is done once.
    """
    trainer = grpo_trainer(model, tokenizer, recipe, lambda update: Batch([], {}), out=out, seed=seed, bf16=bf16)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))


def grpo_trainer(
    model: Any,
    tokenizer: Any,
    recipe: Grpo,
    make_batch: MakeBatch,
    *,
    out: Path,
    seed: int,
    bf16: bool,
    longest: int | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> StepGRPOTrainer:
    """The trainer of a recipe, the same in every process: AdamW, a rate that rises and falls linearly.

    No row has more than `longest` tokens, where that is known.
    """
    use_own_attention(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)

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
            ignore_data_skip=True,
            max_grad_norm=1.0,
        ),
        make_batch,
        token_budget=recipe.token_budget,
        loss=recipe.loss,
        temperature=recipe.temperature,
        kernel=recipe.attention,
        longest=longest,
        report=report,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)),
    )
    trainer.keep_every = recipe.keep_every
    return trainer
