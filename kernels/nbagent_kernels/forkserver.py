"""The fork server: imports the scientific stack once, then forks one ipykernel per session.

One self-contained file (standard library and ipykernel only), run by the kernel's own interpreter:

    python forkserver.py CONTROL_FD ROOT MODULE,MODULE,…

The control socket (SOCK_SEQPACKET, one JSON object per packet) takes
    {"op": "fork", "id", "cwd", "env", "seed", "rlimits": {name: n}} with one descriptor: the kernel's end of a stream pair
    {"op": "signal", "id", "signal"}      to the kernel's process group
    {"op": "drop", "id"}                  kill the kernel's group
and gives {"op": "ready", …}, {"op": "exit", "id", "status" (as waitpid gives it)}, {"op": "failed", "id", "why"}.

A kernel is ipykernel's own IPythonKernel, made before the fork and given Jupyter messages over the stream pair: four
bytes of length, then {"type", "parent", "content"} as JSON. That leaves out zmq's threads and ports, and a flood of
output blocks in the kernel instead of filling the host. PYTHONHASHSEED is the server's: it cannot change at a fork.

The server ends, and every kernel with it, when its control socket closes or its parent dies; it then removes ROOT.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
from typing import Any

PACKET = 1 << 20
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
WRITE_THROUGH = 32
"""Writes of one cell that are sent at once, so that a dying kernel loses none of them; later ones are gathered."""
GATHER_S, GATHER_CHARS = 0.02, 1 << 15
TAG = "NBAGENT_SESSION"

_libc = ctypes.CDLL(None, use_errno=True)


# ---- the kernel's side -------------------------------------------------------------------------------------------


class Channel:
    """The kernel's end of the stream pair. A frame is never torn by an interrupt: SIGINT waits for its end."""

    def __init__(self) -> None:
        import threading

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
        if self.sending:
            self.interrupted = True
            return
        for stream in self.streams:
            stream.flush()
        raise KeyboardInterrupt

    def send(self, kind: str, content: Any, parent: str | None = None) -> None:
        if self.sock is None or os.getpid() != self.pid:
            return
        body = json.dumps(
            {"type": kind, "parent": self.current if parent is None else parent, "content": content}, default=str
        ).encode()
        main = self.ident() == self.main
        if main:
            self.sending += 1
        try:
            with self.lock:
                self.sock.sendall(struct.pack("!I", len(body)) + body)
        except OSError:
            os._exit(0)  # the host is gone
        finally:
            if main:
                self.sending -= 1
        if main and self.interrupted and not self.sending:
            self.interrupted = False
            raise KeyboardInterrupt


def make_stream(channel: Channel, name: str, fd: int) -> Any:
    """The text stream that stands for sys.stdout or sys.stderr; joins in what is written to the descriptor itself."""
    import io

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
        def name(self) -> str:  # type: ignore[override]
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
            elif text.endswith("\n"):
                if self.left > 0:
                    self.left -= 1
                    self.flush()
                elif time.monotonic() - self.at > GATHER_S:
                    self.flush()
            return len(text)

        def flush(self) -> None:
            if os.getpid() != channel.pid:
                return
            with channel.lock:
                below = self.drain()
                pending, self.pending, self.chars = self.pending, [], 0
                self.at = time.monotonic()
                # What a subprocess wrote came before the text that is only now being flushed.
                for text in (below, "".join(pending)):
                    for at in range(0, len(text), GATHER_CHARS):
                        channel.send("stream", {"name": name, "text": text[at : at + GATHER_CHARS]})

        def drain(self) -> str:
            """What C code and subprocesses wrote to the descriptor, without waiting."""
            chunks = []
            with contextlib.suppress(BlockingIOError, OSError):
                while len(chunks) < 16 and (chunk := os.read(self.pipe, 1 << 16)):
                    chunks.append(chunk)
            return b"".join(chunks).decode("utf-8", "replace") if chunks else ""

    return Stream()


