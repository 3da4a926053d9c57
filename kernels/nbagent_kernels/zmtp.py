"""ZeroMQ's wire protocol, ZMTP 3.0 (rfc.zeromq.org/spec/23) with the NULL mechanism, as a client over ipc.

libzmq bounds frames but not messages, so that one endless message of many frames fills its reader's memory, and it
answers a frame above its bound by closing the connection for good. Here a message above the bound is read past, frame
by frame as it arrives, and its size is reported.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence

from nbagent_kernels.stream import PacedSocket

MOST_FRAMES = 64
"""Frames of one message; Jupyter's have six or seven, and one for each binary buffer of a widget."""
PATIENCE_BYTES = 1 << 30
"""A message is read past at full speed up to here, then slowly: it has no end that anybody waits for."""
_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)

Take = Callable[[Sequence[bytes], int], bool]
"""Takes a message's frames (none where it was too large) and its size in bytes; True asks to slow down."""


class ZmtpSocket:
    """A DEALER or SUB socket with one peer. A SUB socket takes everything.

    Args:
        sock: connected to the peer, taken over.
        kind: "DEALER" or "SUB".
        identity: names a DEALER to a ROUTER, so that the ROUTER's sockets can speak of the same peer.
        largest: bytes of the largest message that is taken.
        take: takes the messages.
        ended: called when the peer has closed.
    """

    def __init__(
        self, sock: socket.socket, kind: str, identity: bytes, largest: int, take: Take, ended: Callable[[], None]
    ) -> None:
        self._largest = largest
        self._take = take
        self._buffer = bytearray()
        self._greeted = False
        self._ready = False
        self._early = bytearray()
        self._frames: list[bytes] = []
        self._size = 0
        self._n_frames = 0
        self._too_large = False
        self._skip = 0
        self._more = False
        self._stream = PacedSocket(sock, self._feed, ended)
        ready = b"\x05READY" + _property("Socket-Type", kind.encode()) + _property("Identity", identity)
        self._stream.send(_GREETING + _frame(ready, _COMMAND))
        if kind == "SUB":
            self._send(_frame(b"\x01", 0))

    @property
    def unsent(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._stream.unsent + len(self._early)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send one message."""
        last = len(frames) - 1
        self._send(b"".join(_frame(frame, _MORE if i < last else 0) for i, frame in enumerate(frames)))

    def drain(self) -> None:
        """Take in what the peer sent before it closed."""
        self._stream.drain()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._stream.close()

    def _send(self, data: bytes) -> None:
        if self._ready:
            self._stream.send(data)
        else:
            self._early += data

    def _feed(self, chunk: bytes) -> bool:
        slow = self._size > PATIENCE_BYTES
        if self._skip:
            cut = min(self._skip, len(chunk))
            self._skip -= cut
            self._size += cut
            chunk = chunk[cut:]
            slow |= self._complete()
        self._buffer += chunk
        at = 0
        if not self._greeted:
            if len(self._buffer) < len(_GREETING):
                return False
            self._greeted = True
            at = len(_GREETING)
        try:
            while not self._skip and len(self._buffer) - at >= 2:
                flags = self._buffer[at]
                head = 9 if flags & _LONG else 2
                have = len(self._buffer) - at - head
                if have < 0:
                    break
                size = struct.unpack_from("!Q", self._buffer, at + 1)[0] if flags & _LONG else self._buffer[at + 1]
                self._too_large |= self._size + size > self._largest or self._n_frames >= MOST_FRAMES
                if have < size and not self._too_large:
                    break
                have = min(have, size)
                self._skip = size - have
                self._size += have
                self._n_frames += 1
                if self._too_large:
                    self._frames.clear()
                elif not flags & _COMMAND:
                    self._frames.append(bytes(self._buffer[at + head : at + head + size]))
                elif not self._ready:
                    # libzmq takes what comes before its own READY for a part of the handshake, and hangs up.
                    self._ready = True
                    self._stream.send(bytes(self._early))
                    self._early.clear()
                at += head + have
                self._more = bool(flags & _MORE)
                slow |= self._complete()
        finally:
            del self._buffer[:at]
        return slow

    def _complete(self) -> bool:
        """Hand over the message where its last frame has been read."""
        if self._skip or self._more:
            return False
        frames, size, too_large = self._frames, self._size, self._too_large
        self._frames, self._size, self._n_frames, self._too_large = [], 0, 0, False
        return self._take(frames, size) if frames or too_large else False


def _frame(body: bytes, flags: int) -> bytes:
    if len(body) > 255:
        return struct.pack("!BQ", flags | _LONG, len(body)) + body
    return struct.pack("!BB", flags, len(body)) + body


def _property(name: str, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!I", len(value)) + value
