"""The fork server: imports the scientific stack once, then forks one ipykernel per session.

Standard library and ipykernel only, run by the kernel's own interpreter, with the files forked*.py beside it:

    forkserver.py CONTROL ROOT MODULE,MODULE,…

CONTROL is a descriptor, or the path of a socket to connect to. The socket (SOCK_SEQPACKET, one JSON object per packet)
takes
    {"op": "fork", "id", "tag", "cwd", "env", "seed", "rlimits", "largest"}   with the kernel's end of a stream pair
    {"op": "spawn", "id", "tag", "argv", "folder", "connection", "cwd", "env", "keep", "rlimits"}   a kernel's program
    {"op": "signal", "id", "signal"}                               to the kernel's process group
    {"op": "drop", "id"}                                           kills the kernel's group
    {"op": "adopt", "id", "tag", "pid", "of"}                      takes on the branch that kernel `of` has forked
    {"op": "abort", "id", "of"}                                    gives up a branch, whether adopted or not
    {"op": "files"}    with one end of a stream pair: answers one request for files (containedfiles.py)
and gives {"op": "ready", …}, {"op": "exit", "id", "status" (as waitpid gives it)}, {"op": "failed", "id", "why"},
{"op": "forked", "id", "pid"} for a kernel or a branch taken on, {"op": "signaled", "id"} when a signal has been sent.
PYTHONHASHSEED is the server's for every kernel: it cannot change at a fork.

The server ends, and every kernel with it, when its control socket closes or its parent dies; where the parent is
dead it also removes ROOT.

Given a path it is the first process of a container, and its kernels' code runs under its own uid: the kernel of the
system lets none of them signal it, and, as it is not dumpable, none open its memory or its descriptors.
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
import sys
import time
import types
from pathlib import Path
from typing import Any

PACKET = 1 << 20
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
OOM_SCORE = "500"
"""Of kernels, from -1000 to 1000; this server has 0, and with it a container would lose its files."""
MADV_COLLAPSE, HUGE = 25, 2 << 20
TAG = "NBAGENT_SESSION"
PACKAGE = "_nbagent_kernel"

_libc = ctypes.CDLL(None, use_errno=True)


class Server:
    """Forks, signals and reaps kernels for the host at the other end of the control socket."""

    def __init__(self, control: socket.socket, root: str, contained: bool) -> None:
        self.control = control
        self.contained = contained
        self.root = root
        self.parent = os.getppid()
        self.kernels: dict[int, tuple[int, str]] = {}
        """pid -> id and session tag, of kernels not reaped yet: their pids cannot have been given to others."""
        self.clerks: set[int] = set()
        """pids of children that answer a request for files."""
        self.making = load_beside("forkedkernel")
        self.channel = self.making.Channel()
        self.kernel: Any = None
        self.wake: tuple[socket.socket, socket.socket] = socket.socketpair()

    def tell(self, message: dict[str, Any]) -> None:
        """Send the host a message."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode())

    def prepare(self, modules: list[str]) -> None:
        """Import the modules and make the kernel that the forks will become.

        Without modules the first kernel is awaited: nothing is done that only pays with many.
        """
        start = time.perf_counter()
        if not modules:
            gc.disable()
        skipped = {}
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                skipped[module] = f"{type(error).__name__}: {error}"
        load_beside("forkedcaches").read_only()
        if self.contained:
            load_beside("containedfiles")  # once for all that will answer with it
        self.kernel = self.making.make_kernel(self.channel, warm=bool(modules))
        threads = len(list(Path("/proc/self/task").iterdir()))
        if modules:
            gc.collect()
        gc.freeze()
        gc.enable()
        if modules:
            join_pages()
        if self.contained:
            let_go_of_output()
        self.tell({"op": "ready", "skipped": skipped, "threads": threads, "seconds": time.perf_counter() - start})

    def serve(self) -> None:
        """Answer the host until it is gone."""
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
        """Do what one packet asks."""
        if request["op"] == "fork":
            self.fork(request, socket.socket(fileno=fds[0]))
            return
        if request["op"] == "spawn":
            self.spawn(request)
            return
        if request["op"] == "files":
            self.answer_files(socket.socket(fileno=fds[0]))
            return
        if request["op"] == "adopt":
            self.adopt(request)
            return
        if request["op"] == "abort" and request["id"] not in [number for number, _ in self.kernels.values()]:
            for pid in self.kernels:
                if self.kernels[pid][0] == request["of"]:
                    end_forks(pid)
            self.tell({"op": "failed", "id": request["id"], "why": "given up"})
            return
        number = request["signal"] if request["op"] == "signal" else signal.SIGKILL
        for pid, (number_of, _) in self.kernels.items():
            if number_of == request["id"]:
                kill_group(pid, number)
        if request["op"] == "signal":
            self.tell({"op": "signaled", "id": request["id"]})

    def fork(self, request: dict[str, Any], sock: socket.socket) -> None:
        """Fork a kernel; the child never returns."""
        try:
            pid = os.fork()
        except OSError as error:
            self.tell({"op": "failed", "id": request["id"], "why": f"fork: {error}"})
            sock.close()
            return
        if pid:
            self.kernels[pid] = request["id"], request["tag"]
            self.tell({"op": "forked", "id": request["id"], "pid": pid})
            sock.close()
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for end in self.wake:
                end.close()
            self.leave_to_code()
            self.making.become_kernel(self.kernel, self.channel, sock, request)
        except BaseException:
            import traceback

            with contextlib.suppress(BaseException):
                self.channel.sock, self.channel.pid = sock, os.getpid()
                self.channel.send("failed", {"why": traceback.format_exc()})
        os._exit(70)

    def answer_files(self, sock: socket.socket) -> None:
        """Fork a child that answers one request for files; it never returns. Like this process it is not dumpable."""
        with sock, contextlib.suppress(OSError):
            if pid := os.fork():
                self.clerks.add(pid)
                return
            try:
                signal.set_wakeup_fd(-1)
                self.control.close()
                load_beside("containedfiles").answer(sock)
            finally:
                os._exit(0)

    def spawn(self, request: dict[str, Any]) -> None:
        """Start a kernel that is a program of its own; the child becomes it."""
        try:
            pid = os.fork()
        except OSError as error:
            self.tell({"op": "failed", "id": request["id"], "why": f"fork: {error}"})
            return
        if pid:
            self.kernels[pid] = request["id"], request["tag"]
            self.tell({"op": "forked", "id": request["id"], "pid": pid})
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self.leave_to_code()
            load_beside("containedkernel").become_program(request)
        finally:
            os._exit(127)

    def leave_to_code(self) -> None:
        """In a child that becomes a kernel: its memory is its code's own, and it is what ends where memory does."""
        if self.contained:
            _libc.prctl(PR_SET_DUMPABLE, 1)
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)

    def adopt(self, request: dict[str, Any]) -> None:
        """Count a kernel's branch among the kernels and end the process between, which makes it a child of this one."""
        between = parent_of(request["pid"])
        if self.kernels.get(parent_of(between), (None, ""))[0] != request["of"]:
            self.tell({"op": "failed", "id": request["id"], "why": "the branch is not the kernel's"})
            return
        self.kernels[request["pid"]] = request["id"], request["tag"]
        self.tell({"op": "forked", "id": request["id"], "pid": request["pid"]})
        with contextlib.suppress(OSError):
            os.kill(between, signal.SIGKILL)
        if not Path(f"/proc/{request['pid']}").exists():
            del self.kernels[request["pid"]]
            self.tell({"op": "failed", "id": request["id"], "why": "the branch has ended"})

    def reap(self) -> None:
        """Report every child that has ended, and end what it left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.clerks.discard(pid)
            if (kernel := self.kernels.pop(pid, None)) is not None:
                kill_group(pid, signal.SIGKILL)
                self.end_strays(kernel[1])
                self.tell({"op": "exit", "id": kernel[0], "status": status})

    def end_strays(self, session: str) -> None:
        """Kill what the session's cells started and detached: it is this process's child now (a subreaper)."""
        for _ in range(8):
            found = False
            with contextlib.suppress(OSError):
                for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
                    if pid not in self.kernels and pid not in self.clerks and session_of(pid) in (session, None):
                        found = True
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)
                            os.waitpid(pid, 0)
            if not found:
                return

    def end(self) -> None:
        """Kill all kernels and what they started; remove the root where the host died."""
        if self.contained:
            return  # with its first process a container ends, and what was in it
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
        if os.getppid() != self.parent or not Path(f"/proc/{self.parent}").exists():
            shutil.rmtree(self.root, ignore_errors=True)


def control_socket(given: str) -> socket.socket:
    """The control socket, from a descriptor or a path."""
    if given.isdigit():
        return socket.socket(fileno=int(given))
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(given)
    return control


def let_go_of_output() -> None:
    """Nothing more goes to the engine's log: what is written there costs the engine, not the container."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def load_beside(name: str) -> Any:
    """Import a file beside this one; they import each other relatively, in a package of no file of its own."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(Path(__file__).parent)]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


def join_pages() -> None:
    """Put private memory into huge pages where the system can: a fork copies page tables, and huge pages need few."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _, _, inode, *_ = line.split()
        start, end = (int(edge, 16) for edge in span.split("-"))
        start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if permissions == "rw-p" and inode == "0" and start < end:
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def kill_group(pid: int, number: int) -> None:
    """Signal a kernel's process group; the kernel alone where it has none yet."""
    try:
        os.killpg(pid, number)
    except OSError:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def parent_of(pid: int) -> int:
    """Parent of a process; 0 where there is none."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def end_forks(pid: int) -> None:
    """Kill what a kernel has forked, but not what its cells started: that carries the session's tag."""
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            if session_of(child) is None:
                end_forks(child)
                os.kill(child, signal.SIGKILL)


def session_of(pid: int) -> str | None:
    """The session a process carries in its environment; None where it has none or is gone."""
    with contextlib.suppress(OSError):
        for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if item.startswith(TAG.encode() + b"="):
                return item.split(b"=", 1)[1].decode()
    return None


if __name__ == "__main__":
    contained = not sys.argv[1].isdigit()
    imports = contextlib.ExitStack()
    if contained:
        _libc.prctl(PR_SET_DUMPABLE, 0)
        imports.enter_context(load_beside("forkedimports").packed())
    server = Server(control_socket(sys.argv[1]), sys.argv[2], contained)
    names = [name for name in sys.argv[3].split(",") if name]
    this = sys.modules["__main__"]  # the shell puts its own module in this place
    sys.argv = ["ipykernel_launcher"]
    sys.path[0] = ""
    try:
        with imports:
            server.prepare(names)
        server.serve()
    finally:
        server.end()
