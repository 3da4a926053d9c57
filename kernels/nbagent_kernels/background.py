"""One asyncio loop in a thread of its own, where the kernels live that Jupyter's managers started.

A manager may block, may run on a loop of its own, and may use another loop for each call: none of these can hold a
session. The thread and its fork servers stay for the life of the process, so that the next kernel finds them warm.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from nbagent_kernels.fork import end_servers

T = TypeVar("T")
END_S = 20.0
"""Seconds that kernels have to end when the process does."""
_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None
_open: dict[int, Callable[[], Awaitable[None]]] = {}


async def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it here. A cancelled caller cancels it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


def at_end(owner: object, close: Callable[[], Awaitable[None]] | None) -> None:
    """Call `close` on the loop when the process ends, or no longer where it is None."""
    _open.pop(id(owner), None)
    if close is not None:
        _open[id(owner)] = close
        # Last registered, first called: before the fork servers' own, which would pull the kernels from under us.
        atexit.unregister(_end)
        atexit.register(_end)


def _loop() -> asyncio.AbstractEventLoop:
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop,), name="nbagent-kernels", daemon=True)
            _running = os.getpid(), loop, thread
            _open.clear()
            thread.start()
        return _running[1]


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _end() -> None:
    global _running
    if _running is None or _running[0] != os.getpid():
        return
    _, loop, thread = _running
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(_end_kernels(), loop).result(END_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(END_S)
    _running = None


async def _end_kernels() -> None:
    await asyncio.gather(*(close() for close in list(_open.values())), return_exceptions=True)
    _open.clear()
    end_servers()
