"""Step-level GRPO on TRL's trainer: any number of rows an update, advantages of our own, micro-batches by tokens.

TRL's GRPOTrainer supplies the loss, the optimizer loop, checkpoints, LoRA and accelerate. It demands one row per
rollout and append-only histories; this subclass replaces how inputs are made and how an update is accumulated. It
leans on a private surface (`_compute_loss` and the keys that it reads, `_prepare_inputs`, `_step`), which
tests/training/test_trainer.py guards by comparing gradients with a hand-written reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from nbagent_training.errors import TrainingDiverged
from nbagent_training.groups import Batch, TrainingRow

BUCKET = 32

MakeBatch = Callable[[int], Batch]
"""Called once per update with the number of updates so far; makes this process's share of the rollouts."""


def settings(out: Path, *, steps: int, seed: int, bf16: bool, **more: Any) -> GRPOConfig:
    """TRL's configuration for StepGRPOTrainer: one optimizer step per batch, loss normalised by us."""
    fixed: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": steps,
        "seed": seed,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "loss_type": "dapo",
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 1,
        "beta": 0.0,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return GRPOConfig(**{**fixed, **more})


def microbatches(rows: Sequence[TrainingRow], budget: int) -> list[list[TrainingRow]]:
    """Rows in chunks whose padded size (rows x longest row, rounded up to the bucket) stays within `budget` tokens."""
    ordered = sorted(rows, key=lambda r: -(len(r.prompt_ids) + len(r.completion_ids)))
    chunks: list[list[TrainingRow]] = []
    room = 0
    for row in ordered:
        if not chunks or len(chunks[-1]) >= room:
            length = -(-(len(row.prompt_ids) + len(row.completion_ids)) // BUCKET) * BUCKET
            room = max(1, budget // length)
            chunks.append([])
        chunks[-1].append(row)
    return chunks


class StepGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO over step samples.

    Attributes:
        token_budget: padded tokens per micro-batch.
        tis_cap: truncated importance sampling between sampler and trainer (None: off); the ratio, at most this,
            is folded into the advantages, which for ratios >= 0 is exactly the same loss.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        args: GRPOConfig,
        make_batch: MakeBatch,
        *,
        token_budget: int,
        tis_cap: float | None = None,
        report: Callable[[int, dict[str, float]], None] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            reward_funcs=[_never],
            train_dataset=Dataset.from_dict({"prompt": [""] * max(2, args.max_steps * 2)}),
            **more,
        )
        assert self.loss_type in ("dapo", "cispo")
        assert self.args.gradient_accumulation_steps == self.args.steps_per_generation == 1
        self.make_batch = make_batch
        self.token_budget = token_budget
        self.tis_cap = tis_cap
        self.report = report
        self.last_stats: dict[str, float] = {}
        self._whole = True
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        """One placeholder an update: the rows are made when the update begins."""
        updates: Any = [{"update": i} for i in range(self.args.max_steps)]
        return DataLoader(updates, batch_size=1, collate_fn=_first)

    def _prepare_inputs(self, batch: Any) -> list[dict[str, torch.Tensor]]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        made = self.make_batch(self.state.global_step)
        self.last_stats = made.stats
        rows = gather_object(made.rows) if world > 1 else made.rows
        tokens = sum(len(row.completion_ids) for row in rows)
        null = TrainingRow((self._tokenizer.pad_token_id,), (self._tokenizer.pad_token_id,), (0.0,), 0.0, 0.0)
        prepared = []
        for chunk in microbatches(rows, self.token_budget) or [[]]:
            # Every process runs the same number of rows, or the gathers of TRL's metrics hang.
            share = max(1, -(-len(chunk) // world))
            mine = chunk[rank::world]
            prepared.append(self._collate([*mine, *[null] * (share - len(mine))], max(tokens, 1)))
        return prepared

    def _collate(self, rows: Sequence[TrainingRow], tokens: int) -> dict[str, torch.Tensor]:
        """The keys that `_compute_loss` reads; shapes (rows, prompt) and (rows, completion)."""
        device, pad_id = self.accelerator.device, self._tokenizer.pad_token_id
        real = [row.weight > 0 for row in rows]
        prompts = [torch.tensor(row.prompt_ids) for row in rows]
        completions = [torch.tensor(row.completion_ids) for row in rows]
        width = max(map(len, completions))
        total = -(-(max(map(len, prompts)) + width) // BUCKET) * BUCKET
        inputs = {
            "prompt_ids": _left(prompts, pad_id, total - width),
            "prompt_mask": _left([torch.ones_like(p) for p in prompts], 0, total - width),
            "completion_ids": pad(completions, padding_value=pad_id, padding_side="right"),
            "completion_mask": pad(
                [torch.full_like(c, int(r)) for c, r in zip(completions, real, strict=True)], padding_value=0
            ),
        }
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        # dapo divides by num_items_in_batch (and multiplies by the number of processes), which the weights undo.
        advantages = torch.tensor([row.advantage * row.weight * tokens for row in rows], device=device)
        if self.tis_cap is not None:
            behaviour = pad([torch.tensor(row.logprobs) for row in rows], padding_value=0.0).to(device)
            with torch.no_grad():
                old, _, _ = self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                    torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                    inputs["completion_ids"].size(1),
                )
            ratio = torch.exp((old - behaviour) * inputs["completion_mask"]).clamp(max=self.tis_cap)
            advantages = advantages[:, None] * ratio
            inputs["old_per_token_logps"] = old
        inputs["advantages"] = advantages
        inputs["num_items_in_batch"] = torch.tensor(float(tokens), device=device)
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One update: all micro-batches, gradients synchronised at the last."""
        self._whole = True
        prepared = self._prepare_inputs(inputs)
        self._whole = False
        model.train()
        total = torch.zeros((), device=self.accelerator.device)
        for place, micro in enumerate(prepared):
            last = place == len(prepared) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, micro)
                self.accelerator.backward(loss)
            total = total + loss.detach()
        self._step += 1
        if not torch.isfinite(total):
            raise TrainingDiverged(
                f"update {self.state.global_step + 1}: the loss is {total.item()}; the last checkpoint stands, "
                "resume from it with a smaller grpo.lr"
            )
        return total

    def save_if_whole(self) -> bool:
        """Save a checkpoint unless an update was cut off in its middle; then the last one stands. True if saved."""
        if self._whole and self.state.global_step:
            self._save_checkpoint(self.model, trial=None)
            return True
        return False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log line and this update's group statistics, also handed to `report`."""
        entropy = self._metrics["train"].get("entropy", [])
        # The trainer's last line sums up the run; it is no update of its own.
        stats = {} if "train_runtime" in logs else self.last_stats
        merged = {**logs, **stats}
        if entropy:
            merged["entropy"] = sum(entropy) / len(entropy)
        self._metrics["train"].clear()
        super().log(merged, start_time)
        if self.report is not None and self.accelerator.is_main_process:
            self.report(self.state.global_step, merged)


def _left(tensors: Sequence[torch.Tensor], value: int, width: int) -> torch.Tensor:
    out = torch.full((len(tensors), width), value, dtype=torch.long)
    for row, tensor in enumerate(tensors):
        out[row, width - len(tensor) :] = tensor
    return out


def _first(items: list[Any]) -> Any:
    return items[0]


def _never(completions: Sequence[Any], **more: Any) -> list[float]:
    raise AssertionError("rewards come from trajectories, not from TRL")
