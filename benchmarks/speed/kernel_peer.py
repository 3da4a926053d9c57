"""The peer jupyter_client: a cold kernel under an AsyncKernelManager, over ipc as ours are."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

_ids = itertools.count()


class ManagedKernel:
    """One cold kernel and its client."""

    def __init__(self) -> None:
        # Its default name for ipc sockets is shared by all kernels and clashes.
        place = f"{tempfile.gettempdir()}/peer-{os.getpid()}-{next(_ids)}"
        self._manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=place)
        self._client: Any = None

    async def open(self) -> ManagedKernel:
        """Start it and wait until it answers."""
        await self._manager.start_kernel(stderr=subprocess.DEVNULL)
        self._client = self._manager.client()
        self._client.start_channels()
        await self._client.wait_for_ready(timeout=120)
        return self

    async def cell(self, code: str) -> list[str]:
        """Run a cell; its texts."""
        texts: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "execute_result":
                texts.append(content["data"]["text/plain"])
            elif message["msg_type"] == "stream":
                texts.append(content["text"])

        await self._client.execute_interactive(code, output_hook=hear, timeout=120)
        return texts

    @property
    def pid(self) -> int:
        """Of its process."""
        return int(self._manager.provisioner.pid)

    async def close(self) -> None:
        """Kill it."""
        if self._client is not None:
            self._client.stop_channels()
        if self._manager.has_kernel:
            await self._manager.shutdown_kernel(now=True)


def pss_bytes(pid: int) -> int:
    """A process's memory; what it shares counts in equal parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0
