"""Speed of kernel sessions beside their peers, nbclient and jupyter_client's AsyncKernelManager.

    python benchmarks/speed/kernels.py [--quick]

Prints medians and ratios; the peers start kernels cold, as they always do, with the same two cells and close.
Figures depend on the machine and on what else runs: compare within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from nbagent_kernels import SessionSpec, open_session

_ids = itertools.count()
CELLS = ("import numpy as np\nx = np.arange(10)", "int(x.sum())")
SCANPY = ("import scanpy as sc", "sc.__version__")


def cpu() -> float:
    """Seconds of processor time of this process and of its reaped children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def cpu_of_tree(pid: int) -> float:
    """Seconds of processor time of a process and of its reaped children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peer() -> AsyncKernelManager:
    """A kernel manager over ipc with sockets of its own; its default name for them is shared and clashes."""
    place = f"{tempfile.gettempdir()}/peer-{os.getpid()}-{next(_ids)}"
    return AsyncKernelManager(kernel_name="python3", transport="ipc", ip=place)


async def ours(backend: str, cells: tuple[str, ...] = CELLS) -> float:
    start = time.perf_counter()
    session = await open_session(SessionSpec(), backend)
    for cell in cells:
        assert (await session.execute(cell)).status == "ok"
    await session.close()
    return time.perf_counter() - start


async def with_nbclient(cells: tuple[str, ...] = CELLS) -> float:
    start = time.perf_counter()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    await NotebookClient(notebook, kernel_name="python3").async_execute()
    return time.perf_counter() - start


async def with_manager(cells: tuple[str, ...] = CELLS) -> float:
    start = time.perf_counter()
    manager = peer()
    await manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    for cell in cells:
        await client.execute_interactive(cell, output_hook=lambda _: None, timeout=120)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return time.perf_counter() - start


async def first_answer(backend: str) -> float:
    start = time.perf_counter()
    session = await open_session(SessionSpec(), backend)
    await session.execute("1")
    taken = time.perf_counter() - start
    await session.close()
    return taken


async def managers_first_answer() -> float:
    start = time.perf_counter()
    manager = peer()
    await manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    await client.execute_interactive("1", output_hook=lambda _: None, timeout=120)
    taken = time.perf_counter() - start
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return taken


async def round_trips(n: int, backend: str) -> float:
    session = await open_session(SessionSpec(), backend)
    await session.execute("1")
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        await session.execute("1 + 1")
        taken.append(time.perf_counter() - start)
    await session.close()
    return statistics.median(taken)


async def managers_round_trips(n: int) -> float:
    manager = peer()
    await manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        await client.execute_interactive("1 + 1", output_hook=lambda _: None, timeout=120)
        taken.append(time.perf_counter() - start)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return statistics.median(taken)


async def median(n: int, run: Callable[[], Awaitable[float]]) -> float:
    return statistics.median([await run() for _ in range(n)])


async def together(n: int, run: Callable[[], Awaitable[float]]) -> tuple[float, int]:
    """Seconds for n at once, and how many failed."""
    gc.collect()
    start = time.perf_counter()
    results = await asyncio.gather(*(run() for _ in range(n)), return_exceptions=True)
    return time.perf_counter() - start, sum(isinstance(result, BaseException) for result in results)


def line(what: str, figures: dict[str, float], failed: dict[str, int] | None = None, unit: float = 1e3) -> None:
    base = figures["fork"]
    cells = []
    for name, value in figures.items():
        lost = f", {failed[name]} failed" if failed and failed[name] else ""
        cells.append(f"{name} {value * unit:8.1f} {'ms' if unit == 1e3 else 's '} ({value / base:5.1f}x{lost})")
    print(f"{what:38}" + "  ".join(cells), flush=True)


async def main(quick: bool) -> None:
    n = 3 if quick else 9
    start = time.perf_counter()
    session = await open_session(SessionSpec(), "fork")
    print(f"fork server with the scientific stack ready after {time.perf_counter() - start:.1f} s (once a process)")
    server = int((await session.execute("import os\nprint(os.getppid())")).outputs[0]["text"])
    await session.close()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; x = times the fork backend\n")

    line(
        "open and first answer",
        {
            "fork": await median(2 * n, lambda: first_answer("fork")),
            "local": await median(n, lambda: first_answer("local")),
            "AsyncKernelManager": await median(n, managers_first_answer),
        },
    )
    line(
        "1 + 1, asked and complete",
        {
            "fork": await round_trips(50 * n, "fork"),
            "local": await round_trips(50 * n, "local"),
            "AsyncKernelManager": await managers_round_trips(50 * n),
        },
    )
    for what, cells in (("open, two cells, close", CELLS), ("the same with import scanpy", SCANPY)):
        line(
            what,
            {
                "fork": await median(2 * n, lambda cells=cells: ours("fork", cells)),
                "local": await median(n, lambda cells=cells: ours("local", cells)),
                "AsyncKernelManager": await median(n, lambda cells=cells: with_manager(cells)),
                "nbclient": await median(n, lambda cells=cells: with_nbclient(cells)),
            },
        )
    for many in (20,) if quick else (20, 96):
        taken, failed = {}, {}
        runs = {"fork": lambda: ours("fork"), "local": lambda: ours("local")}
        runs |= {"AsyncKernelManager": with_manager, "nbclient": with_nbclient}
        for name, run in runs.items():
            taken[name], failed[name] = await together(many, run)
        line(f"{many} at once: open, two cells, close", taken, failed, unit=1)

    count = 40 if quick else 200
    before, server_before = cpu(), cpu_of_tree(server)
    start = time.perf_counter()
    for _ in range(count):
        await ours("fork", SCANPY)
    host, kernels = (cpu() - before) / count, (cpu_of_tree(server) - server_before) / count
    wall = (time.perf_counter() - start) / count
    print(
        f"\nfork, one after the other, scanpy imported: {wall * 1e3:.1f} ms a session; processor time "
        f"{(host + kernels) * 1e3:.1f} ms (host {host * 1e3:.1f}, server and kernel {kernels * 1e3:.1f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no 96 at once")
    asyncio.run(main(parser.parse_args().quick))
