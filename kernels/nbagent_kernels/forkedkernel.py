"""A kernel made before a fork and given life after it. Loaded by forkserver.py; standard library and ipykernel only.

It is ipykernel's own IPythonKernel, with its shell, without zmq's threads and ports: Jupyter's messages pass over a
stream socket, each as four bytes of length and then {"type", "parent", "content"} as JSON. A flood of output blocks
in the kernel instead of filling the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
WRITE_THROUGH = 32
"""Lines of one cell that are sent at once, so that a dying kernel loses none of them; later ones are gathered."""
GATHER_S, GATHER_CHARS = 0.02, 1 << 15

_libc = ctypes.CDLL(None, use_errno=True)


class Channel:
    """The kernel's end of the stream pair. A frame is never torn by an interrupt: SIGINT waits for its end."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.pid = 0
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
        body = json.dumps(frame, default=str).encode()
        with self.whole():
            try:
                self.sock.sendall(struct.pack("!I", len(body)) + body)
            except OSError:
                os._exit(0)  # the host is gone


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


def watch_descriptors(streams: tuple[Any, ...]) -> None:
    """Put pipes behind descriptors 1 and 2 and bring what arrives there into the streams, in a thread."""
    by_pipe = {}
    for stream in streams:
        read, write = os.pipe()
        os.dup2(write, stream.fileno())
        os.close(write)
        os.set_blocking(read, False)
        stream.pipe = read
        by_pipe[read] = stream

    def bring() -> None:
        poll = select.poll()
        for pipe in by_pipe:
            poll.register(pipe, select.POLLIN)
        while True:
            for pipe, _ in poll.poll():
                by_pipe[pipe].flush()

    # Python runs signal handlers in the main thread only, but a blocked SIGINT also spares this thread's poll.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=bring, name="descriptors", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def make_kernel(channel: Channel) -> Any:
    """IPythonKernel with its shell, as far as it can be made before the fork: no thread, no loop, no socket."""
    import logging

    from traitlets.config import Config

    sys.modules["debugpy"] = None  # type: ignore[assignment]
    import ipykernel.debugger  # noqa: F401  (finds no debugpy, so that no debugger is made)

    del sys.modules["debugpy"]
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp
    from jupyter_client.session import Session, extract_header

    class ChannelSession(Session):  # type: ignore[misc]
        def send(self, stream: Any, kind: Any, content: Any = None, parent: Any = None, *args: Any, **kw: Any) -> Any:
            header = None
            if isinstance(kind, dict):
                content, header, kind = kind["content"], kind.get("parent_header"), kind["header"]["msg_type"]
            elif parent:
                header = extract_header(parent)
            if kind == "execute_reply":
                channel.replied = True
                content = {k: content[k] for k in ("status", "execution_count", "ename", "evalue") if k in content}
            if kind != "execute_input" and not (kind == "status" and content["execution_state"] != "idle"):
                channel.send(kind, content, (header or {}).get("msg_id", channel.current))
            return {"content": content}

        def feed_identities(self, msg: Any, copy: bool = True) -> Any:
            return [], msg

        def deserialize(self, msg: Any, content: bool = True, copy: bool = True) -> Any:
            return msg

    class ForkedKernel(IPythonKernel):  # type: ignore[misc]
        _supports_kernel_subshells = False

        def pre_handler_hook(self) -> None:
            channel.interrupted = False
            signal.signal(signal.SIGINT, channel.on_sigint)

        @contextlib.contextmanager
        def _cancel_on_sigint(self, future: Any) -> Any:
            # ipykernel's own handler does not wake a loop that waits, and cannot interrupt one that computes.
            loop = asyncio.get_running_loop()

            def handle(*args: Any) -> None:
                if asyncio.current_task(loop) is None:
                    loop.call_soon_threadsafe(future.cancel)
                else:
                    channel.on_sigint(*args)

            saved = signal.signal(signal.SIGINT, handle)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, saved)

        def post_handler_hook(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    config = Config()
    config.HistoryManager.enabled = False
    config.Completer.use_jedi = False
    config.Kernel._execute_sleep = 0.0
    session = ChannelSession(key=b"", config=config)
    # Never initialized: it is there for those that look the kernel up through it, as %matplotlib does.
    app = IPKernelApp.instance(config=config)
    kernel = ForkedKernel.instance(
        parent=app,
        session=session,
        user_ns={},
        iopub_socket=channel,
        log=logging.getLogger("ipykernel"),
        shell_channel_thread=types.SimpleNamespace(parent_thread=threading.main_thread()),
    )
    app.kernel, app.shell = kernel, kernel.shell
    kernel.shell.displayhook.get_execution_count = lambda: kernel.execution_count
    if "matplotlib.pyplot" in sys.modules:
        kernel.shell.enable_matplotlib("inline")
    warm_up(kernel)
    skip_search_for_cells()
    return kernel


WARM = (
    ("sys", "1 + 1"),
    ("sys", "1 / 0"),
    ("sys", "__import__('IPython').display.HTML('')"),
    ("pandas", "__import__('pandas').DataFrame({'a': [1.0]}).describe()"),
    ("matplotlib.pyplot", "import matplotlib.pyplot as plot; plot.plot([1, 2]); plot.show()"),
)
"""Cells run before the fork where the module is imported, so that their caches are made once; outputs go nowhere."""


def skip_search_for_cells() -> None:
    """Let inspect.getmodule say at once that a cell's code belongs to no module.

    It would look through all of sys.modules to say the same, at each traceback: 15 ms with scanpy imported.
    """
    import inspect

    search = inspect.getmodule

    def getmodule(object: Any, _filename: str | None = None) -> Any:
        code = getattr(object, "f_code", object)
        if f"ipykernel_{os.getpid()}" in getattr(code, "co_filename", ""):
            return None
        return search(object, _filename)

    inspect.getmodule = getmodule


def warm_up(kernel: Any) -> None:
    """Run the cells every session is likely to need as a request would run them, then forget them."""
    shell = kernel.shell
    before = set(shell.user_ns)
    stdout, stderr = sys.stdout, sys.stderr
    content = {"silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": False}

    async def run() -> None:
        """Every kind of cell once."""
        for module, code in WARM:
            if module in sys.modules:
                header = {"msg_id": "warm", "msg_type": "execute_request"}
                await kernel.shell_main(None, {"header": header, "content": {**content, "code": code}, "metadata": {}})

    with Path(os.devnull).open("w") as sink:
        sys.stdout = sys.stderr = sink
        try:
            asyncio.run(run())
        finally:
            sys.stdout, sys.stderr = stdout, stderr
    for name in set(shell.user_ns) - before:
        del shell.user_ns[name]
        shell.user_ns_hidden.pop(name, None)
    shell.displayhook.flush()
    for name in ("_", "__", "___"):  # the hook follows them only while both hold the same
        setattr(shell.displayhook, name, "")
        shell.push({name: ""}, interactive=False)
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        with contextlib.suppress(AttributeError):
            delattr(sys, name)
    shell.execution_count = 1


def become_kernel(kernel: Any, channel: Channel, sock: socket.socket, request: dict[str, Any]) -> None:
    """In the child: take on the session's environment, limits and seeds, then serve until killed."""
    import random
    import resource
    import tempfile

    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(request["env"])
    kernel.shell.init_environment()
    os.chdir(request["cwd"])
    kernel.shell.user_ns["_dh"][:] = [str(Path.cwd())]
    tempfile.tempdir = None
    random.seed(request["seed"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(request["seed"] % (1 << 32))

    channel.sock, channel.pid = sock, os.getpid()
    channel.streams = sys.stdout, sys.stderr = make_stream(channel, "stdout", 1), make_stream(channel, "stderr", 2)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    watch_descriptors(channel.streams)
    for name, value in request["rlimits"].items():
        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    buffer = bytearray()
    running: set[Any] = set()

    async def run(message: dict[str, Any]) -> None:
        """One request, from its message to its reply."""
        header = {"msg_id": message["parent"], "msg_type": message["type"]}
        channel.current, channel.replied = message["parent"], False
        try:
            await kernel.shell_main(None, {"header": header, "content": message["content"], "metadata": {}})
        except KeyboardInterrupt:
            kernel.log.debug("an interrupt came between two lines of the kernel's own code")
        finally:
            leave_if_forked()
            channel.interrupted = False
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if not channel.replied:
                channel.send("execute_reply", {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""})
                channel.send("status", {"execution_state": "idle"})

    def leave_if_forked() -> None:
        if os.getpid() != channel.pid:
            os._exit(0)  # a cell called os.fork: its child must not take this kernel's requests

    def readable() -> None:
        leave_if_forked()
        chunk = sock.recv(1 << 16)
        if not chunk:
            os._exit(0)
        buffer.extend(chunk)
        while len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack_from("!I", buffer)[0]):
            task = loop.create_task(run(json.loads(bytes(buffer[4 : 4 + size]))))
            running.add(task)
            task.add_done_callback(running.discard)
            del buffer[: 4 + size]

    # What ipykernel asks of its tornado loop; a real one costs 2 ms to make.
    kernel.io_loop = types.SimpleNamespace(call_later=loop.call_later, add_callback=loop.call_soon, stop=loop.stop)
    loop.add_reader(sock, readable)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel.send("ready", {"pid": os.getpid()})
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_forever()
            break  # the cell called exit()
    os._exit(0)
