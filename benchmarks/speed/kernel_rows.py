"""What is measured of kernel sessions and of their peers, a function a row. Seconds, unless a name says otherwise."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aviary_peer import AviaryPeer
from kernel_peer import ManagedKernel, pss_bytes

from nbagent.action import Action
from nbagent.actions import action_format
from nbagent.env import EnvLimits, NotebookEnv
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_kernels import KernelPool, Limits, Session, SessionSpec, open_session

SCANPY = "import scanpy as sc\nsc.__version__.count('.')"
FRAME = "import numpy as np, pandas as pd\ndf = pd.DataFrame(np.ones((250_000, 100)))\ndf.values.nbytes"
STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        pass"
WIDTH = 10
"""Cells on each side of a notebook length whose times are taken together."""

Timed = Callable[[], Awaitable[float]]


class Wrong(Exception):
    """A cell gave something else than it must."""


def expect(outputs: list[dict[str, Any]], text: str) -> None:
    """Raises Wrong where the last output is not this text."""
    if not outputs or outputs[-1].get("data", {}).get("text/plain") != text:
        raise Wrong(f"{outputs!r:.200} instead of {text}")


@asynccontextmanager
async def session(backend: str = "fork", **limits: Any) -> Any:
    opened = await open_session(SessionSpec(limits=Limits(**limits)), backend)
    try:
        yield opened
    finally:
        await opened.close()


async def repeat(n: int, run: Timed) -> tuple[list[float], int]:
    """The times of n runs one after the other, and how many failed."""
    taken, failed = [], 0
    for _ in range(n):
        try:
            taken.append(await run())
        except Exception as error:
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
            failed += 1
    return taken, failed


async def open_ours(backend: str) -> float:
    start = time.perf_counter()
    async with session(backend) as opened:
        expect((await opened.execute(SCANPY)).outputs, "2")
        return time.perf_counter() - start


async def open_managed() -> float:
    start = time.perf_counter()
    kernel = ManagedKernel()
    try:
        await kernel.open()
        if (await kernel.cell(SCANPY))[-1:] != ["2"]:
            raise Wrong("scanpy")
        return time.perf_counter() - start
    finally:
        await kernel.close()


async def open_aviary(peer: AviaryPeer) -> float:
    """Its own times, without those of the pipe to its process."""
    start = time.perf_counter()
    seconds = peer.open(timeout_s=30)["seconds"]
    try:
        answer = peer.cell(SCANPY)
        expect(answer["outputs"], "2")
        return float(seconds + answer["seconds"])
    finally:
        peer.close()
        if time.perf_counter() - start > 30:
            print("  aviary.notebook: a step hung until its time limit", flush=True)


async def branches(n: int, method: Any) -> tuple[list[float], int]:
    """From the call of branch() to the branch's first reply, with a DataFrame of 200 MB in the parent."""
    async with session() as parent:
        expect((await parent.execute(FRAME)).outputs, "200000000")

        async def run() -> float:
            start = time.perf_counter()
            child = await parent.branch(method)
            try:
                expect((await child.execute("int(df.iloc[-1, -1])")).outputs, "1")
                return time.perf_counter() - start
            finally:
                await child.close()

        return await repeat(n, run)


class Verifier:
    """Grades nothing: the task of the cells' row has no answer."""

    def verify(self, answer: str | None) -> Verdict:
        """No verdict."""
        return Verdict(Outcome.UNGRADED, "nothing is asked")


async def cells_ours(lengths: list[int]) -> dict[int, float]:
    """Median time of one environment step that appends and runs a trivial cell, around each notebook length."""
    with tempfile.TemporaryDirectory() as capsule:
        task = Task("cells", "Nothing.", Path(capsule), Verifier())
        limits = EnvLimits(max_steps=max(lengths) + 2 * WIDTH, warn_steps=0)
        env = NotebookEnv(task, fmt=action_format("hermes", "python"), limits=limits, backend="fork")
        try:
            await env.reset()
            taken = []
            for number in range(max(lengths) + WIDTH):
                action = Action(tool="run_cell", args={"code": f"x = {number}\nx"}, text="")
                start = time.perf_counter()
                messages, *_ = await env.step(action)
                taken.append(time.perf_counter() - start)
                if str(number) not in str(messages[0]["content"]):
                    raise Wrong(str(messages))
        finally:
            await env.close()
    return {length: statistics.median(taken[length - WIDTH : length + WIDTH]) for length in lengths}


async def cells_managed(lengths: list[int]) -> dict[int, float]:
    kernel = ManagedKernel()
    taken = []
    try:
        await kernel.open()
        for number in range(max(lengths) + WIDTH):
            start = time.perf_counter()
            if await kernel.cell(f"x = {number}\nx") != [str(number)]:
                raise Wrong(str(number))
            taken.append(time.perf_counter() - start)
    finally:
        await kernel.close()
    return {length: statistics.median(taken[length - WIDTH : length + WIDTH]) for length in lengths}


def cells_aviary(peer: AviaryPeer, lengths: list[int]) -> tuple[dict[int, float], int]:
    """As above; and how many of its steps gave a wrong answer or none."""
    peer.open(timeout_s=10)
    taken, wrong = [], 0
    try:
        for number in range(max(lengths) + WIDTH):
            answer = peer.cell(f"x = {number}\nx")
            taken.append(answer["seconds"])
            try:
                expect(answer["outputs"], str(number))
            except Wrong:
                wrong += 1
    finally:
        peer.close()
    return {length: statistics.median(taken[length - WIDTH : length + WIDTH]) for length in lengths}, wrong


async def together(n: int, run: Timed) -> tuple[float, int]:
    """Seconds for n at once, and how many failed."""
    gc.collect()
    start = time.perf_counter()
    results = await asyncio.gather(*(run() for _ in range(n)), return_exceptions=True)
    return time.perf_counter() - start, sum(isinstance(result, BaseException) for result in results)


async def crowd_ours(n: int) -> tuple[float, int]:
    """Seconds until each of n sessions that are opened at once has answered, and how many failed."""
    opened: list[Session] = []

    async def run() -> float:
        start = time.perf_counter()
        opened.append(one := await open_session(SessionSpec(), "fork"))
        expect((await one.execute("6 * 7")).outputs, "42")
        return time.perf_counter() - start

    try:
        return await together(n, run)
    finally:
        await asyncio.gather(*(one.close() for one in opened))


async def crowd_managed(n: int) -> tuple[float, int]:
    kernels = [ManagedKernel() for _ in range(n)]

    async def run() -> float:
        start = time.perf_counter()
        await (kernel := kernels.pop()).open()
        opened.append(kernel)
        if await kernel.cell("6 * 7") != ["42"]:
            raise Wrong("6 * 7")
        return time.perf_counter() - start

    opened: list[ManagedKernel] = []
    try:
        return await together(n, run)
    finally:
        await asyncio.gather(*(kernel.close() for kernel in (*opened, *kernels)))


async def memory_ours(n: int) -> float:
    """Bytes of PSS of one of n idle kernels with scanpy imported; the server that they share its pages with apart."""
    opened = await asyncio.gather(*(open_session(SessionSpec(), "fork") for _ in range(n)))
    try:
        for one in opened:
            expect((await one.execute(SCANPY)).outputs, "2")
        server = int((await opened[0].execute("import os; os.getppid()")).outputs[-1]["data"]["text/plain"])
        kernels = list(map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split()))
        return statistics.mean(pss_bytes(pid) for pid in kernels)
    finally:
        await asyncio.gather(*(one.close() for one in opened))


async def memory_managed(n: int) -> float:
    kernels = [ManagedKernel() for _ in range(n)]
    try:
        for kernel in kernels:
            await kernel.open()
            await kernel.cell(SCANPY)
        return statistics.mean(pss_bytes(kernel.pid) for kernel in kernels)
    finally:
        await asyncio.gather(*(kernel.close() for kernel in kernels))


async def after_interrupt() -> float:
    """From a cell's time limit to the next cell's answer."""
    async with session() as opened:
        start = time.perf_counter()
        if (await opened.execute("import time\ntime.sleep(60)", 0.5)).status != "timeout":
            raise Wrong("no timeout")
        expect((await opened.execute("6 * 7")).outputs, "42")
        return time.perf_counter() - start - 0.5


async def after_kill() -> float:
    """From the kill of a cell that ignored its interrupt to the next cell's answer."""
    async with session(grace_s=0.5) as opened:
        start = time.perf_counter()
        if (await opened.execute(STUBBORN, 0.5)).state_kept:
            raise Wrong("not killed")
        expect((await opened.execute("6 * 7")).outputs, "42")
        return time.perf_counter() - start - 1.0


async def death() -> float:
    """From a cell that ends its kernel to the report of the death with its cause."""
    async with session() as opened:
        start = time.perf_counter()
        result = await opened.execute("import os\nos._exit(3)")
        if (result.status, result.cause) != ("dead", "exit code 3"):
            raise Wrong(f"{result.status} {result.cause}")
        return time.perf_counter() - start


def losses_aviary(peer: AviaryPeer, limit_s: int) -> dict[str, float]:
    """The same of aviary.notebook: the next cell's answer after a cell past its limit, and after a death."""
    seconds = {}
    for name, code in (("interrupt", "import time\ntime.sleep(60)"), ("death", "import os\nos._exit(3)")):
        peer.open(timeout_s=limit_s)
        peer.cell("1")
        first = peer.cell(code)["seconds"]
        answer = peer.cell("6 * 7")
        over = first - limit_s if name == "interrupt" else first
        try:
            expect(answer["outputs"], "42")
            seconds[name] = over + answer["seconds"]
        except Wrong:
            seconds[name] = float("inf")
        peer.close()
    return seconds


async def acquired(backend: str, warm: int, n: int) -> tuple[list[float], int]:
    """From acquire() to the first answer, with or without a warm session there."""
    async with KernelPool(1, warm=warm, backend=backend) as pool:

        async def run() -> float:
            while (await pool.health()).warm < warm:
                await asyncio.sleep(0.01)
            start = time.perf_counter()
            async with pool.session(SessionSpec(seed=7 if backend == "fork" else 0)) as opened:
                expect((await opened.execute("6 * 7")).outputs, "42")
                return time.perf_counter() - start

        return await repeat(n, run)


def machine() -> str:
    """Processor, cores, memory."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores, {memory:.0f} GiB"
