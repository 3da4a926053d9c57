"""Prompts as token ids: the chat template's fixed pieces and the policy's parts, each encoded on its own and joined.

A joined text is never encoded again, so a part has the same ids wherever it stands, and ids are cached by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from nbagent.errors import ModelFolderError
from nbagent.models.base import Prompt
from nbagent_context import Budget, SummaryRequest, Window

BYTES_PER_TOKEN_BOUND = 1
"""Without a tokenizer a token is counted per byte: never too few, since every byte-level token covers one or more."""


class PromptBuilder:
    """Turns a policy's window into a Prompt for one model.

    Attributes:
        exact: True where token counts are the model's own, False where they are a bound.
    """

    def __init__(self, tokenizer: Any | None, context_length: int, max_new_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._room = context_length - max_new_tokens
        self.exact = tokenizer is not None
        self._ids = lru_cache(maxsize=65536)(self._encode)
        self._glue = lru_cache(maxsize=256)(self._template_pieces)

    def _encode(self, text: str) -> tuple[int, ...]:
        assert self._tokenizer is not None
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _template_pieces(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """What the chat template puts before, between and after the contents of messages with these roles."""
        assert self._tokenizer is not None
        marks = [f"\x02{index}\x03" for index in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces = []
        for mark in marks:
            if text.count(mark) != 1:
                raise ModelFolderError(
                    f"the chat template of this model drops or repeats a {roles[marks.index(mark)]} message; "
                    "give a template that shows every message once"
                )
            piece, text = text.split(mark, 1)
            pieces.append(piece)
        return (*pieces, text)

    def count(self, text: str) -> int:
        """Tokens of one part: exact with a tokenizer, else its UTF-8 bytes, which no byte-level tokenizer exceeds."""
        return len(self._ids(text)) if self._tokenizer is not None else len(text.encode()) * BYTES_PER_TOKEN_BOUND

    def budget(self) -> Budget:
        """The budget of a policy: context length less the answer's room and the template's dearest fixed pieces."""
        if self._tokenizer is None:
            return Budget(tokens=self._room, per_message=8)
        start = sum(self.count(piece) for piece in self._glue(("system", "user")))
        pair = self._glue(("system", "user", "assistant", "user"))
        return Budget(tokens=self._room - start, per_message=max(self.count(piece) for piece in pair))

    def build(self, window: Window | SummaryRequest, tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """The prompt: messages, and exact ids where there is a tokenizer."""
        if self._tokenizer is None:
            return Prompt(messages=window.messages, tools=tools)
        glue = self._glue(tuple(m["role"] for m in window.messages))
        ids: list[int] = []
        for piece, message in zip(glue, window.messages, strict=False):
            ids += self._ids(piece)
            for part in message["content"]:
                ids += self._ids(part["text"])
        ids += self._ids(glue[-1])
        return Prompt(messages=window.messages, tools=tools, ids=ids)

    def completion_ids(self, text: str) -> list[int]:
        """A demonstration's completion: the text's ids and the terminator."""
        assert self._tokenizer is not None
        return [*self._ids(text), self._tokenizer.eos_token_id]
