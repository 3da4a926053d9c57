"""Speed of Docker sandboxes, many at once, what hundreds of them leave; aviary.notebook's Docker mode beside.

    python benchmarks/speed/docker.py [--quick] [--cycles 500] [--restart] [--json OUT]

Everything in one run on one machine: figures depend on it and on what else runs. `--restart` starts an engine of its
own, which needs root, runs rollouts in it and restarts it in their midst; no other engine is touched.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# First on the path, this file would be taken for the SDK, which has its name.
sys.path.append(sys.path.pop(0))

import kernel_rows as rows
from aviary_peer import AviaryAbsent, aviary, docker_image
from engine_restart import restarted

from nbagent.sandbox.bench import Figure, answer, branches, cells, cold, opened, spec_of, warm
from nbagent_images import Image, require
from nbagent_kernels import SessionSpec
from nbagent_kernels.leftovers import containers
from nbagent_kernels.workspace import process_root

TOGETHER = 16
ABREAST = 4
"""Cycles at once."""
PEER_CELLS = 5


@dataclass
class Fact:
    """A row that is a count, not a time."""

    what: str
    value: str
    reached: bool | None = None

    def line(self) -> str:
        """The row as text."""
        verdict = {None: "", True: "reached", False: "NOT REACHED"}[self.reached]
        return f"{self.what:58} {self.value}  {verdict}".rstrip()


async def together(spec: SessionSpec) -> Fact:
    """Many containers at once, each to its first answer."""
    start = time.perf_counter()

    async def one() -> None:
        async with opened(spec) as session:
            await answer(session)

    came = await asyncio.gather(*(one() for _ in range(TOGETHER)), return_exceptions=True)
    failed = [error for error in came if error is not None]
    for error in failed[:3]:
        print(f"  failed: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    return Fact(f"{TOGETHER} containers at once, all answered", f"{seconds:.1f} s, {len(failed)} failed", not failed)


def counted() -> dict[str, int]:
    """What this process has, on the engine and on the system."""
    gc.collect()
    return {
        "containers": len([one for one in containers("bench") if one.pid == os.getpid()]),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "folders": len(list(process_root().iterdir())),
        "tasks": len(asyncio.all_tasks()),
    }


async def cycled(spec: SessionSpec, cycles: int) -> Fact:
    """Sandboxes opened, used and closed; what there is afterwards beside what there was after the first few."""

    async def one() -> None:
        async with opened(spec) as session:
            await answer(session)

    await asyncio.gather(*(one() for _ in range(ABREAST)))
    before, failed, start = counted(), 0, time.perf_counter()
    for _ in range(cycles // ABREAST):
        came = await asyncio.gather(*(one() for _ in range(ABREAST)), return_exceptions=True)
        failed += sum(error is not None for error in came)
    seconds = time.perf_counter() - start
    for _ in range(50):
        if (after := counted()) == before:
            break
        await asyncio.sleep(0.1)
    more = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    value = f"{seconds:.0f} s, {failed} failed, left behind: {more or 'nothing'}"
    return Fact(f"{cycles} times opened, answered and closed", value, not failed and not more)


def peer_rows(quick: bool) -> list[Figure | Fact]:
    """aviary.notebook's Docker mode: a container, and cells, which it runs by running the whole notebook again."""
    try:
        image = docker_image()
        with aviary(image) as peer:
            opens, edits = [], []
            for number in range(1 if quick else 3):
                opens.append(peer.open(f"s{number}")["seconds"] * 1e3)
                for _ in range(PEER_CELLS):
                    edited = peer.cell("6 * 7", f"s{number}")
                    rows.expect(edited["outputs"], "42")
                    edits.append(edited["seconds"] * 1e3)
                peer.close(f"s{number}")
    except (AviaryAbsent, rows.Wrong) as error:
        return [Fact("aviary.notebook, Docker mode", f"not measured: {error}")]
    return [
        Figure("aviary.notebook, Docker mode: container started", opens),
        Figure(f"aviary.notebook, Docker mode: a cell, {PEER_CELLS} a notebook", edits),
    ]


async def measure(options: argparse.Namespace, image: Image, made: list[Any]) -> None:
    """Add each row as it is there, and print it."""

    def add(row: Figure | Fact) -> None:
        made.append(row)
        print(row.line(), flush=True)

    n = 3 if options.quick else 9
    bare = spec_of(image, preload=())
    add(await cold(bare, n))
    add(await warm(spec_of(image), n))
    add(await cells(bare, n))
    add(await branches(bare, n))
    add(await together(bare))
    add(await cycled(bare, options.cycles))
    for row in await asyncio.to_thread(peer_rows, options.quick):
        add(row)
    if options.restart:
        say, reached = await asyncio.to_thread(restarted)
        add(Fact("engine restarted in mid-run", say, reached))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--cycles", type=int, default=500, help="sandboxes opened and closed; default: 500")
    parser.add_argument("--restart", action="store_true", help="also restart an engine in mid-run, one of its own")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    image, load = require("python"), os.getloadavg()[0]
    print(f"{rows.machine()}; load {load:.1f} before; image {image.name} {image.id[7:19]}; medians\n", flush=True)
    made: list[Any] = []
    asyncio.run(measure(options, image, made))
    missed = [row.what for row in made if row.reached is False]
    print(f"\n{len(missed)} targets not reached" + "".join(f"\n  {what}" for what in missed))
    if options.json:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {"date": date, "machine": rows.machine(), "load_before": load, "image": image.id}
        content = {**facts, "rows": [{**asdict(row), "reached": row.reached} for row in made]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
