"""Backend `local`: a fresh process of any installed kernelspec, spoken to over ipc sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from nbagent_kernels.confinement import confined_command, plan
from nbagent_kernels.environment import TAG, kernel_environment
from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.guard import Guard, end_tagged
from nbagent_kernels.jupyterwire import JupyterWire
from nbagent_kernels.live import LiveSession, hosted
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import cause_of
from nbagent_kernels.workspace import Workspace

_numbers = itertools.count(1)

R_OPTIONS = ("--no-init-file", "--no-restore")
"""What an agent or a capsule left in the working directory makes no kernel start with its variables, or none at all."""


async def open_local(spec: SessionSpec) -> LiveSession:
    """Open a session in a fresh process of the kernelspec `spec.kernel`, or of the one for `spec.language`.

    Raises:
        KernelStartError: there is no such kernelspec, or its kernel did not come up.
    """
    command(spec)
    return await LiveSession(spec, hosted(_start)).open()


def command(
    spec: SessionSpec, python: str = sys.executable, found: Mapping[str, Any] | None = None
) -> tuple[list[str], Mapping[str, str], str, str]:
    """The kernel's argv (with `{connection_file}`), its variables, its language and its interrupt mode.

    Args:
        spec: the session's.
        python: interpreter of Python kernels, where the spec names none.
        found: installed kernelspecs by name, as jupyter_client has them; None: this host's.

    Raises:
        KernelStartError: nothing installed fits.
    """
    if spec.kernel is None and spec.language == "python":
        python = spec.interpreter or python
        # -P: a file of the agent's in the working directory must not be taken for a module of the kernel's.
        argv = [python, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        return argv, {}, "python", "signal"
    installed = KernelSpecManager().get_all_specs() if found is None else found
    for name, entry in sorted(installed.items()):
        about = entry["spec"]
        if name == spec.kernel or (spec.kernel is None and about["language"].lower() == spec.language.lower()):
            argv = [part.replace("{resource_dir}", entry["resource_dir"]) for part in about["argv"]]
            if argv[0] in ("python", "python3"):  # written by ipykernel, which means its own interpreter
                argv[0] = python
            if about["language"] == "R":
                argv[1:1] = R_OPTIONS
            return argv, about.get("env") or {}, about["language"], about.get("interrupt_mode", "signal")
    wanted = f"kernelspec {spec.kernel!r}" if spec.kernel else f"kernelspec for {spec.language!r}"
    names = ", ".join(f"{name} ({entry['spec']['language']})" for name, entry in sorted(installed.items())) or "none"
    raise KernelStartError(f"no {wanted} is installed; there are: {names}")


async def _start(spec: SessionSpec, workspace: Workspace) -> JupyterWire:
    return await _LocalWire(spec, workspace).come_up_in_time()


class _LocalWire(JupyterWire):
    """The line to one kernel process: Jupyter's shell, control and iopub channels over ipc."""

    def __init__(self, spec: SessionSpec, workspace: Workspace) -> None:
        argv, extra, language, interrupt_mode = command(spec)
        if shutil.which(argv[0], path={**extra, **spec.env}.get("PATH")) is None:
            raise KernelStartError(f"kernel {argv[0]} did not start: there is no such program")
        super().__init__(spec, workspace, language, interrupt_mode)
        self._tag = str(workspace.number)
        self._folder = workspace.folder / f"k{next(_numbers)}"
        self._folder.mkdir(mode=0o700)
        connection = self._folder / "connection.json"
        connection.touch(mode=0o600)
        connection.write_text(self.connection(self._folder))
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

    async def _connect(self) -> bool:
        """Connect to the sockets that the kernel has bound; False where it has not bound all yet."""

        def dial(port: int) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.connect(f"{self._folder}/s-{port}")
            except OSError:
                sock.close()
                raise
            return sock

        return self._channels.connect(dial)

    def _signal(self, number: int) -> None:
        if not self.dead.done():  # not reaped yet, so the pid is still this kernel's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

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
