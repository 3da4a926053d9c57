"""Control groups: bounds on what a session uses with all it starts, and counters that say when they were hit.

Made where they can be: in version 1 where this process's own groups are writable, in version 2 below the nearest
ancestor that hands its children the memory and pids controllers (Linux's Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst). Elsewhere a session has none, and only the limits that setrlimit knows hold, for each process alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nbagent_kernels.types import Limits

MOUNT = Path("/sys/fs/cgroup")
PREFIX = "nbagent-"
ENDED = "ZX"
"""States of a process that has ended: a zombie, or dead."""
END_S = 2.0
"""Seconds to wait for killed processes to leave a group."""
LIMITS = {
    "memory.limit_in_bytes": "memory_bytes",
    "memory.memsw.limit_in_bytes": "memory_bytes",
    "memory.max": "memory_bytes",
    "pids.max": "processes",
}
"""File of either version -> field of Limits; a file that is not there belongs to the other one."""
OOM_COUNTERS = {"memory": "memory.oom_control", "": "memory.events"}
"""Version 1's controller, or version 2's "", -> the file that counts out-of-memory kills."""

_log = logging.getLogger(__name__)


class Counters:
    """What a control group, of which there may be a folder for each controller, has refused and killed so far."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    @classmethod
    def of_process(cls, pid: int) -> Counters:
        """Of the groups that a process is in; they say nothing where those cannot be read."""
        return cls([own_place(name, pid) for name in ("memory", "pids", "")])

    def oom_kills(self) -> int:
        """Processes of the group that were killed for want of memory, so far."""
        return max(_count(folder / name, "oom_kill") for folder in self.folders for name in OOM_COUNTERS.values())

    def refused_forks(self) -> int:
        """Processes and threads that the group could not start, so far."""
        return max(_count(folder / "pids.events", "max") for folder in self.folders)


class Group(Counters):
    """One session's control group, which is one folder in version 2 and one per controller in version 1.

    Args:
        outer: the folders that it is made in.
        name: of the group.
        limits: its bounds.

    Raises:
        OSError: it could not be made.
    """

    def __init__(self, outer: Sequence[Path], name: str, limits: Limits) -> None:
        super().__init__([folder / name for folder in outer])
        try:
            for folder in self.folders:
                folder.mkdir(exist_ok=True)
                for file, field in LIMITS.items():
                    value = getattr(limits, field)
                    if value is not None and (folder / file).exists():
                        (folder / file).write_text(str(value))
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        """Kill what is left in it and remove it."""
        for folder in self.folders:
            end_folder(folder)


def attach(folders: Sequence[str], pid: int) -> None:
    """Move a process, and all it will start, into a group. One that has ended is let go."""
    for folder in folders:
        with contextlib.suppress(OSError):
            Path(folder, "cgroup.procs").write_text(str(pid))


def oom_kills() -> int:
    """Out-of-memory kills in this process's own memory group so far; 0 where that cannot be read."""
    return max((_count(own_place(name) / file, "oom_kill") for name, file in OOM_COUNTERS.items()), default=0)


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is none, or none to be seen."""
    return _state(pid)[1]


def is_over(name: str) -> bool:
    """Whether a folder named by a process, `PID-STARTED`, is one's that has ended, waited for by its parent or not.

    One that cannot be looked at, as others' are where /proc is mounted with hidepid, counts as living.
    """
    pid, _, start = name.partition("-")
    if not pid.isdigit():
        return False
    state, began = _state(int(pid))
    return (began != start or state in ENDED) if began else not _exists(int(pid))


def _exists(pid: int) -> bool:
    """Whether there is such a process, which other users' are too; the system says it whatever /proc shows."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _state(pid: int) -> tuple[str, str]:
    """A process's state and start (proc_pid_stat(5), fields 3 and 22); empty where none is there or can be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


@functools.cache
def own_folders(root: str) -> tuple[Path, ...]:
    """This process's folders of groups, made now; none where the system grants none. Raises OSError."""
    for place in places():
        for left in place.glob(f"{PREFIX}*"):
            if is_over(left.name.removeprefix(PREFIX)):
                end_folder(left)
    folders = tuple(place / f"{PREFIX}{root}" for place in places())
    for folder in folders:
        folder.mkdir(exist_ok=True)
        control = folder / "cgroup.subtree_control"
        if control.exists():
            control.write_text("+memory +pids")
        atexit.register(_end_own, os.getpid(), folder)
    return folders


@functools.cache
def places() -> tuple[Path, ...]:
    """Folders below which groups can be made: one (version 2) or two (version 1, memory and pids); none elsewhere."""
    older = [own_place(name) for name in ("memory", "pids")]
    if all(place != MOUNT and _admits(place) for place in older):
        return tuple(older)
    place = own_place("")
    while place.is_relative_to(MOUNT):
        if _grants(place) and _admits(place):
            return (place,)
        place = place.parent
    return ()


def own_place(controller: str, pid: int | str = "self") -> Path:
    """A process's own group: a controller's in version 1, or with "" version 2's. The mount where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                # In a container the path may be the host's, while what is mounted begins at the container's own group.
                own = MOUNT / names / path.lstrip("/")
                return own if own.is_dir() else MOUNT / names
    return MOUNT


def end_folder(folder: Path) -> None:
    """Kill the processes of a group and of those below it, and remove them."""
    if not folder.is_dir():
        return
    for inner in [entry for entry in folder.iterdir() if entry.is_dir()]:
        end_folder(inner)
    end = time.monotonic() + END_S
    while True:
        with contextlib.suppress(OSError):
            for pid in map(int, (folder / "cgroup.procs").read_text().split()):
                os.kill(pid, signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > end:
                _log.warning("could not remove the control group %s: %s", folder, error)
                return
        time.sleep(0.002)


def _grants(place: Path) -> bool:
    with contextlib.suppress(OSError):
        return {"memory", "pids"} <= set((place / "cgroup.subtree_control").read_text().split())
    return False


def _end_own(pid: int, folder: Path) -> None:
    if os.getpid() == pid:
        end_folder(folder)


def _admits(place: Path) -> bool:
    """Whether a process of ours can be moved into a group made here, found by doing it."""
    if not os.access(place, os.W_OK):
        return False
    trial = place / f"{PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
        try:
            enter = "import sys; open(sys.argv[1], 'w').write('0')"
            command = [sys.executable, "-I", "-S", "-c", enter, str(trial / "cgroup.procs")]
            return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
        finally:
            end_folder(trial)
    except OSError:
        return False


def _count(file: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            key, value = line.split()
            if key == name:
                return int(value)
    return 0
