"""Processes that this user may not see, as where /proc is mounted with hidepid, are not taken for ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

NOBODY = 65534
LOOK = """
import json, os, subprocess, sys
from nbagent_kernels.cgroups import is_over, started

subprocess.run(["mount", "-t", "proc", "-o", f"hidepid={sys.argv[1]}", "proc", "/proc"], check=True)
living, ended = (subprocess.Popen(["sleep", "100"]) for _ in range(2))
names = {"living": f"{living.pid}-{started(living.pid)}", "ended": f"{ended.pid}-{started(ended.pid)}"}
ended.kill()
ended.wait()
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
own = f"{os.getpid()}-{started(os.getpid())}"
said = {which: is_over(name) for which, name in names.items()}
said |= {"seen": bool(started(living.pid)), "own": is_over(own), "own, used anew": is_over(f"{os.getpid()}-1")}
print(json.dumps(said))
"""


@pytest.mark.parametrize("hidden", [1, 2])
def test_a_process_of_somebody_else_that_cannot_be_seen_lives(hidden: int) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root may mount a /proc that hides processes")
    # With a pid namespace, so that the options are not those of this machine's own /proc.
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "mount", "-t", "proc", "proc", "/proc"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no new namespace mount /proc")
    command = [*apart, sys.executable, "-c", LOOK, str(hidden), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "living": False,
        "ended": True,
        "seen": False,
        "own": False,
        "own, used anew": True,
    }
