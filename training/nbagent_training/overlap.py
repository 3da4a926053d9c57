"""Rollouts that run ahead: the next groups are made while the trainer learns from these.

A thread asks the source for one update's groups after the other. It begins those of update k once the trainer has
reached update k - staleness, so no model call is answered by weights more than that many updates old: the thread
waits, nothing is made in vain and dropped, and no more than staleness + 1 updates' groups lie ready. The sampler's
weights change amid rollouts; each model call says which answered it, and the loss corrects for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from nbagent.rollouts import Group, RolloutSource

JOIN_S = 0.1


class Overlap:
    """A RolloutSource over another, which is asked in a thread. Close it at the end."""

    def __init__(
        self, source: RolloutSource, *, staleness: int, updates: int, cancel: Callable[[], None] = lambda: None
    ) -> None:
        """Nothing is made before the first `next_groups`.

        Args:
            source: makes the groups.
            staleness: updates that it may run ahead.
            updates: of the whole run; nothing is made for later ones.
            cancel: ends what the source is at, so that closing need not wait for it.
        """
        self._source, self._staleness, self._updates, self._cancel = source, staleness, updates, cancel
        self._state = threading.Condition()
        self._made: dict[int, list[Group]] = {}
        self._reached = -1
        self._failure: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def next_groups(self, n: int, version: int) -> list[Group]:
        """The groups of update `version`, made for the larger part while earlier updates were trained on.

        Updates are asked for one after the other, always with the same n. What stopped the source is raised here.
        """
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._make, args=(n, version), name="nbagent-overlap", daemon=True
                )
                self._thread.start()
            elif version != self._reached + 1:
                raise ValueError(f"groups of update {version} were asked for after those of update {self._reached}")
            self._reached = version
            self._state.notify_all()
            self._state.wait_for(lambda: version in self._made or self._failure is not None)
            if version in self._made:
                return self._made.pop(version)
            assert self._failure is not None
            raise self._failure

    def close(self) -> None:
        """End the thread, and what it is at."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        while self._thread is not None and self._thread.is_alive():
            # Again and again: it may be just about to ask for more.
            self._cancel()
            self._thread.join(JOIN_S)

    def _may_begin(self, version: int) -> bool:
        """Waits for the trainer to come near enough; False where the end came first."""
        with self._state:
            self._state.wait_for(lambda: self._closed or self._reached >= version - self._staleness)
            return not self._closed

    def _make(self, n: int, first: int) -> None:
        try:
            for version in range(first, max(self._updates, first + 1)):
                if not self._may_begin(version):
                    return
                groups = self._source.next_groups(n, version)
                with self._state:
                    self._made[version] = groups
                    self._state.notify_all()
        except BaseException as error:
            with self._state:
                self._failure = error
                self._state.notify_all()
