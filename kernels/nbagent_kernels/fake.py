"""FakeSession: a session that runs no kernel, for tests of what stands on top. It is a fake and is named as one."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from nbagent_kernels.errors import SessionClosed
from nbagent_kernels.snapshot import copy_session
from nbagent_kernels.types import CellResult, FileEntry, SessionSpec
from nbagent_kernels.workspace import Workspace

Script = Callable[[str], CellResult | Awaitable[CellResult]]
"""What answers in the kernel's place: a cell's code in, its result out."""


class FakeSession:
    """A Session whose cells are answered by a script. The working directory and its file verbs are real.

    Example:
        >>> session = FakeSession(lambda code: CellResult([], "ok", 0.0, execution_count=1))
    """

    def __init__(self, script: Script, spec: SessionSpec | None = None) -> None:
        self._script = script
        self._spec = spec or SessionSpec()
        self._workspace = Workspace()
        self._closed = False
        self.cells: list[str] = []
        """Code of every cell, in order."""
        self.interrupts = 0
        """Calls of interrupt()."""
        self.restarts = 0
        """Calls of restart()."""

    @property
    def spec(self) -> SessionSpec:
        """What was asked for."""
        return self._spec

    @property
    def workdir(self) -> Path:
        """The working directory on the host."""
        return self._workspace.work

    async def execute(self, code: str, timeout: float | None = None) -> CellResult:
        """Ask the script; `timeout` is ignored. Raises SessionClosed."""
        self._check_open()
        self.cells.append(code)
        answer = self._script(code)
        return await answer if inspect.isawaitable(answer) else answer

    async def interrupt(self) -> None:
        """Count the call."""
        self._check_open()
        self.interrupts += 1

    async def restart(self) -> None:
        """Count the call."""
        self._check_open()
        self.restarts += 1

    async def branch(self, method: Literal["fork", "replay"] = "fork") -> FakeSession:
        """Another fake with the same script and a copy of the files; no cell runs again."""
        self._check_open()
        session = FakeSession(self._script, self._spec)
        session.cells = list(self.cells)
        copy_session(self._workspace, session._workspace)
        return session

    async def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name."""
        self._check_open()
        return self._workspace.files.list(path)

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The first `max_bytes` of a file."""
        self._check_open()
        return self._workspace.files.read(path, max_bytes)

    async def export(self, dest: Path, max_bytes: int = 1 << 30) -> int:
        """Copy the working directory's regular files to `dest`; returns bytes copied."""
        self._check_open()
        return self._workspace.files.export(dest, max_bytes)

    async def close(self) -> None:
        """Remove the working directory. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._workspace.remove()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session is closed; open another one")
