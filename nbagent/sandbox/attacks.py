"""The attacks on a sandbox: what each tries, the code that it runs as a cell, and who looks at what comes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from nbagent.sandbox import inside_calls, inside_floods, inside_reach
from nbagent_kernels import Limits

LIMITS = Limits(memory_bytes=1 << 30, processes=128, output_bytes=1 << 20, grace_s=1.0)
"""Of the sandboxes that are attacked."""
GRADERS = ("nbagent_bixbench", "nbagent_training", "nbagent_images")
"""Names of what the host grades with."""

Watch = Literal["inside", "ending", "processes", "memory", "stubborn", "flood", "planted", "capsule", "outlive"]
"""Who judges: the cell itself, or the host in a way of its own; see watch.py."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the attacks are told of the host and of the other sandbox."""

    folder: str
    """A folder of the host's, open to everybody there."""
    secret: str
    """A file in it that holds a secret."""
    ours: str
    """A secret of the attacker's own sandbox: a search that does not find it finds nothing."""
    mark: str
    """On the command line of a process of the other sandbox."""


Surrounding = Literal["control groups of version 1", "gVisor"]
"""What an engine may have that some attacks are known to get through in."""


@dataclass(frozen=True, slots=True)
class Known:
    """How an attack is known to get through, as docker/README.md has it; that is shown, and is no failure."""

    where: Surrounding
    """There only."""
    why: str
    """And why that is so."""
    says: str
    """What the attack says then, a regular expression; anything else is a failure."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Example: `Attack("vsock", "inside", inside_reach.vsock, "no such socket")`.
    """

    name: str
    """As the table has it."""
    watch: Watch
    """Who looks at what comes of it."""
    attempt: Callable[..., Any]
    """A function of one of the modules `inside_*`; its docstring says what is tried."""
    expected: str
    """What is to come of it."""
    given: Callable[[Facts], tuple[object, ...]] = lambda _: ()
    """The attempt's arguments."""
    known: tuple[Known, ...] = ()
    """In which ways it is known to get through."""

    @property
    def tries(self) -> str:
        """What is tried, in one sentence."""
        return (self.attempt.__doc__ or "").strip().splitlines()[0]

    def cell(self, facts: Facts) -> str:
        """The code: its whole module, and one call whose answer is printed."""
        arguments = ", ".join(repr(value) for value in self.given(facts))
        return f"{_source(inspect.getmodule(self.attempt))}\nprint({self.attempt.__name__}({arguments}))"


def _source(module: ModuleType | None) -> str:
    assert module is not None
    assert module.__file__ is not None
    return Path(module.__file__).read_text(encoding="utf-8")


_reach, _calls, _floods = inside_reach, inside_calls, inside_floods
_MEMORY, _PROCESSES = LIMITS.memory_bytes or 0, LIMITS.processes or 0
_TWICE = 2 * _MEMORY
_ROOM = (".", "/tmp", "/dev/shm")


def _of_gvisor(says: str, why: str = "answered by gVisor's kernel, not by the host's") -> tuple[Known, ...]:
    return (Known("gVisor", why, says),)


_SOCKETS = r"through: \d+ bytes are held, of which \d+ count as the sandbox's memory"
_IT_ENDS = "gVisor's kernel is what ended, and the sandbox with it"
_MEMORY_ENDS = _of_gvisor("the memory limit was not hit: held: the kernel ended: .*", _IT_ENDS)
_FORKS_END = _of_gvisor("the processes limit was not hit: held: the kernel ended: .*", _IT_ENDS)
_THREADS = _of_gvisor(r"the processes limit was not hit: through: \d+ threads", "they are gVisor's, not the host's")

