"""The model's Protocol: a prompt in, a completion out, with exact token ids and log-probs where they are ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one completion."""

    max_new_tokens: int = 256
    """Most tokens of the completion, terminator included."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    seed: int = 0
    """Seed of this completion's noise; made from (run, task, rollout, step)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked."""

    messages: Sequence[dict[str, Any]]
    """OpenAI-style messages; content is a string or a list of parts, of text and, for endpoints that see, of images."""
    tools: Sequence[dict[str, Any]] = ()
    """OpenAI-style tool schemas, for endpoints that call tools natively."""
    ids: Sequence[int] | None = None
    """Exact prompt ids: the concatenation of separately encoded parts. None for a remote chat endpoint."""
    counted: int = 0
    """Tokens of the prompt: exact with ids, else as a named tokenizer counts or a bound; 0 where nobody counted."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote."""

    text: str
    """The text without the terminator."""
    finish: FinishReason
    """stop (terminator or end of turn), length (cut at max_new_tokens), …"""
    ids: tuple[int, ...] | None = None
    """Exact completion ids, the terminator included where it was sampled. None for a remote chat endpoint."""
    logprobs: tuple[float, ...] | None = None
    """Log-prob of each id under the distribution sampled from (after temperature). Training refuses None."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """OpenAI-style tool calls, from endpoints that make them."""
    usage: dict[str, float] = field(default_factory=dict)
    """prompt_tokens, completion_tokens, and cost where the endpoint's prices are known."""
    version: int | None = None
    """Version of the weights that sampled it, where they may change during a rollout."""


@runtime_checkable
class Model(Protocol):
    """Something that completes prompts."""

    @property
    def name(self) -> str:
        """For tables and run folders."""
        ...

    @property
    def tokenizer(self) -> Any | None:
        """The Hugging Face tokenizer where the ids are ours, else None."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        ...

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """One completion. Concurrent calls are merged into batches where that helps.

        Raises:
            ModelError: the model could not be asked, after bounded retries.
        """
        ...

    async def close(self) -> None:
        """Release what it holds."""
        ...
