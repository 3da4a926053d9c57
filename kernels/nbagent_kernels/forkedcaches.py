"""Numba's compiled functions, kept beside their libraries, as confined kernels have them: read, not written.

Runs in the fork server: standard library only. Numba uses such a folder only where it can write to it, and fails a call
whose result it cannot save. A cache that sessions could write to would run one session's code in the next.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def read_only() -> None:
    """Teach Numba, where it is imported, to load from folders that it may not write to."""
    caching: Any = sys.modules.get("numba.core.caching")
    with contextlib.suppress(AttributeError):  # not imported, or another Numba's: then functions are compiled anew
        ensure = caching._CacheLocator.ensure_cache_path

        def ensure_cache_path(locator: Any) -> None:
            """Raises OSError where there is no such folder."""
            try:
                ensure(locator)
            except PermissionError:
                if not os.path.isdir(locator.get_cache_path()):  # noqa: PTH112
                    raise

        @contextlib.contextmanager
        def guard(cache: Any) -> Iterator[None]:
            """What cannot be saved is compiled again by the next kernel."""
            with contextlib.suppress(PermissionError):
                yield

        caching.Cache._guard_against_spurious_io_errors = guard
        caching._CacheLocator.ensure_cache_path = ensure_cache_path
