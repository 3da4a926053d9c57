"""Model `scripted`: a fake that writes what it is told to, for tests and examples. It knows and learns nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbagent.errors import ModelError
from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent_context import text_of

Script = Sequence[str] | Callable[[str], str]
"""What to write: texts one after the other, or a function from the prompt's text to the answer."""


class ByteTokenizer:
    """A token per UTF-8 byte, and one terminator. Has what `PromptBuilder` asks of a Hugging Face tokenizer."""

    eos_token_id = 256

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """`{"input_ids": bytes of the text}`."""
        return {"input_ids": list(text.encode("utf-8", "surrogatepass"))}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, the terminator left out."""
        return bytes(i for i in ids if i != self.eos_token_id).decode("utf-8", "replace")

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], tokenize: bool = False, add_generation_prompt: bool = True
    ) -> str:
        """`<role>content</role>` for each message."""
        text = "".join(f"<{m['role']}>{m['content']}</{m['role']}>\n" for m in messages)
        return text + ("<assistant>" if add_generation_prompt else "")


class ScriptedModel:
    """Writes a script.

    Args:
        script: texts, written one per call whoever asks, or a function of the prompt's text.
        tokenizer: None plays a remote chat endpoint, without ids; a ByteTokenizer plays a model of ours, whose ids
            are bytes and whose log-probs are made up.
        context_length: tokens of prompt and completion together.

    Example:
        >>> import asyncio
        >>> model = ScriptedModel(["hello"])
        >>> asyncio.run(model.sample(Prompt([{"role": "user", "content": "hi"}]), SamplingParams())).text
        'hello'
    """

    def __init__(self, script: Script, tokenizer: ByteTokenizer | None = None, context_length: int = 1 << 20) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self._context_length = context_length
        self.calls: list[tuple[Prompt, SamplingParams]] = []

    @property
    def name(self) -> str:
        """Always `scripted`."""
        return "scripted"

    @property
    def tokenizer(self) -> ByteTokenizer | None:
        """The byte tokenizer, where it plays a model of ours."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        return self._context_length

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """The next text of the script. Raises ModelError where a sequence is used up."""
        number = len(self.calls)
        self.calls.append((prompt, params))
        if callable(self._script):
            text = self._script("\n".join(text_of(message) for message in prompt.messages))
        elif number < len(self._script):
            text = self._script[number]
        else:
            raise ModelError(f"the script has {len(self._script)} texts and was asked for one more")
        if self._tokenizer is None:
            return Completion(text, "stop")
        ids = (*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id)[: params.max_new_tokens]
        whole = ids[-1] == self._tokenizer.eos_token_id
        logprobs = tuple(-1.0 / (2 + i % 7) for i in ids)
        return Completion(self._tokenizer.decode(ids), "stop" if whole else "length", ids, logprobs)

    async def close(self) -> None:
        """Nothing to release."""
