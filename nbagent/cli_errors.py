"""How a command ends: which errors are one line, and with which exit status."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass

from nbagent.errors import NbagentError
from nbagent.terminal import plain
from nbagent_images.errors import ImageError
from nbagent_kernels.errors import KernelError

BAD_INPUT = 2
INTERRUPTED = 130
PIPE_CLOSED = 141

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_PERMISSION = {errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Ending:
    """A last line and an exit status."""

    status: int
    line: str = ""
    """What stderr gets after `nbagent: `; '' for nothing."""

    def say(self) -> None:
        """Print the line; where the reader of our output is gone, make sure that nothing more is tried."""
        if self.status == PIPE_CLOSED:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        elif self.line:
            print(f"nbagent: {plain(' '.join(self.line.split()))}", file=sys.stderr, flush=True)


def ending(error: BaseException) -> Ending | None:
    """How a command ends that raised this; None for what is a bug and needs its traceback.

    A KeyboardInterrupt may carry one string that says what was saved and how to go on.
    """
    if isinstance(error, KeyboardInterrupt):
        said = str(error.args[0]) if error.args and isinstance(error.args[0], str) else ""
        return Ending(INTERRUPTED, f"interrupted; {said}" if said else "interrupted")
    if isinstance(error, NbagentError | KernelError | ImageError):
        return Ending(BAD_INPUT, str(error) or type(error).__name__)
    if isinstance(error, BrokenPipeError):
        return Ending(PIPE_CLOSED)
    if isinstance(error, OSError) and error.errno in _DISK:
        return Ending(BAD_INPUT, f"{_what(error)}; free some space, or give another place, and run it again")
    if isinstance(error, OSError) and error.errno in _PERMISSION and error.filename is not None:
        return Ending(BAD_INPUT, f"{_what(error)}; check its permissions")
    return None


def _what(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason
