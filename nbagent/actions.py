"""Actions and the formats in which models write them: `hermes`, `fenced`, `native`; and `answer`, without a notebook.

`parse` never raises: what is no action becomes an Action whose `error` says why. `render` is its exact inverse, so
that demonstrations are what the parser reads.
"""

from __future__ import annotations

from nbagent.action import Action, ActionFormat
from nbagent.actions_answer import AnswerOnly
from nbagent.actions_fenced import Fenced
from nbagent.actions_hermes import Hermes
from nbagent.actions_native import Native
from nbagent.errors import UsageError

__all__ = ["Action", "ActionFormat", "AnswerOnly", "Fenced", "Hermes", "Native", "action_format"]


def action_format(name: str, language: str = "python") -> ActionFormat:
    """The format with this name; `language` is the task's, which names the code block of `fenced`.

    Raises:
        UsageError: no such format.
    """
    formats: dict[str, ActionFormat] = {
        "hermes": Hermes(),
        "fenced": Fenced(language),
        "native": Native(),
        "answer": AnswerOnly(),
    }
    if name not in formats:
        raise UsageError(f"unknown action format {name!r}; there are: {', '.join(sorted(formats))}")
    return formats[name]
