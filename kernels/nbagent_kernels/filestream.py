"""Files and folders as a stream between a host and a sandbox, which need not trust each other. Standard library only.

A frame is four bytes of length and as many bytes, which are JSON or a part of a file. Of a tree first comes each
entry's {"kind", "name"}: a `folder` and what it holds up to its `up`, a `file` and its parts up to an empty frame, a
`link` with `to`. `end` is the last one, `error` says why there is no more.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from nbagent_kernels.errors import PathOutside
from nbagent_kernels.removal import FOLDER

CHUNK = 1 << 18
LARGEST = 16 << 20
"""Bytes of the largest frame that is taken in."""
SILENCE_S = 60.0
"""Seconds without a byte after which the other side is given up."""
ENTRIES = 100_000
"""Files and folders of one stream."""
DEPTH = 200
"""Folders within each other, each of which holds a descriptor."""
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (*(PathOutside, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, OSError),)
}
"""Errors that cross a stream, by name; any other crosses as an OSError. None of them can be a failure of the host's."""
ERRNOS = frozenset(
    getattr(errno, name)
    for name in "ENOENT ENOTDIR EISDIR EACCES EPERM EEXIST EINVAL ELOOP ENAMETOOLONG EFBIG ENXIO ETXTBSY".split()
)
"""Errnos that cross as they are: they speak of one path. What speaks of a system's state, such as a full disk or too
many open files, would be taken for the state of the other system; it crosses as EREMOTEIO, in its own words."""


class NoneHandedOut(OSError):
    """The other side's system sends no descriptors of its own."""


