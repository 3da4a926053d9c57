"""Backend `local`: a fresh process of any installed kernelspec, spoken to over ipc sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from nbagent_kernels.channels import PORTS, Channels
from nbagent_kernels.confinement import confined_command, plan
from nbagent_kernels.environment import TAG, kernel_environment
from nbagent_kernels.errors import CannotBranch, KernelStartError
from nbagent_kernels.guard import Guard, end_tagged
from nbagent_kernels.live import LiveSession, hosted
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import Listener, Message, Wire, cause_of, first, settle
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
R_OPTIONS = ("--no-init-file", "--no-restore")
"""What an agent or a capsule left in the working directory makes no kernel start with its variables, or none at all."""


async def open_local(spec: SessionSpec) -> LiveSession:
    """Open a session in a fresh process of the kernelspec `spec.kernel`, or of the one for `spec.language`.

    Raises:
        KernelStartError: there is no such kernelspec, or its kernel did not come up.
    """
    command(spec)
    return await LiveSession(spec, hosted(_start)).open()


def command(spec: SessionSpec) -> tuple[list[str], Mapping[str, str], str, str]:
    """The kernel's argv (with `{connection_file}`), its variables, its language and its interrupt mode.

    Raises:
        KernelStartError: nothing installed fits.
    """
    if spec.kernel is None and spec.language == "python":
        python = spec.interpreter or sys.executable
        # -P: a file of the agent's in the working directory must not be taken for a module of the kernel's.
        argv = [python, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        return argv, {}, "python", "signal"
    installed = KernelSpecManager().get_all_specs()
    for name, entry in sorted(installed.items()):
        found = entry["spec"]
        if name == spec.kernel or (spec.kernel is None and found["language"].lower() == spec.language.lower()):
            argv = [part.replace("{resource_dir}", entry["resource_dir"]) for part in found["argv"]]
            if argv[0] in ("python", "python3"):  # written by ipykernel, which means its own interpreter
                argv[0] = sys.executable
            if found["language"] == "R":
                argv[1:1] = R_OPTIONS
            return argv, found.get("env") or {}, found["language"], found.get("interrupt_mode", "signal")
    wanted = f"kernelspec {spec.kernel!r}" if spec.kernel else f"kernelspec for {spec.language!r}"
    names = ", ".join(f"{name} ({entry['spec']['language']})" for name, entry in sorted(installed.items())) or "none"
    raise KernelStartError(f"no {wanted} is installed; there are: {names}")


async def _start(spec: SessionSpec, workspace: Workspace) -> _LocalWire:
    wire = _LocalWire(spec, workspace)
    try:
        async with asyncio.timeout(spec.limits.start_s):
            await wire.come_up()
    except TimeoutError:
        await wire.close()
        raise KernelStartError(
            f"kernel {spec.kernel or spec.language} did not answer within {spec.limits.start_s:g} s{wire.said()}"
        ) from None
    except BaseException:
        await wire.close()
        raise
    return wire


class _LocalWire:
    """The line to one kernel process: Jupyter's shell, control and iopub channels over ipc."""

    def __init__(self, spec: SessionSpec, workspace: Workspace) -> None:
        argv, extra, self._language, self._interrupt_mode = command(spec)
        if shutil.which(argv[0], path={**extra, **spec.env}.get("PATH")) is None:
            raise KernelStartError(f"kernel {argv[0]} did not start: there is no such program")
        self._loop = asyncio.get_running_loop()
        self.dead: asyncio.Future[str] = self._loop.create_future()
        self._seed = spec.seed
        self._tag = str(workspace.number)
        self._folder = workspace.folder / f"k{next(_numbers)}"
        self._folder.mkdir(mode=0o700)
        key = secrets.token_hex(16)
        connection = self._folder / "connection.json"
        connection.touch(mode=0o600)
        connection.write_text(
            json.dumps(
                {
                    "transport": "ipc",
                    "ip": str(self._folder / "s"),
                    "key": key,
                    "signature_scheme": "hmac-sha256",
                    "kernel_name": spec.kernel or "",
                    **PORTS,
                }
            )
        )
        largest = max(MESSAGE_BYTES, 2 * spec.limits.output_bytes + (1 << 18))
        self._channels = Channels(self._folder / "s", key, largest, self._hung_up)
        self._workspace = workspace
        self._ooms = workspace.oom_kills()
        self._last_words = ""
        # Kept open: what lies under its name later is the kernel's choice.
        self._log = (self._folder / "kernel.log").open("w+b")
        # A fresh one: a startup file of the agent's in the last kernel's could keep this one from starting.
        ipython = self._folder / "ipython"
        ipython.mkdir(mode=0o700)
        own = {"IPYTHONDIR": str(ipython)}
        environment = {**kernel_environment(spec, workspace, spec.seed), **own, **extra, **spec.env}
        wanted = plan(spec, workspace, argv[0], sockets=self._folder, also=[ipython])
        try:
            self._process = subprocess.Popen(
                confined_command([part.replace("{connection_file}", str(connection)) for part in argv], wanted),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                cwd=workspace.work,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise KernelStartError(f"kernel {argv[0]} did not start: {error}") from error
        self._pid = self._process.pid
        self._guard = Guard.of_this_process()
        self._guard.watch(self._pid, self._tag)
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.add_reader(self._pidfd, self._ended)

    async def come_up(self) -> None:
        """Connect once the kernel has bound, and wait until both channels answer. Raises KernelStartError."""
        while not self._channels.connect():
            await asyncio.sleep(_POLL_S)
            self._check_alive()
        answered: asyncio.Future[None] = self._loop.create_future()
        heard: set[str] = set()

        def listener(message: Message) -> bool:
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
        raise CannotBranch("a kernel of backend local cannot be forked; branch(method='replay') can")

    async def close(self) -> None:
        """Kill, reap, close the sockets."""
        self.kill()
        await asyncio.shield(self.dead)

    def _check_alive(self) -> None:
        if self.dead.done():
            raise KernelStartError(f"the kernel ended while it started: {self.dead.result()}{self.said()}")

    def _signal(self, number: int) -> None:
        if not self.dead.done():  # not reaped yet, so the pid is still this kernel's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

    def _hung_up(self) -> None:
        """The kernel closed a channel, as it does when it ends; one that lives on can no longer be heard."""
        self._loop.call_later(END_S, self.kill)

    def _ended(self) -> None:
        """The process is gone: take in what it sent, reap it, end what it left."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._channels.drain()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        returncode = self._process.wait()
        end_tagged(TAG, self._tag)
        self._guard.unwatch(self._pid)
        self._channels.close()
        size = os.fstat(self._log.fileno()).st_size
        self._last_words = os.pread(self._log.fileno(), 2000, max(size - 2000, 0)).decode("utf-8", "replace").strip()
        self._log.close()
        status = -returncode if returncode < 0 else returncode << 8
        self.dead.set_result(cause_of(status, self._workspace.oom_kills() > self._ooms))
