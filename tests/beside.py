"""Which tests may run beside each other: where `make test` has several processes, each takes whole groups."""

from __future__ import annotations

import functools
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

FIRST = ("engine", "vllm")
"""The groups that take the longest."""


class InGroups(LoadScopeScheduling):
    """Gives a process that has nothing to do the next group."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """Tests of the Docker engine are one group, those of real vLLM another; of the others each file is one."""
    file = nodeid.split("::")[0]
    if Path(file).name.startswith("test_vllm"):
        return "vllm"
    return "engine" if "docker" in nodeid or _names_the_engine(file) else file


def place_of(nodeid: str) -> int:
    """Where its group stands in the order in which groups begin."""
    return (*FIRST, group := group_of(nodeid)).index(group)


@functools.cache
def _names_the_engine(file: str) -> bool:
    return "mark.docker" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
