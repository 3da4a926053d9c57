"""Where the time of a cold container goes, with the image's file of first imports and without it, in turn.

    python benchmarks/speed/cold_start.py [-n 9] [--rounds 3]

The fork server's files are copied once for the containers that are to go without, and look for the file where none is.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# First on the path, a file beside this one would be taken for the SDK, which has its name.
sys.path.append(sys.path.pop(0))

from nbagent.sandbox.bench import answer, opened, spec_of
from nbagent_images import require
from nbagent_kernels import SessionSpec, container
from nbagent_kernels.container import Container
from nbagent_kernels.containerserver import ContainerServer
from nbagent_kernels.forkedimports import PACK

PHASES = ("engine's create and start", "until the server calls", "its imports, the kernel", "opened", "first answer")
_ends: list[float] = []


def ending(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same, with the moment of its end taken down."""

    @functools.wraps(call)
    async def timed(*given: Any) -> Any:
        got = await call(*given)
        _ends.append(time.perf_counter())
        return got

    return timed


async def once(spec: SessionSpec) -> list[float]:
    """Milliseconds of each phase of one cold container, and of all."""
    _ends.clear()
    begun = time.perf_counter()
    async with opened(spec) as session:
        _ends.append(time.perf_counter())
        await answer(session)
        _ends.append(time.perf_counter())
    moments = [begun, *_ends]
    assert len(moments) == len(PHASES) + 1
    steps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return [1e3 * seconds for seconds in (*steps, sum(steps))]


@contextmanager
def without_pack() -> Iterator[Path]:
    """The fork server's files, changed so that they find no file of imports."""
    with tempfile.TemporaryDirectory(prefix="nbagent-cold-") as place:
        folder = Path(place, "kernel")
        shutil.copytree(container.kernel_files(), folder)
        Path(place).chmod(0o755)
        file = folder / "forkedimports.py"
        changed = file.read_text().replace(f'"{PACK}"', f'"{PACK}-none"')
        assert changed != file.read_text()
        file.write_text(changed)
        yield folder


async def measure(n: int, rounds: int) -> None:
    """Print each round's medians, and those of all rounds."""
    spec = spec_of(require("python"), preload=())
    Container._made = ending(Container._made)  # type: ignore[method-assign]
    Container._called = ending(Container._called)  # type: ignore[method-assign]
    ContainerServer.ready = ending(ContainerServer.ready)  # type: ignore[method-assign]
    kept: dict[str, list[list[float]]] = {"with": [], "without": []}
    print(f"{'medians, ms':22}" + "".join(f"{phase:>27}" for phase in (*PHASES, "all")))
    with without_pack() as changed:
        files = {"with": container.kernel_files(), "without": changed}
        await once(spec)
        for number in range(rounds):
            for how, folder in files.items():
                container.kernel_files = lambda folder=folder: folder  # type: ignore[misc]
                rows = [await once(spec) for _ in range(n)]
                kept[how] += rows
                print(line(f"round {number + 1} {how}", rows), flush=True)
    for how, rows in kept.items():
        print(line(f"all {how} (n={len(rows)})", rows))


def line(name: str, rows: list[list[float]]) -> str:
    """Medians as text."""
    return f"{name:22}" + "".join(f"{statistics.median(column):27.0f}" for column in zip(*rows, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=9, help="containers of each kind a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(measure(given.n, given.rounds))


if __name__ == "__main__":
    main()
