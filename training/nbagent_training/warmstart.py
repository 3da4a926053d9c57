"""The warm start: TRL's SFTTrainer on demonstrations turned into step samples, packed as trees.

One dataset item is one tree row (all step samples of one demonstration). Batches hold a fixed number of tokens, in
few distinct shapes, since the CPU's kernels are tuned per shape.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from nbagent_training.attention import use_own_attention
from nbagent_training.checkpoints import SealedCheckpoints, last_whole_checkpoint, step_of
from nbagent_training.journal import Journal
from nbagent_training.lora import add_lora
from nbagent_training.loss_settings import Lora
from nbagent_training.optimizer import MuonAdamW
from nbagent_training.packing import TreeRow, collate
from nbagent_training.scores import check_lengths

BUCKET = 32


class Batches(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Endless shuffled batches of at most `tokens` padded tokens, rows of near-equal length together."""

    def __init__(self, rows: Sequence[TreeRow], tokens: int, pad_id: int, seed: int) -> None:
        self.rows, self.tokens, self.pad_id, self.seed = rows, tokens, pad_id, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(self.seed)
        while True:
            order = list(range(len(self.rows)))
            rng.shuffle(order)
            batches: list[tuple[list[int], int]] = []
            for start in range(0, len(order), 1024):
                chunk = sorted(order[start : start + 1024], key=lambda i: len(self.rows[i]), reverse=True)
                while chunk:
                    length = -(-len(self.rows[chunk[0]]) // BUCKET) * BUCKET
                    n_rows = max(1, self.tokens // length)
                    batches.append((chunk[:n_rows], length))
                    chunk = chunk[n_rows:]
            rng.shuffle(batches)
            for members, length in batches:
                n_rows = max(1, self.tokens // length)
                yield collate([self.rows[i] for i in members], self.pad_id, n_rows, length)


class TreeSFTTrainer(SealedCheckpoints, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose batches are made by `Batches`."""

    batches: Batches
    newest = 1
    whole = True
    """False from an optimizer step's beginning to its count."""

    def save_if_whole(self) -> None:
        """Save a checkpoint unless a step was cut off in its middle; then the last one stands."""
        if self.whole and self.state.global_step:
            self._save_checkpoint(self.model, trial=None)

    def get_train_dataloader(self) -> Any:
        """Batches as they are made: they are whole already."""
        return self.accelerator.prepare(DataLoader(self.batches, batch_size=None))


class Report(TrainerCallback):  # type: ignore[misc]
    """Hands each log line to the journal; the last one, which sums up the run, has no loss of its own."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer."""
        if "loss" in (logs or {}):
            # Its count of tokens adds up the attention mask, which for trees is no count.
            self.journal.add(state.global_step, {k: v for k, v in logs.items() if k != "num_tokens"})


class Whole(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when weights, momentum and count of steps belong together. Gradients are in no checkpoint."""

    def __init__(self, trainer: TreeSFTTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self._trainer.whole = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer, once the step is counted."""
        self._trainer.whole = True


def warm_start(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TreeRow],
    *,
    out: Path,
    steps: int,
    tokens: int,
    muon_lr: float,
    adamw_lr: float,
    seed: int,
    bf16: bool,
    journal: Journal,
    save_steps: int,
    lora: Lora | None = None,
    recompute: bool = False,
) -> None:
    """Train `model` in place for `steps` optimizer steps of `tokens` tokens each, from the last checkpoint in `out`.

    The learning rate warms up over 30 steps, holds for 40 % and falls linearly to 5 %. With `lora` only adapters are
    trained, by AdamW at `adamw_lr`, and lie in the model's weights at the end: Muon makes steps orthogonal, which is
    meant for whole matrices. Memory is then that of frozen weights. `recompute` computes activations again in the
    backward pass.

    Raises:
        KeyboardInterrupt: after a checkpoint was saved, where the weights were whole.
        UsageError: the model's attention depends on how long a row is or what lies beside it (see `check_lengths`).
    """
    # A mask of trees takes the place of the model's own, which would have had its window in it.
    check_lengths(model, max((max(row.positions, default=-1) + 1 for row in rows), default=None), sampled=False)
    adapted = add_lora(model, lora or Lora(), seed)
    use_own_attention(adapted)
    optimizer: torch.optim.Optimizer
    if adapted is model:
        optimizer = MuonAdamW(model, muon_lr, adamw_lr)
    else:
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)

    def scale(step: int) -> float:
        part = step / steps
        fall = 1.0 if part < 0.4 else max(0.05, 1 - 0.95 * (part - 0.4) / 0.6)
        return min(1.0, (step + 1) / 30) * fall

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    config = SFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=min(20, steps),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_steps,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
    )
    trainer = TreeSFTTrainer(
        model=adapted,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[Report(journal)],
    )
    trainer.batches = Batches(rows, tokens, tokenizer.pad_token_id, seed)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Whole(trainer))
    checkpoint = last_whole_checkpoint(out)
    journal.begin(step_of(checkpoint))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        trainer.save_if_whole()
        raise
    if adapted is not model:
        adapted.merge_and_unload()
