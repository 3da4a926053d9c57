"""A group of processes of one machine that send tensors over Gloo. Both ends of a weight transfer make theirs by it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch import distributed


def meet(store: str, rank: int, n: int, timeout_s: float) -> Any:
    """Meet the others of a group.

    Args:
        store: path of a file that all members reach and no other group uses.
        rank: of this member.
        n: members.
        timeout_s: longest that one waits for another, here and later, seconds.

    Returns:
        A process group of PyTorch's.

    Raises:
        RuntimeError: the others did not come.
    """
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=timeout_s)
    file_store: Any = distributed.FileStore  # type: ignore[attr-defined]
    return gloo(file_store(store, n), rank, n, options)
