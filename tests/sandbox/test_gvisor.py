"""Under gVisor, where the engine has it: sessions work, and what it is there for is held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nbagent.sandbox.attacks import ATTACKS
from nbagent.sandbox.battery import battery, spec_of
from nbagent_images import Image

pytestmark = [pytest.mark.docker, pytest.mark.slow]
ITS_OWN_KERNEL = {"unshare, setns", "setuid, capabilities", "ptrace", "io_uring", "bpf, perf"}
"""What gVisor's kernel grants or answers by itself; a flaw there is inside of the sandbox still."""


def test_all_but_its_own_calls_are_held(client: Any, image: Callable[[str], Image]) -> None:
    there = [name for name in client.info()["Runtimes"] if name.startswith("runsc")]
    if not there:
        pytest.skip("the engine has no runtime runsc (gVisor); docker/README.md says how to add it")
    spec = spec_of(image("r"), "tests")
    assert spec.container is not None
    spec = replace(spec, container=replace(spec.container, runtime=there[0]))
    attacks = [attack for attack in ATTACKS if attack.name not in ITS_OWN_KERNEL]
    observed = asyncio.run(battery(spec, attacks))
    assert {one.attack.name: one.text for one in observed if not one.held} == {}
