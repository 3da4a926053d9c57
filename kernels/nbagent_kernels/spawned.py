"""A kernel that is a process of its own inside a container: R's, or any other with a kernelspec there."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbagent_kernels.container import PYTHON
from nbagent_kernels.environment import rlimits
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.filestream import Frames, NoneHandedOut
from nbagent_kernels.jupyterwire import JupyterWire
from nbagent_kernels.local import command
from nbagent_kernels.served import Served
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import cause_of
from nbagent_kernels.workspace import Workspace, next_number

if TYPE_CHECKING:
    from nbagent_kernels.containerserver import ContainerServer


async def spawn(server: ContainerServer, spec: SessionSpec, workspace: Workspace) -> SpawnedWire:
    """Start the kernel that the spec names, or the one of its language. Raises KernelStartError."""
    try:
        answer = await server.files({"verb": "kernelspecs"}, Frames.hear)
        argv, extra, language, mode = command(spec, PYTHON, answer["specs"])
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise KernelStartError(f"the sandbox does not say which kernels it has: {error}") from error
    wire = SpawnedWire(server, spec, workspace, language, mode)
    await wire.begin(argv, extra)
    return await wire.come_up_in_time()


class SpawnedWire(Served, JupyterWire):
    """Its sockets are connected inside the container and handed out, connected."""

    def __init__(
        self, server: ContainerServer, spec: SessionSpec, workspace: Workspace, language: str, interrupt_mode: str
    ) -> None:
        super().__init__(spec, workspace, language, interrupt_mode)
        self._server = server
        self.served_by(server.order, server.expect(self))
        self._folder = workspace.folder / f"k{next_number()}"

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

    def forked(self, pid: int) -> None:
        """The server says which process the kernel is."""

    def ended(self, word: Mapping[str, Any]) -> None:
        """The server says that this kernel is gone (and reaped)."""
        if not self.confirmed():
            return
        self._channels.drain()
        self._channels.close()
        self._last_words = str(word.get("said", ""))[-2000:]
        starved = self._workspace.oom_kills() > self._ooms
        self.dead.set_result(word["why"] if word["op"] == "failed" else cause_of(word["status"], starved))

    def _signal(self, number: int) -> None:
        if not self.dead.done():
            self.send_signal(number)

    async def _connect(self) -> bool:
        """Have the server's side connect to the kernel's sockets and take them over."""
        ports, place = (1, 2, 3, 5), f"{self._folder}/s"
        try:
            try:
                socks = await self._server.descriptors({"verb": "connect", "place": place, "ports": ports})
            except NoneHandedOut:
                socks = await self._relayed(place, ports)
        except OSError:
            return False
        dialled: dict[int, socket.socket] = dict(zip(ports, socks, strict=True))
        return self._channels.connect(dialled.__getitem__)

    async def _relayed(self, place: str, ports: Sequence[int]) -> list[socket.socket]:
        """Sockets behind which the sandbox passes on what comes. Raises OSError."""
        socks: list[socket.socket] = []
        try:
            for port in ports:
                socks.append(await self._server.relayed({"verb": "relay", "place": place, "port": port}))
        except BaseException:
            for sock in socks:
                sock.close()
            raise
        return socks
