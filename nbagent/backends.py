"""Which backend runs whose code."""

from __future__ import annotations

from nbagent.errors import UsageError
from nbagent_kernels import BACKENDS
from nbagent_kernels.confinement import gaps


def not_covered() -> str:
    """What the backends `fork` and `local` leave open on this machine, in one line for the user."""
    missing = "".join(f"; {gap}" for gap in gaps())
    return (
        "note: the backends fork and local keep a kernel to its own files and network, limit memory, files and time "
        "and give it no keys, but they are no sandbox: its code runs as you on your system, sees what is installed "
        f"and what runs, and reaches local services by their sockets{missing}"
    )


def choose_backend(named: str | None, what: str, ours: bool) -> str:
    """The backend for some code: the one named, or `fork` for code of a model that was made here from nothing.

    Args:
        named: by the user; None where nothing was said.
        what: whose code it is, for the message: a model or a notebook.
        ours: True where the code can do nothing that we did not teach it.

    Raises:
        UsageError: a backend that is not there, or none named for code that is not ours.
    """
    if named is not None and named not in BACKENDS:
        hint = "is not there yet" if named == "docker" else "is no backend"
        raise UsageError(f"--backend {named}: {named} {hint}; there are: {', '.join(sorted(BACKENDS))}")
    if named is None and not ours:
        raise UsageError(
            f"{what}: its code should run in backend docker, which is not there yet; name --backend "
            f"{' or '.join(sorted(BACKENDS))} if it may run as you on this machine"
        )
    return named or "fork"
