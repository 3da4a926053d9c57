"""Scores that others published, each with its conditions: they are no more comparable than these say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from nbagent_bixbench.results import Mode, Setting

PUBLISHED_ID = re.compile(r"bix-\d+-q\d+", re.IGNORECASE)
"""Ids of BixBench's questions: scores are shown beside those alone."""


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """One published figure; aggregates only, never an answer or a key."""

    agent: str
    """Model or system."""
    setting: Setting
    mode: Mode
    questions: str
    """The set it was asked."""
    accuracy: float
    """Between 0 and 1."""
    conditions: str
    """How it was graded and sampled, as far as that is known."""
    source: str
    """Who published it."""
    checked: bool
    """True: computed again from published files; False: as it was reported."""
    coverage: float | None = None
    precision: float | None = None


@cache
def published_scores() -> tuple[PublishedScore, ...]:
    """All of them, from `published_scores.json`."""
    text = (files("nbagent_bixbench") / "published_scores.json").read_text(encoding="utf-8")
    return tuple(PublishedScore(**entry) for entry in json.loads(text))
