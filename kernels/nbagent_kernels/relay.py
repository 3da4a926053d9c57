"""Speaks Jupyter's protocol for one live kernel: sockets and signed messages outside, a Wire inside.

Shell requests are given to the kernel one at a time, in order; kernel_info is answered here. What a kernel sends is
passed on only under the request that it answers, whose id nobody can guess before, as one of the known kinds, and
under a cap per request. There is no
stdin: a cell that asks for input gets the kernel's own error. Message buffers (binary widget data) are not passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session as Signer

from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.wire import Message, Wire, first, settle

CHANNELS: Mapping[str, int] = {
    "shell": zmq.ROUTER,
    "control": zmq.ROUTER,
    "stdin": zmq.ROUTER,
    "hb": zmq.ROUTER,
    "iopub": zmq.PUB,
}
"""Jupyter's five sockets, as a kernel binds them."""
OUTPUTS = {"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"}
COMMS = {"comm_open", "comm_msg", "comm_close"}
ASKED = {f"{name}_request" for name in ("execute", "complete", "inspect", "is_complete", "history", "comm_info")}
WAIT_S = 1.0
"""Seconds to wait for the other one of reply and idle status, where it may have been lost."""
INFO_S = 60.0
"""Seconds that a kernel which has started may take to say what it is."""
LINGER_MS = 1000
_AT_ONCE = 64
_RECENT = 64
_context: tuple[int, Any] | None = None


@dataclass(slots=True)
class _Request:
    """One request of a client, from its arrival to its idle status."""

    idents: list[bytes]
    message: Mapping[str, Any]
    id: str = ""
    replied: bool = False
    idle: bool = False
    aborted: bool = False
    passed: int = 0
    dropped: int = 0
    traceback: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.message["header"]["msg_type"])

    @property
    def content(self) -> Mapping[str, Any]:
        content = self.message["content"]
        return content if isinstance(content, dict) else {}


