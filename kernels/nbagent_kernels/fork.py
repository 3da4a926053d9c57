"""Backend `fork`: kernels forked from a server that has the scientific stack imported, in milliseconds each."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbagent_kernels.branching import branch_kernel
from nbagent_kernels.confinement import plan
from nbagent_kernels.environment import base_environment, kernel_environment, rlimits
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.forkedwire import END_S, ForkedWire, largest_frame
from nbagent_kernels.live import LiveSession
from nbagent_kernels.types import SessionSpec
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

_log = logging.getLogger(__name__)
# Run as a file, the server would have this folder on its path, where types.py hides the standard library's.
_RUN = "import sys; __file__ = sys.argv.pop(1); exec(compile(open(__file__).read(), __file__, 'exec'))"
_SERVER = Path(__file__).with_name("forkserver.py")
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
        if sys.platform != "linux":
            raise Unusable("only Linux's processes can be forked with their kernel inside")
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


async def _start(spec: SessionSpec, workspace: Workspace) -> ForkedWire:
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
    known = _servers.get(key)
    if known is None or (_started_well(known) and known.result().ended):
        known = _servers[key] = asyncio.ensure_future(_Server(key[1], preload).start())
    return await asyncio.shield(known)


def _started_well(future: asyncio.Future[_Server]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


class _Server:
    """The host's side of one fork server."""

    def __init__(self, interpreter: str, preload: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires: dict[int, ForkedWire] = {}
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

    async def fork(self, spec: SessionSpec, workspace: Workspace) -> ForkedWire:
        """A new kernel. Raises KernelStartError."""
        ours, theirs = socket.socketpair()
        wire = self.wire(ours, spec, workspace)
        request = {
            "op": "fork",
            "id": wire.id,
            "tag": str(workspace.number),
            "cwd": str(workspace.work),
            "env": kernel_environment(spec, workspace, HASH_SEED),
            "seed": spec.seed,
            "rlimits": rlimits(spec.limits),
            "confine": plan(spec, workspace, spec.interpreter or sys.executable),
            "largest": largest_frame(spec.limits),
        }
        with theirs:
            try:
                await self._send(request, [theirs.fileno()])
                await wire.wait_ready(spec.limits.start_s)
            except BaseException:
                await wire.close()
                raise
        return wire

    def wire(self, sock: socket.socket, spec: SessionSpec, workspace: Workspace) -> ForkedWire:
        """A wire that hears from the server of its kernel's end."""
        wire = ForkedWire(next(_ids), sock, spec, workspace, self.order, functools.partial(branch_kernel, self))
        self._wires[wire.id] = wire
        wire.dead.add_done_callback(lambda _: self._wires.pop(wire.id, None))
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
            elif (wire := self._wires.get(message["id"])) is None:
                continue
            elif message["op"] == "forked":
                wire.forked(message["pid"])
            elif message["op"] == "signaled":
                wire.passed_on()
            else:
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
