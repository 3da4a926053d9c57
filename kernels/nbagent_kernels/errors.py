"""Errors of kernel sessions; each is also the builtin that fits, and all of them pickle.

KernelError
├── KernelStartError (also RuntimeError)      no kernel came up; says which and why
├── EngineFailed (also ConnectionError)       the Docker engine is not there, refuses, or ended a sandbox
│   └── EngineSilent                          it does not answer
├── KernelTimeout (also TimeoutError)         a host-side wait ran out (never a cell's own time limit)
├── SessionClosed (also RuntimeError)         a verb was called after close()
├── PathOutside (also PermissionError)        a file verb named something outside the working directory
├── CannotBranch (also RuntimeError)          the live kernel cannot be forked safely; says why
└── NotSupported (also NotImplementedError)   the backend cannot do this; says which one can
"""

from __future__ import annotations


class KernelError(Exception):
    """Root of this package's errors: a cause on the host's side, never the agent's."""


class KernelStartError(KernelError, RuntimeError):
    """No kernel came up."""


class EngineFailed(KernelError, ConnectionError):
    """The Docker engine does not answer, refuses, or ended a sandbox that was in use."""


class EngineSilent(EngineFailed):
    """Nothing answers where the engine should be: not started, restarting, or gone.

    Attributes:
        reached: there was a connection, so what was asked for may have been done.
    """

    def __init__(self, message: str, *, reached: bool = False) -> None:
        super().__init__(message)
        self.reached = reached


class KernelTimeout(KernelError, TimeoutError):
    """A wait on the host's side ran out."""


class SessionClosed(KernelError, RuntimeError):
    """The session is closed."""


class PathOutside(KernelError, PermissionError):
    """A path leads out of the session's working directory."""


class NotSupported(KernelError, NotImplementedError):
    """This backend cannot do what was asked."""


class CannotBranch(KernelError, RuntimeError):
    """The live kernel cannot be forked safely, or its fork did not come up.

    `branch(method="replay")` is the way out.
    """
