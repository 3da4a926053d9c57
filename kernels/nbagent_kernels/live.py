"""The session both backends share: cells, their time limits, and a fresh kernel after each loss."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nbagent_kernels.errors import NotSupported, SessionClosed
from nbagent_kernels.outputs import OutputFold
from nbagent_kernels.types import CellResult, FileEntry, Limits, SessionSpec, Status
from nbagent_kernels.wire import Message, Wire, first, settle
from nbagent_kernels.workspace import Workspace

DRAIN_S = 1.0
"""Seconds to wait for the idle status after the reply, where it may have been lost."""
REPLY_S = 0.3
"""Seconds to wait for the reply after the idle status: the kernel sends it before."""
_ids = itertools.count()

Start = Callable[[SessionSpec, Workspace], Awaitable[Wire]]
"""Starts one kernel in a workspace. Raises KernelStartError."""


class _Cell:
    """One execution while it runs: gathers its messages and knows when it is complete."""

    def __init__(self, limits: Limits) -> None:
        self.id = f"c{next(_ids)}"
        self.fold = OutputFold(limits)
        self.reply: Message | None = None
        self.idle = False
        self.replied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, message: Message) -> bool:
        if message.kind == "dropped":
            self.fold.drop(message.size)
            return True
        if message.parent != self.id:
            return False
        if message.kind == "execute_reply":
            self.reply = message
            settle(self.replied)
        elif message.kind == "status":
            if not self.idle and message.content.get("execution_state") == "idle":
                self.idle = True
                # ipykernel sends no reply where an interrupt falls into its own code around the cell.
                asyncio.get_running_loop().call_later(REPLY_S, settle, self.replied)
        else:
            self.fold.feed(message.kind, message.content, message.size)
        if self.reply is not None and self.idle:
            settle(self.done)
        return self.fold.full


class LiveSession:
    """A Session over any wire. Made by `open_local` and `open_fork`."""

    def __init__(self, spec: SessionSpec, workspace: Workspace, start: Start) -> None:
        self._spec = spec
        self._workspace = workspace
        self._start = start
        self._wire: Wire | None = None
        self._lock = asyncio.Lock()
        self._unsettled: _Cell | None = None
        self._closed = False
        self._removed = asyncio.Event()

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
            await self._workspace.fill(self._spec.capsule)
            self._wire = await self._start(self._spec, self._workspace)
        except BaseException:
            await self.close()
            raise
        return self

    async def execute(self, code: str, timeout: float | None = None) -> CellResult:
        """Run one cell; see Session.execute. Raises SessionClosed; KernelStartError where no fresh kernel comes up."""
        self._check_open()
        async with self._lock:
            self._check_open()
            lost = await self._lost_between_cells()
            if self._wire is None:
                self._wire = await self._start(self._spec, self._workspace)
            result = await self._run(self._wire, code, timeout, lost)
            if self._wire.dead.done():
                await self._discard()
            return result

    async def interrupt(self) -> None:
        """Interrupt what runs now."""
        self._check_open()
        if self._wire is not None:
            self._wire.interrupt()

    async def restart(self) -> None:
        """A fresh kernel in the same working directory; a cell that runs now ends as dead."""
        self._check_open()
        if self._wire is not None:
            self._wire.kill()
        async with self._lock:
            self._check_open()
            await self._discard()
            self._wire = await self._start(self._spec, self._workspace)

    async def branch(self) -> LiveSession:
        """Not yet: raises NotSupported."""
        self._check_open()
        raise NotSupported("this backend cannot branch a live kernel yet; open a new session and replay its cells")

    async def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name."""
        self._check_open()
        return await asyncio.to_thread(self._workspace.files.list, path)

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The first `max_bytes` of a file."""
        self._check_open()
        return await asyncio.to_thread(self._workspace.files.read, path, max_bytes)

    async def export(self, dest: Path, max_bytes: int = 1 << 30) -> int:
        """Copy the working directory's regular files to `dest`; returns bytes copied."""
        self._check_open()
        return await asyncio.to_thread(self._workspace.files.export, dest, max_bytes)

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
        await self._discard()
        return f"the kernel had ended since the last cell: {wire.dead.result()}"

    async def _run(self, wire: Wire, code: str, timeout: float | None, lost: str) -> CellResult:
        limits = self._spec.limits
        cell = _Cell(limits)
        start = time.perf_counter()
        wire.listen(cell.take)
        status: Status = "ok"
        cause = lost
        try:
            wire.request(
                cell.id,
                {
                    "code": code,
                    "silent": False,
                    "store_history": True,
                    "user_expressions": {},
                    "allow_stdin": False,
                    "stop_on_error": False,
                },
            )
            if not await first(cell.replied, wire.dead, timeout=timeout):
                status, cause = "timeout", f"ran past {timeout:g} s, interrupted"
                wire.interrupt()
                if not await first(cell.replied, wire.dead, timeout=limits.grace_s):
                    cause = f"ran past {timeout:g} s, ignored the interrupt for {limits.grace_s:g} s, killed"
                    wire.kill()
                    await wire.dead
            await first(cell.done, wire.dead, timeout=DRAIN_S)
        except asyncio.CancelledError:
            if not cell.done.done():
                self._unsettled = cell
                wire.interrupt()
            raise
        finally:
            if self._unsettled is not cell:
                wire.listen(None)
        died = wire.dead.result() if cell.reply is None and wire.dead.done() else ""
        if died and status == "ok":
            status, cause = "dead", died
        elif died and "killed" not in cause:
            cause = f"{cause}; the kernel ended then: {died}"
        elif status == "ok" and (cell.reply is None or cell.reply.content.get("status") != "ok"):
            status = "error"
        count = cell.reply.content.get("execution_count") if cell.reply is not None else None
        return CellResult(
            outputs=cell.fold.finish(),
            status=status,
            seconds=time.perf_counter() - start,
            execution_count=count if isinstance(count, int) else None,
            dropped_bytes=cell.fold.dropped_bytes,
            state_kept=not died and not lost,
            cause=cause,
        )
