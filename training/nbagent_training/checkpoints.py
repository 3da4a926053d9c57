"""Checkpoints of a trainer that may have been cut off while it wrote one."""

from __future__ import annotations

import json
from pathlib import Path

STATE = "trainer_state.json"


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest `checkpoint-N` that was written to its end; None where there is none.

    The trainer writes its state file last, so a folder whose state file cannot be read was cut off, by a kill or a
    full disk.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((str(path) for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
