"""The seccomp profile: what it is made from, what it stops, and what it lets work."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nbagent_images import Image, profile

SECCOMP = Path(__file__).parents[2] / "docker" / "seccomp"
EPERM, EINVAL, ENOSYS = 1, 22, 38

spec = importlib.util.spec_from_file_location("make", SECCOMP / "make.py")
assert spec is not None
assert spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def test_the_profile_is_made_by_the_script() -> None:
    assert profile() == make.text(), "run docker/seccomp/make.py"


def test_a_call_in_two_places_is_an_error() -> None:
    kinds = {
        "allowed": {"a": {"calls": "read"}},
        "denied": {"b": {"calls": "read"}},
        "absent": {},
        "condition": [],
        "refusal": [],
    }
    with pytest.raises(ValueError, match="read"):
        make.make(kinds, {})


def test_a_traced_call_that_is_denied_stays_denied() -> None:
    kinds = {"allowed": {}, "denied": {"b": {"calls": "ptrace"}}, "absent": {}, "condition": [], "refusal": []}
    assert make.make(kinds, {"w": ["ptrace", "read"]})["syscalls"][0]["names"] == ["read"]


@pytest.mark.docker
@pytest.mark.slow
def test_nothing_that_is_denied_gets_through(
    image: Callable[[str], Image], run: Callable[..., tuple[int, str]]
) -> None:
    folders = {Path(__file__).parent: "/attacks"}
    command = ["python", "/attacks/attacks.py"]
    status, printed = run(image("python").id, command, folders=folders)
    assert status == 0, printed
    answers = json.loads(printed)
    # int 0x80 is none of the filter's numbers: the program that tries it is ended.
    assert answers.pop("int 0x80") == 128 + 31
    others = {"clone3": ENOSYS, "io_uring_setup": ENOSYS, "socket AF_NETLINK": EINVAL}
    assert {name: answers.pop(name) for name in others} == others
    assert {name: errno for name, errno in answers.items() if errno != EPERM} == {}

    # The same program must see a difference, or it would prove nothing.
    status, printed = run(image("python").id, command, seccomp="unconfined", folders=folders)
    through = {name for name, errno in json.loads(printed).items() if errno != EPERM}
    assert through >= {
        "ptrace",
        "io_setup",
        "prlimit of another",
        "socket AF_INET datagrams",
        "personality",
        "socket AF_NETLINK",
        "clone3",
        "keyctl",
        "move_pages",
    }


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("python", ["python", "/workloads/science.py"]),
        ("python", ["python", "/workloads/processes.py"]),
        ("python", ["python", "/workloads/kernel.py", "python"]),
        ("python", ["sh", "/workloads/shell.sh"]),
        ("r", ["Rscript", "/workloads/analysis.R"]),
        ("r", ["python", "/workloads/kernel.py", "r"]),
    ],
    ids=lambda value: value if isinstance(value, str) else Path(value[1]).name,
)
def test_work_goes_on_under_it(
    image: Callable[[str], Image], run: Callable[..., tuple[int, str]], name: str, command: list[str]
) -> None:
    status, printed = run(image(name).id, command, folders={SECCOMP / "workloads": "/workloads"})
    assert status == 0, printed
