"""However a program ends, nothing of its sandboxes stays; and nothing that is not left over is touched."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbagent_images import Image
from nbagent_kernels.container import MACHINE_LABEL, OWNER_LABEL, RUN_LABEL, SANDBOX_LABEL, labels
from nbagent_kernels.leftovers import containers

pytestmark = [pytest.mark.docker, pytest.mark.slow]
GONE_S = 30.0

HOST = """
import asyncio, sys
from nbagent.sandbox.bench import answer, opened, spec_of
from nbagent_images import require
from dataclasses import replace

async def main():
    spec = spec_of(require('python'), preload=())
    spec = replace(spec, container=replace(spec.container, run=sys.argv[1]))
    async with opened(spec) as session, opened(spec) as second:
        await answer(session)
        print(session.wire is not None, flush=True)
        if sys.argv[2] == 'cell':
            await session.execute('import time; time.sleep(1000)')
        elif sys.argv[2] == 'branch':
            await answer(await session.branch())
            print('branched', flush=True)
            await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.fixture
def run_name(client: Any) -> Iterator[str]:
    """A run's name; what is left of it is removed at the end."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    for one in client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={name}"}):
        one.remove(force=True)


@pytest.fixture
def left(client: Any, image: Callable[[str], Image], run_name: str) -> Callable[..., str]:
    """Makes a container that some program left, and gives its id."""

    def make(**changed: str) -> str:
        given = labels(run_name) | {OWNER_LABEL: "4194303-1"} | {f"nbagent.{k}": v for k, v in changed.items()}
        return str(client.containers.create(image("python").id, ["true"], labels=given).id)

    return make


def start(run: str, doing: str) -> subprocess.Popen[str]:
    """A program with two sandboxes, once they are open."""
    program = subprocess.Popen([sys.executable, "-c", HOST, run, doing], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "True\n"
    if doing == "branch":
        assert program.stdout.readline() == "branched\n"
    return program


def nbagent(*words: str) -> tuple[int, str]:
    """The command line."""
    done = subprocess.run(
        [sys.executable, "-m", "nbagent.cli", "sandbox", *words], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def gone(run: str) -> bool:
    """Whether nothing of a run is there, at once or soon: the engine removes in its own time."""
    until = time.monotonic() + GONE_S
    while (there := containers(run)) and time.monotonic() < until:
        time.sleep(0.1)
    return not there


@pytest.mark.parametrize(
    ("doing", "number"),
    [("nothing", None), ("cell", signal.SIGINT), ("branch", signal.SIGINT), ("cell", signal.SIGTERM)],
)
def test_nothing_stays_when_a_program_ends(
    image: Callable[[str], Image], run_name: str, doing: str, number: signal.Signals | None
) -> None:
    image("python")
    program = start(run_name, doing)
    if number is not None:
        assert len(containers(run_name)) == 2
        program.send_signal(number)
    program.communicate(timeout=60)
    if number != signal.SIGTERM:
        assert containers(run_name) == []
    else:  # where a program does not handle it, it is as kill -9
        assert {one.owner for one in containers(run_name)} <= {"ended"}


def test_what_a_killed_program_left_is_removed_by_the_next(image: Callable[[str], Image], run_name: str) -> None:
    image("python")
    program = start(run_name, "branch")
    assert {(one.pid, one.owner) for one in containers(run_name)} == {(program.pid, "alive")}
    folders = list(Path(f"/tmp/nbagent-{os.getuid()}").glob(f"{program.pid}-*"))
    program.kill()
    program.communicate(timeout=60)
    # Fewer where some other program has just begun and removed them.
    assert {one.owner for one in containers(run_name)} <= {"ended"}
    following = start(f"{run_name}-next", "nothing")
    following.communicate(timeout=60)
    assert gone(run_name)
    assert gone(f"{run_name}-next")
    assert not [folder for folder in folders if folder.exists()]


def test_only_what_ended_programs_left_is_removed(client: Any, left: Callable[..., str], run_name: str) -> None:
    ended, other = left(), left(run="other-run")
    alive, elsewhere = left(owner=labels("")[OWNER_LABEL]), left(machine="another/pid:[1]")
    strange = left(owner="no process")
    client_own = client.containers.create(
        client.containers.get(ended).image.id, ["true"], labels={"nbagent.test": "clean"}
    )
    try:
        status, said = nbagent("clean", "--dry-run", "--run", run_name)
        assert status == 0
        assert f"would remove container {ended[:12]} of run {run_name}" in said
        assert len(containers(run_name)) == 3
        status, said = nbagent("clean", "--run", run_name)
        assert status == 0
        assert "1 containers and 0 folders removed" in said
        assert {one.id for one in containers(run_name)} == {alive, elsewhere}
        status, said = nbagent("clean", "--run", run_name, "--all")
        assert status == 0
        assert said.count("removed container") == 2
        assert containers(run_name) == []
        there = {one.id for one in client.containers.list(all=True)}
        assert {strange, client_own.id, other} <= there
    finally:
        client_own.remove()
        client.containers.get(other).remove()


def test_all_of_every_run_is_refused() -> None:
    status, said = nbagent("clean", "--all")
    assert status == 2
    assert said.count("\n") == 1
    assert "--run NAME --all" in said


def test_without_an_engine_it_says_so() -> None:
    for words in (["check"], ["clean"], ["bench"]):
        done = subprocess.run(
            [sys.executable, "-m", "nbagent.cli", "sandbox", *words],
            env=os.environ | {"DOCKER_HOST": "unix:///nowhere.sock"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "no Docker engine answers at unix:///nowhere.sock" in done.stderr
        assert done.stderr.count("\n") == 1


def test_labels_say_whose_it_is() -> None:
    given = labels("some-run")
    assert given[SANDBOX_LABEL] == "session"
    assert given[RUN_LABEL] == "some-run"
    assert given[OWNER_LABEL].startswith(f"{os.getpid()}-")
    assert "/pid:[" in given[MACHINE_LABEL]
