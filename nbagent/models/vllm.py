"""Model `vllm`: rollouts through a vLLM server, token ids in and token ids out, with the weights of a trainer.

A completion is the server's own ids, terminator included, with the log-probs of the distribution they were drawn from;
sampling knows a temperature and nothing else. New weights are written to a folder and loaded by the server, or sent to
it past any file (weight_transfer.py): whole weights between calls, so that a completion comes from one version, a LoRA
adapter under a name of its own beside calls that go on with the one before.

A server of this program's own that dies is started with the newest weights. One at a URL that its owner starts again
has those that he named: it is told a mark together with new weights, which vLLM forgets with them, and is asked for it
after each call. An answer without the mark is thrown away, and the weights are given again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent.models.endpoint import Endpoint, MissingError, TransientError, UnreachableError
from nbagent.models.vllm_server import POLL_S, SERVED, VLLMServer, check_log_probs
from nbagent.models.weight_transfer import TRIES, Delivery, Told, WeightSender, in_thread

CALL_S = 1800.0
"""Seconds a call may take: with many rollouts at once it waits its turn at the server."""
TRIES_AWAY = 12
"""Of a call to a server at a URL, some minutes in all: its owner may start it again."""
UNMARKED = "default"
"""What vLLM says of the weights that it started with."""
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
        tries = TRIES if server is not None else TRIES_AWAY
        self._endpoint = Endpoint(base, uds=uds, timeout_s=CALL_S, max_retries=tries - 1)
        self._told = Told(server, self._url)
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
        self._turn, self._swaps, self._mending = threading.Condition(), threading.Lock(), asyncio.Lock()
        self._mark, self._marks = "", itertools.count()
        self._given: Path | None = None
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
            mark = self._new_mark()
            self._reload(folder)
            self._begin(version)
            self._mark, self._given = mark, folder
        self._forget(keep={folder})

    def _reload(self, folder: Path) -> None:
        self._told.tell("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})

    def _send(self, delivery: Delivery, version: int) -> None:
        with self._alone():
            delivery.take()
            self.version = version
            if self._server is None and self._mark and self._their_mark() != self._mark:
                delivery.close()  # the group ended with the server that was in it
            mark = self._new_mark()
            start = self._server.starts if self._server is not None else 0
            try:
                with self._told.client() as client:
                    start = self._server.starts if self._server is not None else 0
                    delivery.bring(client)
            except (ModelError, httpx.TransportError) as error:
                if self._server is None:
                    raise
                # A server that got half of them is of no version; a new one is given all before it is asked.
                _log.warning("%s; the server is started again", error)
                self._server.start_again(start)
            self._begin(version)
            self._mark = mark

    def _new_mark(self) -> str:
        """Tell a server at a URL a mark for weights that are about to come. Raises ModelError.

        Before them: one that is started again in between has no mark then, with whatever weights.
        """
        if self._server is not None:
            return ""
        if not self._mark:
            self._told.check_whole()
        mark = f"{self._tag}-{next(self._marks)}"
        self._told.tell("/update_weight_version", {"new_version": mark})
        return mark

    def _their_mark(self) -> str:
        return str(self._told.tell("/weight_info", None).get("weight_version"))

    def _give_again(self) -> None:
        """Have a server at a URL that lost the weights take them again.

        Raises:
            ModelError: it did not, or was given another program's.
        """
        with self._alone():
            if (theirs := self._their_mark()) == self._mark:
                return
            if theirs != UNMARKED and not theirs.startswith(self._tag):
                raise ModelError(f"{self._url}: holds weights of another program; a run needs a server of its own")
            _log.warning("the server at %s was started again; it is given the newest weights", self._url)
            mark = self._new_mark()
            if self._delivery is not None:
                with self._told.client() as client:
                    self._delivery.bring_again(client)
            elif self._given is not None:
                self._reload(self._given)
            self._begin(self.version)
            self._mark = mark

    def _begin(self, version: int) -> None:
        """Answer with these weights from now on."""
        if not self._told.tell("/reset_prefix_cache", {}).get("success"):
            raise ModelError("vLLM kept its prefix cache, which holds states of the old weights; who else asks it?")
        self.version = version

    def _swap_adapter(self, folder: Path, version: int) -> None:
        # The cache of prefixes tells adapters apart by name, so nothing is reset, and calls under way go on.
        name = f"{self._tag}-{folder.name}"
        # A server that dies now starts with the one before too, by whose name calls go on.
        self._on_start({**self._adapters, name: folder})
        self._load(name, folder)
        self._adapters[name] = folder
        with self._turn:
            self._served, self.version = name, version
            idle = [old for old in self._adapters if old != name and not self._under_way[old]]
        for old in idle:
            del self._adapters[old]
        self._on_start(self._adapters)
        for old in idle:
            self._told.tell("/v1/unload_lora_adapter", {"lora_name": old}, done="cannot be found")
        self._forget(keep=set(self._adapters.values()))

    def _on_start(self, adapters: dict[str, Path]) -> None:
        if self._server is not None:
            self._server.adapters = dict(adapters)

    def _load(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        self._told.tell("/v1/load_lora_adapter", body, done="already been loaded")

    def _forget(self, keep: set[Path]) -> None:
        assert self._place is not None
        for old in self._place.absolute().glob("weights-*"):
            if old not in keep:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No call is under way, none begins, and nobody else swaps weights."""
        with self._swaps:
            try:
                with self._turn:
                    self._swapping = True
                    self._turn.wait_for(lambda: not self._under_way.total())
                yield
            finally:
                self._swapping = False

    def _look(self) -> tuple[str, int]:
        """The name of the model at the server, and its positions."""
        try:
            with self._told.client() as client:
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
                kept = not self._mark or await self._is_marked()
            except MissingError as error:
                await self._bring_back(served, error)
                raise TransientError("the server was started again") from error
            finally:
                self._leave(served)
            if not kept:
                async with self._mending:
                    await asyncio.wrap_future(in_thread(self._give_again))
                raise TransientError("the server was started again")
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

    async def _is_marked(self) -> bool:
        """A server at a URL has the weights that it was given."""
        return (await self._endpoint.once("GET", "/weight_info", None)).get("weight_version") == self._mark

    async def _bring_back(self, served: str, error: MissingError) -> None:
        """Have a server that does not know an adapter load it again. Raises `error` where it is none of ours."""
        if (folder := self._adapters.get(served)) is None:
            raise error
        async with self._mending:
            await asyncio.wrap_future(in_thread(lambda: self._load(served, folder)))

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
        self._told.close()
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
