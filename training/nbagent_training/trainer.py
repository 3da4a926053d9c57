"""Step-level GRPO on Transformers' trainer: any number of rows an update, a loss of our own, micro-batches by tokens.

Transformers' Trainer supplies the optimizer loop, checkpoints, LoRA and accelerate. An update is made by `make_batch`,
divided into micro-batches in which shared prefixes are computed once, and accumulated to one gradient: the sum over
the rows of all processes of weight · loss (losses.py). tests/training/test_trainer.py compares it with a hand-written
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from nbagent.errors import UsageError
from nbagent_training.attention import use_own_attention
from nbagent_training.checkpoints import SealedCheckpoints, last_whole_checkpoint
from nbagent_training.errors import TrainingDiverged
from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.loss_settings import Kernel, Loss
from nbagent_training.losses import loss_and_sums
from nbagent_training.microbatches import MicroBatch, divide, micro_batch
from nbagent_training.scores import check_lengths, check_scores, drop_nothing, scoring, unseen

MakeBatch = Callable[[int], Batch]
"""Called once per update, on every process, with the number of updates so far; makes this process's rows."""
NOTHING = TrainingRow((0,), (0,), (0.0,), 0.0, 0.0)
"""A row without a gradient, for a process that has none in a micro-batch: all must take part in each."""
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One process, or DDP: each holds the whole model. Shards would give checks, clipping and the reference a part."""


def settings(out: Path, *, steps: int, seed: int, bf16: bool, **more: Any) -> TrainingArguments:
    """Transformers' configuration for StepGRPOTrainer: one optimizer step per batch and pass, loss normalised by us."""
    fixed: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": steps,
        "seed": seed,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        # Seconds that processes wait for the one that makes the rollouts, and scores before the first of them.
        "ddp_timeout": 7 * 24 * 3600,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return TrainingArguments(**{**fixed, **more})


