"""A stream socket to a kernel that one need not trust: read at a pace the host can bear, written without blocking."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence

PAUSE_S = 0.002
"""Least pause of a reader that asked to slow down; a chunk that took long to take in is followed by a longer one."""
READ_BYTES = 1 << 16
_SHARE = 4
_DRAIN_S = 0.2


class PacedSocket:
    """A connected socket on the running loop.

    Args:
        sock: taken over.
        take: is given each chunk as it comes; True asks to slow down. While nothing is read the sender blocks: that
            is what keeps a flood out of this process.
        ended: called once when the other side has closed.
    """

    def __init__(self, sock: socket.socket, take: Callable[[bytes], bool], ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._take = take
        self._ended = ended
        self._open = True
        self._outgoing = bytearray()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet."""
        return len(self._outgoing)

    def send(self, data: bytes) -> None:
        """Send, now or as the other side takes it; nothing where it is gone."""
        if self._sock.fileno() >= 0:
            self._outgoing += data
            self._write()

    def send_with(self, data: bytes, fds: Sequence[int]) -> bool:
        """Send with descriptors attached; False where the other side has not taken what was sent before."""
        if self._outgoing or self._sock.fileno() < 0:
            return False
        try:
            sent = socket.send_fds(self._sock, [data], fds)
        except OSError:
            return False
        self.send(data[sent:])
        return True

    def drain(self) -> None:
        """Take in what the other side sent before it closed, for a bounded time."""
        end = time.monotonic() + _DRAIN_S
        while self._open and time.monotonic() < end and (chunk := self._read()):
            self._take(chunk)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._open = False
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        chunk = self._read()
        if chunk is None:
            return
        if not chunk:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._ended()
            return
        start = time.perf_counter()
        slow = self._take(chunk)
        if slow and self._open:
            self._loop.remove_reader(self._sock)
            self._loop.call_later(max(PAUSE_S, _SHARE * (time.perf_counter() - start)), self._resume)

    def _read(self) -> bytes | None:
        try:
            return self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._sock, self._readable)

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._write)
            return
        except OSError:
            self._outgoing.clear()  # it is gone; whoever watches the process will say how
        with contextlib.suppress(ValueError):
            self._loop.remove_writer(self._sock)
