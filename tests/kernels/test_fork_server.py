"""What is particular to backend `fork`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
from kernel_probes import alive, text

from nbagent_kernels import KernelStartError, Limits, Session, SessionSpec, fork, open_session
from nbagent_kernels.fake import FakeSession
from nbagent_kernels.types import CellResult

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def parent_of(session: Session) -> int:
    """Process id of the fork server."""
    return int(text((await session.execute("import os\nprint(os.getppid())")).outputs))


@pytest.fixture
def backend():
    return "fork"


async def test_sessions_share_one_server_and_modules_are_there(opened):
    one, two = await opened(), await opened()
    assert await parent_of(one) == await parent_of(two)
    result = await one.execute("import sys\nprint('numpy' in sys.modules, 'pandas' in sys.modules)")
    assert text(result.outputs) == "True False\n"


async def test_a_dead_server_is_a_death_of_its_kernels_and_is_replaced(opened):
    session = await opened()
    server = await parent_of(session)
    cell = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    await asyncio.sleep(0.3)
    os.kill(server, signal.SIGKILL)
    result = await cell
    assert (result.status, result.state_kept) == ("dead", False)
    assert "fork server ended (signal SIGKILL)" in result.cause
    assert await parent_of(session) != server


async def test_a_server_that_was_stopped_hangs_no_cell(opened, monkeypatch):
    monkeypatch.setattr("nbagent_kernels.served.END_S", 0.5)
    session = await opened(SessionSpec(preload=("json",), limits=Limits(grace_s=0.3)))
    server = await parent_of(session)
    os.kill(server, signal.SIGSTOP)
    result = await session.execute("import time\ntime.sleep(60)", timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", False)
    os.kill(server, signal.SIGCONT)
    assert (await session.execute("1")).status == "ok"


async def test_kernels_end_with_their_server(opened):
    session = await opened()
    pid = int(text((await session.execute("import os\nprint(os.getpid())")).outputs))
    os.kill(await parent_of(session), signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert not alive(pid)


async def test_what_was_printed_before_a_death_is_kept(opened):
    session = await opened()
    result = await session.execute("import os\nfor i in range(20): print(i)\nos._exit(1)")
    assert text(result.outputs).split() == [str(i) for i in range(20)]


async def test_modules_that_are_missing_are_skipped_and_logged(opened, caplog):
    caplog.set_level(logging.INFO)
    session = await opened(SessionSpec(preload=("no_such_module", "json")))
    assert (await session.execute("1")).status == "ok"
    assert "no_such_module" in caplog.text


async def test_a_module_that_starts_threads_means_a_cold_start(opened, caplog, tmp_path):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {os.sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    session = await opened(SessionSpec(interpreter=str(tmp_path / "python"), preload=("threaded",)))
    assert (await session.execute("1")).status == "ok"
    assert "starts 1 threads" in caplog.text


async def test_other_systems_start_cold_and_say_so_once(opened, caplog, monkeypatch):
    monkeypatch.setattr(fork.sys, "platform", "plan9")
    for _ in range(2):
        session = await opened()
        assert (await session.execute("1")).status == "ok"
    assert caplog.text.count("kernels are started cold (backend local): only Linux") == 1


async def test_an_interpreter_that_is_missing_is_one_clear_error(opened):
    with pytest.raises(KernelStartError, match="/no/such/python did not start"):
        await opened(SessionSpec(interpreter="/no/such/python"))


async def test_other_languages_fall_back_to_a_kernelspec(opened):
    with pytest.raises(KernelStartError, match=r"no kernelspec for 'cobol' is installed; there are: .*python3"):
        await opened(SessionSpec(language="cobol"))
    session = await opened(SessionSpec(kernel="python3"))
    assert (await session.execute("1")).outputs[0]["data"]["text/plain"] == "1"


async def test_a_missing_capsule_leaves_nothing_behind(opened, tmp_path):
    before = set(fork.process_root().iterdir())
    with pytest.raises(KernelStartError, match="nowhere"):
        await opened(SessionSpec(capsule=tmp_path / "nowhere", preload=()))
    assert set(fork.process_root().iterdir()) <= before | set(fork.process_root().glob("forkserver-*"))


async def test_unknown_backend():
    with pytest.raises(KernelStartError, match="there are: "):
        await open_session(SessionSpec(), backend="magic")


async def test_servers_are_made_anew_for_another_loop():
    def in_another_loop() -> str:
        async def run() -> str:
            session = await open_session(SessionSpec(preload=()))
            result = await session.execute("print('hello')")
            await session.close()
            return text(result.outputs)

        return asyncio.run(run())

    assert await asyncio.to_thread(in_another_loop) == "hello\n"


async def test_no_descriptor_is_left_open(opened):
    session = await opened()
    await session.execute("1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        other = await opened(SessionSpec(preload=("numpy", "matplotlib.pyplot"), limits=Limits(grace_s=1)))
        await other.execute("1")
        await other.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_the_fake_is_a_session():
    fake = FakeSession(lambda code: CellResult([], "ok", 0.0, execution_count=1))
    assert isinstance(fake, Session)
    (fake.workdir / "a").write_text("b")
    assert (await fake.execute("x")).status == "ok"
    assert fake.cells == ["x"]
    assert await fake.read("a") == b"b"
    await fake.close()
    assert not fake.workdir.exists()
