"""The errors of the training floor; each is also the builtin that fits, and all of them pickle.

NbagentError
├── TrainingDiverged (also ArithmeticError)   a loss or gradient that is no number; the last checkpoint stands
└── TooManyFailures (also RuntimeError)       too many rollouts failed on the host's side; everything is kept
"""

from __future__ import annotations

from nbagent.errors import NbagentError


class TrainingDiverged(NbagentError, ArithmeticError):
    """Training stopped because its numbers are no longer finite."""


class TooManyFailures(NbagentError, RuntimeError):
    """Training stopped because the host fails too many rollouts; resume once it is mended."""
