"""The session all backends share: cells one after the other, and a fresh kernel after each loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nbagent_kernels.cell import Cell
from nbagent_kernels.confinement import bound, prepare
from nbagent_kernels.errors import CannotBranch, SessionClosed
from nbagent_kernels.exhaustion import LimitWatch
from nbagent_kernels.replay import Step, replay
from nbagent_kernels.types import CellResult, FileEntry, SessionSpec
from nbagent_kernels.wire import Wire, first
from nbagent_kernels.workspace import Workspace

Start = Callable[[SessionSpec, Workspace], Awaitable[Wire]]
"""Starts one kernel in a workspace. Raises KernelStartError."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What differs between backends."""

    place: Callable[[Workspace | None], Workspace]
    """Folders of a new session, or of one that branches off from the session whose folders are given."""
    prepare: Callable[[SessionSpec, Workspace], Awaitable[None]]
    """Makes the folders of a new session ready for its first kernel. Raises KernelStartError."""
    bound: Callable[[SessionSpec, Workspace], Awaitable[None]]
    """Makes those of a branch ready."""
    start: Start


def hosted(start: Start) -> Backend:
    """A backend whose sessions are folders and processes of this host."""
    return Backend(Workspace, prepare, bound, start)


class LiveSession:
    """A Session over any wire. Made by the functions that `session.BACKENDS` names."""

    def __init__(self, spec: SessionSpec, backend: Backend, within: Workspace | None = None) -> None:
        self._spec = spec
        self._backend = backend
        self._workspace = backend.place(within)
        self._start = backend.start
        self._wire: Wire | None = None
        self._lock = asyncio.Lock()
        self._cell: Cell | None = None
        self._unsettled: Cell | None = None
        self._steps: list[Step] = []
        self._interrupted = False
        self._closed = False
        self._removed = asyncio.Event()
        self._told: list[Callable[[LiveSession], None]] = []
        self.losses = 0
        """Kernels that ended without being asked to, or were killed for their time."""

    @property
    def spec(self) -> SessionSpec:
        """What was asked for."""
        return self._spec

    @property
    def workdir(self) -> Path:
        """The working directory on the host."""
        return self._workspace.work

    @property
    def wire(self) -> Wire | None:
        """The line to the kernel that lives now, for what speaks Jupyter's messages itself; None after a loss."""
        return self._wire

    async def open(self) -> LiveSession:
        """Fill the working directory and start the first kernel; leaves nothing behind where that fails."""
        try:
            await self._backend.prepare(self._spec, self._workspace)
            self._wire = await self._start(self._spec, self._workspace)
        except BaseException:
            await self.close()
            raise
        return self

    def when_closed(self, tell: Callable[[LiveSession], None]) -> None:
        """Call `tell` once the session is closed and everything of it is gone."""
        self._told.append(tell)

    def takes(self, capsule: Path | None) -> bool:
        """Whether `assign` can give this session, which has started, a capsule."""
        return capsule == self._spec.capsule or self._workspace.takes(capsule)

    async def assign(self, spec: SessionSpec) -> None:
        """Make this session, which nobody has used, that of a spec with another capsule. Raises KernelStartError."""
        if spec.capsule != self._spec.capsule:
            # Copied whole: what a running kernel may read was settled when it started.
            await self._workspace.fill(spec.capsule)
        self._spec = spec

    async def execute(self, code: str, timeout: float | None = None) -> CellResult:
        """Run one cell; see Session.execute. Raises SessionClosed; KernelStartError where no fresh kernel comes up."""
        self._check_open()
        async with self._lock:
            self._check_open()
            if lost := await self._lost_between_cells():
                self._steps.append(Step(None))
            if self._wire is None:
                self._wire = await self._start(self._spec, self._workspace)
            await self._wire.calm()
            cell = self._cell = Cell(self._spec.limits)
            self._interrupted = False
            start = time.perf_counter()
            watch = LimitWatch(self._spec.limits, self._workspace.group)
            try:
                result = await cell.run(self._wire, code, timeout, lost)
                result = replace(result, limit=watch.hit(result))
            except asyncio.CancelledError:
                self._unsettled = cell
                self._steps.append(Step(code, time.perf_counter() - start, "timeout"))
                raise
            finally:
                self._cell = None
            limit = result.seconds if self._interrupted else timeout
            self._steps.append(Step(code, limit, result.status, result.state_kept or bool(lost)))
            if self._wire.dead.done():
                self.losses += not self._closed
                await self._discard()
                self._check_host()
            return result

    async def interrupt(self) -> None:
        """Interrupt what runs now; where nothing does, the next cell is not touched."""
        self._check_open()
        if self._wire is not None and self._cell is not None:
            self._interrupted = True
            self._cell.interrupt()

    async def restart(self) -> None:
        """A fresh kernel in the same working directory; a cell that runs now ends as dead."""
        self._check_open()
        if self._wire is not None:
            self._wire.kill()
        async with self._lock:
            self._check_open()
            await self._discard()
            self._steps.append(Step(None))
            self._wire = await self._start(self._spec, self._workspace)

    async def branch(self, method: Literal["fork", "replay"] = "fork") -> LiveSession:
        """A second session that continues from this one's state; see Session.branch. Raises CannotBranch."""
        self._check_open()
        async with self._lock:
            self._check_open()
            steps = list(self._steps)
            if method == "fork":
                return await self._fork(steps)
        session = await LiveSession(self._spec, self._backend).open()
        try:
            await replay(steps, session)
        except BaseException:
            await session.close()
            raise
        return session

    async def _fork(self, steps: list[Step]) -> LiveSession:
        wire = self._wire = self._wire or await self._start(self._spec, self._workspace)
        if self._unsettled is not None:
            await first(self._unsettled.done, wire.dead, timeout=self._spec.limits.grace_s)
        if wire.dead.done():
            raise CannotBranch(f"the kernel has ended since the last cell: {wire.dead.result()}")
        await wire.calm()
        session = LiveSession(self._spec, self._backend, within=self._workspace)
        try:
            await self._backend.bound(self._spec, session._workspace)
            session._wire = await wire.branch(self._spec, self._workspace, session._workspace)
        except BaseException:
            await session.close()
            raise
        session._steps = steps
        return session

    async def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name."""
        self._check_open()
        return await self._workspace.list(path)

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The first `max_bytes` of a file."""
        self._check_open()
        return await self._workspace.read(path, max_bytes)

    async def export(self, dest: Path, max_bytes: int = 1 << 30) -> int:
        """Copy the working directory's regular files to `dest`; returns bytes copied."""
        self._check_open()
        return await self._workspace.export(dest, max_bytes)

    async def close(self) -> None:
        """End the kernel, remove sockets and working directory. Idempotent."""
        if self._closed:
            await self._removed.wait()
            return
        self._closed = True
        try:
            if self._wire is not None:
                self._wire.kill()
            async with self._lock:
                await self._discard()
        finally:
            try:
                await self._workspace.remove()
            finally:
                self._removed.set()
                for tell in self._told:
                    tell(self)

    def _check_host(self) -> None:
        """A loss that no cell can have caused is the host's failure."""
        if (failure := self._workspace.failure) is not None and not self._closed:
            raise failure

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session is closed; open another one")

    async def _discard(self) -> None:
        self._unsettled = None
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close()

    async def _lost_between_cells(self) -> str:
        """Wait for a cell whose caller went away; discard a kernel that ended since the last cell, and say why."""
        wire = self._wire
        if wire is None:
            return ""
        if self._unsettled is not None and not await first(
            self._unsettled.done, wire.dead, timeout=self._spec.limits.grace_s
        ):
            wire.kill()
            await wire.dead
        self._unsettled = None
        if not wire.dead.done():
            return ""
        self.losses += 1
        await self._discard()
        self._check_host()
        return f"the kernel had ended since the last cell: {wire.dead.result()}"
