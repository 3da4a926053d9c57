"""The words of a kernel session: what is asked for (SessionSpec, Limits) and what comes back (CellResult, FileEntry).

Outputs are plain nbformat v4 output dicts, so that a notebook takes them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "dead"]
Output = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use. None means no limit."""

    memory_bytes: int | None = 4 << 30
    """Address space of the kernel (RLIMIT_AS), bytes; scanpy's stack alone maps about 2 GB."""
    open_files: int | None = 1024
    """Open file descriptors (RLIMIT_NOFILE)."""
    file_bytes: int | None = 1 << 30
    """Largest file a cell may write (RLIMIT_FSIZE), bytes."""
    processes: int | None = 256
    """Processes and threads at once (a cgroup's pids.max, where one can be made); R and BLAS start dozens."""
    output_bytes: int = 1 << 20
    """Bytes of output kept per cell; what arrives beyond is dropped as it arrives and counted."""
    output_messages: int = 1000
    """Output messages kept per cell."""
    start_s: float = 60.0
    """Seconds a kernel may take to start."""
    grace_s: float = 5.0
    """Seconds between the interrupt of a cell that ran out of time and the kill."""


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """The container of a session (backend `docker`). Its memory and processes are bounded by the session's `Limits`."""

    image: str
    """Image in the engine, best by its id; never pulled. For the places that it must have see docker/README.md."""
    seccomp: str = field(repr=False)
    """The seccomp profile, as JSON text."""
    runtime: str | None = None
    """The engine's runtime, e.g. `runsc`; None: the engine's default."""
    cpus: float = 1.0
    """Processors the container may use."""
    work_bytes: int = 1 << 30
    """Size of the tmpfs with the working directory, bytes. What lies in it counts as memory."""
    tmp_bytes: int = 512 << 20
    """Size of the tmpfs /tmp, bytes. What lies in it counts as memory."""
    wheels: Path | None = None
    """Folder of wheels that `pip install` inside takes packages from, mounted read-only; None: none."""
    run: str = ""
    """Name of the run, as a label of the container."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One live kernel with a working directory of its own.

    Example:
        >>> SessionSpec(seed=7).language
        'python'
    """

    language: str = "python"
    """Language of the kernel; chooses the kernelspec where `kernel` is None."""
    kernel: str | None = None
    """Name of an installed kernelspec (backend `local`); None: the one of `language`."""
    interpreter: str | None = None
    """Python of the fork server (backend `fork`); None: the running one."""
    capsule: Path | None = None
    """Folder whose content is put into the working directory before the first cell; never written to."""
    limits: Limits = field(default_factory=Limits)
    """What the session may use."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the allow-listed environment."""
    preload: Sequence[str] | None = None
    """Modules the fork server imports before it forks (backend `fork`); None: the scientific stack."""
    network: bool = False
    """True leaves TCP alone; False forbids it where Landlock can (ABI 4)."""
    container: ContainerSettings | None = None
    """The container (backend `docker`, which needs it)."""
    seed: int = 0
    """Seeds PYTHONHASHSEED, `random` and numpy's legacy generator before the first cell."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one execution gave."""

    outputs: list[Output]
    """nbformat v4 outputs, folded by nbclient's rules (streams coalesced, clear_output and display ids applied)."""
    status: Status
    """ok; error (the cell raised); timeout (it ran out of time); dead (the kernel ended, see cause)."""
    seconds: float
    """Wall time from send to answer."""
    execution_count: int | None = None
    """The kernel's counter, None where the kernel never answered."""
    dropped_bytes: int = 0
    """Output bytes dropped by the caps."""
    state_kept: bool = True
    """False when the variables are gone (the kernel was replaced or is dead)."""
    cause: str = ""
    """For dead and timeout: what happened, e.g. `exit code 3`, `signal SIGKILL`, `out of memory`."""
    limit: str = ""
    """The resource limit that was hit in this cell, e.g. `memory: 4 GiB`; else empty."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of a folder in the working directory."""

    path: str
    """Path relative to the working directory, with forward slashes."""
    size: int
    """Bytes; 0 for a folder."""
    is_dir: bool
    """True for a folder."""
