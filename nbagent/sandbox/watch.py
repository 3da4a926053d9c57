"""What comes of an attack, seen from the host: each way of watching runs the cell and says what it found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from nbagent.sandbox.attacks import LIMITS, Attack, Facts, Watch
from nbagent_kernels import CellResult, Session
from nbagent_kernels.errors import KernelError

CELL_S = 60.0
SHORT_S = 2.0
"""Time limit of cells that are not meant to end."""
SLACK_S = 6.0
"""Beyond the cell's limit and its grace, until a killed cell must have been reported."""
GROWTH = 128 << 20
"""Bytes that this process may grow by while a cell floods it."""
GONE_S = 10.0
READ_S = 5.0


@dataclass(frozen=True, slots=True)
class Ground:
    """Where attacks take place."""

    session: Session
    """The sandbox that attacks."""
    capsule: Path
    """Its data on the host."""
    facts: Facts
    """What the attacks are told."""
    another: Callable[[], Awaitable[Session]]
    """Opens one more sandbox."""


async def watch(attack: Attack, ground: Ground) -> str:
    """Run an attack; the answer begins with `held: ` or `through: `. Anything else means that it went wrong itself."""
    return await WATCHES[attack.watch](ground, attack.cell(ground.facts))


async def inside(ground: Ground, cell: str) -> str:
    """The cell says it, and has no reason to end otherwise."""
    result = await ground.session.execute(cell, timeout=CELL_S)
    return printed(result) if result.status == "ok" else wrong(result)


async def ending(ground: Ground, cell: str) -> str:
    """The cell says it, or was ended for it."""
    result = await ground.session.execute(cell, timeout=CELL_S)
    if result.status == "dead":
        return f"held: the kernel ended: {result.cause or result.limit}"
    if result.status == "error" and result.limit:
        return f"held: {result.limit}"
    return printed(result) if result.status == "ok" else wrong(result)


def counted(limit: str) -> Callable[[Ground, str], Awaitable[str]]:
    """The control group counts that it stopped the cell, whatever became of that: no other limit did its work."""

    async def watch(ground: Ground, cell: str) -> str:
        """As above."""
        result = await ground.session.execute(cell, timeout=CELL_S)
        if result.status not in ("ok", "dead"):
            return wrong(result)
        said = printed(result) if result.status == "ok" else f"held: the kernel ended: {result.cause}"
        return f"{said}; {result.limit}" if limit in result.limit else f"the {limit} limit was not hit: {said}"

    return watch


async def stubborn(ground: Ground, cell: str) -> str:
    """The cell runs out of time and is stopped, whatever it thinks of that."""
    result = await ground.session.execute(cell, timeout=SHORT_S)
    most = SHORT_S + LIMITS.grace_s + SLACK_S
    if result.status not in ("timeout", "dead"):
        return wrong(result)
    if result.seconds > most:
        return f"through: {result.seconds:.1f} s until it was stopped, {most:g} s are allowed"
    return f"held: stopped after {result.seconds:.1f} s of {SHORT_S:g}: {result.cause}"


async def flood(ground: Ground, cell: str) -> str:
    """What arrives is bounded while it arrives, and the cell's end is told."""
    before = reset_peak()
    result = await ground.session.execute(cell, timeout=2 * SHORT_S)
    grown = peak() - before
    kept = len(json.dumps(result.outputs))
    if result.status == "error":
        return wrong(result)
    if kept > 2 * LIMITS.output_bytes:
        return f"through: {kept} bytes were kept, the limit is {LIMITS.output_bytes}"
    if grown > GROWTH:
        return f"through: this process grew by {grown >> 20} MiB"
    return f"held: {kept >> 10} KiB kept, {result.dropped_bytes >> 10} KiB dropped, grown by {grown >> 20} MiB"


async def planted(ground: Ground, cell: str) -> str:
    """The host lists, reads and copies what the cell planted."""
    result = await ground.session.execute(cell, timeout=CELL_S)
    if result.status != "ok":
        return wrong(result)
    secret = Path(ground.facts.secret).read_bytes()
    entries = await ground.session.list("planted")
    got: list[str] = []
    for path in [entry.path for entry in entries] + [
        f"planted/{name}" for name in ("folder/secret", "root/etc/hostname")
    ]:
        with contextlib.suppress(OSError, KernelError, ValueError):
            async with asyncio.timeout(READ_S):
                content = await ground.session.read(path)
            if secret in content or "/etc/" in path or path.endswith(("environment", "memory", "passwords", "zeros")):
                got.append(f"{path} was read")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        # The sparse file is larger than an export may be, and ends it.
        with contextlib.suppress(OSError, KernelError):
            async with asyncio.timeout(4 * READ_S):
                await ground.session.export(out, max_bytes=16 << 20)
        got += escaped(out, secret)
    plain = await ground.session.read("planted/plain.txt")
    if plain != b"plain":
        return f"a plain file beside them reads {plain!r}"
    return f"through: {'; '.join(got[:5])}" if got else f"held: {len(entries)} entries listed, none followed"


def escaped(folder: Path, secret: bytes) -> list[str]:
    """What should not lie in an exported folder."""
    found = []
    for base, names, files in os.walk(folder):
        for path in (Path(base, name) for name in (*names, *files)):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                found.append(f"{path.name} was exported as it is")
            elif path.is_file() and secret in path.read_bytes()[: 1 << 20]:
                found.append(f"{path.name} holds a secret of the host")
    return found


async def capsule(ground: Ground, cell: str) -> str:
    """The data on the host are as they were."""
    before = {path: path.read_bytes() for path in ground.capsule.rglob("*") if path.is_file()}
    result = await ground.session.execute(cell, timeout=CELL_S)
    after = {path: path.read_bytes() for path in ground.capsule.rglob("*") if path.is_file()}
    if result.status != "ok":
        return wrong(result)
    return f"held: {len(after)} files as they were" if after == before else "through: the host's capsule has changed"


async def outlive(ground: Ground, cell: str) -> str:
    """The host sees the process while the session is open, and not when it is closed."""
    session = await ground.another()
    mark = f"{ground.facts.mark}-late"
    try:
        result = await session.execute(cell, timeout=CELL_S)
        if result.status != "ok":
            return wrong(result)
        seen = bool(await until(lambda: bool(processes(mark)), READ_S))
    finally:
        await session.close()
    if not await until(lambda: not processes(mark), GONE_S):
        return f"through: process {processes(mark)[0]} lives on"
    return "held: gone with the session" if seen else "held: not seen from this host"


WATCHES: dict[Watch, Callable[[Ground, str], Awaitable[str]]] = {
    "inside": inside,
    "ending": ending,
    "processes": counted("processes"),
    "memory": counted("memory"),
    "stubborn": stubborn,
    "flood": flood,
    "planted": planted,
    "capsule": capsule,
    "outlive": outlive,
}


def printed(result: CellResult) -> str:
    """The last line of standard output."""
    text = "".join(output["text"] for output in result.outputs if output.get("name") == "stdout")
    return (text.strip().splitlines() or ["nothing was printed"])[-1]


def wrong(result: CellResult) -> str:
    """An attack that did not run as it was meant to."""
    errors = [f"{output['ename']}: {output['evalue']}" for output in result.outputs if output["output_type"] == "error"]
    return f"{result.status} {result.cause} {' '.join(errors)}".strip()[:500]


def processes(mark: str) -> list[int]:
    """Processes of this host, those in containers among them, with a mark on their command line."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and mark.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


async def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes to hold in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.05)
            return True
    return False


def reset_peak() -> int:
    """Begin to count this process's largest size anew; its size now, bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The largest size since, bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
