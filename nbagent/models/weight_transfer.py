"""How a vLLM server is told of new weights, and weights that come to it past any file (vLLM's weight transfer).

For those, the server's workers and the trainer form a group; for each new version the server is told names and shapes,
its workers wait, and the trainer sends one tensor after the other. Both ends have to be in the same call at the same
time, so the server is asked from a thread while the trainer sends, and what fails first ends the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import httpx

from nbagent.errors import ModelError
from nbagent.models.vllm_server import VLLMServer

TRIES = 5
"""Of a call, and of a swap of weights, each after the server answers again."""
AWAY_S = 300.0
"""How long a swap waits for a server at a URL: its owner may start it again."""
_NEEDED = "a server that takes new weights is started with VLLM_SERVER_DEV_MODE=1"
_NEEDED_ADAPTERS = "one that takes adapters is started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"


class Told:
    """A server that is told of weights, from threads that may wait."""

    def __init__(self, server: VLLMServer | None, url: str) -> None:
        """Give a supervised server, or else the address of a running one."""
        self._server, self._url = server, url
        self._closed = threading.Event()

    def tell(self, path: str, body: dict[str, Any] | None, done: str = "") -> dict[str, Any]:
        """Post to the server; again where it died meanwhile, since it starts with the newest weights.

        Args:
            path: of the endpoint.
            body: what is sent as JSON; None: nothing, and the answer is got.
            done: words of a refusal that says that it is done already.

        Raises:
            ModelError: it refused, or did not answer.
        """
        tries, away = 0, time.monotonic() + (AWAY_S if self._server is None else 0.0)
        while True:
            try:
                with self.client() as client:
                    answer = client.request("GET" if body is None else "POST", path, json=body)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
                tries += time.monotonic() > away
            else:
                if answer.is_success:
                    json = answer.headers.get("content-type", "").startswith("application/json")
                    found = answer.json() if json else {}
                    return found if isinstance(found, dict) else {}
                if done and done in answer.text:
                    return {}
                why = f"HTTP {answer.status_code}: {answer.text[:300]}"
                if answer.status_code == 404:
                    why += f"; {_NEEDED_ADAPTERS if 'lora' in path else _NEEDED}"
                tries += 1 if answer.status_code >= 500 else TRIES
            if tries >= TRIES or self._closed.wait(0.5 * 2**tries):
                raise ModelError(f"vLLM{path}: {why}")

    def check_whole(self) -> None:
        """A server at a URL takes whole weights. Raises ModelError."""
        config = self.tell("/server_info?config_format=json", None).get("vllm_config") or {}
        if config.get("lora_config"):
            # It would leave layers that may have an adapter as they were, and not say so.
            raise ModelError(
                f"{self._url}: takes adapters, so vLLM 0.31 does not take whole weights there, which scores in a run "
                "with [lora] need; leave held-out tasks out, or have the run start its own server"
            )

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client for one thread, once a supervised server answers.

        Raises:
            ModelError: that one was given up or closed.
        """
        if self._server is not None:
            self._server.wait()
            with self._server.client() as client:
                yield client
        else:
            with httpx.Client(base_url=self._url, timeout=600.0) as client:
                yield client

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._closed.set()


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

    def take(self) -> None:
        """Take the model's weights: a server that is started from now on is given these."""
        with self._lock:
            self._sender.take()
            self._taken = True

    def bring(self, client: httpx.Client) -> None:
        """Have the server take what was taken just now.

        Raises:
            ModelError: the server refused, or did not answer, or the sender could not send.
        """
        with self._lock:
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
        except BaseException as error:
            self.close()
            if isinstance(error, ModelError) or not isinstance(error, Exception):
                raise
            raise ModelError(f"new weights did not reach vLLM: {type(error).__name__}: {error}") from error

    def _both(self, client: httpx.Client, path: str, body: dict[str, Any], act: Callable[[], None]) -> None:
        """Post, and act meanwhile."""
        asked, over = in_thread(lambda: _answer(client.post(path, json=body))), threading.Event()

        def answered(done: Future[Any]) -> None:
            # The end of a request that was given up is none of a later group's.
            if done.exception() and not over.is_set():
                self._sender.close()

        asked.add_done_callback(answered)
        try:
            act()
            asked.result()
        except Exception:
            # The server's own words say more than that the line broke.
            if asked.done() and (error := asked.exception()):
                raise error from None
            raise
        finally:
            over.set()


def _answer(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        hint = ""
        if answer.status_code == 404:
            hint = f"; {_NEEDED}"
        raise ModelError(f"vLLM{answer.request.url.path}: HTTP {answer.status_code}: {answer.text[:300]}{hint}")
    return answer


def in_thread(act: Callable[[], Any]) -> Future[Any]:
    """What `act` gives, in a thread that nobody waits for at exit: a server left in the middle may never answer."""
    future: Future[Any] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # who waits may be cancelled, what runs may not
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="nbagent-weights", daemon=True).start()
    return future
