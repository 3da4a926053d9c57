"""Context policies by name: ours and anybody's, found by entry point (group `nbagent.context_policies`)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from nbagent_context.types import Policy


def policy(name: str, **options: Any) -> Policy:
    """The policy of that name, made with its options.

    Raises:
        ValueError: no such policy, or an option it does not have.
    """
    points = {point.name: point for point in entry_points(group="nbagent.context_policies")}
    if name not in points:
        raise ValueError(f"unknown context policy {name!r}; there are: {', '.join(sorted(points))}")
    try:
        made: Policy = points[name].load()(**options)
    except TypeError as error:
        raise ValueError(f"context policy {name!r}: {error}") from None
    return made
