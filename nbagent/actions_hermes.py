"""Format `hermes`: a JSON object inside <tool_call> tags, as Qwen models write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbagent import wording
from nbagent.action import Action, beside, malformed_action, tokens_of
from nbagent.models.base import Completion

_OPEN, _CLOSE, _THOUGHT = "<tool_call>", "</tool_call>", "</think>"
_MARK = re.compile(f"{_OPEN}|{_THOUGHT}")
_SPACE = re.compile(r"\s*")
# Models put raw newlines into JSON strings; strict=False reads them.
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Hermes:
    """JSON tool calls in the text."""

    @property
    def name(self) -> str:
        """`hermes`."""
        return "hermes"

    @property
    def sends_schemas(self) -> bool:
        """False: the instruction has them."""
        return False

    def available(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All of them."""
        return list(tools)

    def instruction(self, tools: Sequence[dict[str, Any]]) -> str:
        """What to do, the schemas, and how to write a call."""
        return wording.hermes_instruction([json.dumps(tool, ensure_ascii=False) for tool in tools])

    def render(self, tool: str, args: Mapping[str, Any]) -> str:
        """The call as Qwen's chat templates write it."""
        call = json.dumps({"name": tool, "arguments": dict(args)}, ensure_ascii=False)
        return f"{_OPEN}\n{call}\n{_CLOSE}"

    def parse(self, completion: Completion) -> Action:
        """Exactly one call; text before and after it, and anything in <think> tags, is left aside."""
        text = completion.text
        if completion.finish == "length":
            return malformed_action(text, wording.cut_off(tokens_of(completion)))
        found = calls_in(text)
        if isinstance(found, str):
            return malformed_action(text, found)
        if len(found) != 1:
            return malformed_action(text, wording.several(len(found)))
        return Action(*found[0], text=text, thought=beside(text, _OPEN, _CLOSE))


def calls_in(text: str) -> list[tuple[str, dict[str, Any]]] | str:
    """All calls in a text, at least one; or the reason why it cannot be read."""
    calls: list[tuple[str, dict[str, Any]]] = []
    problem, at = "", 0
    if text.lstrip().startswith("<think>"):
        at = text.find(_THOUGHT)
        if at < 0:
            return "the thinking has no end"
    while mark := _MARK.search(text, at):
        at = mark.end()
        if mark[0] == _THOUGHT:  # What came before was thinking, drafts of calls too.
            calls, problem = [], ""
            continue
        try:
            value, end = _DECODER.raw_decode(text, _after_space(text, at))
        except (ValueError, RecursionError) as error:
            problem = problem or f"the call is not JSON: {_short(error)}"
            continue
        call = call_of(value)
        at = end
        if isinstance(call, str):
            problem = problem or call
        elif not text.startswith(_CLOSE, _after_space(text, end)):
            problem = problem or f"the call must end with {_CLOSE} right after its JSON object"
        else:
            calls.append(call)
    return problem or calls or f"there is no tool call; write one inside {_OPEN} tags"


def call_of(value: Any) -> tuple[str, dict[str, Any]] | str:
    """Name and arguments of a decoded call; or the reason why it is none. Arguments may be JSON inside a string."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return 'the call must be an object with "name" and "arguments"'
    args = value.get("arguments")
    if isinstance(args, str):
        try:
            args = _DECODER.decode(args) if args.strip() else {}
        except (ValueError, RecursionError) as error:
            return f"the arguments are not JSON: {_short(error)}"
    if args is None:
        args = {}
    if not isinstance(args, dict):
        return 'the call\'s "arguments" must be an object'
    return value["name"], args


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _short(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
