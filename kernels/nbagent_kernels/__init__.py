"""Jupyter kernels as sessions: truthful, capped, cleaned up. Knows nothing of agents, models or tasks."""

from nbagent_kernels.errors import (
    CannotBranch,
    KernelError,
    KernelStartError,
    KernelTimeout,
    NotSupported,
    PathOutside,
    SessionClosed,
)
from nbagent_kernels.pool import KernelPool, PoolHealth
from nbagent_kernels.session import BACKENDS, Session, open_session
from nbagent_kernels.types import CellResult, FileEntry, Limits, Output, SessionSpec, Status

__all__ = [
    "BACKENDS",
    "CannotBranch",
    "CellResult",
    "FileEntry",
    "KernelError",
    "KernelPool",
    "KernelStartError",
    "KernelTimeout",
    "Limits",
    "NotSupported",
    "Output",
    "PathOutside",
    "PoolHealth",
    "Session",
    "SessionClosed",
    "SessionSpec",
    "Status",
    "open_session",
]
