"""Which backend runs what, and what the user sets of containers."""

from __future__ import annotations

import os
import re

import pytest

from nbagent import backends
from nbagent.agent import Agent
from nbagent.errors import UsageError
from nbagent_kernels import Limits


def test_what_a_session_may_use_follows_the_name():
    place = backends.Place.of("docker:mine:2,memory=8,cpus=0.5,work=1.5")
    assert (place.name, place.image, place.memory, place.cpus, place.work) == ("docker", "mine:2", 8.0, 0.5, 1.5)
    assert backends.kernels_of("docker,cpus=1") == "docker"
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


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("docker,cpus=1e6", "--backend docker,cpus=1e6: cpus=1e6 is not within 0.01 to "),
        ("docker,cpus=1e-10", "cpus=1e-10 is not within 0.01 to "),
        ("docker,memory=0.004", "memory=0.004 is not within 0.25 to 1048576 GiB"),
        ("docker,memory=1e10", "memory=1e10 is not within 0.25 to 1048576 GiB"),
        ("docker,work=1e-10", "work=1e-10 is not within 0.001 to 1048576 GiB"),
        ("fork,memory=0.1", "memory=0.1 is not within 0.25 to 1048576 GiB"),
        ("local,memory=0.5", "memory=0.5 is not within 0.75 to 1048576 GiB"),
    ],
)
def test_what_no_kernel_starts_with_or_an_engine_refuses_is_found_when_it_is_read(named, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        backends.choose_backend(named, "x", ours=True, used=False)
    assert "\n" not in str(error.value)


def test_an_engine_of_this_machine_has_its_processors_and_another_may_have_more(monkeypatch):
    number = os.cpu_count()
    assert backends.Place.of(f"docker,cpus={number}").cpus == number
    with pytest.raises(UsageError, match=f"to {number} processors, as many as this machine has"):
        backends.Place.of(f"docker,cpus={number + 1}")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")
    backends.Place.of.cache_clear()
    assert backends.Place.of(f"docker,cpus={number + 1}").cpus == number + 1
    backends.Place.of.cache_clear()


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
