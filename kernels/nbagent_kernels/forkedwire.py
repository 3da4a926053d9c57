"""The line to one forked kernel: frames of Jupyter messages over a stream socket."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nbagent_kernels.cgroups import attach
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.served import Order, Served
from nbagent_kernels.stream import PacedSocket
from nbagent_kernels.types import Limits, SessionSpec
from nbagent_kernels.wire import Listener, Message, cause_of, message, settle
from nbagent_kernels.workspace import Workspace

HANG_UP_S = 5.0
"""Seconds that a kernel may live on after it has closed its stream."""

Brancher = Callable[["ForkedWire", SessionSpec, Workspace, Workspace], Awaitable["ForkedWire"]]
"""Forks the kernel of a wire into another session: see Wire.branch."""


def largest_frame(limits: Limits) -> int:
    """Bytes of the largest frame that a kernel under these limits sends; of a larger one it sends the size."""
    return 2 * limits.output_bytes + (1 << 18)


class ForkedWire(Served):
    """A Wire: see there."""

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        spec: SessionSpec,
        workspace: Workspace,
        order: Order,
        brancher: Brancher,
    ) -> None:
        self.served_by(order, number)
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.born: asyncio.Future[int] = self._loop.create_future()
        """Done when a branch has been forked, with its pid as it says itself."""
        self._ready: asyncio.Future[str] = self._loop.create_future()
        self._grouped: asyncio.Future[None] = self._loop.create_future()
        self._branched: asyncio.Future[str] | None = None
        self._brancher = brancher
        self._largest = largest_frame(spec.limits)
        self._buffer = bytearray()
        self._broken = ""
        self._listener: Listener | None = None
        self._workspace = workspace
        self._ooms = workspace.oom_kills()
        self._stream = PacedSocket(sock, self._deliver, self._hung_up)

    async def wait_ready(self, seconds: float) -> None:
        """Wait for the kernel's first word. Raises KernelStartError."""
        try:
            async with asyncio.timeout(seconds):
                why = await asyncio.shield(self._ready)
                await asyncio.shield(self._grouped)
        except TimeoutError:
            raise KernelStartError(f"the forked kernel said nothing within {seconds:g} s") from None
        if why:
            raise KernelStartError(f"the forked kernel did not come up: {why}")

    def listen(self, listener: Listener | None) -> None:
        """Who takes the messages from now on."""
        self._listener = listener

    def request(self, parent: str, content: Mapping[str, Any], kind: str = "execute_request") -> None:
        """Send a request."""
        body = json.dumps({"type": kind, "parent": parent, "content": content}).encode()
        self._stream.send(struct.pack("!I", len(body)) + body)

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group, through the server."""
        self.send_signal(signal.SIGINT)

    async def branch(self, spec: SessionSpec, source: Workspace, target: Workspace) -> ForkedWire:
        """Fork the live kernel; see Wire.branch."""
        return await self._brancher(self, spec, source, target)

    def ask_branch(self, content: Mapping[str, Any], fd: int) -> asyncio.Future[str] | None:
        """Send the kernel what its branch needs, `fd` the branch's end of a stream pair; done when the kernel goes on.

        The result says why there is no branch; it is empty where one was forked. None: the kernel takes no message.
        """
        body = json.dumps({"type": "branch", "parent": "", "content": content}).encode()
        frame = struct.pack("!I", len(body)) + body
        self._branched = self._loop.create_future()
        return self._branched if self._stream.send_with(frame, [fd]) else None

    async def close(self) -> None:
        """Kill, wait for the server to have reaped it, close the socket."""
        self.kill()
        try:
            await asyncio.shield(self.dead)
        finally:
            self._stream.close()

    def forked(self, pid: int) -> None:
        """The server says which process the kernel is."""

        async def attached() -> None:
            """In the kernel's control group. That waits for all processors, so it goes on while the kernel comes up."""
            await asyncio.to_thread(attach, self._workspace.groups, pid)
            settle(self._grouped)

        self._attaching = self._loop.create_task(attached())

    def ended(self, word: Mapping[str, Any]) -> None:
        """The server says that this kernel is gone (and reaped)."""
        if not self.confirmed():
            return
        self._stream.drain()
        self._stream.close()
        cause = (
            word["why"]
            if word["op"] == "failed"
            else cause_of(word["status"], self._workspace.oom_kills() > self._ooms)
        )
        cause = self._broken or cause
        if not self._ready.done():
            self._ready.set_result(cause)
        settle(self._grouped)
        self.dead.set_result(cause)

    def _hung_up(self) -> None:
        """The kernel closed its stream, as it does when it ends; one that lives on can no longer be heard."""
        self._loop.call_later(HANG_UP_S, self.kill)

    def _give_up(self, why: str) -> bool:
        """Kill a kernel whose stream cannot be read any further."""
        if not self._broken:
            self._broken = why
            self.kill()
        return True

    def _deliver(self, chunk: bytes) -> bool:
        if self._broken:
            return True
        slow = False
        self._buffer += chunk
        at = 0
        try:
            while len(self._buffer) - at >= 4:
                (size,) = struct.unpack_from("!I", self._buffer, at)
                if size > self._largest:
                    # The kernel's own code sends no such frame, so where the next one begins is anybody's guess.
                    return self._give_up(f"the code in the kernel broke its message stream (a frame of {size} bytes)")
                if len(self._buffer) - at - 4 < size:
                    break
                body = bytes(self._buffer[at + 4 : at + 4 + size])
                at += 4 + size
                slow |= self._frame(body)
        finally:
            del self._buffer[:at]
        return slow

    def _frame(self, body: bytes) -> bool:
        if self._listener is None and self._ready.done() and self._branched is None:
            return True
        try:
            frame = json.loads(body)
            given = message(frame["type"], frame["parent"], frame["content"], len(body))
        except (ValueError, KeyError, TypeError, RecursionError):
            return True
        if given is None:
            return True
        if given.kind in ("ready", "failed"):
            if not self._ready.done():
                self._ready.set_result(str(given.content.get("why", "")))
            return False
        if given.kind == "born":
            if not self.born.done() and type(pid := given.content.get("pid")) is int:
                self.born.set_result(pid)
            return False
        if given.kind == "branch_reply":
            if self._branched is not None and not self._branched.done():
                self._branched.set_result(str(given.content.get("why", "")))
            return False
        if given.kind == "oversize":
            size = given.content.get("bytes")
            given = Message("dropped", "", {}, size if type(size) is int and 0 <= size < 1 << 48 else len(body))
        return self._listener(given) if self._listener is not None else True
