"""What counts as open: everything that was not held, but for what an attack is known to do, in its own words."""

from __future__ import annotations

from typing import Any

import pytest

from nbagent.sandbox.attacks import ATTACKS
from nbagent.sandbox.battery import Observed, group_version, is_known
from nbagent.sandbox.check import line, verdict

SOCKETS = next(attack for attack in ATTACKS if attack.known)
OTHER = next(attack for attack in ATTACKS if not attack.known)
ITS_OWN = "through: 67108864 bytes are held, of which 126976 count as the sandbox's memory"


def seen(attack: Any, text: str, groups: str) -> Observed:
    return Observed(attack, False, text, 1.0, is_known(attack, text, groups))


def test_the_known_way_is_a_note() -> None:
    observed = [seen(SOCKETS, ITS_OWN, "1"), Observed(OTHER, True, "refused", 1.0)]
    assert line(observed[0]).startswith("note ")
    assert line(observed[0]).endswith(f"({SOCKETS.known})")
    status, words = verdict(observed)
    assert (status, words) == (0, f"every attack was held; known to get through: {SOCKETS.name} (2 attacks, 2 s)")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        (ITS_OWN, "2"),
        (ITS_OWN, ""),
        (f"{ITS_OWN}, and more", "1"),
        ("through: the other sandbox then answers dead", "1"),
        ("through: the session then answers error  []", "1"),
        ("EngineFailed: nothing ran at all", "1"),
        ("nothing was printed", "1"),
    ],
)
def test_the_same_attack_in_any_other_way_is_open(text: str, groups: str) -> None:
    observed = [seen(SOCKETS, text, groups)]
    assert line(observed[0]).startswith("OPEN ")
    assert SOCKETS.known not in line(observed[0])
    assert verdict(observed) == (1, f"1 got through: {SOCKETS.name} (1 attacks, 1 s)")


def test_no_other_attack_is_known() -> None:
    assert [attack.name for attack in ATTACKS if attack.known_as] == [SOCKETS.name]
    assert seen(OTHER, ITS_OWN, "1").open


@pytest.mark.docker
def test_the_engine_says_its_version(client: Any) -> None:
    assert group_version() in ("1", "2")
