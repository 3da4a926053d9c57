"""The peer aviary.notebook: a virtual environment of its own, and its notebook environments driven from here.

    with aviary() as peer:
        opened = peer.open(timeout_s=10)
        answer = peer.cell("1 + 1")          # {"seconds": ..., "outputs": [...], "error": ""}
        peer.close()

Its kernels run in this process's interpreter, so that both sides have the same libraries; its own code and its
dependencies are in the environment, made on first use in the user's cache folder (about 300 MB, 40 s). With an image,
`aviary(docker_image())`, it runs in its Docker mode.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = "0.37.0"
_DRIVER = r"""
import aiodocker.containers, asyncio, json, os, sys, tempfile, time
from aiodocker.containers import DockerContainer
from pathlib import Path
from aviary.core import ToolCall, ToolRequestMessage
from aviary.envs.notebook import NBEnvironment

answers, sys.stdout = sys.stdout, sys.stderr
IN_DOCKER = "NB_ENVIRONMENT_DOCKER_IMAGE" in os.environ

class Unprivileged(DockerContainer):
    # It asks for a privileged exec, which engines may refuse that have not all capabilities themselves.
    def exec(self, *args, privileged=False, **more):
        return super().exec(*args, **more)

if IN_DOCKER:
    aiodocker.containers.DockerContainer = Unprivileged

async def handle(envs, request):
    name, op = request["session"], request["op"]
    if op == "open":
        envs[name] = NBEnvironment(
            work_dir=tempfile.mkdtemp(), use_docker=IN_DOCKER, cell_execution_timeout=request["timeout_s"]
        )
        await envs[name].reset()
    elif op == "cell":
        call = ToolCall.from_name("edit_cell", contents=request["contents"])
        said, *_ = await envs[name].step(ToolRequestMessage(tool_calls=[call]))
        error = str(said[0].content) if "exception" in str(said[0].content).lower() else ""
        return {"outputs": list(envs[name].state.cells[-1].get("outputs", [])), "error": error}
    elif op == "close":
        await envs.pop(name).close()
    return {"outputs": [], "error": ""}

async def main():
    envs = {}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        start = time.perf_counter()
        try:
            answer = await handle(envs, json.loads(line))
        except Exception as error:
            answer = {"outputs": [], "error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"seconds": time.perf_counter() - start, **answer}), file=answers, flush=True)
    for env in envs.values():
        await env.close()

asyncio.run(main())
"""


class AviaryAbsent(Exception):
    """The peer could not be installed; the message says why."""


class AviaryPeer:
    """One process with aviary.notebook in it. Seconds are measured there, around the peer's own calls."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def open(self, session: str = "s", timeout_s: int = 600) -> dict[str, Any]:
        """An environment with a fresh kernel; `timeout_s` bounds each cell."""
        return self._ask(op="open", session=session, timeout_s=timeout_s)

    def cell(self, contents: str, session: str = "s") -> dict[str, Any]:
        """Append and run a cell, as the peer's agent does: seconds, nbformat outputs, and the tool's error."""
        return self._ask(op="cell", session=session, contents=contents)

    def close(self, session: str = "s") -> dict[str, Any]:
        """End the environment."""
        return self._ask(op="close", session=session)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AviaryAbsent(f"the peer's process ended with exit status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def aviary(image: str | None = None) -> Iterator[AviaryPeer]:
    """A process with aviary.notebook, ended with all its kernels afterwards; in Docker mode with an image.

    Raises:
        AviaryAbsent: it cannot be installed or does not start.
    """
    python = environment() / "bin" / "python"
    docker = {"NB_ENVIRONMENT_DOCKER_IMAGE": image} if image else {}
    with tempfile.TemporaryDirectory(prefix="aviary-") as folder:
        kernel = Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python", "language": "python"}))
        process = subprocess.Popen(
            [str(python), "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "JUPYTER_PATH": folder,
                "TMPDIR": folder,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                **docker,
            },
        )
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise AviaryAbsent(f"aviary.notebook did not start: exit status {process.wait()}")
            yield AviaryPeer(process)
        finally:
            process.communicate()


def environment() -> Path:
    """The peer's virtual environment, made where it is not there yet. Raises AviaryAbsent."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbagent" / f"aviary-{VERSION}"
    done = place / "complete"
    if not done.exists():
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(place)],
            [str(place / "bin" / "pip"), "install", "-q", f"fhaviary[notebook]=={VERSION}", "ipykernel"],
        )
        for step in steps:
            made = subprocess.run(step, capture_output=True, text=True)
            if made.returncode:
                raise AviaryAbsent(f"{' '.join(step)}: {made.stderr.strip()[-500:]}")
        done.touch()
    return place


def docker_image() -> str:
    """The name of an image for its Docker mode: ours of Python with nbconvert, as root, which its folders need.

    Raises:
        AviaryAbsent: it cannot be built.
    """
    from nbagent_images import RECIPES, ImageError, require
    from nbagent_images.build import build
    from nbagent_images.engine import engine
    from nbagent_images.wheels import download

    name = f"nbagent-aviary-peer:{VERSION}"
    try:
        with engine(timeout_s=600) as client, tempfile.TemporaryDirectory(prefix="aviary-") as folder:
            base = require("python", client)
            pins = Path(folder, "pins.txt")
            pins.write_text("\n".join(re.findall(r"^\S+==[^\s\\]+", RECIPES["python"].lock.read_text(), re.M)))
            wheels = Path(folder, "wheels")
            wheels.mkdir()
            download(["-c", str(pins), "nbconvert", "jupyter-core"], wheels, lambda *_: None)
            Path(folder, "Dockerfile").write_text(
                "ARG BASE\nFROM $BASE\nUSER 0\nCOPY wheels /tmp/wheels\n"
                "RUN python /opt/pip/pip install --prefix /opt/venv --no-index --find-links /tmp/wheels "
                "nbconvert jupyter-core\n"
            )
            build(client, Path(folder), name, {"BASE": base.id}, {}, "none", "aviary.notebook", lambda *_: None)
    except ImageError as error:
        raise AviaryAbsent(f"its image: {error}") from error
    return name
