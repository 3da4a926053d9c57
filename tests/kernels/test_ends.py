"""Nothing outlives its owner, however the owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_probes import alive

from nbagent_kernels import cgroups, workspace
from nbagent_kernels.environment import TAG

HOST = """
import asyncio, sys
from nbagent_kernels import SessionSpec, open_session

CELL = '''
import os, subprocess
plain = subprocess.Popen(['sleep', '1000'])
detached = subprocess.Popen(['sleep', '1000'], start_new_session=True)
print(os.getpid(), plain.pid, detached.pid)
'''

async def main():
    sessions = [await open_session(SessionSpec(preload=()), backend) for backend in ('fork', 'local')]
    for session in sessions:
        result = await session.execute(CELL)
        print(session.workdir, result.outputs[0]['text'].strip(), flush=True)
    if sys.argv[1] == 'cell':
        await asyncio.gather(*(session.execute('import time; time.sleep(1000)') for session in sessions))
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("number", "doing"),
    [(signal.SIGKILL, "cell"), (signal.SIGKILL, "idle"), (signal.SIGINT, "cell"), (signal.SIGTERM, "idle")],
)
def test_a_host_that_ends_takes_everything_along(number, doing):
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, doing], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert host.stdout is not None
    pids, folders = [], []
    for _ in range(2):
        folder, *numbers = host.stdout.readline().split()
        folders.append(Path(folder))
        pids += map(int, numbers)
    children = [int(pid) for pid in Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()]
    time.sleep(0.3)
    assert all(alive(pid) for pid in pids)
    # Numbers of sessions are each host's own: this is the first or second session of another one.
    others = [subprocess.Popen(["sleep", "1000"], env={**os.environ, TAG: str(tag)}) for tag in (1, 2)]
    host.send_signal(number)
    host.wait(20)
    host.stdout.close()
    root = folders[0].parent.parent
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (root.exists() or [pid for pid in pids + children if alive(pid)]):
        time.sleep(0.05)
    assert not [pid for pid in pids + children if alive(pid)]
    assert not root.exists()
    for other in others:
        assert other.poll() is None
        other.kill()
        other.wait()


def test_folders_of_dead_processes_are_removed_by_the_next(tmp_path, monkeypatch):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"{dead.pid}-1", f"{os.getpid()}-1", "not-a-process"):
        (tmp_path / name / "s1").mkdir(parents=True)
    own = tmp_path / f"{os.getpid()}-{cgroups.started(os.getpid())}"
    own.mkdir()
    monkeypatch.setattr(workspace, "_base", lambda: tmp_path)
    monkeypatch.setattr(workspace, "_root", None)
    monkeypatch.setattr(workspace.atexit, "register", lambda *_: None)
    assert workspace.process_root() == own
    assert {folder.name for folder in tmp_path.iterdir()} == {own.name, "not-a-process"}


def test_importing_makes_no_folder_and_starts_nothing(tmp_path):
    code = (
        "import nbagent_kernels.fork, nbagent_kernels.local, os, sys; sys.exit(len(os.listdir(os.environ['TMPDIR'])))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}).returncode == 0
