"""Code in a kernel speaks in the kernel's name: nothing but its own cell's result may change."""

from __future__ import annotations

import asyncio
import json

import nbformat
import pytest
import pytest_asyncio
from forgery import PRELUDE, STRANGE
from kernel_probes import text
from languages import PYTHON

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", PYTHON)]


@pytest_asyncio.fixture(loop_scope="module")
async def session(opened, backend):
    """A session whose loop must meet no exception, and whose cells can forge."""
    met = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: met.append(context))
    session = await opened(output_bytes=200_000, grace_s=0.5)
    yield session
    loop.set_exception_handler(None)
    assert not met


def with_forgery(backend: str, code: str) -> str:
    return f"{PRELUDE[backend]}{STRANGE}\n{code}"


async def answers(session) -> bool:
    """Whether the next two cells are what they say, whoever keeps forging."""
    results = [await session.execute("print('hello')\n6 * 7", timeout=20) for _ in range(2)]
    shown = [[output for output in result.outputs if output["output_type"] != "error"] for result in results]
    return all(
        text(outputs) == "hello\n" and outputs[-1]["data"]["text/plain"] == "42" and result.status == "ok"
        for result, outputs in zip(results, shown, strict=True)
    )


async def test_wrong_types_in_every_field_give_valid_outputs_or_none(session, backend):
    result = await session.execute(with_forgery(backend, "strange()\nprint('end')"), timeout=60)
    assert result.status == "ok"
    json.dumps(result.outputs, allow_nan=False, ensure_ascii=False).encode()
    outputs = [nbformat.from_dict(output) for output in result.outputs]
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)]))
    assert result.dropped_bytes > 0
    assert await answers(session)


async def test_messages_under_other_parents_reach_no_cell(session, backend):
    code = (
        "for parent in ('', 'c1', 'other', 'seed', 'start', 'info', 'r1'):\n"
        "    strange(parent)\n"
        "    forge('stream', {'name': 'stdout', 'text': 'forged'}, parent)\n"
        "    forge('execute_reply', {'status': 'error', 'execution_count': 9}, parent)\n"
        "    forge('status', {'execution_state': 'idle'}, parent)\n"
        "print('end')"
    )
    result = await session.execute(with_forgery(backend, code), timeout=60)
    assert (result.status, result.execution_count) == ("ok", 1)
    assert text(result.outputs) == "end\n"
    assert await answers(session)


@pytest.mark.parametrize(
    "reply",
    [
        "{'status': 'ok', 'execution_count': 7}",
        "{'status': 'unknown', 'execution_count': 10 ** 4000}",
        "{'status': ['ok'], 'execution_count': True}",
        "{'status': 'aborted', 'execution_count': -5, 'payload': 'x' * 100_000}",
        "{}",
    ],
)
async def test_a_forged_reply_ends_its_own_cell_alone(session, backend, reply):
    code = (
        f"for _ in range(3): forge('execute_reply', {reply})\n"
        "for _ in range(3): forge('status', {'execution_state': 'idle'})\n"
        "time.sleep(0.2)\nprint('late')\nx = 'ran on'"
    )
    result = await session.execute(with_forgery(backend, code), timeout=20)
    assert result.status in ("ok", "error")
    count = result.execution_count
    assert count is None or (type(count) is int and 0 <= count < 1 << 31)
    assert await answers(session)
    assert (await session.execute("x")).outputs[0]["data"]["text/plain"] == "'ran on'"


async def test_a_forged_idle_ends_nothing(session, backend):
    code = "forge('status', {'execution_state': 'idle'})\ntime.sleep(0.6)\nprint('end')"
    result = await session.execute(with_forgery(backend, code), timeout=20)
    assert (result.status, text(result.outputs)) == ("ok", "end\n")


async def test_a_storm_after_the_cell_changes_no_later_cell(session, backend):
    code = (
        "def storm():\n"
        "    end = time.time() + 3\n"
        "    while time.time() < end:\n"
        "        for parent in ('', 'other', ME):\n"
        "            forge('stream', {'name': 'stdout', 'text': 'forged' * 1000}, parent)\n"
        "            forge('execute_reply', {'status': 'error'}, parent)\n"
        "threading.Thread(target=storm).start()"
    )
    await session.execute(with_forgery(backend, code), timeout=20)
    await asyncio.sleep(0.5)
    late = 0.0
    for _ in range(50):
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(0.01)
        late = max(late, asyncio.get_running_loop().time() - before)
    assert late < 1.0
    after = await session.execute("1", timeout=20)
    assert (after.status, after.state_kept) == ("ok", True)
    await asyncio.sleep(2.5)
    assert await answers(session)


@pytest.mark.parametrize(
    "data",
    [
        "b'\\x00\\x00'",
        "b'\\x00\\x00\\x10\\x00' + b'{'",
        "b'\\xff' * 9",
        "b'\\x00' * 1000",
        "b'\\x02' + b'\\x7f' * 8 + b'x' * 100_000",
        "b'\\x01\\x00' * 200_000",
        "os.urandom(100_000)",
        "b'\\x00\\x00\\x00\\x02{}' * 1000",
    ],
)
async def test_bytes_that_are_no_message_break_at_most_this_kernel(session, backend, data):
    result = await session.execute(with_forgery(backend, f"raw({data})\nprint('end')"), timeout=1)
    assert result.status in ("ok", "error", "timeout", "dead")
    assert result.status != "dead" or "message stream" in result.cause
    assert result.state_kept is (result.status in ("ok", "error"))
    for _ in range(2):  # a kernel that can no longer be heard is found out by the first
        after = await session.execute("print('hello')", timeout=1)
    assert (after.status, text(after.outputs)) == ("ok", "hello\n")


async def test_a_kernel_that_hangs_up_is_ended(session, backend):
    close = {
        "fork": "os.close(CHANNEL.sock.fileno())",
        "local": "for fd in range(3, 256):\n    try: os.close(fd)\n    except OSError: pass",
    }["local" if backend == "local" else "fork"]
    result = await session.execute(with_forgery(backend, close), timeout=1)
    assert (result.status, result.state_kept) in (("timeout", False), ("dead", False))
    assert await answers(session)


async def test_a_file_in_place_of_the_hosts_is_not_opened(session, backend):
    code = (
        "import os\n"
        "for root, _, names in os.walk(os.path.dirname(os.getcwd())):\n"
        "    for name in names:\n"
        "        try:\n"
        "            os.remove(os.path.join(root, name)); os.mkfifo(os.path.join(root, name))\n"
        "        except OSError: pass\n"
        "startup = os.path.expanduser('~/.ipython/profile_default/startup'); os.makedirs(startup, exist_ok=True)\n"
        "open(startup + '/0.py', 'w').write('import os; os._exit(1)')\n"
        "for name in ('ipykernel_launcher', 'ipykernel', 'json'): open(name + '.py', 'w').write('exit(1)')\n"
        "os._exit(1)"
    )
    assert (await session.execute(code, timeout=20)).status == "dead"
    assert await answers(session)
    await asyncio.wait_for(session.restart(), 30)
    assert await answers(session)
