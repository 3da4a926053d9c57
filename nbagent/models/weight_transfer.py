"""New weights for a vLLM server past any file, by the endpoints that vLLM keeps for it (weight transfer).

The server's workers and the trainer form a group; for each new version the server is told names and shapes, its workers
wait, and the trainer sends one tensor after the other. Both ends have to be in the same call at the same time, so the
server is asked from a thread while the trainer sends, and what fails first ends the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import httpx

from nbagent.errors import ModelError


class WeightSender(Protocol):
    """The trainer's end of a group, and the weights that it sends."""

    backend: str
    """vLLM's name of what its workers receive with."""

    def take(self) -> None:
        """Keep the model's weights as they are now; `send` sends these."""
        ...

    def address(self, n: int) -> dict[str, Any]:
        """Where a group of n members meets, as vLLM's engine of that name wants it."""
        ...

    def join(self) -> None:
        """Meet the others there. Blocks until all have come."""
        ...

    def contents(self) -> dict[str, Any]:
        """Names, dtypes and shapes of what is sent, in that order."""
        ...

    def send(self, again: bool) -> None:
        """Send what was taken; `again`: some time ago, and the model may have moved on. Blocks until it has left."""
        ...

    def close(self) -> None:
        """Leave the group; `join` and `send` under way raise. Idempotent."""
        ...


class Delivery:
    """Brings a sender's weights to a server."""

    def __init__(self, sender: WeightSender) -> None:
        self._sender = sender
        self._taken = self._joined = False
        self._lock = threading.Lock()

    def bring(self, client: httpx.Client) -> None:
        """Take the model's weights, and have the server take them.

        Raises:
            ModelError: the server refused, or did not answer, or the sender could not send.
        """
        with self._lock:
            self._sender.take()
            self._taken = True
            self._bring(client, again=False)

    def bring_again(self, client: httpx.Client) -> None:
        """Have a server that was just started take what was taken last; nothing before the first time.

        Raises:
            ModelError: as `bring`.
        """
        with self._lock:
            self._joined = False
            if self._taken:
                self._bring(client, again=True)

    def close(self) -> None:
        """Leave the group."""
        self._joined = False
        self._sender.close()

    def _bring(self, client: httpx.Client, again: bool) -> None:
        sender = self._sender
        try:
            if not self._joined:
                n = 1 + int(_answer(client.get("/get_world_size")).json()["world_size"])
                self._both(client, "/init_weight_transfer_engine", {"init_info": sender.address(n)}, sender.join)
                self._joined = True
            _answer(client.post("/start_weight_update"))
            contents = {"update_info": sender.contents()}
            self._both(client, "/update_weights", contents, lambda: sender.send(again))
            _answer(client.post("/finish_weight_update"))
        except Exception as error:
            self.close()
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"new weights did not reach vLLM: {type(error).__name__}: {error}") from error

    def _both(self, client: httpx.Client, path: str, body: dict[str, Any], act: Callable[[], None]) -> None:
        """Post, and act meanwhile."""
        asked = _in_thread(lambda: _answer(client.post(path, json=body)))
        asked.add_done_callback(lambda done: self._sender.close() if done.exception() else None)
        try:
            act()
        except Exception:
            # The server's own words say more than that the line broke.
            if asked.done() and (error := asked.exception()):
                raise error from None
            raise
        asked.result()


def _answer(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        hint = ""
        if answer.status_code == 404:
            hint = "; a server that takes new weights is started with VLLM_SERVER_DEV_MODE=1"
        raise ModelError(f"vLLM{answer.request.url.path}: HTTP {answer.status_code}: {answer.text[:300]}{hint}")
    return answer


def _in_thread(act: Callable[[], Any]) -> Future[Any]:
    """A thread that nobody waits for at exit: a server that was left in the middle may never answer."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="nbagent-weights", daemon=True).start()
    return future
