"""Jupyter's own programs run notebooks in our kernels, chosen by kernelspec."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

import nbformat
import papermill
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager, start_new_kernel
from kernel_probes import alive
from languages import R_IS_HERE
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from nbagent_kernels import KernelStartError, NotSupported
from nbagent_kernels.kernelspec import install, kernelspec
from nbagent_kernels.provisioner import exit_status
from nbagent_kernels.workspace import process_root

CELLS = [
    "1 + 1",
    "import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('more')",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "import pandas as pd\npd.DataFrame({'a': [1.5, None], 'b': ['é', 'x']})",
    "from IPython.display import *\nhandle = display('first', display_id='d')\nhandle.update('second')",
    "print('gone')\nclear_output(wait=True)\nprint('kept')",
    "1 / 0",
    "x = 5\ninput('name? ')",
    "import subprocess\nx, subprocess.run(['echo', 'below'], capture_output=True).stdout",
    "from comm import create_comm\nc = create_comm(target_name='t', data={'a': 1})\nc.send({'b': 2})\nc.close()\nx",
    "raise SystemExit(3)",
    "%%time\npass",
    "len?",
    "x",
]


@pytest.fixture(params=["fork", "local"])
def kernel(request, tmp_path, monkeypatch):
    """Name of an installed kernelspec of one backend."""
    content = kernelspec(request.param)
    content["metadata"]["kernel_provisioner"]["config"]["preload"] = ["numpy", "matplotlib.pyplot"]
    install(content, "ours", prefix=tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    before = folders()
    yield "ours"
    assert folders() == before


def folders() -> set[str]:
    """Folders of sessions and of sockets that are there."""
    return {
        path.name for path in process_root().iterdir() if path.name.startswith(("s", "j")) and path.name != "server"
    }


def notebook(*cells: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def shown(node: nbformat.NotebookNode) -> str:
    """Counts and outputs, without what differs from kernel to kernel."""
    text = json.dumps([[cell.execution_count, cell.outputs] for cell in node.cells])
    text = re.sub(r"ipykernel_\d+/\d+\.py", "cell.py", text)
    return re.sub(r"(CPU times|Wall time).*?\\n", "", text)


def ask(client, code: str) -> dict:
    return client.execute_interactive(code, output_hook=lambda _: None, timeout=20)["content"]


@pytest.mark.slow
def test_nbclient_gives_what_a_stock_kernel_gives(kernel, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a stock kernel would take it over
    ours, stock = notebook(*CELLS), notebook(*CELLS)
    # Streams joined: a stock kernel gathers text for 0.2 s, so that its pieces depend on the clock.
    NotebookClient(ours, kernel_name=kernel, allow_errors=True, coalesce_streams=True).execute()
    NotebookClient(stock, kernel_name="python3", allow_errors=True, coalesce_streams=True).execute()
    assert shown(ours) == shown(stock)
    nbformat.validate(ours)


def test_nbclient_raises_the_error_of_a_cell_with_its_traceback(kernel):
    with pytest.raises(CellExecutionError, match=r"(?s)Traceback.*division by zero"):
        NotebookClient(notebook("1 / 0"), kernel_name=kernel).execute()


def test_nbclient_sees_a_death(kernel):
    with pytest.raises(DeadKernelError):
        NotebookClient(notebook("import os\nos._exit(3)", "1"), kernel_name=kernel).execute()


def test_nbclient_interrupts_at_its_time_limit(kernel):
    ran = notebook("x = 1", "import time\ntime.sleep(60)", "x")
    client = NotebookClient(ran, kernel_name=kernel, timeout=1, interrupt_on_timeout=True, allow_errors=True)
    client.execute()
    assert ran.cells[1].outputs[0].ename == "KeyboardInterrupt"
    assert ran.cells[2].outputs[0].data["text/plain"] == "1"


def test_papermill_runs_a_notebook_with_parameters(kernel, tmp_path):
    source = notebook("a = 1", "a * 2")
    source.cells[0].metadata["tags"] = ["parameters"]
    source.metadata["kernelspec"] = {"name": kernel, "language": "python", "display_name": kernel}
    nbformat.write(source, tmp_path / "in.ipynb")
    ran = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", parameters={"a": 21}, progress_bar=False
    )
    assert ran.cells[-1].outputs[0].data["text/plain"] == "42"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["jupyter-execute", "jupyter-nbconvert"])
def test_jupyters_programs_run_a_notebook(kernel, tmp_path, program):
    nbformat.write(notebook("import os\nprint(os.getcwd())"), tmp_path / "in.ipynb")
    words = {
        "jupyter-execute": ["--kernel_name", kernel, "--inplace", "in.ipynb"],
        "jupyter-nbconvert": ["--to=notebook", "--execute", "--inplace", f"--ExecutePreprocessor.kernel_name={kernel}"],
    }[program]
    command = [str(Path(sys.executable).with_name(program)), *words]
    command += ["in.ipynb"] if program == "jupyter-nbconvert" else []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = Path(nbformat.read(tmp_path / "in.ipynb", 4).cells[0].outputs[0].text.strip())
    assert place.name == "work"
    assert not place.parent.exists()


def test_a_blocking_manager_interrupts_restarts_and_sees_death(kernel):
    manager, client = start_new_kernel(kernel_name=kernel)
    try:
        assert manager.transport == "ipc"
        client.execute("import time\ntime.sleep(60)")
        client.execute("2")
        while client.get_iopub_msg(timeout=20)["msg_type"] != "execute_input":
            pass
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=20)["content"]["ename"] == "KeyboardInterrupt"
        assert client.get_shell_msg(timeout=20)["content"]["status"] == "aborted"
        ask(client, "x = 1\nopen('kept', 'w').close()")
        for now in (True, False):
            manager.restart_kernel(now=now)
            client.wait_for_ready(timeout=20)
            assert ask(client, "import os\nassert os.listdir() == ['kept'], os.listdir()")["status"] == "ok"
            assert ask(client, "x")["ename"] == "NameError"
        client.execute("import os\nos._exit(3)")
        deadline = time.monotonic() + 5
        while manager.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not manager.is_alive()
        manager.restart_kernel()
        client.wait_for_ready(timeout=20)
        assert ask(client, "1")["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert not manager.has_kernel


@pytest.mark.slow
async def test_an_async_manager_and_its_requests(kernel):
    manager = AsyncKernelManager(kernel_name=kernel)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=20)
        assert (await client.kernel_info(reply=True, timeout=20))["content"]["implementation"] == "ipython"
        assert "import" in (await client.complete("impo", reply=True, timeout=30))["content"]["matches"]
        assert (await client.inspect("len", reply=True, timeout=20))["content"]["found"]
        assert (await client.history(reply=True, timeout=20))["content"]["status"] == "ok"
        assert (await client.comm_info(reply=True, timeout=20))["content"]["comms"] == {}
        client.is_complete("for x in y:")
        assert (await client.get_shell_msg(timeout=20))["content"]["status"] == "incomplete"
        assert (await client.execute("1", reply=True, timeout=20))["content"]["execution_count"] == 1
        assert (await client.execute("1 / 0", reply=True, timeout=20))["content"]["execution_count"] == 2
        with pytest.raises(NotSupported):
            await manager.signal_kernel(signal.SIGUSR1)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
    assert await manager.provisioner.poll() == 0


def test_output_past_the_cap_is_dropped_and_said(kernel):
    manager = KernelManager(kernel_name=kernel)
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["limits"] = {"output_bytes": 10_000}
    ran = notebook("for i in range(100_000): print('x' * 100)", "1")
    NotebookClient(ran, km=manager).execute(cleanup_kc=True)
    assert sum(len(output.text) for output in ran.cells[0].outputs) < 30_000
    assert "bytes of output dropped" in ran.cells[0].outputs[-1].text
    assert ran.cells[1].outputs[0].data["text/plain"] == "1"


def test_tcp_ports_that_were_asked_for_are_bound(kernel):
    manager = KernelManager(kernel_name=kernel, shell_port=0)
    manager.hb_port = 28765
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        assert (manager.transport, manager.hb_port) == ("tcp", 28765)
        assert ask(client, "1")["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_message_with_a_wrong_key_is_not_heard(kernel):
    manager, client = start_new_kernel(kernel_name=kernel)
    try:
        stranger = manager.blocking_client()
        stranger.load_connection_info({**manager.get_connection_info(), "key": b"another"})
        stranger.start_channels()
        stranger.execute("x = 1")
        with pytest.raises(Empty):
            stranger.get_shell_msg(timeout=0.5)
        stranger.stop_channels()
        assert ask(client, "x")["ename"] == "NameError"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_files_are_copied_and_the_original_stays(kernel, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("given")
    manager = KernelManager(kernel_name=kernel)
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["files"] = "data"
    ran = notebook("from pathlib import Path\nprint(Path('a.txt').read_text())\nPath('a.txt').write_text('changed')")
    NotebookClient(ran, km=manager, resources={"metadata": {"path": str(tmp_path)}}).execute(cleanup_kc=True)
    assert ran.cells[0].outputs[0].text == "given\n"
    assert (tmp_path / "data" / "a.txt").read_text() == "given"


@pytest.mark.skipif(not R_IS_HERE, reason="no R kernel; Debian, Ubuntu: apt install r-base-core r-cran-irkernel")
def test_a_notebook_in_r(tmp_path, monkeypatch):
    install(kernelspec("local", kernel="ir"), "ours", prefix=tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    ran = notebook("x <- 2\nprint(x)", "Sys.sleep(60)", "x * 3")
    client = NotebookClient(ran, kernel_name="ours", timeout=2, interrupt_on_timeout=True, allow_errors=True)
    client.execute()
    assert ran.cells[0].outputs[0].text == "[1] 2\n"
    assert ran.cells[2].outputs[0].data["text/plain"] == "[1] 6"


HOST = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name=sys.argv[1])
cell = "import os, subprocess\\nprint(os.getpid(), subprocess.Popen(['sleep', '99']).pid, os.getcwd())"
client.execute_interactive(cell)
sys.stdout.flush()
if sys.argv[2] == "wait":
    import time
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["forgets", "killed"])
def test_nothing_outlives_the_manager(kernel, end):
    how = "wait" if end == "killed" else "go"
    host = subprocess.Popen([sys.executable, "-c", HOST, kernel, how], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    *pids, place = host.stdout.readline().split()
    if end == "killed":
        os.kill(host.pid, signal.SIGKILL)
    host.wait(20)
    host.stdout.close()
    root = Path(place).parent.parent
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (root.exists() or any(alive(int(pid)) for pid in pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(int(pid))]
    assert not root.exists()


@pytest.mark.parametrize(
    ("cause", "status"),
    [("exit code 3", 3), ("signal SIGSEGV", -11), ("out of memory", -9), ("the fork server ended (signal SIGKILL)", 1)],
)
def test_an_exit_status_is_read_from_the_cause(cause, status):
    assert exit_status(cause) == status


def test_a_kernelspec_is_refused_where_it_could_not_run():
    with pytest.raises(KernelStartError, match="unknown backend"):
        kernelspec("nowhere")
    with pytest.raises(KernelStartError, match="local only"):
        kernelspec("fork", kernel="ir")
    with pytest.raises(KernelStartError, match="no kernelspec 'absent'"):
        kernelspec("local", kernel="absent")


def test_an_unknown_setting_is_named(tmp_path, monkeypatch):
    content = kernelspec()
    content["metadata"]["kernel_provisioner"]["config"]["limits"] = {"memory": 1}
    install(content, "ours", prefix=tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    with pytest.raises(Exception, match="limits has no memory"):
        KernelManager(kernel_name="ours").start_kernel()
