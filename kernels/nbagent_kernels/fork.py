"""Backend `fork`: kernels forked from a server that has the scientific stack imported, in milliseconds each."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbagent_kernels.environment import base_environment, kernel_environment
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.live import LiveSession
from nbagent_kernels.types import Limits, SessionSpec
from nbagent_kernels.wire import Listener, Message, cause_of, oom_kills
from nbagent_kernels.workspace import Workspace, process_root

PRELOAD: tuple[str, ...] = (
    "numpy",
    "pandas",
    "scipy.stats",
    "matplotlib.pyplot",
    "anndata",
    "scanpy",
    "statsmodels.api",
    "statsmodels.formula.api",
    "statsmodels.stats.multitest",
    "sklearn.linear_model",
    "sklearn.ensemble",
    "sklearn.model_selection",
    "sklearn.preprocessing",
    "sklearn.decomposition",
    "sklearn.cluster",
    "sklearn.metrics",
    "sklearn.datasets",
)
"""What the fork server imports where the spec names nothing; what is not installed is skipped and logged."""
HASH_SEED = 0
"""PYTHONHASHSEED of every forked kernel: it is the server's and cannot change at a fork."""
SERVER_START_S = 120.0
"""Seconds the server may take to import everything, with a cold disk."""
END_S = 10.0
"""Seconds to wait for the server's word that a killed kernel is gone."""

_log = logging.getLogger(__name__)
_RUN = "import sys; path = sys.argv.pop(1); exec(compile(open(path).read(), path, 'exec'))"
_SERVER = Path(__file__).with_name("forkserver.py")
_READ = 1 << 18
_PAUSE_S = 0.005
_servers: dict[tuple[int, str, tuple[str, ...]], asyncio.Future[_Server]] = {}
_ids = itertools.count(1)
_warned: set[str] = set()


class Unusable(Exception):
    """The fork server cannot be used here; the message says why."""


async def open_fork(spec: SessionSpec) -> LiveSession:
    """Open a session in a forked kernel; on the backend `local`, with the reason logged, where that cannot be.

    Raises:
        KernelStartError: no kernel came up.
    """
    from nbagent_kernels.local import open_local

    if spec.language != "python" or spec.kernel is not None:
        _fall_back(f"a kernel of {spec.kernel or spec.language} cannot be forked from Python")
        return await open_local(spec)
    try:
        await _server(spec)
    except Unusable as why:
        _fall_back(str(why))
        return await open_local(spec)
    return await LiveSession(spec, Workspace(), _start).open()


def end_servers() -> None:
    """End all fork servers of this process and their kernels. They also end by themselves with the process."""
    for server in [future.result() for future in _servers.values() if _started_well(future)]:
        server.end()
    _servers.clear()


def _fall_back(why: str) -> None:
    if why not in _warned:
        _warned.add(why)
        _log.warning("kernels are started cold (backend local): %s", why)


async def _start(spec: SessionSpec, workspace: Workspace) -> _ForkedWire:
    try:
        server = await _server(spec)
    except Unusable as why:
        raise KernelStartError(str(why)) from why
    return await server.fork(spec, workspace)


async def _server(spec: SessionSpec) -> _Server:
    """The server of this loop, interpreter and set of modules; a new one where there is none or it has died."""
    loop = asyncio.get_running_loop()
    for key, future in list(_servers.items()):
        if future.get_loop().is_closed():
            del _servers[key]
            if _started_well(future):
                future.result().end()
    preload = PRELOAD if spec.preload is None else tuple(spec.preload)
    key = (id(loop), spec.interpreter or sys.executable, preload)
    future = _servers.get(key)
    if future is not None and _started_well(future) and future.result().ended:
        future = None
    if future is None:
        future = _servers[key] = asyncio.ensure_future(_Server(key[1], preload).start())
    return await asyncio.shield(future)


