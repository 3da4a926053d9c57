"""The errors of the agent's floor; each is also the builtin that fits, and all of them pickle.

NbagentError
├── UsageError (also ValueError)              bad input: one line (what, where, what to do), exit status 2
│   ├── RecipeError                           a recipe's key or value
│   ├── TaskFormatError                       a task row or capsule; names file and line
│   ├── ModelFolderError                      a model folder that is missing or corrupt
│   └── RunFolderError                        an --out folder that holds another run
├── InfrastructureError (also RuntimeError)   a host-side cause: engine, model server, disk; retried, never a reward
│   ├── ModelError                            the model server failed for good
│   └── StorageError (also OSError)           a disk that is full or gone
└── TrajectoryError (also ValueError)         an event log that does not validate; names file and line
"""

from __future__ import annotations


class NbagentError(Exception):
    """Root of this package's errors."""


class UsageError(NbagentError, ValueError):
    """Bad input: shown as one line, exit status 2."""


class RecipeError(UsageError):
    """A recipe that cannot be used."""


class TaskFormatError(UsageError):
    """A task row or a capsule that cannot be used."""


class ModelFolderError(UsageError):
    """A model folder that cannot be used."""


class RunFolderError(UsageError):
    """A run folder that cannot be used."""


class InfrastructureError(NbagentError, RuntimeError):
    """A cause on the host's side: never the agent's, never a reward of 0."""


class ModelError(InfrastructureError):
    """The model could not be asked."""


class StorageError(InfrastructureError, OSError):
    """The disk is full or gone."""


class TrajectoryError(NbagentError, ValueError):
    """An event log that does not validate."""
