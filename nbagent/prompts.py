"""Prompts as token ids: the chat template's fixed pieces and the policy's parts, each encoded on its own and joined.

A joined text is never encoded again, so a part has the same ids wherever it stands. Ids of what prompts consist of are
kept by text, within a bound of bytes; of what was only counted the last few, since most of it is never shown. For a
remote endpoint nothing is encoded: counts are those of a named tokenizer or of a bound, both marked inexact, and what
the endpoint reports is held against them.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from nbagent.errors import ModelFolderError, UsageError
from nbagent.models.base import Completion, Prompt
from nbagent_context import Budget, SummaryRequest, Window
from nbagent_context.cache import Cache
from nbagent_context.types import measure

BYTES_PER_TOKEN_BOUND = 1
"""Without a tokenizer a token is counted per byte: never too few, since every byte-level token covers one or more."""
REMOTE_PER_MESSAGE = 8
"""Tokens that an endpoint's template is taken to add around a message; known ones add three to seven."""
KEPT_BYTES = 64 << 20
"""Most that a run's rollouts together keep of the ids of prompts: thousands of cells with the longest outputs shown."""
COUNTED_BYTES = 8 << 20
"""Most that is kept of what was only counted: more than comes between counting a prompt's parts and making it."""
_log = logging.getLogger(__name__)


class PromptBuilder:
    """Turns a policy's window into a Prompt for one model.

    Args:
        tokenizer: the model's own, where the ids are ours; None for a remote endpoint.
        context_length: tokens of prompt and completion together.
        max_new_tokens: room kept for the answer.
        counter: for a remote endpoint: a tokenizer that counts; None counts bytes.
        image_tokens: for a remote endpoint that sees images: tokens one takes; 0 where images are named instead.

    Attributes:
        exact: True where token counts are the model's own, False where they are another's or a bound.

    Raises:
        UsageError: images for a model whose ids are ours.
    """

    def __init__(
        self,
        tokenizer: Any | None,
        context_length: int,
        max_new_tokens: int,
        counter: Any | None = None,
        image_tokens: int = 0,
    ) -> None:
        if tokenizer is not None and image_tokens:
            raise UsageError(
                "images = true is for scoring at an endpoint that sees (openai:URL); models in this process read text "
                "only, and training on images is not supported"
            )
        self._tokenizer = tokenizer if tokenizer is not None else counter
        self._room = context_length - max_new_tokens
        self._image_tokens = image_tokens
        self._warned = False
        self.exact = tokenizer is not None
        self._kept, self._counted = Cache(KEPT_BYTES), Cache(COUNTED_BYTES)
        self._glue = lru_cache(maxsize=256)(self._template_pieces)

    def _encode(self, text: str) -> array[int]:
        """Ids of a text that is not kept: just counted, or made."""
        ids: array[int] | None = self._counted.get(text)
        if ids is None:
            assert self._tokenizer is not None
            ids = array("i", self._tokenizer(text, add_special_tokens=False)["input_ids"])
            self._counted.put(text, ids, _taken(text, ids))
        return ids

    def _ids(self, text: str) -> array[int]:
        """Ids of a part of a prompt, which is likely to be part of the next."""
        ids: array[int] | None = self._kept.get(text)
        if ids is None:
            ids = self._encode(text)
            self._kept.put(text, ids, _taken(text, ids))
        return ids

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
        if self._tokenizer is not None:
            ids: array[int] | None = self._kept.get(text)
            return len(self._encode(text) if ids is None else ids)
        return len(text.encode("utf-8", "surrogatepass")) * BYTES_PER_TOKEN_BOUND

    def budget(self, tools: Sequence[dict[str, Any]] = ()) -> Budget:
        """The budget of a policy: context length less the answer's room and what surrounds the policy's parts.

        Args:
            tools: schemas that go with the request.
        """
        if not self.exact:
            return Budget(self._room - self._sent_along(tools), REMOTE_PER_MESSAGE, self._image_tokens)
        start = sum(self.count(piece) for piece in self._glue(("system", "user")))
        pair = self._glue(("system", "user", "assistant", "user"))
        per_message = max(self.count(piece) for piece in pair)
        # Where there is no instruction there is a message less, and some templates put one of their own in its place.
        start = max(start, self._without_system() - per_message)
        return Budget(tokens=self._room - start, per_message=per_message)

    def _without_system(self) -> int:
        """Tokens around a prompt of one message; 0 for a template that demands a system message."""
        from jinja2 import TemplateError

        try:
            return sum(self.count(piece) for piece in self._glue(("user",)))
        except (TemplateError, ModelFolderError):
            return 0

    def _sent_along(self, tools: Sequence[dict[str, Any]]) -> int:
        return REMOTE_PER_MESSAGE + (self.count(json.dumps(list(tools))) if tools else 0)

    def build(self, window: Window | SummaryRequest, tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """The prompt: messages, and exact ids where they are ours."""
        if not self.exact:
            budget = self.budget(tools)
            counted = measure(window.messages, budget, self.count) + self._sent_along(tools)
            return Prompt(messages=window.messages, tools=tools, counted=counted)
        glue = self._glue(tuple(m["role"] for m in window.messages))
        ids = array("i")
        known = self._kept.get
        for piece, message in zip(glue, window.messages, strict=False):
            ids += self._ids(piece)
            for part in message["content"]:
                ids += known(part["text"]) or self._ids(part["text"])
        ids += self._ids(glue[-1])
        return Prompt(messages=window.messages, tools=tools, ids=ids.tolist(), counted=len(ids))

    def check(self, prompt: Prompt, completion: Completion) -> None:
        """Hold a count that is not exact against what the endpoint reports; warns once where it was too low.

        Each call's record has both figures, `counted` and `prompt_tokens`.
        """
        reported = completion.usage.get("prompt_tokens", 0)
        if self.exact or self._warned or reported <= prompt.counted:
            return
        self._warned = True
        _log.warning(
            "the endpoint counted %d tokens in a prompt that was counted as %d at most: its tokenizer is another one; "
            "the budget holds only as far as the count, so name its own tokenizer or a shorter context length",
            reported,
            prompt.counted,
        )

    def completion_ids(self, text: str) -> list[int]:
        """A demonstration's completion: the text's ids and the terminator."""
        assert self._tokenizer is not None
        return [*self._ids(text), self._tokenizer.eos_token_id]


def _taken(text: str, ids: array[int]) -> int:
    """About the bytes that a text and its ids take in a cache."""
    return len(text) + ids.itemsize * len(ids) + 200
