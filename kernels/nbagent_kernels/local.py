"""Backend `local`: a fresh process of any installed kernelspec, spoken to over ipc sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.session import Session as Signer

from nbagent_kernels.environment import TAG, kernel_environment, rlimits
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.guard import Guard, end_tagged
from nbagent_kernels.live import LiveSession
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import Listener, Message, cause_of, first, oom_kills
from nbagent_kernels.workspace import Workspace

LARGEST_MESSAGE = 16 << 20
"""Bytes; a larger message breaks the iopub connection, which is then made anew, and counts as dropped."""
QUEUED_MESSAGES = 200
"""Messages that may wait on the host's side of one iopub socket."""
_AT_ONCE = 64
_POLL_S = 0.005
_NUDGE_S = 0.25
_PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "hb_port": 4, "control_port": 5}
_numbers = itertools.count(1)
_context: tuple[int, Any] | None = None

SEEDS: Mapping[str, str] = {
    "python": (
        "__import__('random').seed({seed})\n"
        "try: __import__('numpy').random.seed({seed})\n"
        "except ImportError: pass\n"
        # The kernel gathers 0.2 s of text into one message, tens of megabytes of a flood; small ones can be capped.
        "for _ in ('stdout', 'stderr'): getattr(__import__('sys'), _).flush_interval = 0.01\n"
        "del _\n"
    ),
    "R": "set.seed({seed})",
}
"""By language: what runs silently in a fresh kernel, before the first cell."""


async def open_local(spec: SessionSpec) -> LiveSession:
    """Open a session in a fresh process of the kernelspec `spec.kernel`, or of the one for `spec.language`.

    Raises:
        KernelStartError: there is no such kernelspec, or its kernel did not come up.
    """
    command(spec)
    return await LiveSession(spec, Workspace(), _start).open()


def command(spec: SessionSpec) -> tuple[list[str], Mapping[str, str], str, str]:
    """The kernel's argv (with `{connection_file}`), its variables, its language and its interrupt mode.

    Raises:
        KernelStartError: nothing installed fits.
    """
    if spec.kernel is None and spec.language == "python":
        python = spec.interpreter or sys.executable
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        return argv, {}, "python", "signal"
    installed = KernelSpecManager().get_all_specs()
    for name, entry in sorted(installed.items()):
        found = entry["spec"]
        if name == spec.kernel or (spec.kernel is None and found["language"].lower() == spec.language.lower()):
            argv = [part.replace("{resource_dir}", entry["resource_dir"]) for part in found["argv"]]
            if argv[0] in ("python", "python3"):  # written by ipykernel, which means its own interpreter
                argv[0] = sys.executable
            return argv, found.get("env") or {}, found["language"], found.get("interrupt_mode", "signal")
    wanted = f"kernelspec {spec.kernel!r}" if spec.kernel else f"kernelspec for {spec.language!r}"
    names = ", ".join(f"{name} ({entry['spec']['language']})" for name, entry in sorted(installed.items())) or "none"
    raise KernelStartError(f"no {wanted} is installed; there are: {names}")


async def _start(spec: SessionSpec, workspace: Workspace) -> _LocalWire:
    wire = _LocalWire(spec, workspace)
    try:
        async with asyncio.timeout(spec.limits.start_s):
            await wire.come_up()
    except TimeoutError:
        await wire.close()
        raise KernelStartError(
            f"kernel {spec.kernel or spec.language} did not answer within {spec.limits.start_s:g} s{wire.said()}"
        ) from None
    except BaseException:
        await wire.close()
        raise
    return wire