def _started_well(future: asyncio.Future[_Server]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


class _Server:
    """The host's side of one fork server."""

    def __init__(self, interpreter: str, preload: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires: dict[int, _ForkedWire] = {}
        self._ready: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        self.ended = False
        """True when no more kernels can come from it."""
        root = process_root()
        log = root / f"forkserver-{next(_ids)}.log"
        home = root / "server"
        home.mkdir(mode=0o700, exist_ok=True)
        environment = {
            **base_environment(),
            "HOME": str(home),
            "IPYTHONDIR": str(home / ".ipython"),
            "PYTHONHASHSEED": str(HASH_SEED),
        }
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log_file = log
        with theirs, log.open("wb") as sink:
            try:
                self._process = subprocess.Popen(
                    [interpreter, "-c", _RUN, str(_SERVER), str(theirs.fileno()), str(root), ",".join(preload)],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=environment,
                    cwd=home,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                raise Unusable(f"the fork server did not start: {error}") from error
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._readable)
        atexit.register(self.end)

    async def start(self) -> _Server:
        """Wait until the modules are imported. Raises Unusable."""
        try:
            async with asyncio.timeout(SERVER_START_S):
                ready = await self._ready
        except TimeoutError:
            self.end()
            raise Unusable(f"the fork server did not import its modules within {SERVER_START_S:g} s") from None
        if ready["threads"] != 1:
            self.end()
            raise Unusable(f"a module starts {ready['threads'] - 1} threads, so the fork server cannot fork safely")
        for module, why in ready["skipped"].items():
            _log.info("the fork server could not import %s: %s", module, why)
        return self

    async def fork(self, spec: SessionSpec, workspace: Workspace) -> _ForkedWire:
        """A new kernel. Raises KernelStartError."""
        ours, theirs = socket.socketpair()
        wire = _ForkedWire(self, next(_ids), ours, spec.limits)
        self._wires[wire.id] = wire
        request = {
            "op": "fork",
            "id": wire.id,
            "tag": str(workspace.number),
            "cwd": str(workspace.work),
            "env": kernel_environment(spec, workspace, HASH_SEED),
            "seed": spec.seed,
            "rlimits": rlimits(spec.limits),
        }
        with theirs:
            try:
                await self._send(request, [theirs.fileno()])
                await wire.wait_ready(spec.limits.start_s)
            except BaseException:
                await wire.close()
                raise
        return wire

    async def _send(self, request: Mapping[str, Any], fds: list[int]) -> None:
        packet = json.dumps(request).encode()
        while not self.ended:
            try:
                socket.send_fds(self._control, [packet], fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)  # the server is busy forking
            except OSError as error:
                raise KernelStartError(f"the fork server is gone: {error}") from error
        raise KernelStartError("the fork server is gone")

    def order(self, request: Mapping[str, Any]) -> None:
        """Send a request without a descriptor; retried while the server is busy."""
        if self.ended:
            return
        try:
            self._control.send(json.dumps(request).encode())
        except BlockingIOError:
            self._loop.call_later(0.001, self.order, request)
        except OSError:
            self._lost()

    def forget(self, wire: _ForkedWire) -> None:
        """The wire is closed."""
        self._wires.pop(wire.id, None)

    def end(self) -> None:
        """Close the control socket: the server kills its kernels and ends."""
        if not self.ended:
            self._lost()
        atexit.unregister(self.end)

    def _readable(self) -> None:
        while True:
            try:
                packet = self._control.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lost()
                return
            message = json.loads(packet)
            if message["op"] == "ready":
                if not self._ready.done():
                    self._ready.set_result(message)
            elif (wire := self._wires.get(message["id"])) is not None:
                wire.ended(message)

    def _lost(self) -> None:
        self.ended = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._control)
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        code = self._process.returncode
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self._loop.is_closed():
            if not self._ready.done():
                tail = self._log_file.read_bytes()[-2000:].decode("utf-8", "replace").strip()
                self._ready.set_exception(Unusable(f"the fork server ended ({why}): {tail}"))
            for wire in list(self._wires.values()):
                wire.ended({"op": "failed", "why": f"the fork server ended ({why})"})
        with contextlib.suppress(OSError):
            self._log_file.unlink()


class _ForkedWire:
    """The line to one forked kernel: frames of Jupyter messages over a stream pair."""

    def __init__(self, server: _Server, number: int, sock: socket.socket, limits: Limits) -> None:
        self.id = number
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[str] = self._loop.create_future()
        self._server = server
        self._sock = sock
        self._largest = 2 * limits.output_bytes + (1 << 18)
        self._buffer = bytearray()
        self._skip = 0
        self._listener: Listener | None = None
        self._ooms = oom_kills()
        self._outgoing = bytearray()
        self._reading = True
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

    def request(self, parent: str, content: Mapping[str, Any]) -> None:
        """Send an execute_request."""
        body = json.dumps({"type": "execute_request", "parent": parent, "content": content}).encode()
        self._outgoing += struct.pack("!I", len(body)) + body
        self._write()

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group."""
        self._server.order({"op": "signal", "id": self.id, "signal": int(signal.SIGINT)})

    def kill(self) -> None:
        """SIGKILL to the kernel's process group and what it detached."""
        if not self.dead.done():
            self._server.order({"op": "drop", "id": self.id})

    async def close(self) -> None:
        """Kill, wait for the server to have reaped it, close the socket."""
        self.kill()
        try:
            async with asyncio.timeout(END_S):
                await asyncio.shield(self.dead)
        except TimeoutError:
            _log.warning("the fork server did not confirm the end of kernel %d", self.id)
        finally:
            self._server.forget(self)
            self._shut()

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
        return self._give(message)

    def _give(self, message: Message) -> bool:
        return self._listener(message) if self._listener is not None else False


def rlimits(limits: Limits) -> dict[str, int]:
    """The limits as names and values of setrlimit."""
    values = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
    }
    return {name: value for name, value in values.items() if value is not None}
