"""An engine that goes and comes back: what is opened meanwhile waits for it, what was lost with it is removed.

The engine is the real one, behind a door that the tests shut: what else runs in it must not be restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from conftest import container as settings
from docker.errors import NotFound
from test_docker import end_server, identity

from nbagent.sandbox.clean import clean
from nbagent_kernels import engineclient
from nbagent_kernels.container import OWNER_LABEL, labels
from nbagent_kernels.errors import EngineSilent
from nbagent_kernels.leftovers import containers

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.docker,
    # The engine's SDK leaves a socket that it could not connect to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"),
]
GONE_S = 20.0


class Door:
    """A socket through which the engine is reached, or not.

    Attributes:
        unheard: requests that begin so are never answered.
        refused: at requests that begin so the connection is closed.
    """

    def __init__(self, place: Path, engine: str) -> None:
        self.place, self._engine = place, engine
        self.unheard = self.refused = b"never"
        self._server: asyncio.Server | None = None
        self._through: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._pass, self.place)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
        self.place.unlink(missing_ok=True)
        for task in self._through:
            task.cancel()
        await asyncio.gather(*self._through, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._through.add(task)
        inner, outer = await asyncio.open_unix_connection(self._engine)
        try:
            await asyncio.gather(self._requests(reader, outer, writer), _copy(inner, writer))
        except asyncio.CancelledError:
            pass  # the streams' own callback logs a task that was cancelled
        finally:
            outer.close()
            writer.close()
            self._through.discard(task)

    async def _requests(
        self, reader: asyncio.StreamReader, outer: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if data.startswith(self.refused):
                    writer.close()
                    break
                if not data.startswith(self.unheard):
                    outer.write(data)
                    await outer.drain()
            outer.write_eof()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


@pytest.fixture
def backend():
    return "docker"


@pytest_asyncio.fixture(loop_scope="module")
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    if os.environ.get("DOCKER_HOST"):
        pytest.skip("the door is made for the local engine's socket")
    settings("python")
    made = Door(tmp_path / "d", "/var/run/docker.sock")
    await made.open()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{made.place}")
    engineclient.disconnect()
    await asyncio.to_thread(engineclient.client)
    yield made
    await made.shut()
    monkeypatch.undo()
    engineclient.disconnect()
    gc.collect()  # here, where what it finds is known


async def gone(identity: str) -> None:
    """Wait until the engine has no such container."""
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        try:
            await asyncio.to_thread(engineclient.client().containers.get, identity)
        except NotFound:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{identity[:12]} is still there")


async def test_a_session_waits_for_an_engine_that_is_restarted(opened, door, caplog):
    first = await opened()
    lost = identity(first)
    await door.shut()
    second = asyncio.create_task(opened())
    await first.close()
    await asyncio.sleep(1)
    assert not second.done()
    await door.open()
    assert (await (await second).execute("print(42)")).status == "ok"
    assert [one.message for one in caplog.records if "waiting up to 60 s" in one.message]
    await gone(lost)


async def test_who_gives_up_does_not_wait_for_the_engine(opened, door, caplog):
    await door.shut()
    opening = asyncio.create_task(opened())
    await asyncio.sleep(0.5)
    start = time.monotonic()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert time.monotonic() - start < 5
    gc.collect()
    assert [one.message for one in caplog.records if one.name == "asyncio"] == []


async def test_those_who_wait_do_not_queue(opened, door, monkeypatch):
    """Each waits from its own first try, holds no thread that another needs, and is told why in the end."""
    monkeypatch.setattr(engineclient, "BACK_S", 2.0)
    await door.shut()
    start = time.monotonic()
    failed = await asyncio.gather(*(opened() for _ in range(24)), return_exceptions=True)
    assert {type(one) for one in failed} == {EngineSilent}
    assert "does not answer" in str(failed[0])
    assert 2 <= time.monotonic() - start < 4


async def test_who_is_cancelled_twice_leaves_nothing(opened, door, caplog):
    opening = asyncio.create_task(opened())
    before = {one.id for one in await asyncio.to_thread(containers, "tests")}
    made: list[str] = []
    while not made:
        await asyncio.sleep(0.01)
        made = [one.id for one in await asyncio.to_thread(containers, "tests") if one.id not in before]
    opening.cancel()
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await gone(made[0])
    assert not caplog.records


async def test_an_engine_that_does_not_say_how_a_sandbox_ended_keeps_nobody(opened, door, monkeypatch):
    session = await opened()
    lost = identity(session)
    monkeypatch.setattr(engineclient, "ENGINE_S", 1.0)
    door.unheard = b"GET /v"  # events are asked for so, and what a container's state is
    end_server(session)
    async with asyncio.timeout(15):
        await session.close()
    door.unheard = b"never"
    await gone(lost)


async def test_what_cannot_be_removed_is_said(opened, door, capsys):
    engine = await asyncio.to_thread(engineclient.client)
    given = {**labels("test-clean"), OWNER_LABEL: "4194303-1"}
    image = settings("python").image
    left = await asyncio.to_thread(engine.api.create_container, image, ["true"], labels=given)
    door.refused = b"DELETE "
    assert await asyncio.to_thread(clean, "test-clean", False, False) == 1
    assert f"could not remove container {left['Id'][:12]} of run test-clean" in capsys.readouterr().out
    door.refused = b"never"
    assert await asyncio.to_thread(clean, "test-clean", False, False) == 0
    assert f"removed container {left['Id'][:12]}" in capsys.readouterr().out
    await gone(left["Id"])
