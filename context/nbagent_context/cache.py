"""A cache of what was made of long texts, bounded by their length."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock
from typing import Any


class Cache:
    """Keeps results until keys and results together pass so many characters; then the oldest half goes.

    Bounded by length, since a cell's output may be a word or a megabyte. Keys hold the texts themselves, which compare
    by identity first, so that asking again costs no time that grows with them. Several threads may ask.
    """

    def __init__(self, most_chars: int = 64 << 20) -> None:
        self._most = most_chars
        self._kept: dict[Hashable, tuple[Any, int]] = {}
        self._chars = 0
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        """The result for `key`; None where it is not kept."""
        found = self._kept.get(key)
        return found and found[0]

    def put(self, key: Hashable, result: Any, chars: int) -> None:
        """Keep a result; `chars` is about what key and result take."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (result, chars)
                self._chars += chars
                if self._chars > self._most:
                    self._halve()

    def _halve(self) -> None:
        for key in list(self._kept):
            if self._chars <= self._most // 2:
                break
            self._chars -= self._kept.pop(key)[1]
