"""The line to one live kernel: requests go out, messages come in, its death is known at once and with its cause."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the kernel."""

    kind: str
    """Jupyter's message type; `dropped` stands for what was too large to take in: with {"reply": True} in its content
    a reply may have been among it."""
    parent: str
    """Id of the request it answers."""
    content: Mapping[str, Any]
    """Jupyter's content."""
    size: int
    """Bytes on the wire."""


Listener = Callable[[Message], bool]
"""Takes a message; True asks the wire to slow down (the kernel is flooding)."""


def message(kind: Any, parent: Any, content: Any, size: int) -> Message | None:
    """A message as a kernel sent it, None where it is none: user code can forge anything."""
    if type(kind) is str and type(parent) is str and isinstance(content, Mapping) and kind != "dropped":
        return Message(kind, parent, content, size)
    return None


class Wire(Protocol):
    """What a backend gives the session for one kernel process. All calls from the session's loop."""

    dead: asyncio.Future[str]
    """Done when the kernel has ended, with the cause; messages that it sent before have been delivered by then."""

    def listen(self, listener: Listener | None) -> None:
        """Who takes the messages from now on; None drops them."""
        ...

    def request(self, parent: str, content: Mapping[str, Any], kind: str = "execute_request") -> None:
        """Send a request of Jupyter's shell channel with `parent` as its id."""
        ...

    def interrupt(self) -> None:
        """Interrupt what runs now."""
        ...

    async def calm(self) -> None:
        """Wait until no interrupt is under way any more that could hit the next request."""
        ...

    def kill(self) -> None:
        """Kill the kernel and all it started; `dead` follows."""
        ...

    async def branch(self, spec: SessionSpec, source: Workspace, target: Workspace) -> Wire:
        """Fork the live kernel, which runs no cell, out of `source` into `target`, whose folders become copies.

        Raises CannotBranch: it cannot be forked, or its fork did not come up; the kernel is as it was.
        """
        ...

    async def close(self) -> None:
        """Kill, wait for the end, release everything. Idempotent."""
        ...


def cause_of(status: int, starved: bool) -> str:
    """The cause of a death, from a wait status and whether something was killed for want of memory meanwhile."""
    if not os.WIFSIGNALED(status):
        return f"exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and starved:
        return "out of memory"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(number).name}"
    return f"signal {number}"


def settle(future: asyncio.Future[None]) -> None:
    """Mark as done, once."""
    if not future.done():
        future.set_result(None)


async def first(a: asyncio.Future[None], b: asyncio.Future[str], timeout: float | None) -> bool:
    """Wait until one of the two is done; False where neither was in time. Cancels neither."""
    if a.done() or b.done():
        return True
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        """One of the two is done."""
        settle(waiter)

    a.add_done_callback(wake)
    b.add_done_callback(wake)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await waiter
        return a.done() or b.done()
    finally:
        a.remove_done_callback(wake)
        b.remove_done_callback(wake)