class Relay:
    """The five sockets of one kernel, which may be restarted behind them. Lives on one asyncio loop.

    Args:
        info: Jupyter's connection info; a tcp port of 0 takes a free one.
        folder: where ipc sockets lie; links at the info's own paths lead to them.
        output_bytes: most that is passed on of one request's output.

    Attributes:
        ports: the ports by name, `shell_port` and so on, as they were bound.

    Raises:
        KernelStartError: an address is taken.
    """

    def __init__(self, info: Mapping[str, Any], folder: Path, output_bytes: int) -> None:
        self.ports: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._info = info
        self._folder = folder
        self._output_bytes = output_bytes
        self._signer = Signer(key=info["key"], signature_scheme=info["signature_scheme"])
        self._sockets: dict[str, Any] = {}
        self._wire: Wire | None = None
        self._kernel_info: Mapping[str, Any] = {}
        self._queue: deque[_Request] = deque()
        self._now: _Request | None = None
        self._recent: OrderedDict[str, _Request] = OrderedDict()
        try:
            for name, kind in CHANNELS.items():
                self._bind(name, kind)
        except zmq.ZMQError as error:
            self.close()
            raise KernelStartError(f"{info['transport']} address for the kernel's sockets: {error}") from error

    def _bind(self, name: str, kind: int) -> None:
        sock = self._sockets[name] = shared_context().socket(kind)
        sock.linger = LINGER_MS
        # Output is capped where it comes in; a message that was taken in is not lost to a slow reader.
        sock.sndhwm = 0
        port = int(self._info[f"{name}_port"])
        if self._info["transport"] == "ipc":
            sock.bind(f"ipc://{self._folder / name}")
        else:
            sock.bind(f"tcp://{self._info['ip']}:{port or '*'}")
            port = int(sock.getsockopt(zmq.LAST_ENDPOINT).rpartition(b":")[2])
        self.ports[f"{name}_port"] = port
        if kind == zmq.ROUTER:
            self._loop.add_reader(sock.getsockopt(zmq.FD), self._take_in, name)

    async def attach(self, wire: Wire) -> None:
        """Serve this kernel from now on; requests to the one before are forgotten. Raises KernelStartError."""
        self._wire = wire
        self._now = None
        self._queue.clear()
        self._recent.clear()
        if self._info["transport"] == "ipc":
            self._link()
        answered = self._loop.create_future()

        def take(message: Message) -> bool:
            """The first answer, which says what the kernel is."""
            if message.kind == "kernel_info_reply" and message.parent == "info":
                self._kernel_info = message.content
                settle(answered)
            return False

        wire.listen(take)
        wire.request("info", {}, "kernel_info_request")
        if not await first(answered, wire.dead, timeout=INFO_S):
            raise KernelStartError(f"the kernel did not say within {INFO_S:g} s what it is")
        if wire.dead.done():
            raise KernelStartError(f"the kernel ended while it started: {wire.dead.result()}")
        wire.listen(self._heard)
        for name in self._sockets:
            self._take_in(name)

    def _link(self) -> None:
        """The paths that clients connect to; a manager removes them at each shutdown, restarts included."""
        for name in CHANNELS:
            link = Path(f"{self._info['ip']}-{self.ports[f'{name}_port']}")
            link.unlink(missing_ok=True)
            link.symlink_to(self._folder / name)

    def close(self) -> None:
        """Close the sockets; what was sent is still delivered. Idempotent."""
        if self._wire is not None:
            self._wire.listen(None)
            self._wire = None
        for name, sock in self._sockets.items():
            if CHANNELS[name] == zmq.ROUTER:
                self._loop.remove_reader(sock.getsockopt(zmq.FD))
            sock.close()
        self._sockets.clear()

    def interrupt(self) -> None:
        """Interrupt what runs; where nothing does, an interrupt would hit what comes next."""
        if self._wire is not None and self._now is not None:
            self._wire.interrupt()

    def _take_in(self, name: str) -> None:
        """What clients sent on one socket; cells wait there while no kernel lives, what is for the dead one is lost."""
        for _ in range(_AT_ONCE):
            sock = self._sockets.get(name)
            alive = self._wire is not None and not self._wire.dead.done()
            if sock is None or CHANNELS[name] != zmq.ROUTER or not (alive or name == "control"):
                return
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if name == "hb":
                sock.send_multipart(frames)
                continue
            with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):
                idents, parts = self._signer.feed_identities(frames)
                request = _Request(idents, self._signer.deserialize(parts))
                if name == "control" and alive:
                    self._control(request)
                elif name == "shell":
                    self._queue.append(request)
                    self._next()
        self._loop.call_soon(self._take_in, name)

    def _control(self, request: _Request) -> None:
        """Answered at once, whatever runs."""
        self._publish("status", {"execution_state": "busy"}, request)
        if request.kind == "interrupt_request":
            self.interrupt()
            self._send("control", "interrupt_reply", {"status": "ok"}, request)
        elif self._wire is not None and request.kind == "shutdown_request":
            content = {"status": "ok", "restart": bool(request.content.get("restart"))}
            self._send("control", "shutdown_reply", content, request)
            self._publish("shutdown_reply", content, request)
            self._wire.kill()
        elif request.kind == "kernel_info_request":
            self._send("control", "kernel_info_reply", self._kernel_info, request)
        self._publish("status", {"execution_state": "idle"}, request)

    def _next(self) -> None:
        """Begin the next request if none runs."""
        while self._now is None and self._queue and self._wire is not None:
            request = self._queue.popleft()
            self._publish("status", {"execution_state": "busy"}, request)
            if request.kind in ASKED | COMMS and not request.aborted:
                self._begin(request, self._wire)
                continue
            if request.aborted:
                self._send("shell", "execute_reply", {"status": "aborted"}, request)
            elif request.kind == "kernel_info_request":
                self._send("shell", "kernel_info_reply", self._kernel_info, request)
            self._publish("status", {"execution_state": "idle"}, request)

    def _begin(self, request: _Request, wire: Wire) -> None:
        request.id = secrets.token_hex(8)
        self._now = self._recent[request.id] = request
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        content = dict(request.content)
        if request.kind == "execute_request":
            # The queue is here, so that aborting it is too.
            content |= {"allow_stdin": False, "stop_on_error": False}
        request.replied = request.kind in COMMS
        wire.request(request.id, content, request.kind)

    def _heard(self, message: Message) -> bool:
        """The wire's listener."""
        now = self._now
        if message.kind == "dropped":
            if now is not None:
                now.dropped += message.size
            return True
        request = self._recent.get(message.parent)
        if request is None:
            return False
        if message.kind in OUTPUTS | COMMS:
            return self._output(message, request)
        if request is not now:
            return False
        if message.kind == "execute_input":
            shown = {**message.content, "code": request.content.get("code", "")}
            self._publish("execute_input", shown, request)
            return False
        if message.kind == request.kind.replace("_request", "_reply") and not request.replied:
            self._reply(dict(message.content), request)
        elif message.kind == "status" and message.content.get("execution_state") == "idle":
            request.idle = True
        else:
            return False
        if request.replied and request.idle:
            self._finish(request)
        else:
            self._loop.call_later(WAIT_S, self._finish, request)
        return False

    def _output(self, message: Message, request: _Request) -> bool:
        request.passed += message.size
        if message.kind == "error":
            request.traceback = message.content.get("traceback") or []
        elif request.passed > self._output_bytes:
            request.dropped += message.size
            return True
        self._publish(message.kind, message.content, request)
        return False

    def _reply(self, content: dict[str, Any], request: _Request) -> None:
        request.replied = True
        if request.kind == "execute_request":
            if content.get("status") == "ok":
                content = {"payload": [], "user_expressions": {}, **content}
            else:
                content = {"traceback": request.traceback, **content}
            if content.get("status") == "error" and request.content.get("stop_on_error", True):
                self._take_in("shell")
                for waiting in self._queue:
                    waiting.aborted = waiting.kind == "execute_request"
        self._send("shell", request.kind.replace("_request", "_reply"), content, request)

    def _finish(self, request: _Request) -> None:
        """Say that it is over, once; supply what the kernel lost."""
        if request is not self._now or self._wire is None or self._wire.dead.done():
            return
        if not request.replied:
            self._reply(
                {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "execution_count": None}, request
            )
        if request.dropped:
            text = f"[nbagent: {request.dropped} bytes of output dropped, the cap is {self._output_bytes}]\n"
            self._publish("stream", {"name": "stderr", "text": text}, request)
        self._now = None
        self._publish("status", {"execution_state": "idle"}, request)
        self._next()

    def _publish(self, kind: str, content: Mapping[str, Any], request: _Request) -> None:
        self._send("iopub", kind, content, request, [kind.encode()])

    def _send(
        self, name: str, kind: str, content: Mapping[str, Any], request: _Request, idents: list[bytes] | None = None
    ) -> None:
        sock = self._sockets.get(name)
        if sock is None:
            return
        idents = request.idents if idents is None else idents
        try:
            self._signer.send(sock, kind, dict(content), parent=request.message, ident=idents)
        except (ValueError, TypeError, RecursionError):
            # Lone surrogates, which no UTF-8 text can hold.
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                text = json.dumps(dict(content), ensure_ascii=False).encode("utf-8", "replace")
                self._signer.send(sock, kind, json.loads(text), parent=request.message, ident=idents)
        if name != "iopub":
            # zmq's descriptor is edge-triggered: a send may have eaten the edge of a message that came in.
            self._loop.call_soon(self._take_in, name)


def shared_context() -> Any:
    """One zmq context for all relays of this process."""
    global _context
    if _context is None or _context[0] != os.getpid():
        _context = (os.getpid(), zmq.Context())
    return _context[1]
