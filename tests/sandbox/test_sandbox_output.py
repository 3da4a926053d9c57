"""What `nbagent sandbox` prints: rows, and one line for what is wrong or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from nbagent_images import Image
from nbagent_images.commands import named
from nbagent_kernels.cgroups import is_over, started
from nbagent_kernels.leftovers import containers

SANDBOX = [sys.executable, "-m", "nbagent.cli", "sandbox"]


@pytest.mark.docker
@pytest.mark.slow
def test_bench_prints_a_heading_and_its_rows(image: Callable[[str], Image]) -> None:
    image("python")
    done = subprocess.run([*SANDBOX, "bench", "-n", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heading, empty, *rows = done.stdout.splitlines()
    assert heading == "sandboxes of nbagent-python, medians; figures depend on the machine and on what else runs"
    assert empty == ""
    assert [row.split("  ")[0] for row in rows] == [
        "container from nothing to its first answer",
        "session of a warm pool to its first answer with scanpy",
        "a cell that computes 6 * 7, mean of 50",
        "branch of a live session to its first answer",
    ]


@pytest.mark.docker
@pytest.mark.parametrize("command", ["check", "bench"])
@pytest.mark.parametrize("name", ["", " ", "a b", "UPPER::"])
def test_a_name_that_no_image_can_have_is_one_line(client: Any, command: str, name: str) -> None:
    done = subprocess.run([*SANDBOX, command, "--image", name], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "image" in done.stderr


@pytest.mark.docker
@pytest.mark.slow
def test_an_impatient_ctrl_c_is_one_line_and_leaves_nothing(image: Callable[[str], Image]) -> None:
    image("python")
    program = subprocess.Popen([*SANDBOX, "check"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    while not program.stdout.readline().startswith("held"):
        assert program.poll() is None
    while program.poll() is None:
        program.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert program.communicate(timeout=60)[1] == "nbagent: interrupted\n"
    assert program.returncode == 130
    late = time.monotonic() + 30
    while [one for one in containers("check") if one.pid == program.pid and one.state == "running"]:
        assert time.monotonic() < late
        time.sleep(0.1)


def test_a_folder_of_wheels_may_have_a_space_in_its_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my wheels").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named("my wheels") == "my wheels"
    assert named("polars >= 1") == "polars>=1"


def test_a_program_that_nobody_waited_for_is_over() -> None:
    program = subprocess.Popen(["sleep", "100"])
    name = f"{program.pid}-{started(program.pid)}"
    assert not is_over(name)
    os.kill(program.pid, signal.SIGKILL)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert started(program.pid)
    assert is_over(name)
    program.wait()
    assert is_over(name)
    assert not is_over("nobody")
