"""Writes traced.json: the system calls that the workloads make, seen by strace from outside their containers.

    sudo python docker/seccomp/trace.py        needs strace, and the images python and r

Run it after the images changed, then make.py, and read the difference of seccomp.json before committing it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from docker import from_env

HERE = Path(__file__).parent
WORKLOADS = {
    "science": ("nbagent-python", ["python", "/workloads/science.py"]),
    "processes": ("nbagent-python", ["python", "/workloads/processes.py"]),
    "kernel": ("nbagent-python", ["python", "/workloads/kernel.py", "python"]),
    "shell": ("nbagent-python", ["sh", "/workloads/shell.sh"]),
    "analysis": ("nbagent-r", ["Rscript", "/workloads/analysis.R"]),
    "kernel-r": ("nbagent-r", ["python", "/workloads/kernel.py", "r"]),
}
"""Image and command of each workload."""

TMPFS = {"/tmp": "rw,exec,nosuid,nodev,size=512m,mode=1777", "/work": "rw,exec,nosuid,nodev,size=512m,mode=1777"}


def traced(image: str, command: list[str]) -> list[str]:
    """The names of the system calls that the command and its children make."""
    client = from_env()
    # strace attaches before the workload begins: a shell waits for one line.
    container = client.containers.create(
        image,
        ["sh", "-c", 'read go; exec "$@"', "sh", *command],
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        user="200001:200001",
        stdin_open=True,
        tmpfs=TMPFS,
        volumes={str(HERE / "workloads"): {"bind": "/workloads", "mode": "ro"}},
    )
    try:
        container.start()
        container.reload()
        with tempfile.TemporaryDirectory() as folder:
            summary = Path(folder, "summary")
            pid = str(container.attrs["State"]["Pid"])
            command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(summary), "-p", pid]
            strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            assert "attached" in attached, attached
            line = container.attach_socket(params={"stdin": 1, "stream": 1})
            line._sock.sendall(b"\n")
            line.close()
            status = container.wait()["StatusCode"]
            strace.communicate()
            assert status == 0, container.logs().decode()[-2000:]
            return sorted(set(re.findall(r"^\s*\d+\s+(\w+)$", summary.read_text(), re.M)) - {"total"})
    finally:
        container.remove(force=True)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(WORKLOADS)
    file = HERE / "traced.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for name in chosen:
        found[name] = traced(*WORKLOADS[name])
        print(f"{name}: {len(found[name])} system calls", flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
