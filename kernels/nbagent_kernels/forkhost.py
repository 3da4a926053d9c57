"""The host's side of a fork server: requests go out over its control socket, its word on each kernel comes in."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nbagent_kernels.branching import branch_kernel
from nbagent_kernels.environment import rlimits
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.forkedwire import ForkedWire, largest_frame
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import Workspace

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
"""What a fork server imports where the spec names nothing; what is not installed is skipped and logged."""
HASH_SEED = 0
"""PYTHONHASHSEED of every forked kernel: it is the server's and cannot change at a fork."""
# Run as a file, the server would have its folder on the path, where types.py hides the standard library's.
RUN = "import sys; __file__ = sys.argv.pop(1); exec(compile(open(__file__).read(), __file__, 'exec'))"
PACKET = 1 << 18
"""Bytes of the largest packet that is taken in."""
HEARD_AT_ONCE = 32
"""Packets that are taken in before others on this loop have their turn."""
ANSWERS = 2
"""Packets that a request may bring: that a kernel is there, and how it ended."""
TAKEN_S = 30.0
"""Seconds within which the server must take a request."""
WHY_CHARS = 2000
_SHAPES: dict[str, dict[str, type]] = {
    "ready": {"skipped": dict, "threads": int, "seconds": float},
    "forked": {"id": int, "pid": int},
    "signaled": {"id": int},
    "exit": {"id": int, "status": int},
    "failed": {"id": int, "why": str},
}
_RANGES = {"pid": range(1, 1 << 22), "status": range(1 << 16)}
_ids = itertools.count(1)


class Heard(Protocol):
    """A wire, as the server's word on its kernel comes in."""

    dead: asyncio.Future[str]
    unheard: bool
    """The server did not confirm that the kernel has ended."""

    def forked(self, pid: int) -> None:
        """Its process is there."""
        ...

    def passed_on(self) -> None:
        """A signal has been sent."""
        ...

    def ended(self, word: Mapping[str, Any]) -> None:
        """It is gone."""
        ...


class ForkServer:
    """One fork server, wherever its process runs.

    Args:
        control: the host's end of its control socket, taken over.
    """

    def __init__(self, control: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires: dict[int, Heard] = {}
        self._ready: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        self.ended = False
        """True when no more kernels can come from it."""
        self._control = control
        self._owed = 1
        """Packets that the server may still send: it speaks when asked, and says once that it is ready."""
        control.setblocking(False)
        self._loop.add_reader(control, self._readable)

    def plan(self, spec: SessionSpec, workspace: Workspace, branch: bool) -> dict[str, Any]:
        """What confines a kernel, as confine.py takes it."""
        raise NotImplementedError

    def environment(self, spec: SessionSpec, workspace: Workspace) -> Mapping[str, Any]:
        """Of a kernel: `env`, its variables, and `keep`, names of those that it takes over from the server."""
        raise NotImplementedError

    async def copy(self, source: Workspace, target: Workspace) -> None:
        """Copy a session's folders to those of its branch. Raises CannotBranch."""
        raise NotImplementedError

    def _gone(self) -> None:
        """The control socket has closed: find out why and tell it by `_tell_end`."""
        raise NotImplementedError

    def _unheard(self) -> None:
        """The server does not take requests, or does not do what they ask; on this host nothing can be done then."""

    async def fork(self, spec: SessionSpec, workspace: Workspace) -> ForkedWire:
        """A new kernel. Raises KernelStartError."""
        ours, theirs = socket.socketpair()
        wire = self.wire(ours, spec, workspace)
        request = {
            "op": "fork",
            "id": wire.id,
            "tag": str(workspace.number),
            "cwd": str(workspace.work),
            **self.environment(spec, workspace),
            "seed": spec.seed,
            "rlimits": rlimits(spec.limits),
            "confine": self.plan(spec, workspace, branch=False),
            "largest": largest_frame(spec.limits),
        }
        with theirs:
            try:
                await self.send(request, [theirs.fileno()])
                await wire.wait_ready(spec.limits.start_s)
            except BaseException:
                await wire.close()
                raise
        return wire

    def wire(self, sock: socket.socket, spec: SessionSpec, workspace: Workspace) -> ForkedWire:
        """A wire that hears from the server of its kernel's end."""
        number = next(_ids)
        wire = ForkedWire(number, sock, spec, workspace, self.order, functools.partial(branch_kernel, self))
        self._expect(number, wire)
        return wire

    def expect(self, wire: Heard) -> int:
        """The id of a kernel to come; its wire hears from the server of its end."""
        number = next(_ids)
        self._expect(number, wire)
        return number

    def _expect(self, number: int, wire: Heard) -> None:
        def dead(_: object) -> None:
            """It needs to hear no more."""
            self._wires.pop(number, None)
            if wire.unheard:
                self._unheard()

        self._wires[number] = wire
        wire.dead.add_done_callback(dead)

    async def send(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Send a request with descriptors. Raises KernelStartError."""
        packet, until = json.dumps(request).encode(), self._loop.time() + TAKEN_S
        while not self.ended:
            try:
                socket.send_fds(self._control, [packet], fds)
                self._owed += ANSWERS
                return
            except BlockingIOError:
                if self._loop.time() > until:
                    self._unheard()
                    raise KernelStartError(f"the fork server has taken no request for {TAKEN_S:g} s") from None
                await asyncio.sleep(0.001)  # the server is busy forking
            except OSError as error:
                raise KernelStartError(f"the fork server is gone: {error}") from error
        raise KernelStartError("the fork server is gone")

    def order(self, request: Mapping[str, Any], until: float = 0.0) -> None:
        """Send a request without a descriptor; retried while the server is busy, up to a time of the loop's."""
        if self.ended:
            return
        try:
            self._control.send(json.dumps(request).encode())
            self._owed += ANSWERS
        except BlockingIOError:
            until = until or self._loop.time() + TAKEN_S
            if self._loop.time() < until:
                self._loop.call_later(0.001, self.order, request, until)
            else:
                self._unheard()
        except OSError:
            self._lost()

    def _readable(self) -> None:
        for _ in range(HEARD_AT_ONCE):
            try:
                packet = self._control.recv(PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            self._owed -= 1
            message = valid(packet) if self._owed >= 0 else None
            if message is None:
                # It has ended, or it is no longer the server that speaks: whoever took it over is given no say.
                self._lost()
                return
            self._hear(message)
            if self.ended:
                return

    def _hear(self, message: Mapping[str, Any]) -> None:
        if message["op"] == "ready":
            if not self._ready.done():
                self._ready.set_result(message)
        elif (wire := self._wires.get(message["id"])) is None:
            pass
        elif message["op"] == "forked":
            wire.forked(message["pid"])
        elif message["op"] == "signaled":
            wire.passed_on()
        else:
            wire.ended(message)

    def _lost(self) -> None:
        if self.ended:
            return
        self.ended = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._control)
        self._control.close()
        self._gone()

    def _tell_end(self, why: str) -> None:
        """All kernels have ended with the server."""
        for wire in list(self._wires.values()):
            wire.ended({"op": "failed", "why": why})


def valid(packet: bytes) -> Mapping[str, Any] | None:
    """A packet as the server sends it; None for any other."""
    try:
        message = json.loads(packet)
        shape = _SHAPES[message["op"]]
        if set(message) != {"op", *shape} or any(type(message[name]) is not kind for name, kind in shape.items()):
            return None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if any(name in message and message[name] not in span for name, span in _RANGES.items()):
        return None
    return {**message, "why": message["why"][-WHY_CHARS:]} if "why" in message else message
