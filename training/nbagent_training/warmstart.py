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
from nbagent_training.optimizer import MuonAdamW
from nbagent_training.packing import TreeRow, collate

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
) -> None:
    """Train `model` in place for `steps` optimizer steps of `tokens` tokens each, from the last checkpoint in `out`.

    The learning rate warms up over 30 steps, holds for 40 % and falls linearly to 5 %.
    """
    use_own_attention(model)
    optimizer = MuonAdamW(model, muon_lr, adamw_lr)

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
        gradient_checkpointing=False,
        logging_steps=min(20, steps),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
    )
    trainer = TreeSFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[Report(journal)],
    )
    trainer.batches = Batches(rows, tokens, tokenizer.pad_token_id, seed)
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_whole_checkpoint(out)
    journal.begin(step_of(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
