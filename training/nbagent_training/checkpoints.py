"""Checkpoints that a kill, a full disk or a power cut may hit: whole ones bear a seal, others are not looked at."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

SEAL = "sealed.json"
"""Written last: names and sizes of the files of a whole checkpoint."""


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SealedCheckpoints:
    """Mix-in before a Transformers trainer: seals its checkpoints, and restores all random states on resuming.

    The stock trainer leaves the random states alone where it does not skip data.
    """

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if is_whole(folder):
            return
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder)

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, **more: Any) -> Any:
        """As the trainer's."""
        if isinstance(resume_from_checkpoint, str):
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
