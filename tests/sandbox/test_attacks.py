"""Every attack against the real engine, in as few containers as it takes; and each seen to get through where nothing
is in its way, so that a check cannot pass because its attacks are dull.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbagent.sandbox.attacks import ATTACKS, LIMITS, Attack, Facts
from nbagent.sandbox.battery import Observed, battery, host, spec_of
from nbagent.sandbox.watch import GROWTH, escaped, processes
from nbagent_images import Image
from nbagent_kernels import SessionSpec
from nbagent_kernels.container import WORK
from nbagent_kernels.errors import KernelStartError

pytestmark = [pytest.mark.docker, pytest.mark.slow]
BY_NAME = {attack.name: attack for attack in ATTACKS}
FIRST_WORD = "through: "

HARMFUL = {"kill everything", "broken messages", "forged messages"}
"""Attacks on a session's own channel and processes: what they would do is what the battery looks for afterwards."""
KNOWN = {"memory of sockets"}
"""What gets through depends on the system, in a sandbox and out of it."""
FROM_HOST = {
    "network, IPv6",
    "change the capsule",
    "endless output",
    "one huge message",
    "planted files",
    "outlive the session",
} | {a.name for a in ATTACKS if a.watch == "stubborn"}
CELL_ITSELF = ("inside", "ending", "processes", "memory")
FROM_INSIDE = [a for a in ATTACKS if a.watch in CELL_ITSELF and a.name not in HARMFUL | FROM_HOST | KNOWN]


def test_all_but_the_harmful_ones_have_a_control() -> None:
    assert {a.name for a in FROM_INSIDE} | FROM_HOST | HARMFUL | KNOWN == set(BY_NAME)
    assert len(BY_NAME) == len(ATTACKS) >= 30


@pytest.fixture(scope="module")
def observed(image: Callable[[str], Image]) -> dict[str, Observed]:
    """The battery, run once."""
    return {one.attack.name: one for one in asyncio.run(battery(spec_of(image("python"), "tests")))}


@pytest.mark.parametrize("name", BY_NAME)
def test_it_is_held(observed: dict[str, Observed], name: str) -> None:
    assert not observed[name].open, observed[name].text
    assert observed[name].held or observed[name].text.startswith(FIRST_WORD), observed[name].text


