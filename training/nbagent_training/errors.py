"""The errors of the training floor; each is also the builtin that fits, and all of them pickle.

NbagentError
└── TrainingDiverged (also ArithmeticError)   a loss or gradient that is no number; the last checkpoint stands
"""

from __future__ import annotations

from nbagent.errors import NbagentError


class TrainingDiverged(NbagentError, ArithmeticError):
    """Training stopped because its numbers are no longer finite."""