def watch_descriptors(streams: tuple[Any, ...]) -> None:
    """Put pipes behind descriptors 1 and 2 and bring what arrives there into the streams, in a thread."""
    import threading

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
    import threading
    import types

    from traitlets.config import Config

    debugpy = sys.modules.pop("debugpy", None)
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    import ipykernel.debugger  # noqa: F401  (finds no debugpy, so that no debugger is made)

    del sys.modules["debugpy"]
    if debugpy is not None:
        sys.modules["debugpy"] = debugpy
    from ipykernel.ipkernel import IPythonKernel
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

        def post_handler_hook(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    config = Config()
    config.HistoryManager.enabled = False
    config.Completer.use_jedi = False
    config.Kernel._execute_sleep = 0.0
    session = ChannelSession(key=b"", config=config)
    kernel = ForkedKernel.instance(
        config=config,
        session=session,
        user_ns={},
        iopub_socket=channel,
        log=logging.getLogger("ipykernel"),
        shell_channel_thread=types.SimpleNamespace(parent_thread=threading.main_thread()),
    )
    kernel.shell.displayhook.get_execution_count = lambda: kernel.execution_count
    with contextlib.suppress(Exception):
        if "matplotlib.pyplot" in sys.modules:
            kernel.shell.enable_matplotlib("inline")
    warm_up(kernel)
    return kernel


WARM = (
    "1 + 1",
    "1 / 0",
    "__import__('IPython').display.HTML('')",
    "__import__('pandas').DataFrame({'a': [1.0]}).describe()",
    "__import__('matplotlib.pyplot').pyplot.plot([1, 2]); __import__('matplotlib.pyplot').pyplot.show()",
)
"""Cells run before the fork, so that their imports and caches are paid once; their outputs go nowhere."""


def warm_up(kernel: Any) -> None:
    """Run the cells every session is likely to need, then forget them."""
    shell = kernel.shell
    before = set(shell.user_ns)
    stdout, stderr = sys.stdout, sys.stderr
    with open(os.devnull, "w") as sink:
        sys.stdout = sys.stderr = sink
        try:
            for code in WARM:
                shell.run_cell(code, store_history=False, silent=False)
        finally:
            sys.stdout, sys.stderr = stdout, stderr
    for name in set(shell.user_ns) - before:
        del shell.user_ns[name]
    shell.user_ns.update(_="", __="", ___="")
    shell.displayhook.flush()
    shell.events.trigger("post_execute")
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        with contextlib.suppress(AttributeError):
            delattr(sys, name)
    shell.execution_count = 1


def become_kernel(kernel: Any, channel: Channel, sock: socket.socket, request: dict[str, Any]) -> None:
    """In the child: take on the session's environment, limits and seeds, then serve until killed."""
    import asyncio
    import random
    import resource
    import tempfile

    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(request["env"])
    kernel.shell.init_environment()
    os.chdir(request["cwd"])
    kernel.shell.user_ns["_dh"][:] = [os.getcwd()]
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
        header = {"msg_id": message["parent"], "msg_type": message["type"]}
        channel.current, channel.replied = message["parent"], False
        try:
            await kernel.shell_main(None, {"header": header, "content": message["content"], "metadata": {}})
        except KeyboardInterrupt:
            kernel.log.debug("an interrupt came between two lines of the kernel's own code")
        finally:
            channel.interrupted = False
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if not channel.replied:
                channel.send("execute_reply", {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""})
                channel.send("status", {"execution_state": "idle"})

    def readable() -> None:
        chunk = sock.recv(1 << 16)
        if not chunk:
            os._exit(0)
        buffer.extend(chunk)
        while len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack_from("!I", buffer)[0]):
            task = loop.create_task(run(json.loads(bytes(buffer[4 : 4 + size]))))
            running.add(task)
            task.add_done_callback(running.discard)
            del buffer[: 4 + size]

    async def prepare() -> None:
        from tornado.ioloop import IOLoop

        kernel.io_loop = IOLoop.current()

    loop.run_until_complete(prepare())
    loop.add_reader(sock, readable)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel.send("ready", {"pid": os.getpid()})
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_forever()
            break  # the cell called exit()
    os._exit(0)


# ---- the server's side -------------------------------------------------------------------------------------------


