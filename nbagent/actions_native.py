"""Format `native`: the endpoint's own tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbagent import wording
from nbagent.action import Action, malformed_action, tokens_of
from nbagent.actions_hermes import Hermes, call_of
from nbagent.models.base import Completion


@dataclass(frozen=True, slots=True)
class Native:
    """Tool calls as the endpoint hands them over.

    In histories, which are text, a call is written as in `hermes`; the same text is read where an endpoint hands over
    no calls, since a server without a parser for its model leaves them in the text.
    """

    @property
    def name(self) -> str:
        """`native`."""
        return "native"

    @property
    def sends_schemas(self) -> bool:
        """True: the endpoint is given them."""
        return True

    def available(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All of them."""
        return list(tools)

    def instruction(self, tools: Sequence[dict[str, Any]]) -> str:
        """What to do."""
        return wording.ROLE

    def render(self, tool: str, args: Mapping[str, Any]) -> str:
        """The call as text."""
        return Hermes().render(tool, args)

    def parse(self, completion: Completion) -> Action:
        """Exactly one call."""
        if not completion.tool_calls:
            action = Hermes().parse(completion)
            if action.error and completion.finish != "length" and "<tool_call>" not in completion.text:
                return malformed_action(completion.text, "there is no tool call; call exactly one tool")
            return action
        calls = []
        for call in completion.tool_calls:
            function = call.get("function") if isinstance(call, Mapping) else None
            calls.append(call_of(dict(function) if isinstance(function, Mapping) else None))
        readable = [self.render(*call) for call in calls if not isinstance(call, str)]
        text = "\n".join(part for part in (completion.text, *readable) if part)
        if completion.finish == "length":
            return malformed_action(text, wording.cut_off(tokens_of(completion)))
        if len(calls) > 1:
            return malformed_action(text, wording.several(len(calls)))
        if isinstance(calls[0], str):
            return malformed_action(text, calls[0])
        said = completion.text.rpartition("</think>")[2].strip()
        return Action(*calls[0], text=text, call_id=str(completion.tool_calls[0].get("id") or ""), thought=said)
