"""What the kernel tests ask of outputs and processes."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from nbagent_kernels import Session
from nbagent_kernels.live import LiveSession


def text(outputs: list[dict[str, Any]], name: str = "stdout") -> str:
    """The text of one stream."""
    return "".join(output["text"] for output in outputs if output.get("name") == name)


def on_host(session: Session, pid: int) -> int:
    """The host's number of a process in a session; never 0, which a signal would take for the tests' own group."""
    assert isinstance(session, LiveSession)
    server = getattr(session._workspace, "server", None)
    if server is None:
        return pid
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                same = (entry / "cgroup").read_text() == Path(f"/proc/{server.container.pid}/cgroup").read_text()
                numbers = re.search(r"^NSpid:(.*)$", (entry / "status").read_text(), re.MULTILINE)
                if same and numbers and int(numbers[1].split()[-1]) == pid:
                    return int(entry.name)
    raise LookupError(f"process {pid} of the session is none of this host's")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
