"""How quickly sandboxes are there: what `nbagent sandbox bench` prints, and benchmarks/speed/docker.py beside more."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rich.console import Console

from nbagent.terminal import plain
from nbagent_images import Image, profile
from nbagent_kernels import KernelPool, Session, SessionSpec, open_session
from nbagent_kernels.types import ContainerSettings

COLD_MS, WARM_MS, CELL_MS, BRANCH_MS = 600.0, 100.0, 5.0, 150.0
"""Targets, milliseconds."""
READY_S = 120.0
SCANPY = "import scanpy as sc\nsc.__version__.count('.')"
CELLS = 50
"""Cells of one session, of each measurement."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: times in milliseconds."""

    what: str
    """What was measured."""
    times: Sequence[float]
    """Each measurement."""
    target: float | None = None
    """The median should be at most this."""
    failed: int = 0
    """Measurements that failed; they have no time."""

    @property
    def median(self) -> float:
        """The middle one; infinite where all failed."""
        return statistics.median(self.times) if self.times else float("inf")

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        return None if self.target is None else self.median <= self.target and not self.failed

    def line(self) -> str:
        """The row as text."""
        spread = f"({min(self.times):.1f}-{max(self.times):.1f}, n={len(self.times)})" if self.times else ""
        wanted = f"<= {self.target:g} ms" if self.target is not None else ""
        verdict = {None: "", True: "reached", False: "NOT REACHED"}[self.reached]
        failed = f"{self.failed} failed" if self.failed else ""
        parts = [f"{self.what:58} {self.median:8.1f} ms {spread:32}", wanted, verdict, failed]
        return "  ".join(part for part in parts if part).rstrip()


class Wrong(Exception):
    """A cell gave something else than it must."""


def spec_of(image: Image, runtime: str | None = None, **more: object) -> SessionSpec:
    """Of the sandboxes that are measured: as any run has them."""
    return SessionSpec(container=ContainerSettings(image.id, profile(), runtime=runtime, run="bench"), **more)  # type: ignore[arg-type]


async def answer(session: Session, code: str = "6 * 7", expected: str = "42") -> None:
    """Run a cell. Raises Wrong where its value is another."""
    result = await session.execute(code, timeout=READY_S)
    values = [output["data"]["text/plain"] for output in result.outputs if output["output_type"] == "execute_result"]
    if values != [expected]:
        raise Wrong(f"{code!r} gave {result.status} {result.cause} {result.outputs!r:.200}")


@asynccontextmanager
async def opened(spec: SessionSpec, backend: str = "docker") -> AsyncIterator[Session]:
    """A session, closed at the end."""
    session = await open_session(spec, backend)
    try:
        yield session
    finally:
        await session.close()


async def cold(spec: SessionSpec, n: int) -> Figure:
    """A container from nothing to its first answer, nothing imported before."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        async with opened(spec) as session:
            await answer(session)
            times.append((time.perf_counter() - start) * 1e3)
    return Figure("container from nothing to its first answer", times, COLD_MS)


async def warm(spec: SessionSpec, n: int) -> Figure:
    """A session taken from a warm pool to its first answer, scanpy imported by that cell."""
    times = []
    async with KernelPool(1, warm=1, backend="docker", spec=spec) as pool:
        for _ in range(n):
            async with asyncio.timeout(READY_S):
                while (await pool.health()).warm < 1:
                    await asyncio.sleep(0.05)
            start = time.perf_counter()
            async with pool.session() as session:
                await answer(session, SCANPY, "2")
                times.append((time.perf_counter() - start) * 1e3)
    return Figure("session of a warm pool to its first answer with scanpy", times, WARM_MS)


async def cells(spec: SessionSpec, n: int) -> Figure:
    """One cell, from the call to its result."""
    times = []
    async with opened(spec) as session:
        await answer(session)
        for _ in range(n):
            start = time.perf_counter()
            for _ in range(CELLS):
                await answer(session)
            times.append((time.perf_counter() - start) * 1e3 / CELLS)
    return Figure(f"a cell that computes 6 * 7, mean of {CELLS}", times, CELL_MS)


async def branches(spec: SessionSpec, n: int) -> Figure:
    """A branch of a live session to its first answer."""
    times = []
    async with opened(spec) as session:
        await answer(session, "kept = 40\nkept + 2", "42")
        for _ in range(n):
            start = time.perf_counter()
            branch = await session.branch()
            await answer(branch, "kept + 2", "42")
            times.append((time.perf_counter() - start) * 1e3)
            await branch.close()
    return Figure("branch of a live session to its first answer", times, BRANCH_MS)


async def report(image: Image, runtime: str | None, n: int) -> None:
    """Measure, and print each row as it is there. Raises KernelError."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(plain(f"sandboxes of {image.name}, medians; figures depend on the machine and on what else runs"))
    console.print()
    bare = spec_of(image, runtime, preload=())
    for measure, spec in ((cold, bare), (warm, spec_of(image, runtime)), (cells, bare), (branches, bare)):
        with console.status(measure.__doc__ or ""):
            figure = await measure(spec, n)
        console.print(plain(figure.line()))
