"""Model `openai`: any endpoint that speaks the chat-completions protocol. For scoring; it gives no token ids.

What the cap on cost does not cover: tries that the endpoint billed without answering.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx

from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Completion, FinishReason, Prompt, SamplingParams
from nbagent.models.endpoint import Endpoint, RefusedError, UnreachableError

KEYS = ("NBAGENT_API_KEY", "OPENAI_API_KEY")
_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class CostCapError(ModelError):
    """The next call could cost more than is left: the run stops, and goes on with a higher cap."""


class OpenAIModel:
    """A remote chat model.

    Attributes:
        cost: what the calls so far cost, in the unit of the prices; 0 where no prices were given.
        calls: answered calls so far.
        stopped: why no further call is made; None while calls may succeed.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        api_key: str | None = None,
        context_length: int = 32_768,
        tokenizer: Any | None = None,
        native_tools: bool = True,
        timeout_s: float = 120.0,
        max_retries: int = 5,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
        concurrency: int = 8,
        price_in: float | None = None,
        price_out: float | None = None,
        max_cost: float | None = None,
        sends_seed: bool = True,
    ) -> None:
        """Nothing is sent before the first `sample`.

        Args:
            url: base address, with or without `/chat/completions`, e.g. `http://localhost:8000/v1`.
            model: the model's name at the endpoint; empty: the only one that its `/models` lists.
            api_key: None: the variable NBAGENT_API_KEY, then OPENAI_API_KEY; none at all sends no key.
            context_length: tokens of prompt and answer together, as the endpoint's model has.
            tokenizer: a Hugging Face tokenizer that counts for the context policy; None: an upper bound.
            native_tools: send the tool schemas, so that the endpoint calls tools itself.
            timeout_s: seconds one try may take in all.
            max_retries: tries after the first.
            backoff_s: seconds before the second try; doubles, with jitter.
            max_backoff_s: longest wait between two tries; also for Retry-After, beyond which the call fails.
            concurrency: calls under way at once.
            price_in: price of a million prompt tokens.
            price_out: price of a million completion tokens.
            max_cost: stop before a call that could bring the cost above this; needs both prices.
            sends_seed: send the sampling seed, which not every endpoint takes.

        Raises:
            UsageError: the URL is no http(s) address, or a cost cap has no prices.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"openai:{url}: not a URL ({error}); write openai:https://HOST/v1#MODEL") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"openai:{url}: not an http(s) address; write openai:https://HOST/v1#MODEL")
        if max_cost is not None and (price_in is None or price_out is None):
            raise UsageError("a cap on cost needs both prices: what a million prompt and completion tokens cost")
        self._model = model
        key = api_key or next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        self._endpoint = Endpoint(
            url.rstrip("/").removesuffix("/chat/completions"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            refusal_hint=f"check the key in {' or '.join(KEYS)}" if key else f"set {KEYS[0]}",
            timeout_s=timeout_s,
            max_retries=max_retries,
            backoff_s=backoff_s,
            max_backoff_s=max_backoff_s,
        )
        self._context_length, self._tokenizer, self._native_tools = context_length, tokenizer, native_tools
        self._prices = (price_in or 0.0, price_out or 0.0)
        self._priced = price_in is not None and price_out is not None
        self._max_cost, self._sends_seed = max_cost, sends_seed
        self._slots = asyncio.Semaphore(concurrency)
        self._reserved = 0.0
        self.cost = 0.0
        self.calls = 0
        self.stopped: ModelError | None = None

    @property
    def retries(self) -> int:
        """Tries that failed and were made again."""
        return self._endpoint.retries

    @property
    def name(self) -> str:
        """The model's name at the endpoint; the address where none was given."""
        return self._model or self._endpoint.url

    @property
    def tokenizer(self) -> None:
        """None: the ids are the endpoint's own business."""
        return None

    @property
    def counter(self) -> Any | None:
        """The tokenizer that the user named, which counts for the context policy."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together, as the user said."""
        return self._context_length

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """One answer.

        Raises:
            CostCapError: the call could cost more than is left under the cap.
            RefusedError: the endpoint refuses this key or model; as with the cap, the run stops.
            UnreachableError: nothing ever answered there; the run stops.
            ModelError: the endpoint failed for good after the bounded retries.
        """
        async with self._slots:
            if self.stopped is not None:
                raise self.stopped
            try:
                return await self._sample(prompt, params)
            except (CostCapError, RefusedError, UnreachableError) as error:
                self.stopped = error
                raise

    async def _sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        if not self._model:
            self._model = await self._only_model()
        body = self._body(prompt, params)
        reserved = self._reserve(body, params)
        try:
            answer = await self._endpoint.ask("POST", "/chat/completions", body)
        finally:
            self._reserved -= reserved
        completion = _completion(answer)
        usage = completion.usage
        if self._priced:
            # Where the endpoint counts nothing, the most it can have cost keeps the cap honest.
            usage["cost"] = self._cost_of(usage) if "completion_tokens" in usage else reserved
            self.cost += usage["cost"]
        self.calls += 1
        return completion

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    def _body(self, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_flat(message) for message in prompt.messages],
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
        }
        if self._sends_seed:
            body["seed"] = params.seed % 2**31
        if prompt.tools and self._native_tools:
            body["tools"] = list(prompt.tools)
        return body

    def _reserve(self, body: Mapping[str, Any], params: SamplingParams) -> float:
        """Set aside the most this call can cost, so that calls under way together cannot break the cap."""
        if self._max_cost is None:
            return 0.0
        # A token is at least a byte in every byte-level tokenizer, so the request's bytes bound its tokens.
        prompt_bound = min(len(json.dumps(body).encode()), self._context_length)
        most = (prompt_bound * self._prices[0] + params.max_new_tokens * self._prices[1]) / 1e6
        if self.cost + self._reserved + most > self._max_cost:
            raise CostCapError(
                f"{self.name}: the cap on cost is reached: {self.cost:.4g} spent in {self.calls} calls, the "
                f"next could cost {most:.4g}, the cap is {self._max_cost:g}; a higher cap goes on from here"
            )
        self._reserved += most
        return most

    def _cost_of(self, usage: Mapping[str, float]) -> float:
        counts = usage.get("prompt_tokens", 0.0), usage.get("completion_tokens", 0.0)
        return sum(count * price for count, price in zip(counts, self._prices, strict=True)) / 1e6

    async def _only_model(self) -> str:
        listed = (await self._endpoint.ask("GET", "/models", None)).get("data")
        names = [str(entry.get("id")) for entry in listed if isinstance(entry, dict)] if listed else []
        if len(names) != 1:
            some = f"{len(names)} models ({', '.join(names[:5])})" if names else "no models"
            url = self._endpoint.url
            raise RefusedError(f"{url}: lists {some}; name one: openai:{url}#MODEL")
        return names[0]


