"""The host's side of forking a live kernel: what forkedbranch.py does in the kernel, step by step."""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Mapping
from typing import Any, Protocol

from nbagent_kernels.environment import TAG
from nbagent_kernels.errors import CannotBranch, KernelStartError
from nbagent_kernels.forkedwire import ForkedWire
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import Message
from nbagent_kernels.workspace import Workspace

ANSWER_S = 2.0
"""Seconds the kernel may take to fork, and its branch to come up once its files are there."""
SAID_CHARS, SAID_MESSAGES = 500, 20


class Server(Protocol):
    """What the fork server's host side gives."""

    def order(self, request: Mapping[str, Any]) -> None:
        """Send the server a request."""
        ...

    def wire(self, sock: socket.socket, spec: SessionSpec, workspace: Workspace) -> ForkedWire:
        """A registered wire for a kernel to come."""
        ...

    def plan(self, spec: SessionSpec, workspace: Workspace, branch: bool) -> dict[str, Any]:
        """What confines a kernel."""
        ...

    async def copy(self, source: Workspace, target: Workspace) -> None:
        """Copy a session's folders. Raises CannotBranch."""
        ...


async def branch_kernel(
    server: Server, parent: ForkedWire, spec: SessionSpec, source: Workspace, target: Workspace
) -> ForkedWire:
    """Fork the kernel of `parent`, which runs no cell, and copy its session's folders to `target` meanwhile.

    Raises:
        CannotBranch: the kernel says why not, or the branch did not come up; the kernel is as it was.
    """
    request = {
        "source": str(source.folder),
        "target": str(target.folder),
        "cwd": str(target.work),
        "env": {TAG: str(target.number)},
        "confine": server.plan(spec, target, branch=True),
    }
    ours, theirs = socket.socketpair()
    child = server.wire(ours, spec, target)
    said: collections.deque[str] = collections.deque(maxlen=SAID_MESSAGES)

    def listener(message: Message) -> bool:
        """Keep what the branch says last, for the error where it does not come up."""
        said.append(str(message.content.get("text", ""))[-SAID_CHARS:])
        return True

    child.listen(listener)
    answered: asyncio.Future[str] | None = None
    try:
        with theirs:
            answered = parent.ask_branch(request, theirs.fileno())
        pid = await _pid(parent, child, answered)
        await server.copy(source, target)
        server.order({"op": "adopt", "id": child.id, "tag": str(target.number), "pid": pid, "of": parent.id})
        await child.wait_ready(ANSWER_S)
        if answered is not None:
            await _first(answered, parent.dead)
    except BaseException as error:
        if child.born.done() or (answered is not None and not answered.done()):
            server.order({"op": "abort", "id": child.id, "of": parent.id})
        else:
            child.ended({"op": "failed", "why": "it was not forked"})
        await child.close()
        if isinstance(error, KernelStartError):
            last = "".join(said)[-SAID_CHARS:].strip()
            raise CannotBranch(f"{error}{f'; it said: {last}' if last else ''}") from error
        raise
    child.listen(None)
    return child


async def _pid(parent: ForkedWire, child: ForkedWire, answered: asyncio.Future[str] | None) -> int:
    """The branch's pid. Raises CannotBranch."""
    await _first(parent.dead, child.dead, *((child.born, answered) if answered is not None else ()))
    if child.born.done():
        return child.born.result()
    if answered is not None and answered.done():
        raise CannotBranch(answered.result() or "the branch ended at once")
    if parent.dead.done():
        raise CannotBranch(f"the kernel ended: {parent.dead.result()}")
    if answered is None:
        raise CannotBranch("the kernel does not read what it is sent")
    raise CannotBranch(f"the kernel did not fork within {ANSWER_S:g} s")


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
