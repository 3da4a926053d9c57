"""Thousands of random steps in kernel sessions, each checked against what it must give; the peer beside them.

    python benchmarks/speed/kernel_steps.py [--steps 2000] [--peer-steps 100] [--seed 0] [--json OUT]

A step is hung when its answer takes longer than its own time limit, grace and a margin allow; it is wrong when the
answer is not what the code must give. The peer, aviary.notebook, is given the kinds of steps that it offers, a new
environment every 20 steps, and is judged by its notebook's outputs; its counts are scaled to the same number of steps.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aviary_peer import AviaryAbsent, AviaryPeer, aviary

from nbagent_kernels import CellResult, Limits, Session, SessionSpec, open_session

GRACE_S, MARGIN_S = 1.0, 20.0
PLOT = "import matplotlib.pyplot as plt\nplt.plot([{n}, 2]);"
BIG, CAP = 3_000_000, 1 << 20
PEER_TIMEOUT_S, PEER_EPISODE = 3, 20
KINDS = {
    "print": 20,
    "value": 20,
    "keep": 15,
    "fail": 10,
    "plot": 5,
    "unicode": 5,
    "big": 4,
    "huge": 2,
    "together": 4,
    "die": 3,
    "late": 3,
    "stuck": 1,
    "interrupt": 3,
    "restart": 2,
    "exit": 1,
    "ask": 2,
}
"""Kinds of steps and how often they come."""
OFFERED_BY_PEER = ("print", "value", "keep", "fail", "plot", "unicode", "big", "die", "late")


@dataclass
class Tally:
    """What came of the steps."""

    steps: int = 0
    hung: int = 0
    wrong: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, problem: str) -> None:
        """Count one step."""
        self.steps += 1
        self.kinds[kind] += 1
        self.hung += problem.startswith("hung")
        self.wrong += bool(problem) and not problem.startswith("hung")
        if problem:
            self.problems.append(f"{kind}: {problem}"[:300])


def stdout(outputs: list[dict[str, Any]]) -> str:
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def is_png(outputs: list[dict[str, Any]]) -> bool:
    shown = [output["data"].get("image/png", "") for output in outputs if output["output_type"] == "display_data"]
    return len(shown) == 1 and base64.b64decode(shown[0]).startswith(b"\x89PNG")


def shown(outputs: list[dict[str, Any]]) -> list[str]:
    return [output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result"]


def names(outputs: list[dict[str, Any]]) -> list[str]:
    return [output["ename"] for output in outputs if output["output_type"] == "error"]


class Walk:
    """Random steps in one session, with what its variables and its counter must be."""

    def __init__(self, session: Session, rng: random.Random, tally: Tally) -> None:
        self.session = session
        self.rng = rng
        self.tally = tally
        self.x: int | None = None
        self.count = 0

    async def steps(self, n: int) -> None:
        for _ in range(n):
            kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                async with asyncio.timeout(GRACE_S + MARGIN_S):
                    problem = await getattr(self, kind)()
            except TimeoutError:
                problem = "hung"
            self.tally.add(kind, problem)

    async def run(self, code: str, timeout: float | None = 10.0) -> CellResult:
        return self.follow(await self.session.execute(code, timeout))

    def follow(self, result: CellResult) -> CellResult:
        """The variables and the counter after this cell."""
        if not result.state_kept:
            self.x, self.count = None, 0
        self.count += result.status in ("ok", "error") or (result.status == "timeout" and result.state_kept)
        return result

    def judged(self, result: CellResult, right: bool, status: str = "ok") -> str:
        counted = result.execution_count == self.count or result.status in ("timeout", "dead")
        return "" if right and result.status == status and counted else f"count {self.count}, {str(result)[:600]}"

    async def print(self) -> str:
        n = self.rng.randint(1, 500)
        result = await self.run(f"for i in range({n}): print(i)")
        return self.judged(result, stdout(result.outputs) == "".join(f"{i}\n" for i in range(n)))

    async def value(self) -> str:
        result = await self.run("x if 'x' in globals() else None")
        return self.judged(result, shown(result.outputs) == ([] if self.x is None else [str(self.x)]))

    async def keep(self) -> str:
        x = self.rng.randint(0, 10**6)
        result = await self.run(f"x = {x}")
        self.x = x
        return self.judged(result, result.outputs == [])

    async def fail(self) -> str:
        result = await self.run("print('before')\n1 / 0")
        right = stdout(result.outputs) == "before\n" and names(result.outputs) == ["ZeroDivisionError"]
        return self.judged(result, right, "error")

    async def plot(self) -> str:
        result = await self.run(PLOT.format(n=self.rng.randint(0, 9)), timeout=20)
        return self.judged(result, is_png(result.outputs))

    async def unicode(self) -> str:
        result = await self.run("print('Ω 🧬 ü')\n'🧬'")
        return self.judged(result, stdout(result.outputs) == "Ω 🧬 ü\n" and shown(result.outputs) == ["'🧬'"])

    async def big(self) -> str:
        result = await self.run(f"for _ in range(100): print('y' * {BIG // 100})")
        right = CAP - 70_000 <= len(stdout(result.outputs)) <= CAP and result.dropped_bytes > 0
        return self.judged(result, right)

    async def huge(self) -> str:
        result = await self.run("display({'text/plain': 'z' * 20_000_000}, raw=True)")
        return self.judged(result, result.outputs == [] and result.dropped_bytes >= 20_000_000)

    async def together(self) -> str:
        results = await asyncio.gather(*(self.session.execute(f"print({i})", 10.0) for i in range(4)))
        problems = [self.judged(self.follow(r), stdout(r.outputs) == f"{i}\n") for i, r in enumerate(results)]
        return next(filter(None, problems), "")

    async def die(self) -> str:
        number = self.rng.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
        code, cause = self.rng.choice(
            (
                ("import os\nos._exit(3)", "exit code 3"),
                (f"import os\nos.kill(os.getpid(), {int(number)})", f"signal {number.name}"),
            )
        )
        if number == signal.SIGTERM and "kill" in code:
            code = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n{code}"
        start = time.perf_counter()
        result = await self.run(code)
        right = result.cause == cause and not result.state_kept and time.perf_counter() - start < MARGIN_S / 2
        return self.judged(result, right, "dead")

    async def late(self) -> str:
        wait = self.rng.choice(
            ("import time\ntime.sleep(60)", "while True: pass", "await __import__('asyncio').sleep(60)")
        )
        result = await self.run(f"print('before', flush=True)\n{wait}", timeout=0.3)
        return self.judged(result, result.state_kept and stdout(result.outputs) == "before\n", "timeout")

    async def stuck(self) -> str:
        result = await self.run("sum(iter(int, 1))", timeout=0.3)
        return self.judged(result, not result.state_kept and "killed" in result.cause, "timeout")

    async def interrupt(self) -> str:
        cell = asyncio.create_task(self.run("print('before', flush=True)\nimport time\ntime.sleep(60)", timeout=None))
        for _ in range(40):
            await asyncio.sleep(0.3)
            await self.session.interrupt()
            if (await asyncio.wait([cell], timeout=0.3))[0]:
                break
        result = await cell
        right = names(result.outputs) == ["KeyboardInterrupt"] and stdout(result.outputs) == "before\n"
        return self.judged(result, right and result.state_kept, "error")

    async def restart(self) -> str:
        name, content = f"f{self.rng.randint(0, 9)}", str(self.rng.random())
        problem = self.judged(await self.run(f"open({name!r}, 'w').write({content!r});"), right=True)
        await self.session.restart()
        self.x, self.count = None, 0
        return problem or ("" if await self.session.read(name) == content.encode() else f"{name} is not {content}")

    async def exit(self) -> str:
        result = await self.run("exit()")
        problem = self.judged(result, result.outputs == [])
        for _ in range(100):
            # Asked while it ends, a kernel takes the cell along; later, a fresh one says that the last has ended.
            told = await self.run("'x' in globals()")
            if not told.state_kept:
                right = "exit code 0" in told.cause and (told.status == "dead" or shown(told.outputs) == ["False"])
                return problem or ("" if right else str(told))
            await asyncio.sleep(0.1)
        return "the kernel lives on after exit()"

    async def ask(self) -> str:
        result = await self.run("input('?')")
        return self.judged(result, names(result.outputs) == ["StdinNotImplementedError"], "error")


async def ours(n_steps: int, seed: int, backends: tuple[str, ...] = ("fork", "local"), each: int = 3) -> Tally:
    """Steps in several sessions of each backend at once."""
    tally = Tally()
    spec = SessionSpec(preload=("numpy", "matplotlib.pyplot"), limits=Limits(grace_s=GRACE_S, output_bytes=CAP))
    places = [backend for backend in backends for _ in range(each)]
    sessions = [await open_session(spec, backend) for backend in places]
    try:
        walks = [Walk(session, random.Random(f"{seed} {i}"), tally) for i, session in enumerate(sessions)]
        shares = [n_steps // len(walks) + (i < n_steps % len(walks)) for i in range(len(walks))]
        await asyncio.gather(*(walk.steps(share) for walk, share in zip(walks, shares, strict=True)))
    finally:
        for session in sessions:
            await session.close()
    return tally


def peers(peer: AviaryPeer, n_steps: int, seed: int) -> Tally:
    """The same kinds of steps, as far as the peer offers them."""
    rng = random.Random(seed)
    tally = Tally()
    x: int | None = None
    n = 0
    ways: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bool]]] = {}
    for i in range(n_steps):
        if i % PEER_EPISODE == 0:
            if i:
                peer.close()
            peer.open(timeout_s=PEER_TIMEOUT_S)
            x = None
        n = rng.randint(1, 500)
        kind = rng.choices(OFFERED_BY_PEER, [KINDS[kind] for kind in OFFERED_BY_PEER])[0]
        value = [] if x is None else [str(x)]
        ways = {
            "print": (
                f"for i in range({n}): print(i)",
                lambda o, n=n: stdout(o) == "".join(f"{i}\n" for i in range(n)),
            ),
            "value": ("x if 'x' in globals() else None", lambda o, value=value: shown(o) == value),
            "keep": (f"x = {n}", lambda o: o == []),
            "fail": ("print('before')\n1 / 0", lambda o: names(o) == ["ZeroDivisionError"] and stdout(o) == "before\n"),
            "plot": (PLOT.format(n=n), is_png),
            "unicode": ("print('Ω 🧬 ü')\n'🧬'", lambda o: stdout(o) == "Ω 🧬 ü\n" and shown(o) == ["'🧬'"]),
            "big": (f"for _ in range(100): print('y' * {BIG // 100})", lambda o: len(stdout(o)) >= CAP - 70_000),
            "die": ("import os\nos._exit(3)", lambda o: True),
            "late": ("import time\ntime.sleep(60)", lambda o: True),
        }
        code, right = ways[kind]
        answer = peer.cell(code)
        late = "timed out" in answer["error"]
        if kind == "keep" and not late:
            x = n
        if kind == "die" and not late:
            x = None
        if late and kind != "late":
            problem = f"hung for {answer['seconds']:.1f} s"
        elif kind == "late":
            problem = "" if late else "no time limit"
        else:
            problem = "" if right(answer["outputs"]) else f"{answer['error'] or answer['outputs']}"
        tally.add(kind, problem)
    peer.close()
    return tally


def line(name: str, tally: Tally, scaled_to: int) -> str:
    per = scaled_to / max(tally.steps, 1)
    return f"{name:18}{tally.steps:7d}{tally.hung:7d}{tally.wrong:7d}{(tally.hung + tally.wrong) * per:22.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--peer-steps", type=int, default=100, help="0 leaves the peer out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    start = time.perf_counter()
    tallies = {"nbagent": asyncio.run(ours(options.steps, options.seed))}
    print(f"{options.steps} steps in 3 sessions of fork and 3 of local: {time.perf_counter() - start:.0f} s")
    if options.peer_steps:
        try:
            with aviary() as peer:
                tallies["aviary.notebook"] = peers(peer, options.peer_steps, options.seed)
        except AviaryAbsent as why:
            print(f"the peer is left out: {why}")
    print(f"{'':18}{'steps':>7}{'hung':>7}{'wrong':>7}{f'bad in {options.steps} steps':>22}")
    for name, tally in tallies.items():
        print(line(name, tally, options.steps))
    for name, tally in tallies.items():
        for problem in tally.problems[:10]:
            print(f"  {name}: {problem}")
    if options.json:
        counts = {name: {**vars(tally), "kinds": dict(tally.kinds)} for name, tally in tallies.items()}
        options.json.write_text(json.dumps(counts, indent=1))
    mine = tallies["nbagent"]
    print("reached" if not mine.hung and not mine.wrong else "NOT reached", ": no step hung or wrong")
    return bool(mine.hung or mine.wrong)


if __name__ == "__main__":
    sys.exit(main())
