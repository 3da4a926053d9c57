"""What a forked kernel says and prints: frames to the host, and the streams behind descriptors 1 and 2.

Runs in the kernel's interpreter: standard library only. A frame is four bytes of length and then {"type", "parent",
"content"} as JSON. A flood of output blocks in the kernel instead of filling the host.
"""

from __future__ import annotations

import binascii
import contextlib
import io
import json
import numbers
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

WRITE_THROUGH = 32
"""Lines of one cell that are sent at once, so that a dying kernel loses none of them; later ones are gathered."""
GATHER_S, GATHER_CHARS = 0.02, 1 << 15
SHORT_CHARS = 1 << 12
WATCHER = "nbagent-descriptors"
"""Name of the one thread beside the main one."""


class Channel:
    """The kernel's end of the stream pair. A frame is never torn by an interrupt: SIGINT waits for its end."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.pid = 0
        self.largest = 0
        self.current = ""
        self.replied = False
        self.lock = threading.RLock()
        self.main = threading.main_thread().ident
        self.ident = threading.get_ident
        self.sending = 0
        self.interrupted = False
        self.streams: tuple[Any, ...] = ()

    def on_sigint(self, *_: Any) -> None:
        """The kernel's SIGINT handler while a cell runs."""
        if self.sending:
            self.interrupted = True
            return
        for stream in self.streams:
            stream.flush()
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """One thread at a time, and no interrupt before the end."""
        main = self.ident() == self.main
        self.sending += main
        try:
            with self.lock:
                yield
        finally:
            self.sending -= main
        if main and self.interrupted and not self.sending:
            self.interrupted = False
            raise KeyboardInterrupt

    def send(self, kind: str, content: Any, parent: str | None = None) -> None:
        """Send one frame; `parent` is the request it answers (None: the current one)."""
        if self.sock is None or os.getpid() != self.pid:
            return
        frame = {"type": kind, "parent": self.current if parent is None else parent, "content": content}
        body = json.dumps(frame, default=in_json).encode()
        if self.largest and len(body) > self.largest:
            body = json.dumps(shortened(frame, len(body))).encode()
        with self.whole():
            try:
                self.sock.sendall(struct.pack("!I", len(body)) + body)
            except OSError:
                os._exit(0)  # the host is gone


def in_json(value: Any) -> Any:
    """What stands for a value that JSON has not, as jupyter_client has it: base64 for bytes, numpy's numbers."""
    if isinstance(value, bytes):
        return binascii.b2a_base64(value, newline=False).decode()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return list(value) if isinstance(value, Iterable) else str(value)


def shortened(frame: dict[str, Any], size: int) -> dict[str, Any]:
    """What is said in place of a frame too large for the host: an error or reply without its length, or just a size."""
    if frame["type"] not in ("error", "execute_reply"):
        return {**frame, "type": "oversize", "content": {"bytes": size}}
    content = {k: v[:SHORT_CHARS] if isinstance(v, str) else v for k, v in frame["content"].items()}
    return {**frame, "content": {**content, "traceback": []}}


def make_stream(channel: Channel, name: str, fd: int) -> Any:
    """The text stream that stands for sys.stdout or sys.stderr; joins in what is written to the descriptor itself."""

    class Stream(io.TextIOBase):
        encoding = "utf-8"
        errors = "strict"
        pipe = -1

        def __init__(self) -> None:
            self.pending: list[str] = []
            self.chars = 0
            self.at = 0.0
            self.left = WRITE_THROUGH

        @property
        def name(self) -> str:
            return f"<{name}>"

        def fileno(self) -> int:
            return fd

        def writable(self) -> bool:
            return True

        def isatty(self) -> bool:
            return False

        def set_parent(self, parent: Any) -> None:
            self.left = WRITE_THROUGH

        def write(self, text: str) -> int:
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            if os.getpid() != channel.pid:
                os.write(fd, text.encode("utf-8", "replace"))  # a fork of this kernel: the pipe brings it back
                return len(text)
            self.pending.append(text)
            self.chars += len(text)
            if self.chars > GATHER_CHARS:
                self.flush()
            elif text.endswith("\n") and (self.left > 0 or time.monotonic() - self.at > GATHER_S):
                self.left -= 1
                self.flush()
            return len(text)

        def flush(self) -> None:
            if os.getpid() != channel.pid:
                return
            with channel.whole():
                below = self.drain()
                pending, self.pending, self.chars = self.pending, [], 0
                self.at = time.monotonic()
                # What a subprocess wrote came before the text that is only now being flushed.
                for text in (below, "".join(pending)):
                    for at in range(0, len(text), GATHER_CHARS):
                        channel.send("stream", {"name": name, "text": text[at : at + GATHER_CHARS]})

        def drain(self) -> str:
            """What C code and subprocesses wrote to the descriptor, without waiting."""
            chunks: list[bytes] = []
            with contextlib.suppress(BlockingIOError, OSError):
                while len(chunks) < 16 and (chunk := os.read(self.pipe, 1 << 16)):
                    chunks.append(chunk)
            return b"".join(chunks).decode("utf-8", "replace") if chunks else ""

    return Stream()


def pipe_descriptors(streams: tuple[Any, ...]) -> None:
    """Put pipes behind descriptors 1 and 2; in a branch anew, where they are the parent's."""
    for stream in streams:
        read, write = os.pipe()
        os.dup2(write, stream.fileno())
        os.close(write)
        if stream.pipe >= 0:
            os.close(stream.pipe)
        os.set_blocking(read, False)
        stream.pipe = read


def watch_descriptors(streams: tuple[Any, ...]) -> None:
    """Bring what arrives in the pipes into the streams, in a thread; it does not come along through a fork."""
    by_pipe = {stream.pipe: stream for stream in streams}

    def bring() -> None:
        poll = select.poll()
        for pipe in by_pipe:
            poll.register(pipe, select.POLLIN)
        while True:
            for pipe, _ in poll.poll():
                by_pipe[pipe].flush()

    # Python runs signal handlers in the main thread only, but a blocked SIGINT also spares this thread's poll.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=bring, name=WATCHER, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
