"""The words of the context floor: what a policy is given and what it returns.

Given: Brief, a notebook, a history of Exchange and Memory, Budget. Returned: Window, or SummaryRequest where the policy
wants a memory written first. A prompt is a list of OpenAI-style messages whose content is a list of parts, of text but
for images. Each part of text is encoded on its own and the ids are concatenated, so the parts are the unit of caching
and of elision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Count = Callable[[str], int]
"""Tokens of one part, as the model's tokenizer (or a bound) counts them."""
Notebook = Mapping[str, Any]
"""An nbformat v4 notebook."""
Level = Literal["head_tail", "line", "dropped"]


@dataclass(frozen=True, slots=True)
class Brief:
    """What stays the same from the first step to the last."""

    instruction: str
    """The system message: how to act, in the model's action format. May be empty."""
    task: str
    """The question and the list of files, as the agent reads it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One step as it happened: what the model wrote and what the environment answered."""

    step: int
    """0-based step number."""
    text: str
    """The model's own text, as sampled."""
    tool: str
    """Name of the tool called; empty where the text was malformed."""
    observation: str
    """The environment's full answer."""
    cell_id: str = ""
    """The cell this step ran, edited or added; empty for other tools."""
    shown: bool = False
    """True when the notebook already shows the action and its whole answer (a cell that was run)."""
    short: str = ""
    """The action in short form, one line, e.g. `read_file results.csv`."""
    thought: str = ""
    """What the model wrote around its action; '' where it wrote nothing else."""
    failed: bool = False
    """True when a cell raised, ran out of time or took its kernel along, and when the text was no action."""
    exception: str = ""
    """Of a cell that raised: the exception's name and the first line of its message, in one line."""
    full_chars: int = 0
    """Characters of the whole answer, where the environment cut it before it came here; 0: it did not."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the model wrote to itself when a policy asked for a summary.

    It stands in the history where it was written: after all exchanges that the model had seen by then. The newest
    memory stands for the first `covers` exchanges of the attempt and for all memories before it.
    """

    text: str
    """The summary, stripped; '' where the model wrote nothing: the exchanges are dropped without a memory."""
    covers: int
    """Exchanges that it replaces, counted from the first of the attempt; taken from the request."""
    step: int
    """0-based step before which it was written."""


History = Sequence[Exchange | Memory]
"""What happened, in the order in which it happened. Policies that ask for no summaries pass over memories."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens the prompt may take."""

    tokens: int
    """Tokens for everything between the template's fixed pieces; the answer's room is already taken off."""
    per_message: int = 0
    """Tokens the chat template adds around each message."""
    image_tokens: int = 0
    """Tokens one image takes; 0 where the model sees none, and images are named instead."""


@dataclass(frozen=True, slots=True)
class Elision:
    """One thing that was cut or left out of a prompt."""

    what: str
    """e.g. `output of c3`, `cell c4`, `output of 12 cells, c1 to c20`: one record for all that was cut alike."""
    level: Level
    """head_tail (middle cut out), line (one line left), dropped."""
    tokens_saved: int
    """Tokens of the full form minus tokens of what was put in its place; for a text of more than 20,000 characters
    estimated from its beginning."""
    why: str
    """age (older than the last k), size (longer than one output may be), budget (would not fit), replaced by a memory,
    no memory (a memory was asked for, and the answer was empty), cut by the environment (an answer longer than an
    observation may be, before any policy saw it; what that saved is estimated from its length)."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the model sees at one step."""

    messages: tuple[dict[str, Any], ...]
    """OpenAI-style messages; `content` is a list of `{"type": "text", "text": …}` parts."""
    tokens: int
    """Sum of the parts' counts and the template's overhead per message; never above the budget."""
    elisions: tuple[Elision, ...] = field(default_factory=tuple)
    """What was cut, why, and what that saved."""


@dataclass(frozen=True, slots=True)
class SummaryRequest:
    """A policy's wish for a memory before it makes the next prompt.

    Whoever plays the attempt has the model answer `messages` with at most `max_tokens` tokens, appends
    `Memory(answer.strip(), request.covers, step)` to the history, and asks the policy again. The answer is used as it
    is: an empty one drops what it covers without a memory, one that was cut off at `max_tokens` is kept as far as it
    goes. A policy asks at most once a step, and no more once the history holds as many memories as it allows.
    """

    messages: tuple[dict[str, Any], ...]
    """The prompt, as in Window. It asks for text, not for an action: no tools are sent with it."""
    tokens: int
    """As in Window; with `max_tokens` added it is still within the budget."""
    covers: int
    """Exchanges that the memory replaces, counted from the first of the attempt."""
    max_tokens: int
    """Longest memory in tokens."""
    elisions: tuple[Elision, ...] = field(default_factory=tuple)
    """What was cut from this prompt, why, and what that saved."""


class BudgetTooSmall(ValueError):
    """Even what must survive does not fit.

    Attributes:
        needed: tokens that the smallest prompt takes; a budget of so many is kept.
        budget: tokens there are.
    """

    def __init__(self, needed: int, budget: int) -> None:
        super().__init__(needed, budget)
        self.needed = needed
        self.budget = budget

    def __str__(self) -> str:
        return (
            f"the smallest prompt takes {self.needed} tokens, {self.needed - self.budget} more than the budget of "
            f"{self.budget}; raise the context length or lower max_new_tokens"
        )


class Policy(Protocol):
    """A pure function from what happened to what the model sees."""

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window | SummaryRequest:
        """The prompt of the next step, or a request for a memory, after which the policy is asked again.

        `notice` is the environment's word on remaining steps and time ('' for none).

        Raises:
            BudgetTooSmall: what must survive does not fit.
        """
        ...


def text_of(message: Mapping[str, Any]) -> str:
    """The message's text: its parts joined; images are left out."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def exchanges_of(history: History) -> list[Exchange]:
    """The exchanges of a history, without its memories."""
    return [entry for entry in history if isinstance(entry, Exchange)]


def measure(messages: Sequence[Mapping[str, Any]], budget: Budget, count: Count) -> int:
    """Tokens of messages as the budget counts them: parts, images, and what the template adds around each message."""
    tokens = budget.per_message * len(messages)
    for entry in messages:
        for part in entry["content"]:
            tokens += count(part["text"]) if part["type"] == "text" else budget.image_tokens
    return tokens


def message(role: str, parts: Sequence[str]) -> dict[str, Any]:
    """An OpenAI-style message of text parts; empty parts are left out."""
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts if part]}
