"""What a session's kernel may touch: an allow-list, as the plan that confine.py carries out in the kernel's process."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nbagent_kernels.cgroups import Group, own_folders
from nbagent_kernels.confine import landlock_abi
from nbagent_kernels.environment import rlimits
from nbagent_kernels.guard import Guard
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import Workspace, process_root

PROGRAM = Path(__file__).with_name("confine.py")
SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/proc", "/sys", "/nix/store"),
    *("/var/cache/fontconfig", "/dev/urandom", "/dev/random"),
)
"""Read and executed by every program. /proc shows names and command lines of all processes, and no more of theirs."""
SETTINGS = (
    *("alternatives", "ca-certificates", "fonts", "gss", "host.conf", "hosts", "inputrc", "java*", "ld.so.*", "ldap"),
    *("locale.*", "localtime", "machine-id", "magic*", "mime.types", "nsswitch.conf", "os-release", "passwd", "group"),
    *("papersize", "perl", "pki", "profile", "protocols", "python3*", "R", "resolv.conf", "services", "shells"),
    *("ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "xdg", "OpenCL", "bash.bashrc", "conda", "ImageMagick*"),
)
"""Read in /etc. The rest of it holds passwords and keys that root, at least, could read."""
SHARED_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/shm", "/dev/ptmx", "/dev/pts")
"""Read and written. Where the session has no namespaces of its own, /dev/shm and the terminals are the user's."""
INSTALLED = (
    *("bin", "sbin", "lib", "lib32", "lib64", "libexec", "include", "share", "etc", "ssl"),
    *("pyvenv.cfg", "conda-meta"),
)
"""What of an installation's prefix is read: a prefix may hold more than the installation."""
LIBRARIES = ("PYTHONPATH", "LD_LIBRARY_PATH", "R_LIBS", "R_LIBS_USER", "R_LIBS_SITE")
"""Variables whose folders are read."""

_log = logging.getLogger(__name__)


def plan(
    spec: SessionSpec,
    workspace: Workspace,
    program: str,
    *,
    sockets: Path | None = None,
    also: Sequence[Path] = (),
    branch: bool = False,
) -> dict[str, Any]:
    """What confine.py takes.

    Args:
        spec: the session's.
        workspace: its folders.
        program: what runs as the kernel; it and its installation may be read.
        sockets: a folder in which the kernel may make sockets and nothing else.
        also: folders that it may write to besides the workspace's.
        branch: True in the fork of a kernel that is confined: it has its namespaces already.
    """
    variables = {name: os.environ.get(name, "") for name in ("PATH", "LD_LIBRARY_PATH")} | dict(spec.env)
    libraries = [path for name in LIBRARIES for path in variables.get(name, "").split(os.pathsep) if path]
    return {
        "groups": workspace.groups,
        "abi": landlock_abi(),
        "read": [*installed(program, variables["PATH"]), *libraries, *map(str, workspace.shared)],
        "sockets": [str(sockets)] if sockets else [],
        "write": [*SHARED_DEVICES, *map(str, (*workspace.writable, *also))],
        "network": spec.network,
        "apart": not branch,
        "shm_bytes": spec.limits.memory_bytes,
        "rlimits": rlimits(spec.limits),
    }


async def prepare(spec: SessionSpec, workspace: Workspace) -> None:
    """Fill the working directory and bound the session, before its first kernel. Raises KernelStartError."""
    await asyncio.to_thread(tell_gaps)
    # Before ABI 3, what cannot be written can still be truncated.
    await workspace.fill(spec.capsule, share=landlock_abi() >= 3)
    await bound(spec, workspace)


async def bound(spec: SessionSpec, workspace: Workspace) -> None:
    """Give a session its control group, where there can be one."""
    await asyncio.to_thread(_bound, spec, workspace)


def _bound(spec: SessionSpec, workspace: Workspace) -> None:
    try:
        if folders := _groups(process_root().name):
            workspace.group = Group(folders, f"s{workspace.number}", spec.limits)
        else:
            _tell_unbounded("the system grants no control group")
    except OSError as error:
        _tell_unbounded(str(error))


@functools.cache
def _groups(root: str) -> tuple[Path, ...]:
    folders = own_folders(root)
    for folder in folders:
        Guard.of_this_process().watch_group(folder)
    return folders


@functools.cache
def _tell_unbounded(why: str) -> None:
    _log.info("memory is limited for each process alone, and the number of processes is not: %s", why)


def confined_command(argv: list[str], wanted: dict[str, Any]) -> list[str]:
    """The command that confines itself by a plan and then becomes `argv`."""
    return [sys.executable, "-I", "-S", str(PROGRAM), json.dumps(wanted), *argv]


@functools.cache
def gaps() -> tuple[str, ...]:
    """What of the confinement this system does not grant, in words; empty where all of it is there."""
    abi = landlock_abi()
    if not abi:
        return ("there is no Landlock here, so cells read and write what you can",)
    found = ["files outside can be truncated"] if abi < 3 else []
    trial = {
        "groups": [],
        "abi": abi,
        "read": [],
        "sockets": [],
        "write": [],
        "network": False,
        "apart": True,
        "shm_bytes": 0,
    }
    answer = subprocess.run(confined_command([], trial), capture_output=True, text=True)
    if answer.stdout.strip() != "apart":
        found.append("no namespaces can be made, so cells share your /dev/shm, terminals, UDP and System V IPC")
        if abi < 4:
            found.append("TCP is open")
        if abi < 6:
            found.append("abstract Unix sockets are open")
    if abi < 6:
        found.append("cells can signal your processes")
    return tuple(found)


@functools.cache
def tell_gaps() -> None:
    """Log the gaps, once."""
    if gaps():
        _log.warning("kernels of this process are not fully confined: %s", "; ".join(gaps()))


@functools.cache
def installed(program: str, path: str) -> tuple[str, ...]:
    """What the kernel's program and the tools on its PATH are made of."""
    places = [*SYSTEM, *(str(found) for name in SETTINGS for found in Path("/etc").glob(name))]
    found = shutil.which(program, path=path) or program
    folders = [str(Path(found).parent), str(Path(found).resolve().parent), *path.split(os.pathsep)]
    if "python" in Path(found).name:
        folders += [f"{prefix}/bin" for prefix in _prefixes(found)]
    for folder in folders:
        places += _installation(Path(folder))
    return tuple(dict.fromkeys(place for place in places if os.path.exists(place)))  # noqa: PTH110


def _prefixes(python: str) -> list[str]:
    """Where an interpreter that may be a script, or a link, says that it is installed."""
    if python == sys.executable:
        return [sys.prefix, sys.base_prefix]
    command = [python, "-I", "-c", "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"]
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _installation(binaries: Path) -> Iterator[str]:
    """A folder of programs, and what belongs to the prefix that it lies in."""
    if not binaries.is_absolute():
        return
    yield str(binaries)
    prefix = binaries.parent
    if binaries.name not in ("bin", "sbin") or prefix in (Path("/"), Path.home()):
        return
    # ~/.local/share holds people's data, keys among it.
    yield from (str(prefix / name) for name in INSTALLED if not (name == "share" and prefix.name == ".local"))
