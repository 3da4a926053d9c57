"""The session's Protocol and the one function that opens one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.types import CellResult, FileEntry, SessionSpec

BACKENDS: dict[str, str] = {
    "local": "nbagent_kernels.local:open_local",
    "fork": "nbagent_kernels.fork:open_fork",
    "docker": "nbagent_kernels.sandbox:open_docker",
}


@runtime_checkable
class Session(Protocol):
    """One live kernel with its working directory, which it owns. All verbs run on one asyncio loop.

    A cell past its time is interrupted, given `limits.grace_s`, then its kernel is killed. Death is reported as
    `dead` with its cause, never as a timeout. After a kill or a death the next `execute` answers from a fresh
    kernel; `state_kept` on the result that reported the loss was False.
    """

    @property
    def spec(self) -> SessionSpec:
        """What was asked for."""
        ...

    @property
    def workdir(self) -> Path:
        """The working directory on the host."""
        ...

    async def execute(self, code: str, timeout: float | None = None) -> CellResult:
        """Run one cell; `timeout` in seconds, None for no limit. Raises SessionClosed."""
        ...

    async def interrupt(self) -> None:
        """Interrupt what runs now."""
        ...

    async def restart(self) -> None:
        """A fresh kernel in the same working directory; files stay, variables go."""
        ...

    async def branch(self, method: Literal["fork", "replay"] = "fork") -> Session:
        """A second session that continues from this one's state, with a copy of its files.

        `fork` forks the live kernel between cells (backend `fork`); `replay` opens a new session and executes in it
        all that was executed here, with the same time limits and restarts (any backend). In a fork, open files,
        shared mappings and variables that are paths below the working directory, or lists and dicts of them, are the
        branch's own; a path inside of another object still names this session's file.

        Raises:
            CannotBranch: the live kernel cannot be forked, and why; this session is as it was.
            KernelStartError: no kernel came up for the replay.
        """
        ...

    async def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name. Raises PathOutside, FileNotFoundError, NotADirectoryError."""
        ...

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The first `max_bytes` of a file; follows no link out.

        Raises PathOutside, FileNotFoundError, IsADirectoryError.
        """
        ...

    async def export(self, dest: Path, max_bytes: int = 1 << 30) -> int:
        """Copy the working directory's regular files to `dest`; returns bytes copied.

        Stops with OSError past `max_bytes`.
        """
        ...

    async def close(self) -> None:
        """End the kernel, remove sockets and working directory. Idempotent."""
        ...


async def open_session(spec: SessionSpec, backend: str = "fork") -> Session:
    """Open a session with the named backend.

    Raises:
        KernelStartError: unknown backend, or no kernel came up.
    """
    if backend not in BACKENDS:
        raise KernelStartError(f"unknown backend {backend!r}; there are: {', '.join(sorted(BACKENDS))}")
    module, name = BACKENDS[backend].split(":")
    session: Session = await getattr(importlib.import_module(module), name)(spec)
    return session
