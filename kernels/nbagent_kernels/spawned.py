"""A kernel that is a process of its own inside a container: R's, or any other with a kernelspec there."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nbagent_kernels.container import PYTHON
from nbagent_kernels.environment import rlimits
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.filestream import Frames
from nbagent_kernels.forkedwire import END_S
from nbagent_kernels.jupyterwire import JupyterWire
from nbagent_kernels.local import command
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import cause_of, first, settle
from nbagent_kernels.workspace import Workspace, next_number

if TYPE_CHECKING:
    from nbagent_kernels.containerserver import ContainerServer


async def spawn(server: ContainerServer, spec: SessionSpec, workspace: Workspace) -> SpawnedWire:
    """Start the kernel that the spec names, or the one of its language. Raises KernelStartError."""
    try:
        answer = await server.files({"verb": "kernelspecs"}, Frames.hear)
        argv, extra, language, mode = command(spec, PYTHON, answer["specs"])
    except (OSError, KeyError, TypeError) as error:
        raise KernelStartError(f"the sandbox does not say which kernels it has: {error}") from error
    wire = SpawnedWire(server, spec, workspace, language, mode)
    await wire.begin(argv, extra)
    return await wire.come_up_in_time()


class SpawnedWire(JupyterWire):
    """Its sockets are connected inside the container and handed out, connected."""

    def __init__(
        self, server: ContainerServer, spec: SessionSpec, workspace: Workspace, language: str, interrupt_mode: str
    ) -> None:
        super().__init__(spec, workspace, language, interrupt_mode)
        self._server = server
        self.id = server.expect(self)
        self._folder = workspace.folder / f"k{next_number()}"
        self._interrupts = 0
        self._quiet: asyncio.Future[None] | None = None
        self._unconfirmed: asyncio.TimerHandle | None = None

    async def begin(self, argv: list[str], extra: Mapping[str, str]) -> None:
        """Have the process started. Raises KernelStartError."""
        connection = self._folder / "connection.json"
        environment = self._server.environment(self._spec, self._workspace)
        own = {"IPYTHONDIR": str(self._folder / "ipython"), "PYTHONHASHSEED": str(self._spec.seed % (1 << 32))}
        request = {
            "op": "spawn",
            "id": self.id,
            "tag": str(self._workspace.number),
            "cwd": str(self._workspace.work),
            "argv": [part.replace("{connection_file}", str(connection)) for part in argv],
            "folder": str(self._folder),
            "connection": self.connection(self._folder),
            "env": {**environment["env"], **own, **extra, **self._spec.env},
            "keep": environment["keep"],
            "rlimits": rlimits(self._spec.limits),
        }
        await self._server.send(request, [])

    async def calm(self) -> None:
        """Wait for the server's word that it has passed on every interrupt."""
        if self._interrupts:
            self._quiet = self._loop.create_future()
            await first(self._quiet, self.dead, timeout=END_S)

    def kill(self) -> None:
        """SIGKILL to the kernel's process group and what it detached; `dead` also where the server does not confirm."""
        if not self.dead.done():
            self._server.order({"op": "drop", "id": self.id})
            if self._unconfirmed is None:
                why = f"killed; the fork server did not confirm its end within {END_S:g} s"
                self._unconfirmed = self._loop.call_later(END_S, self.ended, {"op": "failed", "why": why})

    def forked(self, pid: int) -> None:
        """The server says which process the kernel is."""

    def passed_on(self) -> None:
        """The server has sent the kernel a signal."""
        self._interrupts -= 1
        if not self._interrupts and self._quiet is not None:
            settle(self._quiet)

    def ended(self, word: Mapping[str, Any]) -> None:
        """The server says that this kernel is gone (and reaped)."""
        if self.dead.done():
            return
        if self._unconfirmed is not None:
            self._unconfirmed.cancel()
        self._channels.drain()
        self._channels.close()
        self._last_words = str(word.get("said", ""))[-2000:]
        starved = self._workspace.oom_kills() > self._ooms
        self.dead.set_result(word["why"] if word["op"] == "failed" else cause_of(word["status"], starved))

    def _signal(self, number: int) -> None:
        if not self.dead.done():
            self._interrupts += number == signal.SIGINT
            self._server.order({"op": "signal", "id": self.id, "signal": int(number)})

    async def _connect(self) -> bool:
        """Have the server's side connect to the kernel's sockets and take them over."""
        ports = (1, 2, 3, 5)
        try:
            socks = await self._server.descriptors({"verb": "connect", "place": f"{self._folder}/s", "ports": ports})
        except OSError:
            return False
        dialled: dict[int, socket.socket] = dict(zip(ports, socks, strict=True))
        return self._channels.connect(dialled.__getitem__)
