"""The environment of a kernel: an allow-list, so that no key or token of the host's gets in."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nbagent_kernels.types import Limits, SessionSpec
from nbagent_kernels.workspace import Workspace

ALLOWED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""Variables taken over from the host."""

FIXED: Mapping[str, str] = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",
    # pyarrow's allocator would start a thread, and a process with threads cannot be forked safely.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""The same for every kernel: one thread each, plots as images."""

TAG = "NBAGENT_SESSION"
"""Names the session in the environment of all its processes, so that detached ones are found."""


def kernel_environment(spec: SessionSpec, workspace: Workspace, hash_seed: int) -> dict[str, str]:
    """The whole environment of a kernel. PYTHONHASHSEED is `hash_seed`: a forked kernel has its server's."""
    return {
        **base_environment(),
        "HOME": str(workspace.home),
        "TMPDIR": str(workspace.tmp),
        "IPYTHONDIR": str(workspace.home / ".ipython"),
        "MPLCONFIGDIR": str(workspace.home / ".matplotlib"),
        "PYTHONHASHSEED": str(hash_seed % (1 << 32)),
        TAG: str(workspace.number),
        **spec.env,
    }


def base_environment() -> dict[str, str]:
    """What every process started here gets."""
    environment = {name: os.environ[name] for name in ALLOWED if name in os.environ}
    environment.setdefault("LANG", "C.UTF-8")
    return {**environment, **FIXED}


def rlimits(limits: Limits) -> dict[str, int]:
    """The limits as names and values of setrlimit."""
    values = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
    }
    return {name: value for name, value in values.items() if value is not None}
