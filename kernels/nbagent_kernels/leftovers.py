"""What programs that were killed left behind: their containers and their folders, told by the owner that both name.

A container carries its owner's pid and start time, and what that pid counts on (container.labels). It is removed where
its owner has certainly ended; a container without these labels is never looked at.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from dataclasses import dataclass
from typing import Literal

from nbagent_kernels.cgroups import is_over
from nbagent_kernels.container import MACHINE_LABEL, OWNER_LABEL, RUN_LABEL, SANDBOX_LABEL, machine
from nbagent_kernels.engineclient import client, disconnect, engine_errors, remove_container
from nbagent_kernels.errors import KernelError
from nbagent_kernels.removal import remove_tree
from nbagent_kernels.workspace import orphans

Owner = Literal["ended", "alive", "unknown"]
"""`unknown`: a process of another machine, another boot or another pid namespace."""

_log = logging.getLogger(__name__)
_clearing = 0


@dataclass(frozen=True, slots=True)
class Leftover:
    """One of our containers."""

    id: str
    """The engine's."""
    run: str
    """Name of the run that it belongs to; '' where it had none."""
    pid: int
    """The process that started it, on the machine that it ran on."""
    owner: Owner
    """What has become of that process."""
    state: str
    """The engine's word: running, exited, created, …"""


def containers(run: str | None = None) -> list[Leftover]:
    """Our containers in the engine, those in use among them; of one run, or of all. Raises EngineFailed."""
    wanted = [SANDBOX_LABEL] + ([f"{RUN_LABEL}={run}"] if run is not None else [])
    with engine_errors():
        listed = client().api.containers(all=True, filters={"label": wanted})
    found = []
    for one in listed:
        labels = one["Labels"]
        pid, _, _ = labels.get(OWNER_LABEL, "").partition("-")
        if pid.isdigit():
            found.append(Leftover(one["Id"], labels.get(RUN_LABEL, ""), int(pid), _owner(labels), one["State"]))
    return found


def clear() -> int:
    """Remove all that ended programs of this machine have left; returns how many things. Raises EngineFailed."""
    left = [one for one in containers() if one.owner == "ended"]
    removed = sum(remove_container(one.id) for one in left)
    folders = orphans()
    for folder in folders:
        remove_tree(folder)
    return removed + len(folders)


def clear_in_background() -> None:
    """Clear once in the life of this process, without keeping anybody waiting; a failure is logged.

    At this process's end its own containers go too, those of sessions that nobody closed.
    """
    global _clearing
    if _clearing != os.getpid():
        _clearing = os.getpid()
        atexit.register(_clear_own, _clearing)
        threading.Thread(target=_clear, name="nbagent-leftovers", daemon=True).start()


def _clear() -> None:
    try:
        if removed := clear():
            _log.info("removed %d containers and folders that killed programs had left", removed)
    except KernelError as error:
        _log.warning("what killed programs left could not be removed: %s", error)


def _clear_own(pid: int) -> None:
    if os.getpid() == pid:
        try:
            own = [one for one in containers() if one.pid == pid and one.owner == "alive"]
            if sum(remove_container(one.id) for one in own) < len(own):
                _log.warning("sandboxes of this program are left; the next program removes them")
        except KernelError as error:
            _log.warning("this program's sandboxes could not be removed: %s", error)
        finally:
            disconnect()


def _owner(labels: dict[str, str]) -> Owner:
    if labels.get(MACHINE_LABEL) != machine():
        return "unknown"
    return "ended" if is_over(labels[OWNER_LABEL]) else "alive"
