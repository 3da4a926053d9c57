"""The host's side of a fork server believes nothing that the server would not have sent."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from nbagent_kernels.forkhost import ForkServer

pytestmark = pytest.mark.asyncio


class Told(ForkServer):
    """A fork server of which only the control socket is there."""

    gone = 0

    def _gone(self) -> None:
        self.gone += 1


@pytest.fixture
async def line():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    server = Told(ours)
    yield server, theirs
    server._lost()
    theirs.close()


READY = {"op": "ready", "skipped": {}, "threads": 1, "seconds": 0.5}


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"[]",
        b"1",
        b"[" * 100_000,
        b"{}",
        json.dumps({"op": "other"}).encode(),
        json.dumps({"op": ["ready"]}).encode(),
        json.dumps({**READY, "threads": "1"}).encode(),
        json.dumps({**READY, "more": 1}).encode(),
        json.dumps({"op": "exit", "id": 1}).encode(),
        json.dumps({"op": "exit", "id": "1", "status": 0}).encode(),
        json.dumps({"op": "exit", "id": 1, "status": 1 << 40}).encode(),
        json.dumps({"op": "forked", "id": 1, "pid": -1}).encode(),
        json.dumps({"op": "failed", "id": 1, "why": ["x"]}).encode(),
    ],
    ids=lambda packet: packet[:40].decode(),
)
async def test_a_packet_that_is_none_ends_it(line, packet):
    server, theirs = line
    theirs.send(packet)
    await asyncio.sleep(0.05)
    assert (server.ended, server.gone) == (True, 1)


async def test_more_packets_than_were_asked_for_end_it(line):
    server, theirs = line
    theirs.send(json.dumps(READY).encode())
    await asyncio.sleep(0.05)
    assert (await server._ready)["threads"] == 1
    for _ in range(5):
        server.order({"op": "drop", "id": 7})
    for _ in range(10):
        theirs.send(json.dumps({"op": "signaled", "id": 7}).encode())
        await asyncio.sleep(0.01)
    assert not server.ended
    theirs.send(json.dumps({"op": "signaled", "id": 7}).encode())
    await asyncio.sleep(0.05)
    assert (server.ended, server.gone) == (True, 1)


async def test_a_server_that_takes_nothing_keeps_no_timers(line, monkeypatch):
    monkeypatch.setattr("nbagent_kernels.forkhost.TAKEN_S", 0.1)
    server, _ = line
    unheard = []
    server._unheard = lambda: unheard.append(1)
    while not unheard:
        server.order({"op": "drop", "id": 7, "room": "x" * 50_000})
        await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="taken no request"):
        await server.send({"op": "files", "room": "x" * 50_000}, [])
