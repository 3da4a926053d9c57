"""An action, and the Protocol of the formats in which models write one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nbagent.models.base import Completion


@dataclass(frozen=True, slots=True)
class Action:
    """One call of one tool, or text that is none."""

    tool: str
    """Name of the tool; '' where the text is malformed."""
    args: dict[str, Any]
    """Its arguments, not yet checked against the tool's schema."""
    text: str
    """What the model wrote, for the history."""
    error: str = ""
    """Why the text is no action; '' where it is one."""
    call_id: str = ""
    """The endpoint's id of the call (format `native`), which the answer must name."""
    thought: str = ""
    """What the model wrote beside the call, thinking in <think> tags left out."""


class ActionFormat(Protocol):
    """How a model is told to act and how its text is read."""

    @property
    def name(self) -> str:
        """Short name, as settings spell it."""
        ...

    @property
    def sends_schemas(self) -> bool:
        """True when the tools' schemas go with the request (Prompt.tools) and not into the instruction."""
        ...

    def available(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the tools that can be called in this format."""
        ...

    def instruction(self, tools: Sequence[dict[str, Any]]) -> str:
        """The system message."""
        ...

    def render(self, tool: str, args: Mapping[str, Any]) -> str:
        """The text that `parse` reads as this call. Raises ValueError for what the format cannot write."""
        ...

    def parse(self, completion: Completion) -> Action:
        """The action in a completion. Never raises."""
        ...


def malformed_action(text: str, reason: str) -> Action:
    """An action that is none; `reason` in one line without a full stop."""
    return Action("", {}, text, error=reason)


def beside(text: str, opening: str, closing: str) -> str:
    """What stands before the first `opening` and after the last `closing`, thinking left out."""
    before, _, rest = text.rpartition("</think>")[2].partition(opening)
    return "\n".join(part for part in (before.strip(), rest.rpartition(closing)[2].strip()) if part)


def tokens_of(completion: Completion) -> int | None:
    """Tokens of a completion where they are known."""
    if completion.ids is not None:
        return len(completion.ids)
    number = completion.usage.get("completion_tokens")
    return int(number) if number else None
