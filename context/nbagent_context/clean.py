"""Text as a reader wants it: no terminal codes, no progress bars, warnings once each, repeated lines counted."""

from __future__ import annotations

import re
from itertools import groupby

REPEATS = 4
"""So many equal lines in a row become one and a count; fewer are as short as the count."""

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BAR = re.compile(r"\d{1,3}%\s*\|.*\||\|[=#█▏▎▍▌▋▊▉\s.>-]*\|\s*\d{1,3}\s*%")
_DONE = re.compile(r"\b100\s*%")
_WARNING = re.compile(r"^(?:/|[A-Za-z]:\\|<|\S+\.py:)[^\n]*?:\d+: (\w*Warning: .*)$")
_MORE = re.compile(r"^\[the same \d+ more times\]$")


def clean(text: str) -> str:
    """Text as a terminal would leave it: control codes removed, of overwritten lines the last state. Idempotent."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return _CONTROL.sub("", text)


def quiet(text: str) -> str:
    """Clean text of a stream without what tells a reader nothing; `clean` comes first. Idempotent.

    Finished progress bars go, of an unfinished one the last state stays; a Python warning loses its place and source
    line and stands once; of four or more equal lines in a row one stays, with the number of the others.
    """
    lines = text.split("\n")
    if "%" in text:
        lines = _without_bars(lines)
    if "Warning: " in text:
        lines = _folded(lines)
    if len(lines) >= REPEATS:
        lines = _counted(lines)
    return "\n".join(lines)


def _without_bars(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for is_bar, run in groupby(lines, lambda line: _BAR.search(line) is not None):
        some = list(run)
        kept += [line for line in some[-1:] if not _DONE.search(line)] if is_bar else some
    return kept


def _folded(lines: list[str]) -> list[str]:
    kept: list[str] = []
    seen: set[str] = set()
    in_warning = False
    for line in lines:
        found = _WARNING.match(line)
        if found is None:
            # The line after a warning is the source that caused it, indented by two spaces.
            if not (in_warning and line.startswith("  ")):
                kept.append(line)
            in_warning = False
            continue
        in_warning = True
        if found[1] not in seen:
            seen.add(found[1])
            kept.append(found[1])
    return kept


def _counted(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line, run in groupby(lines):
        number = sum(1 for _ in run)
        if number < REPEATS or _MORE.match(line):
            kept += [line] * number
        elif not line.strip():
            kept.append(line)
        else:
            kept += [line, f"[the same {number - 1} more times]"]
    return kept