class Frames:
    """Frames over a connected stream socket, taken over.

    All of it raises OSError where the other side is gone, silent or sends what is no frame: TimeoutError after
    SILENCE_S without a byte, or `within_s` seconds from now, if bytes come or not.
    """

    def __init__(self, sock: socket.socket, within_s: float | None = None) -> None:
        self._sock = sock
        self._until = None if within_s is None else time.monotonic() + within_s

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def send(self, body: bytes) -> None:
        """Send a frame."""
        self._wait()
        self._sock.sendall(struct.pack("!I", len(body)) + body)

    def say(self, message: dict[str, Any]) -> None:
        """Send a frame of JSON."""
        self.send(json.dumps(message).encode())

    def receive(self) -> bytes:
        """The next frame."""
        (size,) = struct.unpack("!I", self._exactly(4))
        if size > LARGEST:
            raise OSError(errno.EPROTO, f"a frame of {size} bytes")
        return self._exactly(size)

    def hear(self) -> dict[str, Any]:
        """The next frame, which is JSON. Raises what the other side says went wrong."""
        try:
            message = json.loads(self.receive())
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise OSError(errno.EPROTO, "a frame that is no message")
        if message.get("kind") == "error":
            raise error_of(message)
        return message

    def sockets(self, count: int) -> list[socket.socket]:
        """Connected stream sockets that come with one byte.

        Raises:
            NoneHandedOut: the other side's system cannot send any.
        """
        self._wait()
        said, fds, _, _ = socket.recv_fds(self._sock, 1, count, socket.MSG_CMSG_CLOEXEC)
        if said == b"r" and not fds:
            raise NoneHandedOut(errno.EOPNOTSUPP, "sockets are not handed out there")
        socks: list[socket.socket] = []
        try:
            for fd in fds:
                socks.append(socket.socket(fileno=fd))
            if len(socks) != count or any((s.family, s.type) != (socket.AF_UNIX, socket.SOCK_STREAM) for s in socks):
                raise OSError(errno.EPROTO, "not the sockets that were asked for")
            for sock in socks:
                sock.setblocking(False)
        except OSError:
            for fd in fds[len(socks) :]:
                os.close(fd)
            for sock in socks:
                sock.close()
            raise
        return socks

    def raw(self) -> socket.socket:
        """The socket itself, given away once the other side has said that from here on it is a stream of bytes."""
        self._wait()
        if self._sock.recv(1) != b"y":
            raise OSError(errno.ECONNREFUSED, "nobody listens there")
        self._sock.setblocking(False)
        return self._sock

    def _exactly(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._wait()
            chunk = self._sock.recv(min(size - len(content), 1 << 20))
            if not chunk:
                raise OSError(errno.EPIPE, "the other side has ended")
            content += chunk
        return bytes(content)

    def _wait(self) -> None:
        """Set how long the next call may take."""
        left = SILENCE_S if self._until is None else min(SILENCE_S, self._until - time.monotonic())
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the other side takes too long")
        self._sock.settimeout(left)


def error_frame(error: Exception) -> dict[str, Any]:
    """What is said of an error."""
    kind = next(name for name in (*(cls.__name__ for cls in type(error).__mro__), "OSError") if name in ERRORS)
    if isinstance(error, OSError) and error.errno is not None:
        return {"kind": "error", "type": kind, "args": [error.errno, str(error.strerror), str(error.filename)]}
    return {"kind": "error", "type": kind, "args": [str(error)]}


def error_of(message: dict[str, Any]) -> Exception:
    """The error that the other side had, as far as one can believe it."""
    kind, args = ERRORS.get(str(message.get("type"))), message.get("args")
    if kind is None or not isinstance(args, list) or len(args) not in (1, 3):
        return OSError(errno.EPROTO, "an error that is none")
    if len(args) == 3 and type(args[0]) is int and issubclass(kind, OSError):
        number = args[0] if args[0] in ERRNOS else errno.EREMOTEIO
        return kind(number, str(args[1])[:500], str(args[2])[:500])
    return kind(str(args[0])[:500])


def send_file(frames: Frames, name: str, chunks: Iterator[bytes]) -> int:
    """Send a file; returns its bytes."""
    frames.say({"kind": "file", "name": name})
    size = 0
    for chunk in chunks:
        size += len(chunk)
        frames.send(chunk)
    frames.send(b"")
    return size


def receive_tree(frames: Frames, target: int, max_bytes: int, links: bool) -> int:
    """Make what comes in an open folder, by descriptor; returns bytes of files.

    Args:
        frames: where it comes from.
        target: the folder; stays open.
        max_bytes: most bytes of files.
        links: whether links are made; else one is an error.

    Raises:
        OSError: too much, no tree, or what the system says; what was made so far stays.
    """
    stack, left, entries = [os.dup(target)], max_bytes, ENTRIES
    try:
        while (entry := frames.hear())["kind"] != "end":
            kind = entry["kind"]
            if kind == "up" and len(stack) > 1:
                os.close(stack.pop())
                continue
            name, entries = _name(entry), entries - 1
            if entries < 0:
                raise OSError(errno.EFBIG, f"more than {ENTRIES} entries", name)
            if kind == "folder" and len(stack) <= DEPTH:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=stack[-1])
                stack.append(os.open(name, FOLDER, dir_fd=stack[-1]))
            elif kind == "file":
                left -= _receive_file(frames, name, stack[-1], left)
            elif kind == "link" and links:
                os.symlink(str(entry["to"]), name, dir_fd=stack[-1])
            else:
                raise OSError(errno.EPROTO, f"an entry of the kind {str(kind)[:40]!r}")
    except KeyError as error:
        raise OSError(errno.EPROTO, f"an entry without {error}") from error
    finally:
        for fd in stack:
            os.close(fd)
    return max_bytes - left


def _receive_file(frames: Frames, name: str, folder: int, most: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    size = 0
    with os.fdopen(os.open(name, flags, 0o644, dir_fd=folder), "wb") as file:
        while chunk := frames.receive():
            size += len(chunk)
            if size > most:
                raise OSError(errno.EFBIG, "the working directory is larger than the export may be", name)
            file.write(chunk)
    return size


def _name(entry: dict[str, Any]) -> str:
    name = entry["name"]
    if type(name) is not str or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EPROTO, "a name that is none")
    return name
