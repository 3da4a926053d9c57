"""Checkpoints that a kill, a full disk or a power cut may hit: whole ones bear a seal, others are not looked at."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

SEAL = "sealed.json"
"""Written last: names and sizes of the files of a whole checkpoint."""
OF_TRAINING = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin")
"""Patterns of the files that only going on needs, not a model."""


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest `checkpoint-N` that was written to its end; None where there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: step_of(path), reverse=True)
    return next((str(path) for path in found if is_whole(path)), None)


def step_of(checkpoint: Path | str | None) -> int:
    """The number of updates behind a `checkpoint-N`; 0 for None."""
    return int(Path(checkpoint).name.rsplit("-", 1)[1]) if checkpoint else 0


def is_whole(checkpoint: Path) -> bool:
    """Whether the seal is there and every file has the size that it says."""
    try:
        sizes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def seal(checkpoint: Path) -> None:
    """Make the files of a checkpoint durable, then say that it is whole."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    mark = checkpoint / SEAL
    part = mark.with_suffix(".part")
    part.write_text(json.dumps({str(p.relative_to(checkpoint)): p.stat().st_size for p in files}), encoding="utf-8")
    _sync(part)
    part.rename(mark)
    _sync(checkpoint)


def rotate(folder: Path, *, newest: int, keep_every: int = 0) -> None:
    """Remove all checkpoints but the newest ones and every `keep_every`-th update's, where that is not 0."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: step_of(path))
    for path in found[:-newest]:
        if not _is_kept(path, keep_every):
            shutil.rmtree(path, ignore_errors=True)


def leave_models(folder: Path, keep_every: int) -> None:
    """Once nothing goes on any more: remove all but the models, or adapters, of every `keep_every`-th update."""
    for path in folder.iterdir() if folder.exists() else ():
        if not _is_kept(path, keep_every):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            continue
        for pattern in (SEAL, *OF_TRAINING):
            for file in path.glob(pattern):
                file.unlink()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _is_kept(path: Path, keep_every: int) -> bool:
    return keep_every > 0 and path.name.startswith("checkpoint-") and step_of(path) % keep_every == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SealedCheckpoints:
    """Mix-in before a Transformers trainer: seals its checkpoints, and restores all random states on resuming.

    The stock trainer leaves the random states alone where it does not skip data, and it would remove the last whole
    checkpoint before the next one is sealed.

    Attributes:
        newest: how many of the newest checkpoints are kept.
        keep_every: every checkpoint of a multiple of so many updates is kept beside them; 0: none.
        alone: this process saves without the others, which may not come any more. All have the same weights and
            momentum; what is missing are the others' random states, which draw nothing.
    """

    newest = 2
    keep_every = 0
    alone = False

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if is_whole(folder):
            return
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self._meet()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self._meet()
        if self.args.should_save:
            seal(folder)
            rotate(folder.parent, newest=self.newest, keep_every=self.keep_every)

    def _meet(self: Any) -> None:
        if not self.alone:
            self.accelerator.wait_for_everyone()

    def store_flos(self: Any) -> None:
        """The trainer's count of operations, which is gathered from all processes; nothing here reads it."""
        if not self.alone:
            super().store_flos()  # type: ignore[misc]

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, **more: Any) -> Any:
        """As the trainer's."""
        if isinstance(resume_from_checkpoint, str):
            if self.args.device.type == "cpu":
                # Of several processes it is "cpu:0", which PyTorch does not load an optimizer to.
                vars(self.args)["_setup_devices"] = torch.device("cpu")
            self.add_callback(_RandomStates(self, resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)  # type: ignore[misc]


class _RandomStates(TrainerCallback):  # type: ignore[misc]
    """Restores a checkpoint's random states before the first update: what prepares the loop draws some numbers too."""

    def __init__(self, trainer: Any, checkpoint: str) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if self._checkpoint:
            self._trainer._load_rng_state(self._checkpoint)
        self._checkpoint = ""
