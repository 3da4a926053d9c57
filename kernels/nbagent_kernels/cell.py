"""One execution of a cell on a wire: its messages, its time limit, and the truth about what became of it."""

from __future__ import annotations

import asyncio
import secrets
import time

from nbagent_kernels.outputs import OutputFold
from nbagent_kernels.types import CellResult, Limits, Status
from nbagent_kernels.wire import Message, Wire, first, settle

SILENCE_S = 1.0
"""Seconds without a message after the reply that show that the idle status was lost, as in a flood."""
DRAIN_S = 10.0
"""Seconds to take in what a flood left on its way, so that it does not stand before the next cell's outputs."""
AGAIN_S = 1.0
"""Seconds between two interrupts of a cell that ran out of time."""
ASKED_S = 0.25
"""Seconds between two interrupts of a cell that waits for input."""
REPLY_S = 0.3
"""Seconds to wait for a reply that may be lost after the idle status: the kernel sends it before."""
MOST_CELLS = 1 << 31
"""An execution counter at or above this is none that a kernel counted to."""

NO_INPUT = {
    "ename": "StdinNotImplementedError",
    "evalue": "there is nobody to give input: a cell of this session cannot ask for any",
    "traceback": [],
}
"""The error of a cell that asks for input, as ipykernel names it."""


class Cell:
    """One execution while it runs.

    What the kernel sends is taken only under this cell's id, which nobody can guess before the kernel has it, so
    that forged messages change at most the outputs and the counter of the cell that forged them.
    """

    def __init__(self, limits: Limits) -> None:
        self.id = secrets.token_hex(8)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when reply and idle status are there."""
        self._limits = limits
        self._fold = OutputFold(limits)
        self._reply: Message | None = None
        self._idle = False
        self._reply_may_be_lost = False
        self._interrupted = ""
        self._draining = False
        self._n_seen = 0
        self._wire: Wire | None = None
        self._replied: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, wire: Wire, code: str, timeout: float | None, lost: str) -> CellResult:
        """Execute `code`; `lost` says why the kernel is a fresh one, else empty.

        A cancelled caller interrupts the cell; its messages are then still taken, so that `done` tells its end.
        """
        start = time.perf_counter()
        self._wire = wire
        status: Status = "ok"
        cause = lost
        killed = False
        wire.listen(self.take)
        try:
            wire.request(
                self.id,
                {
                    "code": code,
                    "silent": False,
                    "store_history": True,
                    "user_expressions": {},
                    "allow_stdin": False,
                    "stop_on_error": False,
                },
            )
            if not await first(self._replied, wire.dead, timeout=timeout):
                status, cause = "timeout", f"ran past {timeout:g} s, interrupted"
                if not await self._interrupted_in_time(wire):
                    cause = f"ran past {timeout:g} s, ignored the interrupt for {self._limits.grace_s:g} s, killed"
                    killed = True
                    wire.kill()
                    await wire.dead
            await self._drain(wire)
        except asyncio.CancelledError:
            if not self.done.done():
                self.interrupt()
            raise
        wire.listen(None)
        died = wire.dead.result() if self._reply is None and wire.dead.done() else ""
        if died and status == "ok":
            status, cause = "dead", died
        elif died and not killed:
            cause = f"{cause}; the kernel ended then: {died}"
        elif status == "ok" and self._reply is None:
            status, cause = "error", cause or "the kernel's reply was lost"
        elif status == "ok" and self._reply is not None and self._reply.content.get("status") != "ok":
            status, cause = "error", cause or self._why_not_ok(self._reply)
        return CellResult(
            outputs=self._fold.finish(),
            status=status,
            seconds=time.perf_counter() - start,
            execution_count=self._count(),
            dropped_bytes=self._fold.dropped_bytes,
            state_kept=not died and not lost,
            cause=cause,
        )

    async def _interrupted_in_time(self, wire: Wire) -> bool:
        """Interrupt until the grace is over: one that comes before the cell's first line is lost."""
        end = time.perf_counter() + self._limits.grace_s
        while (left := end - time.perf_counter()) > 0:
            self.interrupt()
            if await first(self._replied, wire.dead, timeout=min(left, AGAIN_S)):
                return True
        return False

    async def _drain(self, wire: Wire) -> None:
        end = time.perf_counter() + DRAIN_S
        self._draining = True
        while time.perf_counter() < end:
            seen = self._n_seen
            if await first(self.done, wire.dead, timeout=SILENCE_S) or self._n_seen == seen:
                return

    def interrupt(self, cause: str = "interrupted") -> None:
        """Interrupt it. ipykernel sends no reply where that falls into its own code around the cell."""
        self._interrupted = self._interrupted or cause
        self._lost_reply()
        if self._wire is not None:
            self._wire.interrupt()

    def take(self, message: Message) -> bool:
        """The wire's listener."""
        self._n_seen += 1
        if message.kind == "dropped":
            self._fold.drop(message.size)
            if message.content.get("reply"):
                self._lost_reply()
            return not self._draining
        if message.parent != self.id:
            return False
        if message.kind == "execute_reply":
            self._reply = self._reply or message
            settle(self._replied)
        elif message.kind == "status":
            self._idle = self._idle or message.content.get("execution_state") == "idle"
            if self._idle and self._reply_may_be_lost:
                self._lost_reply()
        elif message.kind == "input_request":
            # ipykernel refuses by itself, others wait for an answer.
            self._fold.feed("error", NO_INPUT, 0)
            self._refuse_input()
        else:
            self._fold.feed(message.kind, message.content, message.size)
        if self._reply is not None and self._idle:
            settle(self.done)
        return self._fold.full and not self._draining

    def _refuse_input(self) -> None:
        """Interrupt until it hears it: R misses an interrupt that comes between its question and its wait."""
        if self._wire is not None and not self._wire.dead.done() and not self._replied.done():
            self.interrupt("it asked for input")
            asyncio.get_running_loop().call_later(ASKED_S, self._refuse_input)

    def _why_not_ok(self, reply: Message) -> str:
        if reply.content.get("status") == "aborted":
            return "the kernel did not run it"
        return self._interrupted

    def _lost_reply(self) -> None:
        """From now on the idle status ends the cell too, since its reply may never come."""
        self._reply_may_be_lost = True
        if self._idle:
            asyncio.get_running_loop().call_later(REPLY_S, settle, self._replied)

    def _count(self) -> int | None:
        count = self._reply.content.get("execution_count") if self._reply is not None else None
        return count if type(count) is int and 0 <= count < MOST_CELLS else None
