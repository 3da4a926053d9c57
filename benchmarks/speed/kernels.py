"""Speed and memory of kernel sessions beside their peers, jupyter_client's AsyncKernelManager and aviary.notebook.

    python benchmarks/speed/kernels.py [--quick] [--json OUT]

Everything in one run on one machine: figures depend on it and on what else runs, so compare within a run. The peers
start kernels cold, as they always do. aviary.notebook lives in an environment of its own, made on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kernel_rows as rows
from aviary_peer import AviaryAbsent, AviaryPeer, aviary

LENGTHS = [20, 100, 300]


@dataclass
class Row:
    """One line of the table."""

    what: str
    ours: float
    """Median, in `unit`."""
    unit: str = "ms"
    spread: tuple[float, float] | None = None
    """Least and most."""
    n: int = 1
    failed: int = 0
    peers: dict[str, float] = field(default_factory=dict)
    """Median by peer; infinite where it never came."""
    limit: float | None = None
    """Target: at most this, in `unit`."""
    factor: float | None = None
    """Target: each peer at least this many times ours."""
    factor_for: Sequence[str] = ()
    """The peers that the factor is for; none: all."""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether every target is reached; None where there is none."""
        if self.limit is None and self.factor is None:
            return None
        ratios = [
            value / self.ours for name, value in self.peers.items() if not self.factor_for or name in self.factor_for
        ]
        fast = self.limit is None or self.ours <= self.limit
        far = self.factor is None or (bool(ratios) and min(ratios) >= self.factor)
        return fast and far and not self.failed

    def beside(self, value: float) -> str:
        """A peer's figure and its ratio to ours."""
        if math.isinf(value):
            return "never"
        return f"{value:.1f} {self.unit} = {value / self.ours:.1f}x"

    def line(self) -> str:
        """The row of the table."""
        spread = f" ({self.spread[0]:.1f}-{self.spread[1]:.1f}, n={self.n})" if self.spread else ""
        peers = "; ".join(f"{name} {self.beside(value)}" for name, value in self.peers.items())
        wanted = [f"<= {self.limit:g} {self.unit}"] if self.limit is not None else []
        wanted += [f">= {self.factor:g}x below {' and '.join(self.factor_for) or 'each peer'}"] if self.factor else []
        verdict = {None: "", True: "reached", False: "NOT REACHED"}[self.reached]
        said = [f"{self.failed} failed" if self.failed else "", self.note, peers, ", ".join(wanted), verdict]
        return f"{self.what:52} {self.ours:8.1f} {self.unit}{spread}  " + " | ".join(part for part in said if part)


def row(what: str, measured: tuple[list[float], int], scale: float = 1e3, **more: object) -> Row:
    """A row of times; infinite where every run failed."""
    times, failed = [time * scale for time in measured[0]], measured[1]
    if not times:
        return Row(what, math.inf, failed=failed, **more)  # type: ignore[arg-type]
    spread = (min(times), max(times))
    return Row(what, statistics.median(times), spread=spread, n=len(times), failed=failed, **more)  # type: ignore[arg-type]


def middle(measured: tuple[list[float], int], scale: float = 1e3) -> float:
    """The median; infinite where every run failed."""
    return statistics.median(measured[0]) * scale if measured[0] else math.inf


