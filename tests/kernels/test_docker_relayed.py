"""A kernel whose system hands none of its sockets out, as gVisor's, is spoken to through processes beside it."""

from __future__ import annotations

import asyncio
import errno

import pytest
from kernel_probes import text

from nbagent_kernels import SessionSpec
from nbagent_kernels.containerserver import ContainerServer
from nbagent_kernels.engineclient import client
from nbagent_kernels.filestream import NoneHandedOut
from nbagent_kernels.live import LiveSession

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]


@pytest.fixture
def backend():
    return "docker"


@pytest.fixture
def _none_is_handed_out(monkeypatch):
    async def none(self, request):
        raise NoneHandedOut(errno.EOPNOTSUPP, "as gVisor has it")

    monkeypatch.setattr(ContainerServer, "descriptors", none)


async def programs(session) -> list[str]:
    """What runs in the session's container, as its host sees it."""
    assert isinstance(session, LiveSession)
    server = session._workspace.server
    told = await asyncio.to_thread(client().api.top, server.container.id)
    return [row[-1] for row in told["Processes"]]


@pytest.mark.usefixtures("_none_is_handed_out")
async def test_replies_outputs_interrupts_and_deaths_pass(opened):
    session = await opened(SessionSpec(language="R", preload=()))
    assert text((await session.execute("x <- 3; cat(x)")).outputs) == "3"
    large = await session.execute("for (i in 1:40) cat(strrep('a', 1e5))")
    assert (large.status, len(text(large.outputs)) + large.dropped_bytes > 2_000_000) == ("ok", True)
    late = await session.execute("Sys.sleep(60)", timeout=1)
    assert (late.status, late.state_kept) == ("timeout", True)
    assert text((await session.execute("cat(x)")).outputs) == "3"
    before = len(await programs(session))
    for _ in range(3):
        dead = await session.execute("tools::pskill(Sys.getpid(), 9)")
        assert (dead.status, dead.cause) == ("dead", "signal SIGKILL")
        assert text((await session.execute("cat(exists('x'))")).outputs) == "FALSE"
    assert len(await programs(session)) == before
