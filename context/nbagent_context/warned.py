"""Python's and R's warnings in a stream: each stands once, without the place that gave it."""

from __future__ import annotations

import re

_HEAD = re.compile(r":\d{1,9}: (\w{0,99}Warning: .*)")
_DRIVE = re.compile(r"[A-Za-z]:\\")
_PLACE_CHARS = 4096
"""No path is longer."""
_SOURCE = re.compile(r"  \S")
"""The line of source that a Python warning ends with, where Python finds it."""
_MESSAGE_LINES = 12
"""Longest message of a warning that its later copies are compared with."""


def folded(lines: list[str]) -> list[str]:
    """Lines of a stream with each warning of Python once and R's once where they follow each other. Idempotent.

    Nothing else is lost: of a message of several lines, what differs from the first one stays.
    """
    return _r_folded(_python_folded(lines))


def _message(line: str) -> str:
    """`UserWarning: odd` of `/x/y.py:3: UserWarning: odd`; '' where a line is no head of a warning."""
    found = _HEAD.search(line, 0, _PLACE_CHARS) if "Warning: " in line else None
    if found is None:
        return ""
    place = line[: found.start()]
    is_file = place[:1] in ("/", "<") or _DRIVE.match(place) or (place.endswith(".py") and " " not in place)
    return line[found.start(1) :] if is_file and ": " not in place else ""


def _python_folded(lines: list[str]) -> list[str]:
    heads = [_message(line) for line in lines]
    kept: list[str] = []
    seen: set[tuple[str, ...]] = set()
    at = 0
    while at < len(lines):
        if not heads[at]:
            kept.append(lines[at])
            at += 1
            continue
        source = _source(lines, heads, at + 1)
        warning = (heads[at], *lines[at + 1 : at + 1 if source is None else source])
        if warning not in seen:
            seen.add(warning)
            kept += warning
        at += len(warning)
        # What is indented below several lines may be output. Directly below a warning it is its source.
        if source is not None and (len(warning) == 1 or (*warning, lines[source]) in seen):
            at += 1
        elif source is not None:
            seen.add((*warning, lines[source]))
    return kept


def _source(lines: list[str], heads: list[str], at: int) -> int | None:
    """Where the source line of a warning is whose head is the line before `at`."""
    if lines[at - 1].startswith("<") and not lines[at - 1].startswith("<ipython-input"):
        return None
    for number in range(at, min(at + _MESSAGE_LINES, len(lines))):
        if heads[number]:
            return None
        if _SOURCE.match(lines[number]):
            return number
    return None


def _r_folded(lines: list[str]) -> list[str]:
    """Without R's warnings that are the same as the one right before them.

    One that follows other lines stays: taking it out could make a warning of what then stands together.
    """
    kept: list[str] = []
    before: list[str] = []
    at = 0
    while at < len(lines):
        warning = _r_warning(lines, at)
        if not warning or warning != before:
            kept += warning or [lines[at]]
        before = warning
        at += len(warning) or 1
    return kept


def _r_warning(lines: list[str], at: int) -> list[str]:
    """`Warning message:` and what belongs to it: a line, and one more where that only names the call."""
    if not _is_r_head(lines[at]):
        return []
    following = lines[at + 1 : at + 3]
    if not following or _is_r_head(following[0]) or not following[0].strip():
        return lines[at : at + 1]
    if following[0].endswith(":") and following[1:] and following[1].startswith(" ") and following[1].strip():
        return lines[at : at + 3]
    return lines[at : at + 2]


def _is_r_head(line: str) -> bool:
    return line.startswith("Warning message") and line.endswith(":")
