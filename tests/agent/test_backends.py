"""Which backend runs what, and what the user sets of containers."""

from __future__ import annotations

import re

import pytest

from nbagent import backends
from nbagent.agent import Agent
from nbagent.errors import UsageError
from nbagent_kernels import Limits


def test_what_a_session_may_use_follows_the_name():
    place = backends.Place.of("docker:mine:2,memory=8,cpus=2,work=1.5")
    assert (place.name, place.image, place.memory, place.cpus, place.work) == ("docker", "mine:2", 8.0, 2.0, 1.5)
    assert backends.kernels_of("docker,cpus=2") == "docker"
    assert backends.limits_of("fork,memory=0.5").memory_bytes == 1 << 29
    assert backends.limits_of("docker", Limits(memory_bytes=7)).memory_bytes == 7
    assert Agent(backend="docker:mine,memory=8").backend == "docker:mine,memory=8"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("fork,cpus=2", "cpus=2 says nothing to fork; it takes numbers for memory, such as fork,memory=2"),
        ("docker,disk=2", "disk=2 says nothing to docker; it takes numbers for memory, cpus, work"),
        ("docker,memory=8G", "memory=8G says nothing"),
        ("docker,memory=0", "memory=0 says nothing"),
        ("docker,memory=inf", "memory=inf says nothing"),
        ("docker,", " says nothing"),
        ("docker:", "docker is no backend"),
    ],
)
def test_what_says_nothing_is_refused(named, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        backends.choose_backend(named, "x", ours=True, used=False)


def test_where_no_session_is_opened_nobody_asks_for_an_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    backends.container_of.cache_clear()
    assert backends.choose_backend(None, "x", ours=False, used=False) == "docker"
    with pytest.raises(UsageError, match="no Docker engine answers"):
        backends.choose_backend(None, "x", ours=False)


def test_wheels_are_a_folder_that_anybody_may_read(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    monkeypatch.setenv(backends.WHEELS, str(folder))
    with pytest.raises(UsageError, match="no such folder"):
        backends.wheels()
    folder.mkdir()
    (folder / "a-1-py3-none-any.whl").write_text("")
    folder.chmod(0o700)
    with pytest.raises(UsageError, match=r"chmod -R o\+rX"):
        backends.wheels()
    folder.chmod(0o755)
    (folder / "a-1-py3-none-any.whl").chmod(0o600)
    with pytest.raises(UsageError, match=r"chmod -R o\+rX"):
        backends.wheels()
    (folder / "a-1-py3-none-any.whl").chmod(0o644)
    assert backends.wheels() == folder
    monkeypatch.setenv(backends.WHEELS, "")
    assert backends.wheels() is None
