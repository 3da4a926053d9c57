"""Format `answer`: the reply is the answer. One tool, no notebook; for questions asked without their data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbagent import wording
from nbagent.action import Action, malformed_action, tokens_of
from nbagent.models.base import Completion
from nbagent.tools import tool_name

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AnswerOnly:
    """An answer in `<answer>` tags, or else the whole reply."""

    @property
    def name(self) -> str:
        """`answer`."""
        return "answer"

    @property
    def sends_schemas(self) -> bool:
        """False: there are none to send."""
        return False

    def available(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """submit_answer alone."""
        return [tool for tool in tools if tool_name(tool) == "submit_answer"]

    def instruction(self, tools: Sequence[dict[str, Any]]) -> str:
        """That there are no data, and how to answer."""
        return wording.ANSWER_ONLY

    def render(self, tool: str, args: Mapping[str, Any]) -> str:
        """The answer in its tags. Raises ValueError for other calls."""
        if tool == "submit_answer" and set(args) == {"answer"} and not _TAG.search(args["answer"]):
            return f"<answer>{args['answer']}</answer>"
        raise ValueError(f"format answer cannot write {tool}({', '.join(args)})")

    def parse(self, completion: Completion) -> Action:
        """What stands in the one pair of tags, else the whole reply; thinking is left out."""
        text = completion.text
        if completion.finish == "length":
            return malformed_action(text, wording.cut_off(tokens_of(completion)))
        said = text.rpartition("</think>")[2] if text.lstrip().startswith("<think>") else text
        tags = [(mark[1], mark.span()) for mark in _TAG.finditer(said)]
        if [closing for closing, _ in tags] == ["", "/"]:
            said = said[tags[0][1][1] : tags[1][1][0]]
        return Action("submit_answer", {"answer": said}, text=text)
