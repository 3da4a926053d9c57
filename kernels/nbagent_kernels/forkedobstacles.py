"""Why a kernel cannot be forked now. Runs in the kernel's interpreter: standard library only.

A fork copies memory but only the thread that calls it; what other threads, processes, devices and connections hold
half done stays behind. Measured, with one thread each (environment.py): after scanpy's scale, PCA, neighbors, UMAP and
Leiden, scikit-learn's KMeans and forests, numba in parallel and Arrow, branches use the same again. Numba's workqueue,
Arrow and OpenBLAS start their threads anew in a fork. Numba on OpenMP ends the process that uses it after a fork, and
PyTorch with two threads hangs in it: such pools are refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

from .forkedfiles import GONE, Move, descriptors, mappings
from .forkedstreams import WATCHER

SAFE = ("libarrow", "workqueue", "openblas")
"""Libraries whose threads start anew in a fork, by a part of their file's name."""
OPENMP = ("libgomp", "libiomp", "libomp")
PLAIN = ("libc.so", "libc-", "libpthread", "libstdc++", "ld-linux", "libpython", "libgcc_s")
"""Libraries on every thread's stack."""
STACK_BYTES = 1 << 14
SETTLE_S = 0.2
"""Seconds for a thread that has ended, or for a library's that still computes, to come to rest."""
SQLITE = b"SQLite format 3\0"


def obstacle(move: Move) -> str:
    """The first reason found, in plain words; empty where a fork is safe."""
    return (
        running_threads()
        or live_children()
        or parallel_layer()
        or open_files(move.source)
        or shared_memory(move)
        or private_files(move.source)
    )


def running_threads() -> str:
    """Threads that Python knows, then those that it does not."""
    known = {os.getpid()}
    for thread in threading.enumerate():
        known.add(thread.native_id or 0)
        if type(thread).__module__ == "tqdm._monitor":
            thread.exit()  # type: ignore[attr-defined]  # tqdm makes it anew when it needs it
            continue
        if thread is not threading.main_thread() and thread.name != WATCHER:
            return f"the thread {thread.name!r} is running"
    for name in os.listdir("/proc/self/task"):  # noqa: PTH208
        end = time.monotonic() + SETTLE_S
        while int(name) not in known and (why := native_thread(int(name))):
            if time.monotonic() > end:
                return why
            time.sleep(0.005)
    return ""


def native_thread(tid: int) -> str:
    """Whose thread it is, by the code on its stack; empty where that library restarts it in a fork, or it is gone."""
    try:
        state = Path(f"/proc/self/task/{tid}/syscall").read_text().split()
    except OSError:
        return "" if not Path(f"/proc/self/task/{tid}").exists() else "a thread of a library is running"
    names = set()
    if len(state) > 2:  # else it is on a processor now, and has no stack to look at
        libraries = sorted((code.start, code.start + code.size, Path(code.path).name) for code in mappings("..x."))
        starts = [start for start, _, _ in libraries]
        for word in [int(state[-1], 16), *words_at(int(state[-2], 16))]:
            at = bisect_right(starts, word) - 1
            if at >= 0 and word < libraries[at][1] and not libraries[at][2].startswith(PLAIN):
                names.add(libraries[at][2])
    openmp = sorted(name for name in names if name.startswith(OPENMP))
    if openmp:
        return f"an OpenMP pool is running ({openmp[0]}); it would not survive in the branch"
    if any(safe in name for name in names for safe in SAFE):
        return ""
    return f"a thread of {' or '.join(sorted(names)) or 'a library'} is running"


def words_at(stack: int) -> tuple[int, ...]:
    """The top of a stack, as addresses; what is not mapped is left out."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        content = os.pread(memory, STACK_BYTES, stack)
    except OSError:
        content = b""
    finally:
        os.close(memory)
    return struct.unpack(f"{len(content) // 8}Q", content[: len(content) // 8 * 8])


def live_children() -> str:
    """Processes that cells started and that still run."""
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    return f"the process {words.strip()[:80]!r} (pid {pid}) is running"
    return ""


def parallel_layer() -> str:
    """Numba with a threading layer that ends a forked process which uses it again."""
    parallel: Any = sys.modules.get("numba.np.ufunc.parallel")
    if parallel is None or not parallel._is_initialized:
        return ""
    layer = sys.modules["numba"].threading_layer()
    return "" if layer == "workqueue" else f"numba runs on {layer} threads; only its workqueue survives a fork"


def open_files(folder: str) -> str:
    """Descriptors that a branch can neither share nor have of its own."""
    for fd, link in descriptors():
        with contextlib.suppress(OSError):
            if link.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri/")):
                return f"a GPU is in use ({link})"
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6):
                        return f"a network connection is open (descriptor {fd})"
            elif stat.S_ISREG(mode) and link.startswith(folder + "/") and os.pread(fd, 16, 0) == SQLITE:
                # SQLite names its journal by the path it was opened with, which is the parent's.
                return f"the SQLite database {Path(link).name!r} is open; close the connection first"
    return ""


def shared_memory(move: Move) -> str:
    """Memory that other processes write to as well."""
    for mapping in move.shared:
        outside = move.path(mapping.path) == mapping.path
        if "w" in mapping.permissions and outside and not mapping.path.endswith(GONE):
            return f"memory is shared with other processes through {mapping.path}"
    return ""


def private_files(folder: str) -> str:
    """Files of the session's mapped copy-on-write: what was not written yet would follow the parent's file."""
    if folder not in Path("/proc/self/maps").read_text(errors="surrogateescape"):
        return ""
    code = {mapping.path for mapping in mappings("..x.")}
    for mapping in mappings("...p"):
        if mapping.path.startswith(folder + "/") and mapping.path not in code:
            return f"the file {Path(mapping.path).name!r} is mapped copy-on-write"
    return ""
