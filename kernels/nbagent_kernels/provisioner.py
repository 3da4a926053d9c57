"""Lets Jupyter run its kernels as sessions: nbclient, papermill, nbconvert, jupyter execute, any KernelManager.

A kernelspec asks for it (`nbagent kernelspec install` writes one):

    "metadata": {"kernel_provisioner": {"provisioner_name": "nbagent", "config": {"backend": "fork"}}}

The kernel is a session's: its own working directory, filled from `files` and removed at the end, an environment
without the host's keys, limits, nothing left behind. Manager and clients speak to a Relay; over ipc sockets, unless
the manager was given tcp ports. A kernel cannot outlive the process that started it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerBase
from traitlets import Bool, Dict, List, TraitError, Unicode, validate

from nbagent_kernels import background
from nbagent_kernels.errors import KernelStartError, NotSupported
from nbagent_kernels.live import LiveSession
from nbagent_kernels.relay import CHANNELS, Relay
from nbagent_kernels.session import BACKENDS, open_session
from nbagent_kernels.types import Limits, SessionSpec
from nbagent_kernels.workspace import process_root

OUTPUT_BYTES = 32 << 20
"""Most output of one cell that is passed on, where the config's limits do not say it: a person's notebook may hold
more than an agent's."""


class NbagentProvisioner(KernelProvisionerBase):  # type: ignore[misc]
    """One kernel of a Jupyter manager. Its settings are the kernelspec's `config`."""

    backend = Unicode("fork", config=True, help="Where the kernel runs: a backend of nbagent.")
    files = Unicode(
        None, allow_none=True, config=True, help="Folder copied into the working directory, relative to the manager's."
    )
    kernel = Unicode(None, allow_none=True, config=True, help="Kernelspec that backend local starts.")
    interpreter = Unicode(None, allow_none=True, config=True, help="Python of backend fork; None: the running one.")
    preload = List(
        Unicode(), None, allow_none=True, config=True, help="What the fork server imports; None: the scientific stack."
    )
    network = Bool(False, config=True, help="Allow TCP where the backend could forbid it.")
    limits = Dict(config=True, help="What the kernel may use: fields of nbagent_kernels.Limits.")

    _folder: Path | None = None
    _session: LiveSession | None = None
    _relay: Relay | None = None
    _managed = False

    @validate("backend")
    def _known_backend(self, proposal: Any) -> str:
        if proposal.value not in BACKENDS:
            raise TraitError(f"backend {proposal.value!r} is not there; there are: {', '.join(sorted(BACKENDS))}")
        return str(proposal.value)

    @validate("limits")
    def _known_limits(self, proposal: Any) -> dict[str, Any]:
        known = Limits.__dataclass_fields__
        if unknown := set(proposal.value) - set(known):
            raise TraitError(f"limits has no {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
        return dict(proposal.value)

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel that was not waited for."""
        return self._managed

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Bind the sockets, so that their addresses are free for sure, and write the connection file."""
        manager = self.parent
        kwargs.pop("transport_encryption", None)
        if self._relay is None:
            await background.run(self._bind(manager))
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        command = manager.format_kernel_cmd(extra_arguments=kwargs.pop("extra_arguments", []))
        return dict(await super().pre_launch(cmd=command, **kwargs))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Open the session, or restart it in its directory. Returns the connection info. Raises KernelStartError."""
        background.at_end(self, self._end)
        if self._session is None:
            await background.run(self._open(self._spec(kwargs)))
        else:
            await background.run(self._restart())
        self._managed = True
        return self.connection_info

    async def poll(self) -> int | None:
        """None while the kernel lives, then its exit status, negative for a signal as in subprocess."""
        wire = self._session.wire if self._session is not None else None
        if wire is None:
            return 0
        return exit_status(wire.dead.result()) if wire.dead.done() else None

    async def wait(self) -> int | None:
        """Wait until the kernel has ended; its exit status."""
        await background.run(self._dead())
        self._managed = False
        return await self.poll()

    async def send_signal(self, signum: int) -> None:
        """SIGINT interrupts, SIGTERM and SIGKILL end the kernel. Raises NotSupported for others."""
        if signum == signal.SIGINT:
            await background.run(self._interrupt())
        elif signum in (signal.SIGTERM, signal.SIGKILL):
            await background.run(self._kill())
        elif signum:
            raise NotSupported(f"signal {signum} cannot be sent to a sandboxed kernel; SIGINT and SIGKILL can")

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel and all that it started."""
        await background.run(self._kill())

    async def terminate(self, restart: bool = False) -> None:
        """The same: nothing in its directory outlives it anyway."""
        await background.run(self._kill())

    async def cleanup(self, restart: bool = False) -> None:
        """Release everything; before a restart, keep the working directory and the sockets."""
        if not restart:
            await background.run(self._end())
            background.at_end(self, None)
            self._managed = False

    def _spec(self, kwargs: dict[str, Any]) -> SessionSpec:
        here = Path(kwargs.get("cwd") or Path.cwd())
        limits = {"output_bytes": OUTPUT_BYTES, **self.limits}
        return SessionSpec(
            language="python" if self.kernel_spec.language.lower() == "python" else self.kernel_spec.language,
            kernel=self.kernel,
            interpreter=self.interpreter,
            capsule=None if self.files is None else (here / self.files).resolve(),
            limits=Limits(**limits),
            env={name: kwargs["env"][name] for name in self.kernel_spec.env},
            preload=self.preload,
            network=self.network,
        )

    async def _bind(self, manager: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="j", dir=process_root()))
        if manager.transport == "tcp" and not any(manager.ports):
            manager.transport, manager.ip = "ipc", str(self._folder / "s")
        if manager.transport == "ipc":
            for port, name in enumerate(CHANNELS, 1):
                if not getattr(manager, f"{name}_port"):
                    setattr(manager, f"{name}_port", port)
        output_bytes = self.limits.get("output_bytes", OUTPUT_BYTES)
        try:
            self._relay = Relay(manager.get_connection_info(), self._folder, output_bytes)
        except KernelStartError:
            await self._end()
            raise
        for name, port in self._relay.ports.items():
            setattr(manager, name, port)

    async def _open(self, spec: SessionSpec) -> None:
        try:
            session = await open_session(spec, self.backend)
            assert isinstance(session, LiveSession)
            self._session = session
            await self._attach()
        except BaseException:
            await self._end()
            raise

    async def _restart(self) -> None:
        assert self._session is not None
        await self._session.restart()
        await self._attach()

    async def _attach(self) -> None:
        assert self._session is not None
        assert self._session.wire is not None
        assert self._relay is not None
        await self._relay.attach(self._session.wire)

    async def _dead(self) -> None:
        if self._session is not None and self._session.wire is not None:
            # Shielded: a manager gives up waiting after some seconds and asks again.
            await asyncio.shield(self._session.wire.dead)

    async def _interrupt(self) -> None:
        if self._relay is not None:
            self._relay.interrupt()

    async def _kill(self) -> None:
        if self._session is not None and self._session.wire is not None:
            self._session.wire.kill()

    async def _end(self) -> None:
        relay, self._relay = self._relay, None
        session, self._session = self._session, None
        folder, self._folder = self._folder, None
        if relay is not None:
            relay.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if session is not None:
            await session.close()


def exit_status(cause: str) -> int:
    """The exit status that a cause of death stands for, as subprocess gives it; 1 where it says none."""
    if found := re.fullmatch(r"exit code (\d+)", cause):
        return int(found[1])
    if (found := re.fullmatch(r"signal (SIG\w+)", cause)) and found[1] in signal.Signals.__members__:
        return -signal.Signals[found[1]]
    return -signal.SIGKILL if cause == "out of memory" else 1
