"""The session contract, the same for every backend."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from pathlib import Path

import pytest
from kernel_probes import alive, on_host, text
from languages import AND_BRANCHES

from nbagent_kernels import KernelStartError, PathOutside, Session, SessionClosed, SessionSpec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", AND_BRANCHES)]


async def test_state_lives_across_cells(opened):
    session = await opened()
    assert isinstance(session, Session)
    first = await session.execute("x = 41")
    second = await session.execute("x + 1")
    assert (first.status, first.outputs, first.execution_count) == ("ok", [], 1)
    assert second.outputs == [
        {"output_type": "execute_result", "data": {"text/plain": "42"}, "metadata": {}, "execution_count": 2}
    ]
    assert second.state_kept
    assert not second.cause


async def test_every_kind_of_output(opened):
    session = await opened()
    result = await session.execute(
        "import sys\nfrom IPython.display import display, HTML\nprint('out')\nprint('err', file=sys.stderr)\n"
        "display(HTML('<b>h</b>'))\nraise ValueError('no')"
    )
    assert result.status == "error"
    assert [output["output_type"] for output in result.outputs] == ["stream", "stream", "display_data", "error"]
    assert text(result.outputs) == "out\n"
    assert text(result.outputs, "stderr") == "err\n"
    assert result.outputs[2]["data"]["text/html"] == "<b>h</b>"
    assert (result.outputs[3]["ename"], result.outputs[3]["evalue"]) == ("ValueError", "no")
    assert "ValueError" in "".join(result.outputs[3]["traceback"])


async def test_streams_are_joined_and_overwritten(opened):
    session = await opened()
    result = await session.execute(
        "for i in range(3): print(f'step {i}', end='\\r')\nprint('done  ')\n1\nprint('last')"
    )
    assert text(result.outputs) == "done  \nlast\n"
    assert len(result.outputs) == 1


async def test_clear_output(opened):
    session = await opened()
    code = "from IPython.display import clear_output, display\nprint('a')\nclear_output(wait={wait})\n{after}"
    assert (await session.execute(code.format(wait=False, after=""))).outputs == []
    assert text((await session.execute(code.format(wait=True, after=""))).outputs) == "a\n"
    assert text((await session.execute(code.format(wait=True, after="print('b')"))).outputs) == "b\n"


async def test_update_display(opened):
    session = await opened()
    result = await session.execute(
        "from IPython.display import display, update_display\ndisplay(1, display_id='d')\ndisplay(2)\n"
        "update_display(3, display_id='d')\nupdate_display(4, display_id='other')"
    )
    assert [output["data"]["text/plain"] for output in result.outputs] == ["3", "2"]


@pytest.mark.parametrize("magic", ["", "%matplotlib inline\n"])
async def test_plots_are_images(opened, magic):
    session = await opened()
    result = await session.execute(f"{magic}import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);")
    assert [output["output_type"] for output in result.outputs] == ["display_data"]
    assert base64.b64decode(result.outputs[0]["data"]["image/png"]).startswith(b"\x89PNG")


async def test_unicode(opened):
    session = await opened()
    result = await session.execute("print('Ω 🧬 ü')\n'🧬'")
    assert text(result.outputs) == "Ω 🧬 ü\n"
    assert result.outputs[1]["data"]["text/plain"] == "'🧬'"
    lone = await session.execute("print(chr(0xD800))\nchr(0xD800)")
    json.dumps(lone.outputs, ensure_ascii=False).encode()
    assert text((await session.execute("print('fine')")).outputs) == "fine\n"


async def test_output_of_subprocesses_descriptors_forks_and_threads(opened):
    session = await opened()
    result = await session.execute(
        "import os, subprocess, sys, threading, multiprocessing\n"
        "print('one')\nsubprocess.run(['echo', 'two'])\nprint('three')\n"
        "os.system('echo four >&2')\n"
        "thread = threading.Thread(target=print, args=('five',)); thread.start(); thread.join()\n"
        "process = multiprocessing.get_context('fork').Process(target=print, args=('six',), kwargs={'flush': True})\n"
        "process.start(); process.join()\nimport time; time.sleep(.3)\n"
        "!echo seven"
    )
    assert result.status == "ok"
    assert set(text(result.outputs).split()) == {"one", "two", "three", "five", "six", "seven"}
    assert text(result.outputs, "stderr").strip() == "four"


async def test_awaits_at_top_level_and_tasks_run_on(opened):
    session = await opened()
    result = await session.execute(
        "import asyncio\ntask = asyncio.create_task(asyncio.sleep(0.05, 'slept'))\nawait asyncio.sleep(0.01)\n7"
    )
    assert result.outputs[0]["data"]["text/plain"] == "7"
    await asyncio.sleep(0.2)
    assert (await session.execute("task.result()")).outputs[0]["data"]["text/plain"] == "'slept'"


async def test_sys_exit_keeps_the_kernel(opened):
    session = await opened()
    await session.execute("x = 1")
    result = await session.execute("import sys; sys.exit(3)")
    assert result.status == "error"
    assert result.state_kept
    assert "SystemExit" in {output.get("ename") for output in result.outputs}
    assert (await session.execute("x")).outputs[0]["data"]["text/plain"] == "1"


async def test_exit_ends_the_kernel_and_the_next_cell_says_so(opened):
    session = await opened()
    await session.execute("x = 1")
    assert (await session.execute("exit()")).status == "ok"
    await asyncio.sleep(0.6)
    result = await session.execute("'x' in globals()")
    assert (result.status, result.state_kept) == ("ok", False)
    assert "exit code 0" in result.cause
    assert result.outputs[0]["data"]["text/plain"] == "False"
    assert (await session.execute("1")).state_kept


async def test_limits_are_the_kernels(opened):
    session = await opened(memory_bytes=3 << 30, open_files=64, file_bytes=1 << 20)
    memory = await session.execute("b = bytearray(4 << 30)")
    assert memory.outputs[-1]["ename"] == "MemoryError"
    size = await session.execute("with open('big', 'wb') as f: f.write(b'0' * (2 << 20))")
    assert size.outputs[-1]["ename"] == "OSError"
    files = await session.execute("held = [open('/dev/null') for _ in range(100)]")
    assert files.outputs[-1]["ename"] == "OSError"
    assert (await session.execute("1")).state_kept


async def test_the_environment_is_an_allow_list(opened, backend, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    session = await opened(SessionSpec(preload=(), env={"EXTRA": "yes"}))
    result = await session.execute("import os\nprint(dict(os.environ))")
    environment = eval(text(result.outputs))
    assert not [name for name in environment if "KEY" in name or "TOKEN" in name or "SECRET" in name]
    assert environment["EXTRA"] == "yes"
    inside = backend.startswith("docker")
    assert environment["PATH"].startswith("/opt/venv/bin:") if inside else environment["PATH"] == os.environ["PATH"]
    assert environment["OMP_NUM_THREADS"] == environment["NUMBA_NUM_THREADS"] == "1"
    assert Path(environment["HOME"]).parent == session.workdir.parent
    assert environment["PYTHONHASHSEED"] == "0"


async def test_seeds_hold_from_the_first_cell_and_after_each_loss(opened):
    code = "import random, numpy\n(random.random(), float(numpy.random.rand()))"
    drawn = []
    for seed in (7, 7, 8):
        session = await opened(SessionSpec(seed=seed, preload=("numpy",)))
        drawn.append((await session.execute(code)).outputs[0]["data"]["text/plain"])
    await session.execute("import os\nos._exit(1)")
    drawn.append((await session.execute(code)).outputs[0]["data"]["text/plain"])
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


async def test_the_capsule_is_copied_and_never_written_to(opened, tmp_path):
    capsule = tmp_path / "capsule"
    (capsule / "sub").mkdir(parents=True)
    (capsule / "a.csv").write_text("a\n1\n")
    (capsule / "sub" / "b.csv").write_text("b\n")
    (capsule / "inside").symlink_to("a.csv")
    (capsule / "outside").symlink_to("/etc/passwd")
    session = await opened(SessionSpec(preload=(), capsule=capsule))
    result = await session.execute(
        "import os\nprint(sorted(os.listdir()), open('a.csv').read())\nopen('a.csv', 'w').write('x')"
    )
    assert text(result.outputs) == "['a.csv', 'inside', 'sub'] a\n1\n\n"
    assert (capsule / "a.csv").read_text() == "a\n1\n"
    assert [(entry.path, entry.size, entry.is_dir) for entry in await session.list()] == [
        ("a.csv", 1, False),
        ("inside", 4, False),
        ("sub", 0, True),
    ]


async def test_a_missing_capsule_is_said_and_not_made(opened, tmp_path):
    with pytest.raises(KernelStartError, match="nowhere"):
        await opened(SessionSpec(capsule=tmp_path / "nowhere", preload=()))
    assert list(tmp_path.iterdir()) == []


async def test_file_verbs_follow_no_link_out_and_never_block(opened, tmp_path):
    session = await opened()
    (tmp_path / "secret").write_text("secret")
    await session.execute(
        f"import os\nos.mkdir('d'); open('d/f.txt', 'w').write('content')\nos.symlink('/etc', 'etc')\n"
        f"os.symlink({str(tmp_path / 'secret')!r}, 'link')\nos.symlink('d/f.txt', 'within')\nos.mkfifo('pipe')\n"
        "os.symlink('loop', 'loop')\nos.chmod('d', 0o755)"
    )
    assert await session.read("d/f.txt") == await session.read("within") == b"content"
    assert await session.read("d/f.txt", max_bytes=3) == b"con"
    assert [entry.path for entry in await session.list("d")] == ["d/f.txt"]
    for outside in ("link", "etc/passwd", "../home/x", "/etc/passwd", "d/../../home", "loop"):
        with pytest.raises(PathOutside):
            await session.read(outside)
    with pytest.raises(PathOutside):
        await session.list("etc")
    with pytest.raises(FileNotFoundError):
        await session.read("missing")
    with pytest.raises(IsADirectoryError):
        await session.read("d")
    with pytest.raises(NotADirectoryError):
        await session.list("d/f.txt")
    with pytest.raises(OSError, match="not a regular file"):
        await session.read("pipe")
    assert await session.export(tmp_path / "out") == len("content")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["d", "f.txt"]
    with pytest.raises(OSError, match="larger"):
        await session.export(tmp_path / "small", max_bytes=3)


async def test_nothing_is_left_after_close(opened):
    session = await opened()
    result = await session.execute(
        "import os, subprocess\nplain = subprocess.Popen(['sleep', '1000'])\n"
        "detached = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print(os.getpid(), plain.pid, detached.pid)\nos.makedirs('locked/deep'); os.chmod('locked', 0)"
    )
    pids = [on_host(session, int(pid)) for pid in text(result.outputs).split()]
    assert all(alive(pid) for pid in pids)
    await session.close()
    await session.close()
    assert not session.workdir.parent.exists()
    assert not [pid for pid in pids if alive(pid)]
    for verb in (session.execute("1"), session.list(), session.restart(), session.interrupt()):
        with pytest.raises(SessionClosed):
            await verb


async def test_close_ends_a_running_cell(opened):
    session = await opened()
    cell = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    waiting = asyncio.create_task(session.execute("1"))
    await asyncio.sleep(0.3)
    await session.close()
    assert (await cell).status == "dead"
    with pytest.raises(SessionClosed):
        await waiting


async def test_a_fork_that_returns_takes_no_requests(opened, backend):
    if backend == "local":
        pytest.skip("ipykernel's own; a forked child there answers in its parent's place")
    session = await opened()
    for _ in range(3):
        assert (await session.execute("import os\npid = os.fork()")).status == "ok"
    for i in range(10):
        assert text((await session.execute(f"print({i})", timeout=5)).outputs) == f"{i}\n"
    assert (await session.execute("pid > 0")).outputs[0]["data"]["text/plain"] == "True"


async def test_sessions_beside_each_other_do_not_mix(opened, backend):
    sessions = await asyncio.gather(*(opened() for _ in range(12 if backend.startswith("fork") else 4)))
    results = await asyncio.gather(*(s.execute(f"x = {i}\nprint(x)") for i, s in enumerate(sessions)))
    assert [text(result.outputs) for result in results] == [f"{i}\n" for i in range(len(sessions))]
    if backend != "docker":
        assert len({session.workdir for session in sessions}) == len(sessions)


async def test_a_signal_to_the_kernel_from_outside_is_noticed_between_cells(opened):
    session = await opened()
    result = await session.execute("import os\nprint(os.getpid())")
    kernel = on_host(session, int(text(result.outputs)))
    try:
        os.kill(kernel, signal.SIGKILL)
    except PermissionError:
        pytest.skip("only root may signal a container's processes from outside")
    await asyncio.sleep(0.3)
    after = await session.execute("1")
    assert (after.status, after.state_kept) == ("ok", False)
    assert "SIGKILL" in after.cause