class StepGRPOTrainer(SealedCheckpoints, Trainer):  # type: ignore[misc]
    """GRPO over step samples.

    Attributes:
        last_stats: of the batch of the current update.
        watched: what the current update's loss saw; means over the completion tokens of all processes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        args: TrainingArguments,
        make_batch: MakeBatch,
        *,
        token_budget: int,
        loss: Loss | None = None,
        temperature: float = 1.0,
        kernel: Kernel = "sdpa",
        longest: int | None = None,
        report: Callable[[int, dict[str, float]], None] | None = None,
        **more: Any,
    ) -> None:
        """A trainer of `model`.

        Args:
            model: a causal LM, or one with LoRA adapters.
            tokenizer: saved beside the checkpoints.
            args: see `settings`.
            make_batch: makes the rows of an update.
            token_budget: tokens per micro-batch.
            loss: settings of the loss.
            temperature: that the rows were sampled with; log-probs are those at this temperature.
            kernel: what computes attention.
            longest: tokens that a row may have; None: not known, and a window is held against the rows that come.
            report: takes each log line.
            more: further arguments of Transformers' Trainer.

        Raises:
            UsageError: the model cannot be trained this way (see `check_scores` and `check_lengths`), `flex` is
                asked for without a GPU, or accelerate is told to distribute otherwise than by DDP.
        """
        super().__init__(model=model, args=args, processing_class=tokenizer, **more)
        if (kind := self.accelerator.distributed_type) not in WHOLE:
            raise UsageError(
                f"accelerate: {kind.value} is not supported: training processes share rows, not weights; "
                "take `accelerate launch --multi_gpu`, or one process"
            )
        if kernel == "flex" and self.accelerator.device.type != "cuda":
            raise UsageError('grpo.attention = "flex" needs a GPU; set it to "sdpa"')
        check_lengths(model, longest)
        drop_nothing(model)
        use_own_attention(model)
        check_scores(model)
        self.make_batch = make_batch
        self.token_budget = token_budget
        self.loss = loss or Loss()
        self.temperature = temperature
        self.kernel: Kernel = kernel
        self.report = report
        self.last_stats: dict[str, float] = {}
        self.watched: dict[str, float] = {}
        self.reference = self._reference_model() if self.loss.kl_coef else None
        self._whole = True
        self.remove_callback(PrinterCallback)

    def _reference_model(self) -> Any:
        """What the KL term compares with: the model without its adapters, or a frozen copy of it as it is."""
        if hasattr(self.model, "disable_adapter"):
            return self.model
        copy = type(self.model)(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        return copy.to(device=self.model.device, dtype=self.model.dtype).requires_grad_(False).eval()

    def get_train_dataloader(self) -> Any:
        """One placeholder an update: the rows are made when the update begins."""
        updates: Any = [{"update": i} for i in range(self.args.max_steps)]
        return DataLoader(updates, batch_size=1, collate_fn=_first)

    def micro_batches(self, rows: Sequence[TrainingRow]) -> list[MicroBatch]:
        """This process's share of the rows of all; every process gets equally many micro-batches."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        everyone = gather_object(list(rows)) if world > 1 else rows
        chunks = divide(everyone, self.token_budget, world)
        chunks += [[NOTHING]] * (-len(chunks) % world if chunks else world)
        return [micro_batch(chunk, self.accelerator.device, self.kernel) for chunk in chunks[rank::world]]

    def scores(self, model: Any, batch: MicroBatch) -> torch.Tensor:
        """(K, 2): log-probs and entropies of a micro-batch's completion tokens."""
        bonus = self.loss.entropy_coef > 0
        plain = self.accelerator.unwrap_model(model)
        with (
            scoring(plain, batch.where, batch.targets, self.temperature, entropy_gradient=bonus),
            self.compute_loss_context_manager(),
        ):
            out = model(
                input_ids=batch.ids,
                attention_mask=unseen(batch.ids.device),
                position_ids=batch.positions,
                use_cache=False,
                forest=batch.forest,
            )
        return out.logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def _refer(self, batch: MicroBatch) -> None:
        adapters = getattr(self.reference, "disable_adapter", nullcontext)
        # Accelerate wraps the policy in autocast, and not a copy of it.
        with adapters(), self.accelerator.autocast():
            batch.reference = self.scores(self.reference, batch)[:, 0]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One update: all passes over all micro-batches; the last pass's optimizer step is Transformers'."""
        self._whole = True
        made = self.make_batch(self.state.global_step)
        self.last_stats = made.stats
        batches = self.micro_batches(made.rows)
        self._whole = False
        model.train()
        if self.reference is not None:
            for batch in batches:
                self._refer(batch)
        for later in range(self.loss.passes):
            if later:
                self._step_between(model)
            total = self._accumulate(model, batches)
        return total

    def _step_between(self, model: Any) -> None:
        if self.args.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        model.zero_grad()

    def _accumulate(self, model: Any, batches: Sequence[MicroBatch]) -> torch.Tensor:
        """One pass: the gradient of the whole batch; this process's share of the loss times the number of processes.

        Raises:
            TrainingDiverged: on every process, if the loss of one or the gradient is no number.
        """
        world = self.accelerator.num_processes
        sums: dict[str, torch.Tensor] = {}
        for batch in batches:
            with nullcontext() if batch is batches[-1] else self.accelerator.no_sync(model):
                loss, seen = loss_and_sums(batch.tokens(self.scores(model, batch)), self.loss)
                # DDP averages over the processes; the loss is a sum over them.
                self.accelerator.backward(loss * world)
            seen["loss"] = loss.detach()
            seen["packed"] = torch.tensor(float(batch.ids.numel()), device=loss.device)
            seen["unpacked"] = torch.tensor(float(batch.n_unpacked), device=loss.device)
            for name, value in seen.items():
                before = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(before, value) if name == "ratio_max" else before + value
        share: torch.Tensor = sums["loss"] * world
        self.watched = self._means(sums, len(batches))
        if not self.watched["tokens_trained"]:
            # A gradient of 0 would have the optimizer step by its momentum; without one it leaves the weights alone.
            model.zero_grad()
        else:
            self._check_gradient(model)
        return share

    def _check_gradient(self, model: Any) -> None:
        """Before the optimizer's step, which would ruin the weights, and the next checkpoint with them.

        Raises:
            TrainingDiverged: the gradient's norm is no number, on every process alike, since DDP has summed it up.
        """
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
        if norm - norm:
            raise self._diverged(f"the norm of the gradient is {norm}")

    def _means(self, sums: dict[str, torch.Tensor], n_batches: int) -> dict[str, float]:
        """Means over the tokens of all processes.

        Raises:
            TrainingDiverged: on every process, if the loss of one is no number.
        """
        largest = self.accelerator.gather(sums.pop("ratio_max")).max().item()
        added = self.accelerator.reduce(torch.stack([sums[name].double() for name in sums]), "sum").tolist()
        whole = dict(zip(sums, added, strict=True))
        loss, tokens = whole.pop("loss"), whole.pop("tokens_trained")
        if loss - loss:
            raise self._diverged(f"the loss is {loss}")
        computed, unpacked = whole.pop("packed"), whole.pop("unpacked")
        means = {name: value / max(tokens, 1) for name, value in whole.items()}
        return {
            **means,
            "ratio_max": largest,
            "tokens_trained": tokens,
            "tokens_rows": unpacked,
            "tokens_computed": computed,
            "micro_batches": float(n_batches * self.accelerator.num_processes),
        }

    def _diverged(self, what: str) -> TrainingDiverged:
        """With a way on: --resume would only repeat it, and takes no other rate."""
        last = last_whole_checkpoint(Path(self.args.output_dir))
        way_on = (
            "no checkpoint was saved yet; begin a new run with a smaller grpo.lr"
            if last is None
            else f"`nbagent export RUN --checkpoint grpo/{Path(last).name} --out FOLDER` makes a model of the last "
            "checkpoint; begin a new run with model.folder = FOLDER and a smaller grpo.lr"
        )
        return TrainingDiverged(f"update {self.state.global_step + 1}: {what}; {way_on}")

    def save_if_whole(self) -> bool:
        """Save a checkpoint unless an update was cut off in its middle; then the last one stands. True if saved.

        Of several processes the first does so, and does not wait for the others, which may be gone.
        """
        if self._whole and self.state.global_step:
            self.alone = True
            self._save_checkpoint(self.model, trial=None)
            return True
        return False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log line, this update's group statistics and what its loss saw, also handed to `report`."""
        # The trainer's last line sums up the run; it is no update of its own.
        more = {} if "train_runtime" in logs else {**self.watched, **self.last_stats}
        merged = {**logs, **more}
        super().log(merged, start_time)
        if self.report is not None and self.accelerator.is_main_process:
            self.report(self.state.global_step, merged)


def _first(items: list[Any]) -> Any:
    return items[0]
