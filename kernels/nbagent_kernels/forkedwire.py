"""The line to one forked kernel: frames of Jupyter messages over a stream socket."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nbagent_kernels.errors import CannotBranch, KernelStartError
from nbagent_kernels.types import Limits, SessionSpec
from nbagent_kernels.wire import Listener, Message, cause_of, first, oom_kills, settle
from nbagent_kernels.workspace import Workspace

END_S = 10.0
"""Seconds to wait for the server's word that a killed kernel is gone."""
_READ = 1 << 18
_PAUSE_S = 0.005
_log = logging.getLogger(__name__)

Order = Callable[[Mapping[str, Any]], None]
"""Sends the fork server a request."""
Brancher = Callable[["ForkedWire", SessionSpec, Workspace, Workspace], Awaitable["ForkedWire"]]
"""Forks the kernel of a wire into another session: see Wire.branch."""


class ForkedWire:
    """A Wire: see there."""

    def __init__(self, number: int, sock: socket.socket, limits: Limits, order: Order, brancher: Brancher) -> None:
        self.id = number
        """The server's id of this kernel."""
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.born: asyncio.Future[int] = self._loop.create_future()
        """Done when a branch has been forked, with its pid as it says itself."""
        self._ready: asyncio.Future[str] = self._loop.create_future()
        self._branched: asyncio.Future[str] | None = None
        self._brancher = brancher
        self._order = order
        self._sock = sock
        self._largest = 2 * limits.output_bytes + (1 << 18)
        self._buffer = bytearray()
        self._skip = 0
        self._listener: Listener | None = None
        self._ooms = oom_kills()
        self._outgoing = bytearray()
        self._reading = True
        self._interrupts = 0
        self._quiet: asyncio.Future[None] | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    async def wait_ready(self, seconds: float) -> None:
        """Wait for the kernel's first word. Raises KernelStartError."""
        try:
            async with asyncio.timeout(seconds):
                why = await asyncio.shield(self._ready)
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
        self._outgoing += struct.pack("!I", len(body)) + body
        self._write()

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group, through the server."""
        self._interrupts += 1
        self._order({"op": "signal", "id": self.id, "signal": int(signal.SIGINT)})

    async def calm(self) -> None:
        """Wait for the server's word that it has passed on every interrupt."""
        if self._interrupts:
            self._quiet = self._loop.create_future()
            await first(self._quiet, self.dead, timeout=END_S)

    def kill(self) -> None:
        """SIGKILL to the kernel's process group and what it detached."""
        if not self.dead.done():
            self._order({"op": "drop", "id": self.id})

    async def branch(self, spec: SessionSpec, source: Workspace, target: Workspace) -> ForkedWire:
        """Fork the live kernel; see Wire.branch."""
        return await self._brancher(self, spec, source, target)

    def ask_branch(self, content: Mapping[str, Any], fd: int) -> asyncio.Future[str]:
        """Send the kernel what its branch needs, `fd` the branch's end of a stream pair; done when the kernel goes on.

        The result says why there is no branch; it is empty where one was forked. Raises CannotBranch.
        """
        body = json.dumps({"type": "branch", "parent": "", "content": content}).encode()
        frame = struct.pack("!I", len(body)) + body
        self._branched = self._loop.create_future()
        try:
            sent = 0 if self._outgoing else socket.send_fds(self._sock, [frame], [fd])
        except OSError:
            sent = 0
        if not sent:
            raise CannotBranch("the kernel does not read what it is sent")
        self._outgoing += frame[sent:]
        self._write()
        return self._branched

    async def close(self) -> None:
        """Kill, wait for the server to have reaped it, close the socket."""
        self.kill()
        try:
            async with asyncio.timeout(END_S):
                await asyncio.shield(self.dead)
        except TimeoutError:
            _log.warning("the fork server did not confirm the end of kernel %d", self.id)
        finally:
            self._shut()

    def passed_on(self) -> None:
        """The server has sent the kernel a signal."""
        self._interrupts -= 1
        if not self._interrupts and self._quiet is not None:
            settle(self._quiet)

    def ended(self, message: Mapping[str, Any]) -> None:
        """The server says that this kernel is gone (and reaped)."""
        if self.dead.done():
            return
        for _ in range(64):
            if not self._reading or not self._take_in():
                break
        self._shut()
        cause = message["why"] if message["op"] == "failed" else cause_of(message["status"], self._ooms)
        if not self._ready.done():
            self._ready.set_result(cause)
        self.dead.set_result(cause)

    def _shut(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
        self._reading = False

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._write)
            return
        except OSError:
            self._outgoing.clear()  # the kernel is gone; the server will say how
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        self._take_in()

    def _take_in(self) -> bool:
        """Read once and deliver what is complete; False where there is nothing more."""
        try:
            chunk = self._sock.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self._loop.remove_reader(self._sock)
            return False
        slow = self._deliver(chunk)
        if slow and not self.dead.done() and self._sock.fileno() >= 0:
            # The kernel blocks in its write meanwhile: that is what keeps a flood out of this process.
            self._loop.remove_reader(self._sock)
            self._loop.call_later(_PAUSE_S, self._resume)
        return True

    def _resume(self) -> None:
        if self._reading and self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._readable)

    def _deliver(self, chunk: bytes) -> bool:
        slow = False
        if self._skip:
            cut = min(self._skip, len(chunk))
            self._skip -= cut
            chunk = chunk[cut:]
            slow |= self._give(Message("dropped", "", {}, cut))
        self._buffer += chunk
        at = 0
        while len(self._buffer) - at >= 4:
            (size,) = struct.unpack_from("!I", self._buffer, at)
            if size > self._largest:
                have = min(size, len(self._buffer) - at - 4)
                self._skip = size - have
                at += 4 + have
                slow |= self._give(Message("dropped", "", {}, have))
            elif len(self._buffer) - at - 4 >= size:
                slow |= self._frame(self._buffer[at + 4 : at + 4 + size])
                at += 4 + size
            else:
                break
        del self._buffer[:at]
        return slow

    def _frame(self, body: bytearray) -> bool:
        try:
            frame = json.loads(body)
            message = Message(str(frame["type"]), str(frame["parent"]), dict(frame["content"]), len(body))
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if message.kind in ("ready", "failed"):
            if not self._ready.done():
                self._ready.set_result(str(message.content.get("why", "")))
            return False
        if message.kind == "born":
            if not self.born.done() and isinstance(pid := message.content.get("pid"), int):
                self.born.set_result(pid)
            return False
        if message.kind == "branch_reply":
            if self._branched is not None and not self._branched.done():
                self._branched.set_result(str(message.content.get("why", "")))
            return False
        return self._give(message)

    def _give(self, message: Message) -> bool:
        return self._listener(message) if self._listener is not None else False
