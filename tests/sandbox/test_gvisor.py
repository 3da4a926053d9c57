"""Under gVisor, where the engine has it: sessions work, and nothing gets through to the host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from docker.errors import DockerException

from nbagent.sandbox.battery import RUNSC, battery, spec_of, surroundings
from nbagent_images import Image
from nbagent_kernels import Limits, SessionSpec, open_session

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def spec(client: Any, image: Callable[[str], Image]) -> SessionSpec:
    """Of a sandbox under gVisor."""
    there = [name for name in client.info()["Runtimes"] if name.startswith(RUNSC)]
    if not there:
        pytest.skip("the engine has no runtime runsc (gVisor); docker/README.md says how to add it")
    plain = {"runtime": there[0], "network_mode": "none", "labels": {"nbagent.test": "gvisor"}, "remove": True}
    try:
        client.containers.run(image("r").id, ["true"], **plain)
    except DockerException as error:
        pytest.skip(f"the engine's runsc starts no container on this machine at all: {error}")
    spec = spec_of(image("r"), "tests")
    assert spec.container is not None
    return replace(spec, container=replace(spec.container, runtime=there[0]), limits=Limits())


def test_every_attack_is_held_or_known_under_gvisor(spec: SessionSpec) -> None:
    assert "gVisor" in surroundings(spec)
    observed = asyncio.run(battery(spec))
    assert {one.attack.name: one.text for one in observed if one.open} == {}


async def test_python_branches_with_its_files(spec: SessionSpec) -> None:
    session = await open_session(spec, "docker")
    try:
        await session.execute("x = [1]\nopen('kept', 'w').write('what was kept')")
        branch = await session.branch()
        try:
            assert (await branch.execute("x.append(2)\nx")).outputs[0]["data"]["text/plain"] == "[1, 2]"
            # gVisor's file systems do not tell holes from data.
            assert await branch.read("kept") == b"what was kept"
        finally:
            await branch.close()
        assert (await session.execute("x")).outputs[0]["data"]["text/plain"] == "[1]"
    finally:
        await session.close()


async def test_r_answers_though_no_socket_is_handed_out(spec: SessionSpec) -> None:
    session = await open_session(replace(spec, language="R"), "docker")
    try:
        assert (await session.execute("x <- 3; cat(x)")).outputs[0]["text"] == "3"
        late = await session.execute("Sys.sleep(60)", timeout=2)
        assert (late.status, late.state_kept) == ("timeout", True)
        assert (await session.execute("cat(x)")).outputs[0]["text"] == "3"
        ended = await session.execute("tools::pskill(Sys.getpid(), 9)")
        assert (ended.status, ended.cause) == ("dead", "signal SIGKILL")
    finally:
        await session.close()
