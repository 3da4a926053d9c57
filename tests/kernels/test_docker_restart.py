"""An engine that goes and comes back: what is opened meanwhile waits for it, what was lost with it is removed.

The engine is the real one, behind a door that the tests shut: what else runs in it must not be restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from conftest import container as settings
from docker.errors import NotFound
from test_docker import identity

from nbagent_kernels import container
from nbagent_kernels.errors import EngineFailed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]
GONE_S = 20.0


class Door:
    """A socket through which the engine is reached, or not."""

    def __init__(self, place: Path, engine: str) -> None:
        self.place, self._engine = place, engine
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
            await asyncio.gather(_copy(reader, outer), _copy(inner, writer))
        except asyncio.CancelledError:
            pass  # the streams' own callback logs a task that was cancelled
        finally:
            outer.close()
            writer.close()
            self._through.discard(task)


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
    container.disconnect()
    await asyncio.to_thread(container.client)
    yield made
    await made.shut()
    monkeypatch.undo()
    container.disconnect()


async def gone(identity: str) -> None:
    """Wait until the engine has no such container."""
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        try:
            await asyncio.to_thread(container.client().containers.get, identity)
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


async def test_an_engine_that_does_not_come_back_is_said_in_time(opened, door, monkeypatch):
    monkeypatch.setattr(container, "BACK_S", 0.5)
    await door.shut()
    with pytest.raises(EngineFailed, match="does not answer"):
        await opened()


async def test_who_gives_up_does_not_wait_for_the_engine(opened, door):
    await door.shut()
    opening = asyncio.create_task(opened())
    await asyncio.sleep(0.5)
    start = time.monotonic()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert time.monotonic() - start < 5