class _LocalWire:
    """The line to one kernel process: Jupyter's shell, control and iopub channels over ipc."""

    def __init__(self, spec: SessionSpec, workspace: Workspace) -> None:
        argv, extra, self._language, self._interrupt_mode = command(spec)
        self._loop = asyncio.get_running_loop()
        self.dead: asyncio.Future[str] = self._loop.create_future()
        self._seed = spec.seed
        self._tag = str(workspace.number)
        self._folder = workspace.folder / f"k{next(_numbers)}"
        self._folder.mkdir(mode=0o700)
        key = secrets.token_hex(16)
        connection = self._folder / "connection.json"
        connection.touch(mode=0o600)
        connection.write_text(
            json.dumps(
                {
                    "transport": "ipc",
                    "ip": str(self._folder / "s"),
                    "key": key,
                    "signature_scheme": "hmac-sha256",
                    "kernel_name": spec.kernel or "",
                    **_PORTS,
                }
            )
        )
        self._signer = Signer(key=key.encode(), session=key, username="nbagent")
        self._listener: Listener | None = None
        self._ooms = oom_kills()
        self._sockets: dict[str, Any] = {}
        self._log = self._folder / "kernel.log"
        environment = {**kernel_environment(spec, workspace, spec.seed), **extra, **spec.env}
        with self._log.open("wb") as sink:
            try:
                self._process = subprocess.Popen(
                    [part.replace("{connection_file}", str(connection)) for part in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=environment,
                    cwd=workspace.work,
                    start_new_session=True,
                )
            except OSError as error:
                raise KernelStartError(f"kernel {argv[0]} did not start: {error}") from error
        self._pid = self._process.pid
        self._guard = Guard.of_this_process()
        self._guard.watch(self._pid, self._tag)
        for name, value in rlimits(spec.limits).items():
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(self._pid, getattr(resource, name), (value, value))
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.add_reader(self._pidfd, self._ended)

    async def come_up(self) -> None:
        """Connect once the kernel has bound, and wait until both channels answer. Raises KernelStartError."""
        ends = [self._folder / f"s-{_PORTS[name]}" for name in ("shell_port", "iopub_port", "control_port")]
        while not all(end.exists() for end in ends):
            await asyncio.sleep(_POLL_S)
            self._check_alive()
        self._connect()
        answered: asyncio.Future[None] = self._loop.create_future()
        heard: set[str] = set()

        def listener(message: Message) -> bool:
            heard.add("shell" if message.kind == "kernel_info_reply" else "iopub")
            if len(heard) == 2 and not answered.done():
                answered.set_result(None)
            return False

        self.listen(listener)
        while not answered.done():
            self._send("shell", "kernel_info_request", {}, "start")
            await first(answered, self.dead, timeout=_NUDGE_S)
            self._check_alive()
        if self._language in SEEDS:
            seeded: asyncio.Future[None] = self._loop.create_future()

            def replied(message: Message) -> bool:
                if message.parent == "seed" and message.kind == "execute_reply" and not seeded.done():
                    seeded.set_result(None)
                return False

            self.listen(replied)
            code = SEEDS[self._language].format(seed=self._seed % (1 << 31))
            self.request("seed", {"code": code, "silent": True, "store_history": False, "allow_stdin": False})
            await first(seeded, self.dead, timeout=None)
            self._check_alive()
        self.listen(None)

    def said(self) -> str:
        """The end of what the kernel wrote before it could be heard."""
        try:
            text = self._log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        except OSError:
            text = ""
        return f"; it wrote: {text}" if text else ""

    def listen(self, listener: Listener | None) -> None:
        """Who takes the messages from now on."""
        self._listener = listener

    def request(self, parent: str, content: Mapping[str, Any], kind: str = "execute_request") -> None:
        """Send a request."""
        self._send("shell", kind, content, parent)

    def interrupt(self) -> None:
        """As the kernelspec asks: a message on the control channel, or SIGINT to the process group."""
        if self._interrupt_mode == "message":
            self._send("control", "interrupt_request", {}, f"i{next(_numbers)}")
        else:
            self._signal(signal.SIGINT)
            if self._language == "python":
                # ipykernel's handler for an awaiting cell does not wake its own event loop; a request does.
                self._send("shell", "kernel_info_request", {}, "wake")

    async def calm(self) -> None:
        """A signal is with the process when it has been sent."""

    def kill(self) -> None:
        """SIGKILL to the process group and what the cells detached."""
        self._signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kill, reap, close the sockets."""
        self.kill()
        await asyncio.shield(self.dead)

    def _check_alive(self) -> None:
        if self.dead.done():
            raise KernelStartError(f"the kernel ended while it started: {self.dead.result()}{self.said()}")

    def _signal(self, number: int) -> None:
        if not self.dead.done():  # not reaped yet, so the pid is still this kernel's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

    def _ended(self) -> None:
        """The process is gone: take in what it sent, reap it, end what it left."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for name in self._sockets:
            if name != "monitor":
                self._take_in(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        returncode = self._process.wait()
        end_tagged(TAG, self._tag)
        self._guard.unwatch(self._pid)
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.getsockopt(zmq.FD))
        if "iopub" in self._sockets:
            self._sockets["iopub"].disable_monitor()
        for sock in self._sockets.values():
            sock.close(0)
        self._sockets.clear()
        status = -returncode if returncode < 0 else returncode << 8
        self.dead.set_result(cause_of(status, self._ooms))

    def _connect(self) -> None:
        kinds = {"shell": zmq.DEALER, "iopub": zmq.SUB, "control": zmq.DEALER}
        for name, kind in kinds.items():
            sock = shared_context().socket(kind)
            sock.linger = 0
            sock.setsockopt(zmq.RECONNECT_IVL, 20)
            sock.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE)
            if kind == zmq.SUB:
                sock.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
                sock.setsockopt(zmq.SUBSCRIBE, b"")
                self._sockets["monitor"] = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._sockets[name] = sock
            sock.connect(self._end(name))
            self._loop.add_reader(sock.getsockopt(zmq.FD), self._take_in, name)
        self._loop.add_reader(self._sockets["monitor"].getsockopt(zmq.FD), self._disconnected)
        # The descriptor speaks only of what comes after its socket was once found empty.
        self._disconnected()
        for name in kinds:
            self._take_in(name)

    def _end(self, name: str) -> str:
        return f"ipc://{self._folder / 's'}-{_PORTS[name + '_port']}"

    def _disconnected(self) -> None:
        """A message above the limit broke the iopub connection, which stays deaf unless it is made anew."""
        monitor, iopub = self._sockets.get("monitor"), self._sockets.get("iopub")
        while monitor is not None and iopub is not None and monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            monitor.recv_multipart(zmq.NOBLOCK)
            with contextlib.suppress(zmq.ZMQError):
                iopub.disconnect(self._end("iopub"))
            iopub.connect(self._end("iopub"))
            if self._listener is not None:
                self._listener(Message("dropped", "", {}, LARGEST_MESSAGE))

    def _send(self, channel: str, kind: str, content: Mapping[str, Any], parent: str) -> None:
        if self.dead.done():
            return
        message = self._signer.msg(kind, dict(content))
        message["header"]["msg_id"] = message["msg_id"] = parent
        self._signer.send(self._sockets[channel], message)
        # zmq's descriptor is edge-triggered: a send may have eaten the edge of a message that came in.
        self._loop.call_soon(self._take_in, channel)

    def _take_in(self, name: str) -> None:
        sock = self._sockets.get(name)
        if sock is None:
            return
        for _ in range(_AT_ONCE):
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            size = sum(map(len, frames))
            try:
                _, parts = self._signer.feed_identities(frames)
                message = self._signer.deserialize(parts)
                parent = str((message["parent_header"] or {}).get("msg_id", ""))
                given = Message(str(message["msg_type"]), parent, message["content"], size)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if self._listener is not None:
                self._listener(given)
        self._loop.call_soon(self._take_in, name)


def shared_context() -> Any:
    """One zmq context for all sessions of this process."""
    global _context
    if _context is None or _context[0] != os.getpid():
        _context = (os.getpid(), zmq.Context())
    return _context[1]