class Server:
    """Forks, signals and reaps kernels for the host at the other end of the control socket."""

    def __init__(self, control: socket.socket, root: str) -> None:
        self.control = control
        self.root = root
        self.parent = os.getppid()
        self.kernels: dict[int, tuple[int, str]] = {}
        """pid -> id and session tag, of kernels not reaped yet: their pids cannot have been given to others."""
        self.channel = Channel()
        self.kernel: Any = None
        self.wake: tuple[socket.socket, socket.socket] = socket.socketpair()

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode())

    def prepare(self, modules: list[str]) -> None:
        start = time.perf_counter()
        skipped = {}
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                skipped[module] = f"{type(error).__name__}: {error}"
        self.kernel = make_kernel(self.channel)
        threads = len(os.listdir("/proc/self/task"))
        gc.collect()
        gc.freeze()
        self.tell({"op": "ready", "skipped": skipped, "threads": threads, "seconds": time.perf_counter() - start})

    def serve(self) -> None:
        for end in self.wake:
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the host's terminal is the host's to handle
        signal.set_wakeup_fd(self.wake[1].fileno(), warn_on_full_buffer=False)
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        while os.getppid() == self.parent:
            ready, _, _ = select.select([self.control, self.wake[0]], [], [], 1.0)
            if self.wake[0] in ready:
                with contextlib.suppress(BlockingIOError):
                    self.wake[0].recv(4096)
                self.reap()
            if self.control in ready:
                packet, fds, _, _ = socket.recv_fds(self.control, PACKET, 1)
                if not packet:
                    return
                self.handle(json.loads(packet), fds)

    def handle(self, request: dict[str, Any], fds: list[int]) -> None:
        if request["op"] == "fork":
            self.fork(request, socket.socket(fileno=fds[0]))
            return
        number = signal.SIGKILL if request["op"] == "drop" else request["signal"]
        for pid, (number_of, _) in self.kernels.items():
            if number_of == request["id"]:
                kill_group(pid, number)

    def fork(self, request: dict[str, Any], sock: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self.tell({"op": "failed", "id": request["id"], "why": f"fork: {error}"})
            sock.close()
            return
        if pid:
            self.kernels[pid] = request["id"], request["tag"]
            sock.close()
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for end in self.wake:
                end.close()
            become_kernel(self.kernel, self.channel, sock, request)
        except BaseException:
            import traceback

            with contextlib.suppress(BaseException):
                self.channel.sock, self.channel.pid = sock, os.getpid()
                self.channel.send("failed", {"why": traceback.format_exc()})
        os._exit(70)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (kernel := self.kernels.pop(pid, None)) is not None:
                kill_group(pid, signal.SIGKILL)
                self.end_strays(kernel[1])
                self.tell({"op": "exit", "id": kernel[0], "status": status})

    def end_strays(self, session: str) -> None:
        """Kill what the session's cells started and detached: it is this process's child now (a subreaper)."""
        for _ in range(8):
            found = False
            with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as children:
                for pid in map(int, children.read().split()):
                    if pid not in self.kernels and session_of(pid) in (session, None):
                        found = True
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)
                            os.waitpid(pid, 0)
            if not found:
                return

    def end(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self.kernels:
            kill_group(pid, signal.SIGKILL)
        for pid in list(self.kernels):
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
        sessions = {tag for _, tag in self.kernels.values()}
        self.kernels.clear()
        for session in sessions:
            self.end_strays(session)
        if os.getppid() != self.parent or not os.path.exists(f"/proc/{self.parent}"):
            shutil.rmtree(self.root, ignore_errors=True)


def kill_group(pid: int, number: int) -> None:
    """Signal a kernel's process group; the kernel alone where it has none yet."""
    try:
        os.killpg(pid, number)
    except OSError:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def session_of(pid: int) -> str | None:
    """The session a process carries in its environment; None where it has none or is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        for item in environ.read().split(b"\0"):
            if item.startswith(TAG.encode() + b"="):
                return item.split(b"=", 1)[1].decode()
    return None


if __name__ == "__main__":
    server = Server(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    names = [name for name in sys.argv[3].split(",") if name]
    this = sys.modules["__main__"]  # the shell puts its own module in this place
    sys.argv = ["ipykernel_launcher"]
    sys.path[0] = ""
    try:
        server.prepare(names)
        server.serve()
    finally:
        server.end()
