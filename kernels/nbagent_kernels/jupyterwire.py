"""The line to a kernel that speaks Jupyter's protocol itself, wherever its process runs."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nbagent_kernels.channels import PORTS, Channels
from nbagent_kernels.errors import CannotBranch, KernelStartError
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import Listener, Message, Wire, first, settle
from nbagent_kernels.workspace import Workspace

MESSAGE_BYTES = 4 << 20
"""Least bound of one message from the kernel, bytes: ipykernel gathers what is printed into large ones."""
END_S = 5.0
"""Seconds that a kernel may live on after it has closed its channels."""
_POLL_S = 0.005
_NUDGE_S = 0.25
_numbers = itertools.count(1)

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


class JupyterWire:
    """Jupyter's shell, control and iopub channels to one kernel process. A Wire: see there."""

    def __init__(self, spec: SessionSpec, workspace: Workspace, language: str, interrupt_mode: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.dead: asyncio.Future[str] = self._loop.create_future()
        self._spec = spec
        self._language = language
        self._interrupt_mode = interrupt_mode
        self._seed = spec.seed
        self._key = secrets.token_hex(16)
        largest = max(MESSAGE_BYTES, 2 * spec.limits.output_bytes + (1 << 18))
        self._channels = Channels(self._key, largest, self._hung_up)
        self._workspace = workspace
        self._ooms = workspace.oom_kills()
        self._last_words = ""

    def connection(self, folder: Path) -> str:
        """Content of the connection file for a kernel that makes its sockets in `folder`."""
        about = {"transport": "ipc", "ip": f"{folder}/s", "key": self._key, "signature_scheme": "hmac-sha256"}
        return json.dumps({**about, "kernel_name": self._spec.kernel or "", **PORTS})

    async def _connect(self) -> bool:
        """Connect to the sockets that the kernel has bound; False where it has not bound all yet."""
        raise NotImplementedError

    def _signal(self, number: int) -> None:
        """Signal the kernel's process group."""
        raise NotImplementedError

    async def come_up_in_time(self) -> Self:
        """Come up within the session's `start_s`; closed where that fails. Raises KernelStartError."""
        seconds = self._spec.limits.start_s
        try:
            async with asyncio.timeout(seconds):
                await self.come_up()
        except TimeoutError:
            await self.close()
            kernel = self._spec.kernel or self._spec.language
            raise KernelStartError(f"kernel {kernel} did not answer within {seconds:g} s{self.said()}") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def come_up(self) -> None:
        """Connect once the kernel has bound, and wait until both channels answer. Raises KernelStartError."""
        while not await self._connect():
            await asyncio.sleep(_POLL_S)
            self._check_alive()
        answered: asyncio.Future[None] = self._loop.create_future()
        heard: set[str] = set()

        def listener(message: Message) -> bool:
            """Which channels have answered."""
            heard.add("shell" if message.kind == "kernel_info_reply" else "iopub")
            if len(heard) == 2:
                settle(answered)
            return False

        self.listen(listener)
        while not answered.done():
            self._channels.send("shell", "kernel_info_request", {}, "start")
            await first(answered, self.dead, timeout=_NUDGE_S)
            self._check_alive()
        if self._language in SEEDS:
            seeded: asyncio.Future[None] = self._loop.create_future()

            def replied(message: Message) -> bool:
                """The seed is set."""
                if message.parent == "seed" and message.kind == "execute_reply":
                    settle(seeded)
                return False

            self.listen(replied)
            code = SEEDS[self._language].format(seed=self._seed % (1 << 31))
            self.request("seed", {"code": code, "silent": True, "store_history": False, "allow_stdin": False})
            await first(seeded, self.dead, timeout=None)
            self._check_alive()
        self.listen(None)

    def said(self) -> str:
        """The end of what the kernel wrote before it could be heard."""
        return f"; it wrote: {self._last_words}" if self._last_words else ""

    def listen(self, listener: Listener | None) -> None:
        """Who takes the messages from now on."""
        self._channels.listener = listener

    def request(self, parent: str, content: Mapping[str, Any], kind: str = "execute_request") -> None:
        """Send a request."""
        self._channels.send("shell", kind, content, parent)

    def interrupt(self) -> None:
        """As the kernelspec asks: a message on the control channel, or SIGINT to the process group."""
        if self._interrupt_mode == "message":
            if not self._channels.unsent("control"):
                self._channels.send("control", "interrupt_request", {}, f"i{next(_numbers)}")
        else:
            self._signal(signal.SIGINT)
            if self._language == "python" and not self._channels.unsent("shell"):
                # ipykernel's handler for an awaiting cell does not wake its own event loop; a request does.
                self._channels.send("shell", "kernel_info_request", {}, "wake")

    async def calm(self) -> None:
        """A signal is with the process when it has been sent."""

    def kill(self) -> None:
        """SIGKILL to the process group and what the cells detached."""
        self._signal(signal.SIGKILL)

    async def branch(self, spec: SessionSpec, source: Workspace, target: Workspace) -> Wire:
        """Raises CannotBranch: this kernel is a process with threads and sockets of its own."""
        raise CannotBranch("a kernel that is no fork of the server's cannot be forked; branch(method='replay') can")

    async def close(self) -> None:
        """Kill, reap, close the sockets."""
        self.kill()
        await asyncio.shield(self.dead)

    def _check_alive(self) -> None:
        if self.dead.done():
            raise KernelStartError(f"the kernel ended while it started: {self.dead.result()}{self.said()}")

    def _hung_up(self) -> None:
        """The kernel closed a channel, as it does when it ends; one that lives on can no longer be heard."""
        self._loop.call_later(END_S, self.kill)