async def measure(quick: bool, peer: AviaryPeer | None, made: list[Row]) -> None:
    """Add each row as it is there, and print it."""

    def add(one: Row) -> None:
        made.append(one)
        print(one.line(), flush=True)

    n = 2 if quick else 9
    start = time.perf_counter()
    await rows.open_ours("fork")
    add(Row("fork server up with the scientific stack, once a process", (time.perf_counter() - start) * 1e3))

    peers = {"AsyncKernelManager": middle(await rows.repeat(n, rows.open_managed))}
    lost = 0
    if peer is not None:
        measured = await rows.repeat(n, lambda: rows.open_aviary(peer))
        peers["aviary.notebook"], lost = middle(measured), measured[1]
    note = f"aviary.notebook: {lost} of {n} gave no answer" if lost else ""
    ours = await rows.repeat(3 * n, lambda: rows.open_ours("fork"))
    add(row("open, scanpy imported, first correct output", ours, peers=peers, limit=100, factor=15, note=note))
    add(row("the same in backend local", await rows.repeat(n, lambda: rows.open_ours("local"))))

    add(row("branch with a DataFrame of 200 MB, first reply", await rows.branches(2 * n, "fork"), limit=150))
    add(row("the same by replay", await rows.branches(n, "replay")))

    lengths = LENGTHS[:1] if quick else LENGTHS
    mine, managed = await rows.cells_ours(lengths), await rows.cells_managed(lengths)
    theirs, wrong = rows.cells_aviary(peer, lengths) if peer is not None else ({}, 0)
    for length in lengths:
        peers = {"AsyncKernelManager": managed[length] * 1e3}
        if theirs:
            peers["aviary.notebook"] = theirs[length] * 1e3
        factor = 10 if length == 300 and theirs else None
        note = f"aviary.notebook: {wrong} wrong steps" if wrong and length == lengths[-1] else ""
        what = f"a step that runs a cell, in a notebook of {length} cells"
        far = {"factor": factor, "factor_for": ["aviary.notebook"]} if factor else {}
        add(Row(what, mine[length] * 1e3, peers=peers, limit=5, note=note, **far))  # type: ignore[arg-type]

    crowd = 20 if quick else 100
    runs = [await rows.crowd_ours(crowd) for _ in range(1 if quick else 3)]
    seconds, failed = await rows.crowd_managed(crowd)
    note = f"AsyncKernelManager: {failed} failed" if failed else ""
    together = ([taken for taken, _ in runs], sum(lost for _, lost in runs))
    what = f"{crowd} sessions at once, all answered"
    add(row(what, together, 1, unit="s", peers={"AsyncKernelManager": seconds}, limit=6, note=note))

    peers = {"AsyncKernelManager": await rows.memory_managed(1 if quick else 3) / 1e6}
    idle = await rows.memory_ours(20) / 1e6
    add(Row("memory of an idle session with scanpy (PSS)", idle, "MB", peers=peers, limit=45))

    theirs_lost = rows.losses_aviary(peer, 3) if peer is not None else {}
    for what, run, name in (
        ("from the time limit, by interrupt, to the next answer", rows.after_interrupt, "interrupt"),
        ("from the kill of a stubborn cell to the next answer", rows.after_kill, ""),
        ("from a kernel's end to its report with the cause", rows.death, "death"),
    ):
        peers = {"aviary.notebook": theirs_lost[name] * 1e3} if name in theirs_lost else {}
        add(row(what, await rows.repeat(n, run), peers=peers, limit=1000))

    for backend in ("fork", "local"):
        for warm in (0, 1):
            what = f"a pool's session, backend {backend}, {'warm' if warm else 'started anew'}"
            add(row(what, await rows.acquired(backend, warm, n)))


@contextlib.contextmanager
def peer_if_there() -> Iterator[AviaryPeer | None]:
    """aviary.notebook; None, and a line that says why, where it cannot be installed."""
    with contextlib.ExitStack() as stack:
        try:
            peer = stack.enter_context(aviary())
        except AviaryAbsent as error:
            print(f"without aviary.notebook: {error}")
            peer = None
        yield peer


def plain(value: Any) -> Any:
    """The same for JSON, which knows no infinity: null is what never came."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, short notebooks, 20 at once")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{rows.machine()}; load {load:.1f} before; a ratio is a peer's figure over ours\n", flush=True)
    made: list[Row] = []
    with peer_if_there() as peer:
        asyncio.run(measure(options.quick, peer, made))
    missed = [one.what for one in made if one.reached is False]
    print(f"\n{len(missed)} targets not reached" + "".join(f"\n  {what}" for what in missed))
    if options.json:
        facts = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": rows.machine(),
            "load_before": load,
            "versions": {name: importlib.metadata.version(name) for name in ("nbagent", "ipykernel", "jupyter_client")},
            "rows": [plain({**asdict(one), "reached": one.reached}) for one in made],
        }
        options.json.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
