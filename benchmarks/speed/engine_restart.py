"""A Docker engine of one's own, restarted in the midst of a run: what becomes of the rollouts.

It has its own data, socket and process, so that what else runs on the machine's engine is not touched. Needs root.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.tasks import Outcome, Task, Verdict
from nbagent_images import require
from nbagent_images.engine import engine
from nbagent_kernels.engineclient import disconnect

ROLLOUTS, ABREAST = 16, 4
READY_S = 60.0
IMAGE = "nbagent-r"
CELL = "import time\ntime.sleep(15)\nprint(6 * 7)"
"""Longer than the engine, told to end, lets containers live: those in use are lost with it."""


class OwnEngine:
    """dockerd on a socket in a folder."""

    def __init__(self, folder: Path) -> None:
        self.socket = f"unix://{folder / 's'}"
        place = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        # In a network namespace of its own: a second engine without a bridge would take the first one's away.
        self._command = [
            "unshare",
            "--net",
            "dockerd",
            "-H",
            self.socket,
            "--bridge",
            "none",
            "--iptables=false",
            "--ip6tables=false",
        ]
        self._command += [word for flag, name in place.items() for word in (flag, str(folder / name))]
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + READY_S
        while subprocess.run(["docker", "-H", self.socket, "info"], capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the engine did not start: {self._log.read_text()[-500:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it and every container of it."""
        self._process.terminate()
        self._process.wait(READY_S)


@dataclass(frozen=True)
class FortyTwo:
    """Knows the answer."""

    def verify(self, answer: str | None) -> Verdict:
        """Whether it is 42."""
        return Verdict(Outcome.CORRECT if answer == "42" else Outcome.INCORRECT, "the key is 42")


def act(prompt: str) -> str:
    """One cell, then the answer."""
    name, arguments = ("submit_answer", {"answer": "42"}) if "42\n" in prompt else ("run_cell", {"code": CELL})
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@contextlib.contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """The engine with our small image in it, as this process's own; removed at the end."""
    folder, before = Path(tempfile.mkdtemp(prefix="nbe-")), os.environ.get("DOCKER_HOST")
    own = OwnEngine(folder)
    try:
        with engine(timeout_s=600) as theirs:
            saved = theirs.images.get(require(IMAGE, theirs).id).save(named=f"{IMAGE}:latest")
            load = subprocess.Popen(["docker", "-H", own.socket, "load", "-q"], stdin=subprocess.PIPE)
            assert load.stdin is not None
            for chunk in saved:
                load.stdin.write(chunk)
            load.stdin.close()
            if load.wait():
                raise RuntimeError("the image could not be handed on")
        os.environ["DOCKER_HOST"] = own.socket
        disconnect()
        yield own
    finally:
        disconnect()
        os.environ.pop("DOCKER_HOST", None)
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        own.stop()
        shutil.rmtree(folder, ignore_errors=True)


def restarted() -> tuple[str, bool]:
    """Run rollouts, restart the engine in their midst; what came of them, and whether that is what must come."""
    with own_engine() as own, tempfile.TemporaryDirectory() as folder:
        task = Task("t", "What is 6 times 7?", Path(folder), FortyTwo(), family="restart", seed=0)
        settings = RolloutSettings(
            sampling=SamplingParams(max_new_tokens=200),
            policy="full",
            backend=f"docker:{IMAGE}",
            limits=EnvLimits(max_steps=4),
            infrastructure_retries=0,
        )
        ended: list[float] = []
        down: list[float] = []

        def restart() -> None:
            while len(ended) < ABREAST:
                time.sleep(0.1)
            down.append(time.monotonic())
            own.stop()
            own.start()
            down.append(time.monotonic())

        restarting = threading.Thread(target=restart)
        restarting.start()
        with Rollouts(concurrency=ABREAST) as rollouts:
            jobs = [(task, f"t#{number}") for number in range(ROLLOUTS)]
            made: list[Any] = rollouts.run(
                jobs, ScriptedModel(act), settings, progress=lambda: ended.append(time.monotonic())
            )
        restarting.join()
    outcomes = collections.Counter(str(one.outcome) for one in made)
    after = sum(moment > down[1] for moment in ended)
    said = f"down for {down[1] - down[0]:.1f} s; " + ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items()))
    good = set(outcomes) == {"correct", "infrastructure"} and sum(outcomes.values()) == ROLLOUTS
    return f"{said} of {ROLLOUTS}; {after} ended after it", good and after > 0
