"""The grading policies by name."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

from nbagent.errors import UsageError

Policy = Literal["strict", "tolerant", "judge", "official-zeroshot", "official-agentic"]


class PolicyName(StrEnum):
    """The same, for options of commands."""

    STRICT = "strict"
    TOLERANT = "tolerant"
    JUDGE = "judge"
    OFFICIAL_ZEROSHOT = "official-zeroshot"
    OFFICIAL_AGENTIC = "official-agentic"


POLICIES: tuple[str, ...] = get_args(Policy)
"""Only the first may be a training reward."""
OFFICIAL = ("official-zeroshot", "official-agentic")
"""What the published scorers compute."""
EvalMode = Literal["str_verifier", "range_verifier", "llm_verifier"]
EVAL_MODES: tuple[str, ...] = get_args(EvalMode)
"""The dataset's three ways to compare."""


def check_policy(policy: str) -> None:
    """Raises UsageError where there is no such policy."""
    if policy not in POLICIES:
        raise UsageError(f"grading policy {policy!r} is unknown; there are: {', '.join(POLICIES)}")


def check_eval_mode(eval_mode: str) -> None:
    """Raises UsageError where there is no such eval mode."""
    if eval_mode not in EVAL_MODES:
        raise UsageError(f"eval mode {eval_mode!r} is unknown; there are: {', '.join(EVAL_MODES)}")


def no_reward_by(policy: str) -> str:
    """Why a policy's verdicts may not be training rewards; empty for `strict`."""
    return "" if policy == "strict" else f"it is graded by policy {policy!r}; only strict may be a training reward"
