"""`nbagent sandbox build`: one line for everything that can be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbagent_images import EngineForbidden
from nbagent_images.engine import engine


def refused(*words: str, **env: str) -> str:
    """What stderr said, with newlines as they came; the exit status must be 2."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nbagent.cli", *words],
        env=os.environ | env,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_without_an_engine() -> None:
    said = refused("sandbox", "build", DOCKER_HOST="unix:///nowhere.sock")
    assert "no Docker engine answers at unix:///nowhere.sock" in said
    assert "apt install docker.io" in said


def test_an_unknown_recipe() -> None:
    assert "there are: python, r, full" in refused("sandbox", "build", "--image", "pyhton")


def test_a_base_that_would_not_be_used() -> None:
    assert "leave one of them out" in refused("sandbox", "build", "--offline", "--base", "debian:12")


@pytest.mark.docker
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_rights(client: Any) -> None:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(EngineForbidden, match="usermod -aG docker"), engine():
            pass
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.docker
def test_without_mmdebstrap(client: Any, tmp_path: Path) -> None:
    # --fresh: a base that is there needs nothing.
    said = refused("sandbox", "build", "--image", "r", "--offline", "--fresh", PATH=str(tmp_path))
    assert "apt install mmdebstrap" in said
