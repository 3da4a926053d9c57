"""Whatever a kernel sends, the host's memory does not grow and its loop goes on. A host of its own is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from forgery import PRELUDE
from languages import HOSTED

MOST_BYTES = 64 << 20
HOST = """
import asyncio, json, os, sys, threading, time
from nbagent_kernels import Limits, SessionSpec, open_session

backend, cells = sys.argv[1], json.load(sys.stdin)
PAGE = os.sysconf('SC_PAGE_SIZE')
peak = 0

def rss():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * PAGE

def watch():
    global peak
    while True:
        peak = max(peak, rss())
        time.sleep(0.002)

async def main():
    session = await open_session(SessionSpec(preload=(), limits=Limits(grace_s=5)), backend)
    for _ in range(5):
        await session.execute("print('hello' * 1000)")
    threading.Thread(target=watch, daemon=True).start()
    grown, start = {}, rss()
    for name, code in cells.items():
        global peak
        peak = rss()
        result = await session.execute(code, timeout=1.5 if 'endless' in name else 60)
        await asyncio.sleep(1.5 if 'after' in name else 0.1)
        said = (await session.execute("print('hello')", timeout=30)).outputs
        grown[name] = [peak - start, result.status, said[0]['text'] if said else '', result.state_kept]
    print(json.dumps(grown))
    await session.close()

asyncio.run(main())
"""
CELLS = {
    "endless lines": "while True: print('y' * 1000)",
    "endless large texts": "while True: print('y' * 3_000_000)",
    "endless characters": "while True: print('é', end='')",
    "endless displays": "while True: display({'text/plain': 'd' * 500_000}, raw=True)",
    "endless emoji": "while True: display({'text/plain': chr(0x1F9EC) * 200_000}, raw=True)",
    "many errors": "for _ in range(200): get_ipython().showtraceback((ValueError, ValueError('e' * 100_000), None))",
    "one of 300 MB": "display({'text/plain': 'd' * 300_000_000}, raw=True)",
    "text of 300 MB": "print('d' * 300_000_000)",
    "an error of 100 MB": "raise ValueError('e' * 100_000_000)",
    "after the cell": (
        "def storm():\n"
        "    end = time.time() + 1.5\n"
        "    while time.time() < end: forge('stream', {'name': 'stdout', 'text': 'f' * 500_000}, 'other')\n"
        "threading.Thread(target=storm).start()"
    ),
}
OF_LOCAL = {
    "200 frames in one message": (
        "message = KERNEL.session.msg('display_data')\n"
        "KERNEL.session.send(KERNEL.iopub_socket, message, buffers=[b'x' * 1_000_000] * 200)"
    ),
    "a reply of 50 MB": "forge('execute_reply', {'status': 'ok', 'x': 'x' * 50_000_000})",
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", HOSTED)
def test_no_flood_fills_the_host(backend):
    cells = {**CELLS, **(OF_LOCAL if backend == "local" else {})}
    cells = {name: f"{PRELUDE[backend]}\n{code}" for name, code in cells.items()}
    host = subprocess.run(
        [sys.executable, "-c", HOST, backend],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parent,
    )
    assert host.returncode == 0, host.stderr
    assert not host.stderr
    grown = json.loads(host.stdout)

    for name, (by, status, said, state_kept) in grown.items():
        expected = "timeout" if "endless" in name else "error" if "an error" in name else "ok"
        assert (status, said, state_kept) == (expected, "hello\n", True), name
        assert by < MOST_BYTES, f"{name}: {by >> 20} MiB"
