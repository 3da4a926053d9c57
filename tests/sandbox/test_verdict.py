"""What counts as open: everything that was not held, but for what an attack is known to do, in its own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nbagent.sandbox.attacks import ATTACKS, Attack, Surrounding
from nbagent.sandbox.battery import Observed, known, spec_of, surroundings
from nbagent.sandbox.check import line, verdict

OLDER: frozenset[Surrounding] = frozenset({"control groups of version 1"})
GVISOR: frozenset[Surrounding] = frozenset({"gVisor"})
NEITHER: frozenset[Surrounding] = frozenset()
BY_NAME = {attack.name: attack for attack in ATTACKS}
SOCKETS = BY_NAME["memory of sockets"]
OTHER = next(attack for attack in ATTACKS if not attack.known)
ITS_OWN = "through: 67108864 bytes are held, of which 126976 count as the sandbox's memory"


def seen(attack: Attack, text: str, around: frozenset[Surrounding]) -> Observed:
    return Observed(attack, False, text, 1.0, known(attack, text, around))


def test_the_known_way_is_a_note() -> None:
    observed = [seen(SOCKETS, ITS_OWN, OLDER), Observed(OTHER, True, "refused", 1.0)]
    assert line(observed[0]).startswith("note ")
    assert line(observed[0]).endswith(f"({SOCKETS.known[-1].why})")
    status, words = verdict(observed)
    assert (status, words) == (0, f"every attack was held, but for the notes: {SOCKETS.name} (2 attacks, 2 s)")


@pytest.mark.parametrize(
    ("text", "around"),
    [
        (ITS_OWN, NEITHER),
        (f"{ITS_OWN}, and more", OLDER),
        ("through: the other sandbox then answers dead", OLDER),
        ("through: the session then answers error  []", OLDER),
        ("EngineFailed: nothing ran at all", OLDER),
        ("nothing was printed", OLDER),
    ],
)
def test_the_same_attack_in_any_other_way_is_open(text: str, around: frozenset[Surrounding]) -> None:
    observed = [seen(SOCKETS, text, around)]
    assert line(observed[0]).startswith("OPEN ")
    assert SOCKETS.known[-1].why not in line(observed[0])
    assert verdict(observed) == (1, f"1 got through: {SOCKETS.name} (1 attacks, 1 s)")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ptrace", "through: ptrace"),
        ("unshare, setns", "through: unshare mount, clone user"),
        ("thread bomb", "the processes limit was not hit: through: 512 threads"),
        ("memory bomb", "the memory limit was not hit: held: the kernel ended: its code ended the sandbox"),
    ],
)
def test_what_gvisor_answers_itself_is_a_note_under_gvisor_only(name: str, text: str) -> None:
    assert not seen(BY_NAME[name], text, GVISOR).open
    assert seen(BY_NAME[name], text, OLDER).open
    assert seen(BY_NAME[name], f"through: the host, by {text}", GVISOR).open


def test_a_memory_bomb_that_is_not_stopped_is_open_everywhere() -> None:
    text = "the memory limit was not hit: through: 2147483648 bytes"
    assert seen(BY_NAME["memory bomb"], text, OLDER | GVISOR).open


def test_no_other_attack_is_known() -> None:
    assert [a.name for a in ATTACKS if any(one.where in OLDER for one in a.known)] == [SOCKETS.name]
    assert seen(OTHER, ITS_OWN, OLDER | GVISOR).open


@pytest.mark.docker
def test_the_engine_says_what_it_has(client: Any, image: Any) -> None:
    spec = spec_of(image("r"), "tests")
    version = client.info()["CgroupVersion"]
    assert surroundings(spec) & OLDER == (OLDER if version == "1" else NEITHER)
    assert spec.container is not None
    runsc = replace(spec, container=replace(spec.container, runtime="runsc"))
    assert surroundings(runsc) >= GVISOR
