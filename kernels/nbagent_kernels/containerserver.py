"""The host's side of a fork server that runs in a container, and what became of the container."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nbagent_kernels.cgroups import Counters
from nbagent_kernels.container import Container
from nbagent_kernels.environment import FIXED, TAG
from nbagent_kernels.errors import CannotBranch, EngineFailed, KernelStartError
from nbagent_kernels.filestream import Frames
from nbagent_kernels.forkhost import HASH_SEED, ForkServer
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import Workspace

KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""Variables that the image sets and kernels have."""
FREE = {"groups": [], "abi": 0, "read": [], "sockets": [], "write": [], "network": True, "apart": False}
"""confine.py's plan where the container is what confines."""
REQUEST_S = 30.0
"""Seconds for one request; whoever answers may be stopped, or made slow, by the code in there."""
SECONDS = {"make": 3600.0, "export": 600.0, "copy": 600.0, "remove": 5.0}
"""The same for requests that move much, and for one that need not be waited for."""
AT_ONCE = 64
"""Requests in all sandboxes that are waited for at once: in threads of their own, or a few sandboxes that do not answer
would keep all others waiting."""
_waiting = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "nbagent-files")
_Result = TypeVar("_Result")


class ContainerServer(ForkServer):
    """A fork server in a container of its own, which ends with it."""

    def __init__(self, container: Container) -> None:
        assert container.control is not None
        super().__init__(container.control)
        self.container = container
        self.counters = Counters.of_process(container.pid)
        """Counts what the container's control group refused and killed."""
        self._ending: asyncio.Task[None] | None = None
        self._why = ""
        """Why the container is ended, where that is known beforehand."""
        self.failed: EngineFailed | None = None
        """Why the container ended, where that was not its code's doing."""

    async def ready(self, seconds: float) -> None:
        """Wait until its modules are imported. Raises KernelStartError."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._ready)
        except TimeoutError:
            said = await self.container.said()
            await self.end(f"the sandbox did not import its modules within {seconds:g} s{said}")
            await asyncio.shield(self._ready)

    def plan(self, spec: SessionSpec, workspace: Workspace, branch: bool) -> dict[str, Any]:
        """Nothing beyond the container and rlimits."""
        return {**FREE, "shm_bytes": None}

    def environment(self, spec: SessionSpec, workspace: Workspace) -> Mapping[str, Any]:
        """The image's own, and the session's."""
        own = {
            **FIXED,
            "HOME": str(workspace.home),
            "TMPDIR": str(workspace.tmp),
            "IPYTHONDIR": str(workspace.home / ".ipython"),
            "MPLCONFIGDIR": str(workspace.home / ".matplotlib"),
            "PYTHONHASHSEED": str(HASH_SEED),
            "USER": "agent",
            TAG: str(workspace.number),
            **spec.env,
        }
        return {"env": own, "keep": KEPT}

    async def copy(self, source: Workspace, target: Workspace) -> None:
        """Let the sandbox copy. Raises CannotBranch."""
        request = {"verb": "copy", "folder": str(source.folder), "target": str(target.folder)}
        try:
            await self.files(request, Frames.hear)
        except OSError as error:
            raise CannotBranch(f"the working directory could not be copied: {error}") from error

    async def files(self, request: Mapping[str, Any], answer: Callable[[Frames], _Result]) -> _Result:
        """Ask for files; `answer` takes the answer from the stream, in a thread.

        Raises:
            OSError: what the sandbox says, that its answer is none, or that it has ended. Its errno is a full disk's or
                that of too many open files only where the host's own are meant.
        """
        frames = await self._clerk(SECONDS.get(request["verb"], REQUEST_S))

        def ask() -> _Result:
            """In a thread."""
            try:
                frames.say(dict(request))
                return answer(frames)
            except TimeoutError as error:
                raise OSError(errno.EPIPE, "the sandbox has not answered in time") from error
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                # Whoever answers runs under the uid of the code in there: what it says may be anything.
                raise OSError(errno.EPROTO, f"the sandbox's answer is none: {type(error).__name__}") from error
            finally:
                frames.close()

        return await self._loop.run_in_executor(_waiting, ask)

    async def descriptors(self, request: Mapping[str, Any]) -> list[socket.socket]:
        """Connected sockets that the sandbox hands out.

        Raises:
            NoneHandedOut: its system cannot.
            OSError: it has none.
        """
        frames = await self._clerk(REQUEST_S)

        def ask() -> list[socket.socket]:
            """In a thread."""
            try:
                frames.say(dict(request))
                return frames.sockets(len(request["ports"]))
            finally:
                frames.close()

        return await self._loop.run_in_executor(_waiting, ask)

    async def relayed(self, request: Mapping[str, Any]) -> socket.socket:
        """A socket behind which a process in the sandbox passes on what comes, either way. Raises OSError."""
        frames = await self._clerk(REQUEST_S)

        def ask() -> socket.socket:
            """In a thread."""
            try:
                frames.say(dict(request))
                return frames.raw()
            except BaseException:
                frames.close()
                raise

        return await self._loop.run_in_executor(_waiting, ask)

    async def _clerk(self, seconds: float) -> Frames:
        """A line to a process inside that answers one request in this time. Raises OSError."""
        ours, theirs = socket.socketpair()
        frames = Frames(ours, seconds)
        with theirs:
            try:
                await self.send({"op": "files"}, [theirs.fileno()])
            except BaseException as error:
                frames.close()
                if isinstance(error, KernelStartError):
                    raise OSError(errno.EPIPE, "the sandbox has ended") from error
                raise
        return frames

    async def end(self, why: str = "the sandbox was closed") -> None:
        """Remove the container."""
        self._why = self._why or why
        self._lost()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    def _unheard(self) -> None:
        """No use is left in it: the next call begins in a new one."""
        self._why = self._why or "its code kept the sandbox's fork server from answering"
        self._lost()

    def _gone(self) -> None:
        self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        why = self._why
        try:
            if not why:
                why = await self.container.why_ended(started=self._ready.done())
        except EngineFailed as error:
            self.failed, why = error, str(error)
        except Exception as error:  # whatever it is, the container goes and whoever waits is told
            self.failed = EngineFailed(f"the Docker engine does not say how the sandbox ended: {error!r}")
            why = str(self.failed)
        await self.container.remove()
        if not self._ready.done():
            self._ready.set_exception(KernelStartError(why))
            self._ready.exception()
        self._tell_end(f"{why}; its files are gone")
