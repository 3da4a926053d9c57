"""What a sandbox says to the host is the agent's word: no answer of it can pass for a failure of the host's."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading

import pytest

from nbagent_kernels import KernelError
from nbagent_kernels.filestream import Frames, error_frame

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]


@pytest.fixture
def backend():
    return "docker"


def answering(monkeypatch, session, *bodies: bytes) -> None:
    """Have every request for files answered by these frames, as code that took the answering process over would."""

    async def clerk(seconds: float) -> Frames:
        ours, theirs = socket.socketpair()

        def answer() -> None:
            frames = Frames(theirs)
            with contextlib.suppress(OSError):
                frames.receive()
                for body in bodies:
                    frames.send(body)
            frames.close()

        threading.Thread(target=answer).start()
        return Frames(ours)

    monkeypatch.setattr(session._workspace.server, "_clerk", clerk)


@pytest.mark.parametrize("number", ["EMFILE", "ENFILE", "ENOSPC", "EIO", "EROFS", "EDQUOT", "EPIPE", "ETIMEDOUT"])
async def test_the_state_of_a_sandbox_is_not_the_hosts(opened, monkeypatch, tmp_path, number):
    session = await opened()
    said = error_frame(OSError(getattr(errno, number), "words of its own", "f"))
    answering(monkeypatch, session, json.dumps(said).encode())
    for verb in (session.list("."), session.read("f"), session.export(tmp_path / "out")):
        with pytest.raises(OSError, match="words of its own") as told:
            await verb
        assert told.value.errno == errno.EREMOTEIO
        assert not isinstance(told.value, KernelError)


@pytest.mark.parametrize("kind", ["CannotBranch", "EngineFailed", "KernelError", "ValueError", "SystemExit", "OSError"])
async def test_no_error_of_the_hosts_can_be_said(opened, monkeypatch, tmp_path, kind):
    session = await opened()
    answering(monkeypatch, session, json.dumps({"kind": "error", "type": kind, "args": ["words"]}).encode())
    for verb in (session.list("."), session.read("f"), session.export(tmp_path / "out")):
        with pytest.raises(OSError, match=r"words|none") as told:
            await verb
        assert not isinstance(told.value, KernelError)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"entries": None},
        {"entries": 1},
        {"entries": {"a": 1}},
        {"entries": [1]},
        {"entries": [["a", 1]]},
        {"entries": [["a", 1, False, 2]]},
        {"entries": [[1, 1, False]]},
        {"entries": [["a", "x", False]]},
        {"entries": [["a", -1, False]]},
        {"entries": [["a", 1e999, False]]},
        {"entries": [["a", 10**400, False]]},
    ],
    ids=str,
)
async def test_an_answer_that_is_none_is_an_error_of_the_path(opened, monkeypatch, tmp_path, said):
    session = await opened()
    answering(monkeypatch, session, json.dumps(said).encode())
    with pytest.raises(OSError, match="answer is none"):
        await session.list(".")
    answering(monkeypatch, session, json.dumps({"kind": "file", "name": "\ud800"}).encode())
    with pytest.raises(OSError, match="answer is none"):
        await session.export(tmp_path / "out")


async def test_names_that_no_file_can_have_do_no_harm(opened, monkeypatch):
    session = await opened()
    answering(monkeypatch, session, json.dumps({"entries": [["a\ud800b", 1, False]]}).encode())
    assert [entry.path for entry in await session.list(".")] == ["a?b"]


async def test_a_cell_lowers_no_limits_but_its_own(opened):
    session = await opened()
    result = await session.execute(
        "import os, resource\nn = len(os.listdir('/proc/self/fd')) + 20\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))\n"
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (n, n))"
    )
    assert (result.status, result.outputs[-1]["ename"]) == ("error", "PermissionError")
    assert await session.list(".") == []
