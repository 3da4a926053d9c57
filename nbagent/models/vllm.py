"""Model `vllm`: rollouts through a vLLM server, token ids in and token ids out, with the weights of a trainer.

A completion is the server's own ids, terminator included, with the log-probs of the distribution they were drawn from;
sampling knows a temperature and nothing else. New weights are written to a folder and loaded by the server, or sent to
it past any file (weight_transfer.py): whole weights between calls, so that a completion comes from one version, a LoRA
adapter under a name of its own beside calls that go on with the one before.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent.models.endpoint import Endpoint, TransientError, UnreachableError
from nbagent.models.vllm_server import POLL_S, SERVED, VLLMServer, check_log_probs
from nbagent.models.weight_transfer import Delivery, WeightSender

CALL_S = 1800.0
"""Seconds a call may take: with many rollouts at once it waits its turn at the server."""
TRIES = 5
"""Of a call, and of a swap of weights, each after the server answers again."""
_log = logging.getLogger(__name__)


class VLLMModel:
    """A model at a vLLM server.

    Attributes:
        version: number of the weights that new calls are answered with.
        save: writes the newest weights into a folder, as a checkpoint or as a LoRA adapter with its
            adapter_config.json; None: they stay as they are. Not called where a sender sends them.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        server: VLLMServer | None = None,
        url: str = "",
        place: Path | None = None,
        folder: Path | None = None,
        sender: WeightSender | None = None,
    ) -> None:
        """A supervised server is started if it is not yet, and waited for.

        Args:
            tokenizer: the served model's.
            name: for tables and run folders.
            server: the supervised server.
            url: base address of a running one, with or without `/v1`, instead.
            place: folder for new weights, at the same path for the server; needed where `save` is set.
            folder: the served model's, for its terminators; None: the supervised server's.
            sender: sends new weights; the server was started for its backend. None: they go by way of `place`.

        Raises:
            ModelError: the server does not answer, or returns log-probs of another distribution.
            UsageError: the server at the URL serves another number of models than one.
        """
        if (server is None) == (not url):
            raise UsageError("give either a server or the URL of one")
        self._tokenizer, self._name, self._server, self._place = tokenizer, name, server, place
        self._url = url.rstrip("/").removesuffix("/v1")
        uds = str(server.uds) if server is not None else None
        base = self._url or "http://vllm"
        self._endpoint = Endpoint(base, uds=uds, timeout_s=CALL_S, max_retries=TRIES - 1)
        self._delivery = Delivery(sender) if sender is not None else None
        if server is not None:
            server.prepare = self._delivery.bring_again if self._delivery is not None else None
            server.start()
            server.wait()
        self._served, self._context_length = self._look()
        self._folders = itertools.count()
        # A server that outlives this run may hold adapters of another.
        self._tag = f"{SERVED}-{secrets.token_hex(4)}"
        self._adapters: dict[str, Path] = {}
        self._stop_ids = _stop_ids(tokenizer, folder or (server.model if server is not None else None))
        self._under_way, self._swapping = Counter[str](), False
        self._turn = threading.Condition()
        self.save: Callable[[Path], None] | None = None
        self.version = 0

    @property
    def name(self) -> str:
        """The folder it came from, or the address."""
        return self._name

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Positions that the server keeps for one sequence."""
        return self._context_length

    def hold(self, name: str, save: Callable[[Path], None]) -> None:
        """Answer with another model's weights from now on. Raises ModelError."""
        self._name, self.save = name, save
        self.refresh(0)

    def refresh(self, version: int) -> None:
        """Take the weights that `save` writes now. Blocks; called from another thread than the event loop's.

        Raises:
            ModelError: the server did not take them.
        """
        if self.save is None:
            self.version = version
            return
        if self._delivery is not None:
            self._send(self._delivery, version)
            return
        assert self._place is not None, "a place for weights is needed to take them"
        # A number of its own: a server that dies now starts from the folder before.
        folder = self._place.absolute() / f"weights-{next(self._folders):06d}"
        shutil.rmtree(folder, ignore_errors=True)
        self.save(folder)
        if (folder / "adapter_config.json").is_file():
            self._swap_adapter(folder, version)
        else:
            self._swap_weights(folder, version)

    def _swap_weights(self, folder: Path, version: int) -> None:
        if self._server is not None and self._server.lora_rank:
            raise ModelError(f"{folder}: no adapter, and vLLM 0.31 leaves layers that may have one as they were")
        with self._alone():
            if self._server is not None:
                self._server.hold(folder)
            self._tell("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self._begin(version)
        self._forget(keep={folder})

    def _send(self, delivery: Delivery, version: int) -> None:
        with self._alone():
            start = self._server.starts if self._server is not None else 0
            try:
                with self._client() as client:
                    delivery.bring(client)
            except ModelError as error:
                if self._server is None:
                    raise
                # A server that got half of them is of no version; a new one is given all before it is asked.
                _log.warning("%s; the server is started again", error)
                self._server.start_again(start)
            self._begin(version)

    def _begin(self, version: int) -> None:
        """Answer with these weights from now on."""
        if not self._tell("/reset_prefix_cache", {}).get("success"):
            raise ModelError("vLLM kept its prefix cache, which holds states of the old weights; who else asks it?")
        self.version = version

    def _swap_adapter(self, folder: Path, version: int) -> None:
        # The cache of prefixes tells adapters apart by name, so nothing is reset, and calls under way go on.
        name = f"{self._tag}-{folder.name}"
        if self._server is not None:
            self._server.adapter = (name, folder)
        self._tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, done="already been loaded")
        self._adapters[name] = folder
        with self._turn:
            self._served, self.version = name, version
            idle = [old for old in self._adapters if old != name and not self._under_way[old]]
        for old in idle:
            self._tell("/v1/unload_lora_adapter", {"lora_name": old}, done="cannot be found")
            del self._adapters[old]
        self._forget(keep=set(self._adapters.values()))

    def _forget(self, keep: set[Path]) -> None:
        assert self._place is not None
        for old in self._place.absolute().glob("weights-*"):
            if old not in keep:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No call is under way and none begins."""
        with self._turn:
            self._swapping = True
            self._turn.wait_for(lambda: not self._under_way.total())
        try:
            yield
        finally:
            self._swapping = False

    def _tell(self, path: str, body: dict[str, Any], done: str = "") -> dict[str, Any]:
        """Post to the server; again where it died meanwhile, since it starts with the newest weights.

        Args:
            path: of the endpoint.
            body: what is sent as JSON.
            done: words of a refusal that says that it is done already.
        """
        for tries in range(TRIES):
            try:
                with self._client() as client:
                    answer = client.post(path, json=body)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
                time.sleep(0.5 * 2**tries)
                continue
            if answer.is_success:
                found = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
                return found if isinstance(found, dict) else {}
            if done and done in answer.text:
                return {}
            why = f"HTTP {answer.status_code}: {answer.text[:300]}"
            if answer.status_code == 404:
                why += "; a server that takes new weights is started with VLLM_SERVER_DEV_MODE=1"
            if answer.status_code < 500:
                break
            time.sleep(0.5 * 2**tries)
        raise ModelError(f"vLLM{path}: {why}")

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        if self._server is not None:
            self._server.wait()
            with self._server.client() as client:
                yield client
        else:
            with httpx.Client(base_url=self._url, timeout=600.0) as client:
                yield client

    def _look(self) -> tuple[str, int]:
        """The name of the model at the server, and its positions."""
        try:
            with self._client() as client:
                models = client.get("/v1/models").json()["data"]
                bases = [model for model in models if not model.get("parent")]
                if self._server is None and len(bases) == 1:
                    check_log_probs(client, str(bases[0]["id"]))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UnreachableError(f"{self._url}: no vLLM server answers there ({type(error).__name__})") from error
        if len(bases) != 1:
            raise UsageError(f"{self._url}: serves {len(bases)} models; give a server of one")
        return str(bases[0]["id"]), int(bases[0]["max_model_len"])

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """One completion.

        Raises:
            ModelError: the prompt has no ids or does not fit, or the server failed for good.
        """
        if prompt.ids is None:
            raise ModelError("vLLM is asked by token ids; make the prompt with the model's tokenizer")
        if len(prompt.ids) + params.max_new_tokens > self.context_length:
            raise ModelError(
                f"a prompt of {len(prompt.ids)} tokens and an answer of {params.max_new_tokens} do not fit into "
                f"{self.context_length} positions"
            )
        body = {
            "prompt": list(prompt.ids),
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "seed": params.seed,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": sorted(self._stop_ids),
            # A server that somebody else started may have other defaults.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }

        async def once() -> tuple[dict[str, Any], int]:
            """One try, and the version of the weights that answered."""
            if self._server is not None:
                await self._server.answers()
            served, version = await self._enter()
            try:
                answer = await self._endpoint.once("POST", "/v1/completions", {**body, "model": served})
            finally:
                self._leave(served)
            return _choice(answer), version

        choice, version = await self._endpoint.patiently(once, "/v1/completions")
        ids = tuple(choice["token_ids"])
        stopped = bool(ids) and ids[-1] in self._stop_ids
        return Completion(
            text=self._tokenizer.decode(list(ids[:-1] if stopped else ids)),
            finish="stop" if stopped else "length",
            ids=ids,
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            usage={"prompt_tokens": len(prompt.ids), "completion_tokens": len(ids)},
            version=version,
        )

    async def _enter(self) -> tuple[str, int]:
        """Begin a call, once no swap of weights is on: the served name and version it is answered with."""
        while True:
            with self._turn:
                if not self._swapping:
                    self._under_way[self._served] += 1
                    return self._served, self.version
            await asyncio.sleep(POLL_S)

    def _leave(self, served: str) -> None:
        with self._turn:
            self._under_way[served] -= 1
            self._turn.notify_all()

    async def close(self) -> None:
        """Close the connections, and end the server where it is supervised."""
        await self._endpoint.close()
        if self._delivery is not None:
            self._delivery.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.close)


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The completion of an answer, with an id and a log-prob per token. Raises TransientError where it is cut off."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise TransientError(f"the server ended the call: {choice.get('finish_reason')}")
    if not ids or logprobs is None or len(ids) != len(logprobs):
        raise ModelError("the server returned no token ids with their log-probs; this needs vLLM 0.31 or newer")
    return dict(choice)


def _stop_ids(tokenizer: Any, folder: Path | None) -> frozenset[int]:
    """Terminators: the tokenizer's, and those of the folder's generation_config.json."""
    found = [tokenizer.eos_token_id]
    file = folder / "generation_config.json" if folder is not None else None
    if file is not None and file.is_file():
        named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        found += named if isinstance(named, list) else [named]
    return frozenset(int(i) for i in found if i is not None)
