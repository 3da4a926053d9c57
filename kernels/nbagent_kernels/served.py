"""What the host asks a fork server about one of its kernels, forked or started: to signal it, and to end it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from typing import Any

from nbagent_kernels.wire import first, settle

END_S = 10.0
"""Seconds to wait for the server's word that a killed kernel is gone."""

Order = Callable[[Mapping[str, Any]], None]
"""Sends the fork server a request."""


class Served:
    """Part of a Wire whose kernel is a fork server's child."""

    dead: asyncio.Future[str]
    """Done when the kernel is gone, with the cause."""
    unheard: bool
    """The server did not confirm its end."""
    _loop: asyncio.AbstractEventLoop

    def served_by(self, order: Order, number: int) -> None:
        """Its server, and the number by which that knows this kernel."""
        self.id = number
        self._order = order
        self._interrupts = 0
        self._quiet: asyncio.Future[None] | None = None
        self.unheard = False
        self._unconfirmed: asyncio.TimerHandle | None = None

    def send_signal(self, number: int) -> None:
        """A signal to the kernel's process group, through the server."""
        self._interrupts += number == signal.SIGINT
        self._order({"op": "signal", "id": self.id, "signal": int(number)})

    async def calm(self) -> None:
        """Wait for the server's word that it has passed on every interrupt."""
        if self._interrupts:
            self._quiet = self._loop.create_future()
            await first(self._quiet, self.dead, timeout=END_S)

    def passed_on(self) -> None:
        """The server has sent the kernel an interrupt."""
        self._interrupts = max(0, self._interrupts - 1)
        if not self._interrupts and self._quiet is not None:
            settle(self._quiet)

    def kill(self) -> None:
        """SIGKILL to the kernel's process group and what it detached; `dead` also where the server does not confirm."""
        if not self.dead.done():
            self._order({"op": "drop", "id": self.id})
            if self._unconfirmed is None:
                self._unconfirmed = self._loop.call_later(END_S, self._unconfirmed_end)

    def _unconfirmed_end(self) -> None:
        self.unheard = True
        self.ended({"op": "failed", "why": f"killed; the fork server did not confirm its end within {END_S:g} s"})

    def confirmed(self) -> bool:
        """False where the kernel's end was known before; else its confirmation is not waited for any more."""
        if self.dead.done():
            return False
        if self._unconfirmed is not None:
            self._unconfirmed.cancel()
        return True

    def ended(self, word: Mapping[str, Any]) -> None:
        """The server says that this kernel is gone (and reaped)."""
        raise NotImplementedError
