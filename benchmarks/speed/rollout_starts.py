"""How long rollouts in Docker wait for their sessions, call by call of `Rollouts.run`, as a training run makes them.

    python benchmarks/speed/rollout_starts.py [--jobs 8] [--concurrency 8] [--calls 4] [--between 30] [--language R]

A rollout runs one cell that imports pandas and answers; its model takes two seconds a call. Between two calls nothing
runs, as while a trainer on a GPU learns. Each call prints how many sessions were warm, and how long `acquire` took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# First on the path, docker.py beside this file would be taken for the SDK, which has its name.
sys.path.append(sys.path.pop(0))

from kernel_rows import machine

from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_kernels import KernelPool, SessionSpec
from nbagent_kernels.live import LiveSession

THINKS_S = 2.0
CELLS = {"python": "import pandas\nprint('DO' + 'NE')", "R": "cat('DO', 'NE', sep = '')"}


class Always:
    """Everything is right."""

    def verify(self, answer: str) -> Verdict:
        """The outcome."""
        return Verdict(Outcome.CORRECT, "always")


class Slow(ScriptedModel):
    """Takes its time."""

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """The script's next text, later."""
        await asyncio.sleep(THINKS_S)
        return await super().sample(prompt, params)


class Clocked:
    """What `KernelPool.acquire` did since the last look."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.warm = 0
        acquire, assign = KernelPool.acquire, LiveSession.assign

        async def clocked(pool: KernelPool, spec: SessionSpec | None = None) -> LiveSession:
            start = time.perf_counter()
            session = await acquire(pool, spec)
            self.seconds.append(time.perf_counter() - start)
            return session

        async def counted(session: LiveSession, spec: SessionSpec) -> None:
            self.warm += 1
            await assign(session, spec)

        KernelPool.acquire = clocked  # type: ignore[method-assign]
        LiveSession.assign = counted  # type: ignore[method-assign]

    def line(self) -> str:
        """The share of warm sessions, and the times."""
        seconds, warm = sorted(self.seconds), self.warm
        self.seconds, self.warm = [], 0
        return (
            f"{warm:3} of {len(seconds)} warm   acquire median {statistics.median(seconds):6.2f} s "
            f"({seconds[0]:.2f}-{seconds[-1]:.2f})"
        )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="rollouts of each call")
    parser.add_argument("--concurrency", type=int, default=8, help="rollouts at once")
    parser.add_argument("--calls", type=int, default=4, help="calls of run")
    parser.add_argument("--between", type=float, default=30.0, help="seconds between two calls")
    parser.add_argument("--language", choices=sorted(CELLS), default="python")
    options = parser.parse_args()
    cell = {"name": "run_cell", "arguments": {"code": CELLS[options.language]}}
    answer = {"name": "submit_answer", "arguments": {"answer": "4"}}

    def act(prompt: str) -> str:
        return f"<tool_call>\n{json.dumps(answer if 'DONE' in prompt else cell)}\n</tool_call>"

    settings = RolloutSettings(policy="full", backend="docker", sampling=SamplingParams(max_new_tokens=400))
    clocked = Clocked()
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} before; {vars(options)}", flush=True)
    with tempfile.TemporaryDirectory() as place, Rollouts(options.concurrency) as rollouts:
        run = RunFolder.create(Path(place) / "run", "seed = 0\n")
        capsule = Path(place) / "capsule"
        capsule.mkdir()
        (capsule / "a.csv").write_text("a\n1\n")
        for number in range(options.calls):
            tasks = [Task(f"t-{i}", "What?", capsule, Always(), options.language, seed=i) for i in range(options.jobs)]
            jobs = [(task, f"{number}-{task.task_id}") for task in tasks]
            start = time.perf_counter()
            made = rollouts.run(jobs, Slow(act), settings, run)
            right = sum(one.outcome is Outcome.CORRECT for one in made)
            took = time.perf_counter() - start
            print(f"call {number + 1}   {clocked.line()}   {took:6.1f} s, {right} answered", flush=True)
            if number + 1 < options.calls:
                time.sleep(options.between)
        start = time.perf_counter()
    print(f"closed in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
