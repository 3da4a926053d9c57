"""Ends local kernels when the host process ends in a way that lets it clean up nothing, `kill -9` included.

The guard is a small process that holds one end of a pipe. When the pipe closes it kills the kernels that are still
on its list, with all they started, and removes the host's folder and control groups.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from nbagent_kernels.environment import TAG
from nbagent_kernels.workspace import process_root

_PROGRAM = r"""
import os, select, shutil, signal, sys, time
root, tag, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
kernels, groups, buffer, ended = {}, [], b"", False
while True:
    if not select.select([0], [], [], 1.0)[0]:
        if os.getppid() != parent:
            break
        continue
    chunk = os.read(0, 65536)
    if not chunk:
        break
    *lines, buffer = (buffer + chunk).split(b"\n")
    for line in lines:
        sign, pid, name = line.decode().split(" ", 2)
        if sign == "+":
            kernels[int(pid)] = name
        elif sign == "g":
            groups.append(name)
        elif sign == "e":
            ended = True
        else:
            kernels.pop(int(pid), None)
for pid in kernels:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
wanted = {f"{tag}={name}".encode() for name in kernels.values()}
# Session numbers are unique in one host process; its folder tells it from the others.
home = f"HOME={root}/".encode()
for entry in os.listdir("/proc") if wanted else ():
    if entry.isdigit():
        try:
            with open(f"/proc/{entry}/environ", "rb") as environ:
                variables = environ.read().split(b"\0")
                if wanted & set(variables) and any(variable.startswith(home) for variable in variables):
                    os.kill(int(entry), signal.SIGKILL)
        except OSError:
            pass
if not ended:
    end = time.monotonic() + 10
    while groups and time.monotonic() < end:
        for folder, _, _ in [entry for group in groups for entry in os.walk(group, topdown=False)]:
            try:
                with open(folder + "/cgroup.procs") as members:
                    for pid in members:
                        os.kill(int(pid), signal.SIGKILL)
                os.rmdir(folder)
            except OSError:
                pass
        groups = [group for group in groups if os.path.exists(group)]
        time.sleep(0.02)
    shutil.rmtree(root, ignore_errors=True)
"""


class Guard:
    """The host's side of the guard process."""

    _own: tuple[int, Guard] | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(process_root()), TAG, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        atexit.register(self.end)

    @classmethod
    def of_this_process(cls) -> Guard:
        """The one guard of this process, started on first use and again where it died."""
        with cls._lock:
            if cls._own is None or cls._own[0] != os.getpid() or cls._own[1]._process.poll() is not None:
                cls._own = (os.getpid(), cls())
            return cls._own[1]

    def watch(self, pid: int, tag: str) -> None:
        """Kill this process group, and what carries the session's tag, when the host ends."""
        self._tell(f"+ {pid} {tag}\n")

    def unwatch(self, pid: int) -> None:
        """The process is gone."""
        self._tell(f"- {pid} -\n")

    def watch_group(self, folder: Path) -> None:
        """Kill what is in this control group and those below it, and remove them, when the host was killed."""
        self._tell(f"g - {folder}\n")

    def end(self) -> None:
        """Close the pipe; the guard ends the kernels that are left, and leaves folders and groups to this process."""
        self._tell("e - -\n")
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        atexit.unregister(self.end)

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(line.encode())


def end_tagged(name: str, value: str) -> None:
    """Kill this user's processes that carry a variable, whatever process group they moved to."""
    wanted = f"{name}={value}".encode()
    home = f"HOME={process_root()}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                # Session numbers are unique in one host process; its folder tells it from the others.
                if wanted in variables and any(variable.startswith(home) for variable in variables):
                    os.kill(int(entry.name), signal.SIGKILL)