@pytest.fixture(scope="module")
def weak(client: Any, image: Callable[[str], Image]) -> Iterator[tuple[Any, Facts]]:
    """A container with nothing in the way, and a process in it that could be another sandbox's."""
    with host() as (folder, facts):
        container = client.containers.create(
            image("python").id,
            ["python", "-c", "import time; time.sleep(600)", facts.mark],
            cap_add=["SYS_ADMIN", "SYS_PTRACE", "MKNOD"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            user="0",
            mem_limit="6g",
            environment={"NBAGENT_ATTACKED": (folder / "secret").read_text()},
            volumes={
                str(folder): {"bind": str(folder)},
                "/var/run/docker.sock": {"bind": "/var/run/docker.sock"},
                str(Path(__file__).parents[2] / "benchmarks" / "bixbench" / "nbagent_bixbench"): {
                    "bind": f"{WORK}/nbagent_bixbench",
                    "mode": "ro",
                },
            },
            shm_size="4g",
            tmpfs={WORK: "rw,exec,size=4g", "/tmp": "rw,exec,size=4g", "/fillable": "rw,size=4g"},
            labels={"nbagent.test": "attacks"},
        )
        try:
            container.start()
            container.exec_run(["sh", "-c", f"echo {facts.ours} > {WORK}/own.txt"])
            yield container, facts
        finally:
            container.remove(force=True)


@pytest.mark.parametrize("attack", FROM_INSIDE, ids=lambda attack: attack.name)
def test_it_gets_through_where_nothing_is_in_its_way(weak: tuple[Any, Facts], attack: Attack) -> None:
    container, facts = weak
    status, said = container.exec_run(["python", "-c", attack.cell(facts)], workdir="/work")
    assert said.decode().strip().splitlines()[-1:], (status, said)
    assert said.decode().strip().splitlines()[-1].startswith(FIRST_WORD), said


def alone(name: str, facts: Facts) -> list[str]:
    """The command that runs an attack on this host, without any sandbox. Only for those that do no harm."""
    return [sys.executable, "-c", BY_NAME[name].cell(facts)]


def test_ipv6_reaches_the_neighbours_from_the_host() -> None:
    links = [line.split()[-1] for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    if not set(links) - {"lo"}:
        pytest.skip("this machine has no IPv6, so nothing could get through")
    with host() as (_, facts):
        said = subprocess.run(alone("network, IPv6", facts), capture_output=True, text=True, check=True).stdout
    assert said.startswith(FIRST_WORD), said


@pytest.mark.parametrize("name", ["endless output", "one huge message"])
def test_a_host_that_reads_all_of_it_fills_up(name: str) -> None:
    with host() as (_, facts), subprocess.Popen(alone(name, facts), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        kept = io.BytesIO()
        while kept.tell() <= LIMITS.output_bytes and (chunk := running.stdout.read(1 << 16)):
            kept.write(chunk)
        running.kill()
    assert LIMITS.output_bytes < kept.tell() < GROWTH


@pytest.mark.parametrize("name", [a.name for a in ATTACKS if a.watch == "stubborn"])
def test_an_interrupt_does_not_end_it(name: str) -> None:
    with host() as (_, facts):
        *command, cell = alone(name, facts)
    before, _, call = cell.rpartition("\n")
    command.append(f"{before}\nprint('ready', flush=True)\n{call}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            for _ in range(5):
                time.sleep(0.2)
                running.send_signal(signal.SIGINT)
            if name == "endless regex":  # Python looks at signals in it; where it does not, this is the control
                running.wait(10)
            else:
                assert running.poll() is None
        finally:
            running.kill()


def test_a_host_that_follows_links_reads_its_own_secret(tmp_path: Path) -> None:
    with host() as (folder, facts):
        subprocess.run(alone("planted files", facts), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        planted = tmp_path / "planted"
        (planted / "z-sparse").unlink()
        secret = (folder / "secret").read_bytes()
        assert (planted / "result.json").read_bytes() == secret
        out = tmp_path / "out"
        with contextlib.suppress(shutil.Error):
            shutil.copytree(planted, out, symlinks=True, ignore=lambda *_: ["pipe", "door", "zero"])
        assert any("exported as it is" in one for one in escaped(out, secret))


def test_a_capsule_that_is_writable_is_overwritten(client: Any, image: Callable[[str], Image], tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("gene,count\n")
    with host() as (_, facts):
        cell = BY_NAME["change the capsule"].cell(facts)
    client.containers.run(
        image("python").id, ["python", "-c", cell], user="0", volumes={str(tmp_path): {"bind": "/data"}}, remove=True
    )
    assert (tmp_path / "counts.csv").read_text() == "overwritten"


def test_without_a_sandbox_the_process_lives_on() -> None:
    with host() as (_, facts):
        subprocess.run(alone("outlive the session", facts), check=True, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not (left := processes(f"{facts.mark}-late")) and time.monotonic() < until:
            time.sleep(0.05)
        assert left
        for process in left:
            os.kill(process, signal.SIGKILL)


def test_a_sandbox_with_less_in_the_way_is_found_open(image: Callable[[str], Image]) -> None:
    spec = spec_of(image("python"), "tests")
    assert spec.container is not None
    spec = replace(spec, container=replace(spec.container, seccomp="unconfined"))
    names = ("ptrace", "io_uring", "setuid, capabilities")
    found = asyncio.run(battery(spec, [BY_NAME[name] for name in names]))
    assert [one.held for one in found] == [False, False, True], found


def test_nothing_is_attacked_outside_of_a_container() -> None:
    with pytest.raises(KernelStartError, match="needs a container"):
        asyncio.run(battery(SessionSpec()))
