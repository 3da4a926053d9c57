"""Backend `fork`: kernels forked from a server that has the scientific stack imported, in milliseconds each."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbagent_kernels.confinement import plan
from nbagent_kernels.environment import base_environment, kernel_environment
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.forkedwire import ForkedWire
from nbagent_kernels.forkhost import HASH_SEED, PRELOAD, RUN, ForkServer
from nbagent_kernels.live import LiveSession, hosted
from nbagent_kernels.served import END_S
from nbagent_kernels.snapshot import copy_session
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import Workspace, process_root

SERVER_START_S = 120.0
"""Seconds the server may take to import everything, with a cold disk."""

_log = logging.getLogger(__name__)
_SERVER = Path(__file__).with_name("forkserver.py")
_servers: dict[tuple[int, str, tuple[str, ...]], asyncio.Future[_Server]] = {}
_numbers = itertools.count(1)
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
    return await LiveSession(spec, hosted(_start)).open()


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


class _Server(ForkServer):
    """A fork server that is a process of this host's."""

    def __init__(self, interpreter: str, preload: tuple[str, ...]) -> None:
        root = process_root()
        home = root / "server"
        home.mkdir(mode=0o700, exist_ok=True)
        environment = {
            **base_environment(),
            "HOME": str(home),
            "IPYTHONDIR": str(home / ".ipython"),
            "PYTHONHASHSEED": str(HASH_SEED),
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log_file = root / f"forkserver-{next(_numbers)}.log"
        with theirs, self._log_file.open("wb") as sink:
            try:
                self._process = subprocess.Popen(
                    [interpreter, "-c", RUN, str(_SERVER), str(theirs.fileno()), str(root), ",".join(preload)],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=environment,
                    cwd=home,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise Unusable(f"the fork server did not start: {error}") from error
        super().__init__(ours)
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

    def plan(self, spec: SessionSpec, workspace: Workspace, branch: bool) -> dict[str, Any]:
        """Landlock, namespaces and limits; see confinement.plan."""
        return plan(spec, workspace, spec.interpreter or sys.executable, branch=branch)

    def environment(self, spec: SessionSpec, workspace: Workspace) -> Mapping[str, Any]:
        """The allow-list of the host's, and the session's own."""
        return {"env": kernel_environment(spec, workspace, HASH_SEED)}

    async def copy(self, source: Workspace, target: Workspace) -> None:
        """See snapshot.copy_session."""
        await asyncio.to_thread(copy_session, source, target)

    def end(self) -> None:
        """Close the control socket: the server kills its kernels and ends."""
        self._lost()
        atexit.unregister(self.end)

    def _gone(self) -> None:
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
            self._tell_end(f"the fork server ended ({why})")
        with contextlib.suppress(OSError):
            self._log_file.unlink()