def _flat(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with neighbouring text parts joined, and as a plain string where it has no images.

    Not every endpoint takes a list of parts.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "text" and parts and parts[-1]["type"] == "text":
            parts[-1] = {"type": "text", "text": parts[-1]["text"] + part["text"]}
        else:
            parts.append(part)
    plain = not parts or (len(parts) == 1 and parts[0]["type"] == "text")
    return {**message, "content": "".join(part["text"] for part in parts) if plain else parts}


def _completion(answer: Mapping[str, Any]) -> Completion:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise ModelError(f"the endpoint's answer holds no message; it has: {', '.join(sorted(answer)) or 'nothing'}")
    message = choice["message"]
    calls: Sequence[Any] = message.get("tool_calls") or ()
    finish = _FINISH.get(str(choice.get("finish_reason")), "tool_calls" if calls else "stop")
    counted = answer.get("usage")
    usage = dict[str, float]()
    if isinstance(counted, dict):
        for field in ("prompt_tokens", "completion_tokens"):
            if isinstance(counted.get(field), int | float):
                usage[field] = float(counted[field])
    return Completion(
        text=_text(message.get("content")),
        finish=finish,
        tool_calls=tuple(cast(dict[str, Any], call) for call in calls if isinstance(call, dict)),
        usage=usage,
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
