"""What the kernel tests ask of outputs and processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def text(outputs: list[dict[str, Any]], name: str = "stdout") -> str:
    """The text of one stream."""
    return "".join(output["text"] for output in outputs if output.get("name") == name)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