ATTACKS: tuple[Attack, ...] = (
    Attack("network, IPv4", "inside", _reach.network_v4, "unreachable"),
    Attack("network, IPv6", "inside", _reach.network_v6, "unreachable"),
    Attack("names (DNS)", "inside", _reach.dns, "no answer"),
    Attack("vsock", "inside", _reach.vsock, "no such socket"),
    Attack("control sockets", "inside", _reach.engine_socket, "none is there"),
    Attack("host files", "inside", _reach.host_files, "not there", lambda facts: (facts.folder,)),
    Attack("planted secrets", "inside", _reach.planted_secrets, "only its own", lambda facts: (facts.ours,)),
    Attack("other processes", "inside", _reach.other_processes, "not seen", lambda facts: (facts.mark,)),
    Attack("answer key, verifier", "inside", _reach.answer_key, "not there", lambda _: (list(GRADERS),)),
    Attack("mount", "inside", _calls.mount, "refused"),
    Attack(
        "unshare, setns",
        "inside",
        _calls.unshare,
        "refused",
        known=_of_gvisor(r"through: (unshare|clone|setns)[a-z, ]*"),
    ),
    Attack(
        "setuid, capabilities",
        "inside",
        _calls.become_root,
        "none, none to gain",
        known=_of_gvisor("through: programs may gain rights"),
    ),
    Attack("ptrace", "inside", _calls.ptrace, "refused", known=_of_gvisor("through: ptrace")),
    Attack("server's memory", "inside", _calls.server_memory, "refused"),
    Attack("server's limits", "inside", _calls.limits_of_others, "refused", known=_of_gvisor("through: prlimit")),
    Attack("server's output", "inside", _floods.engine_log, "not reached", lambda _: (1 << 20,)),
    Attack("asynchronous i/o", "inside", _calls.asynchronous, "refused", known=_of_gvisor("through: io_setup")),
    Attack("io_uring", "inside", _calls.io_uring, "refused", known=_of_gvisor("through: io_uring_setup")),
    Attack("bpf, perf", "inside", _calls.bpf, "refused"),
    Attack("keyctl", "inside", _calls.keyctl, "refused"),
    Attack("write outside", "inside", _calls.write_outside, "nothing written", lambda _: (["/var/tmp"],)),
    Attack("change the capsule", "capsule", _calls.overwrite, "the host's is as it was"),
    Attack(
        "fork bomb", "processes", _floods.forks, "stopped at the limit", lambda _: (4 * _PROCESSES,), known=_FORKS_END
    ),
    Attack(
        "thread bomb",
        "processes",
        _floods.threads,
        "stopped at the limit",
        lambda _: (4 * _PROCESSES,),
        known=_FORKS_END + _THREADS,
    ),
    Attack("memory bomb", "memory", _floods.memory, "stopped at the limit", lambda _: (_TWICE,), known=_MEMORY_ENDS),
    Attack(
        "memory, shared out",
        "memory",
        _floods.memory_shared_out,
        "stopped at the limit",
        lambda _: (_TWICE,),
        known=_MEMORY_ENDS,
    ),
    Attack(
        "memory of sockets",
        "inside",
        _floods.connections,
        "counted",
        lambda _: (64 << 20,),
        known=(
            *_of_gvisor(_SOCKETS, "gVisor's memory, of which its inside is not told what counts"),
            Known("control groups of version 1", "control groups of version 1 do not count it", _SOCKETS),
        ),
    ),
    *(
        Attack(f"fill {where}", "ending", _floods.fill, "stopped at a bound", lambda _, at=at: (at, _TWICE))  # type: ignore[misc]
        for at, where in zip(_ROOM, ("the work folder", "/tmp", "/dev/shm"), strict=True)
    ),
    Attack("fill what else", "ending", _floods.fill_others, "stopped at a bound", lambda _: (list(_ROOM), _TWICE)),
    Attack("endless output", "flood", _floods.print_forever, "cut while it arrives"),
    Attack("one huge message", "flood", _floods.print_at_once, "dropped", lambda _: (24 << 20,)),
    Attack("planted files", "planted", _floods.plant, "not followed", lambda facts: (facts.secret,)),
    Attack("broken messages", "ending", _floods.write_to_all, "its own session at most", lambda _: (1 << 16,)),
    Attack("forged messages", "ending", _floods.forge, "its own cell at most", lambda _: (1.0,)),
    Attack("swallow interrupts", "stubborn", _floods.swallow, "killed"),
    Attack("endless regex", "stubborn", _floods.regex, "interrupted or killed"),
    Attack("hold the interpreter", "stubborn", _floods.add_up, "killed"),
    Attack("kill everything", "ending", _floods.kill_all, "its own session at most"),
    Attack("outlive the session", "outlive", _floods.outlive, "gone", lambda facts: (f"{facts.mark}-late",)),
)
"""Every attack, gentle ones first."""
