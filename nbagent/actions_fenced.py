"""Format `fenced`: a code block runs a cell, <answer> tags submit. Two tools, and hardly any instruction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbagent import wording
from nbagent.action import Action, beside, malformed_action, tokens_of
from nbagent.models.base import Completion
from nbagent.tools import tool_name

_TOOLS = ("run_cell", "submit_answer")
_MARK = re.compile(r"^(?P<fence>`{3,})(?P<tag>[^\n`]*)$|(?P<answer><answer>)|(?P<thought></think>)", re.MULTILINE)
_ALIASES = {"python": ("python", "py", "python3"), "bash": ("bash", "sh", "shell")}


@dataclass(frozen=True, slots=True)
class Fenced:
    """Code blocks and answers in the text."""

    language: str = "python"
    """Language of the code blocks that are run; others are prose."""

    @property
    def name(self) -> str:
        """`fenced`."""
        return "fenced"

    @property
    def sends_schemas(self) -> bool:
        """False: there are none to send."""
        return False

    def available(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """run_cell and submit_answer."""
        return [tool for tool in tools if tool_name(tool) in _TOOLS]

    def instruction(self, tools: Sequence[dict[str, Any]]) -> str:
        """A few words."""
        return wording.fenced_instruction(self.language)

    def render(self, tool: str, args: Mapping[str, Any]) -> str:
        """A code block, or the answer in its tags. Raises ValueError for other calls."""
        if tool == "run_cell" and set(args) == {"code"}:
            code = args["code"]
            ticks = max((len(run) for run in re.findall(r"^`{3,}", code, re.MULTILINE)), default=2)
            fence = "`" * (ticks + 1)
            return f"{fence}{self.language}\n{code}\n{fence}"
        if tool == "submit_answer" and set(args) == {"answer"} and not re.search("</?answer>", args["answer"]):
            return f"<answer>{args['answer']}</answer>"
        raise ValueError(f"format fenced cannot write {tool}({', '.join(args)})")

    def parse(self, completion: Completion) -> Action:
        """Exactly one code block or answer; text around it, and anything in <think> tags, is left aside."""
        text = completion.text
        if completion.finish == "length":
            return malformed_action(text, wording.cut_off(tokens_of(completion)))
        found = self._actions_in(text)
        if isinstance(found, str):
            return malformed_action(text, found)
        if len(found) != 1:
            return malformed_action(text, wording.several(len(found)))
        return Action(*found[0], text=text, thought=beside(text, "```", "```"))

    def _actions_in(self, text: str) -> list[tuple[str, dict[str, Any]]] | str:
        found: list[tuple[str, dict[str, Any]]] = []
        problem, at = "", 0
        if text.lstrip().startswith("<think>"):
            at = text.find("</think>")
            if at < 0:
                return "the thinking has no end"
        tags = _ALIASES.get(self.language.lower(), (self.language.lower(),))
        while mark := _MARK.search(text, at):
            at = mark.end()
            if mark["thought"]:  # What came before was thinking, drafts of actions too.
                found, problem = [], ""
            elif mark["answer"]:
                end = text.find("</answer>", at)
                if end < 0:
                    problem = problem or "<answer> is not closed by </answer>"
                    continue
                found.append(("submit_answer", {"answer": text[at:end]}))
                at = end + len("</answer>")
            else:
                fence = mark["fence"]
                close = re.compile(rf"^`{{{len(fence)},}}[ \t\r]*$", re.MULTILINE).search(text, at + 1)
                wanted = mark["tag"].strip().lower() in tags
                if close is None:
                    problem = problem or f"the code block is not closed by {fence} on a line of its own"
                    continue
                if wanted:
                    found.append(("run_cell", {"code": text[at + 1 : max(close.start() - 1, at + 1)]}))
                at = close.end()
        return problem or found or f"write one ```{self.language} block, or <answer>…</answer>"
