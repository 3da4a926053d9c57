"""A Jupyter kernel over ipc sockets: cells, a plot, an interrupt, a shell command, a fork. Argument: python or r."""

import contextlib
import os
import queue
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

PYTHON = """
import os, time
%matplotlib inline
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.show()
!echo from a shell
child = os.fork()
if child == 0: os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert 6 * 7 == 42
"""
R = "plot(1:3); hist(rnorm(50)); stopifnot(system('true') == 0); data.frame(a = 1:3)"


def main(language):
    manager = KernelManager(transport="ipc", ip=f"{tempfile.mkdtemp()}/k")
    if language == "python":
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    else:
        argv = ["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=argv, language=language)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    shown = []
    kinds = lambda message: shown.append(message["header"]["msg_type"])  # noqa: E731
    reply = client.execute_interactive(PYTHON if language == "python" else R, output_hook=kinds, timeout=120)
    assert reply["content"]["status"] == "ok", reply["content"]
    assert "display_data" in shown, shown
    if language == "python":
        os.mkfifo("/tmp/begun")
        waiting = client.execute("import time; open('/tmp/begun', 'w').close(); time.sleep(600)")
        # Opens when the cell does.
        Path("/tmp/begun").read_bytes()
        # Slowed by strace, a kernel may miss the first.
        while True:
            manager.interrupt_kernel()
            with contextlib.suppress(queue.Empty):
                answer = client.get_shell_msg(timeout=5)
                break
        assert answer["parent_header"]["msg_id"] == waiting
        assert answer["content"]["ename"] == "KeyboardInterrupt"
    client.stop_channels()
    manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main(sys.argv[1])
