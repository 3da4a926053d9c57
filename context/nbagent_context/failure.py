"""Errors as text: the frames of the agent's own cells, the last frame of a library, the cause, and the exception.

A traceback holds what an agent wants it to, so no pattern here takes time that grows faster than its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbagent_context.clean import clean
from nbagent_context.cut import ELIDED, first_line

FIRST_FRAMES = 2
"""Of the agent's frames, the outermost that are always shown."""
LAST_FRAMES = 3
"""And the innermost. Those between are counted: a recursion has thousands."""
CAUSE_CHARS = 200
"""Longest line for the exception that led to the last one."""

_CHAINED = re.compile(r"^(During handling of the above exception|The above exception was the direct cause)", re.M)
_HEADER = re.compile(r"^(\w++) ++Traceback \(most recent call last\)", re.M)
_CELL = re.compile(r"^\s*Cell In\s?\[(\d+)\]|^\s*<ipython-input-(\d+)-")
_LINE_NUMBER = re.compile(r":(\d+)(?:, in (\w[\w.]*))?")
_PYTHON_FOLDER = re.compile(r"/lib/python3\.\d+/")
_ARROW = re.compile(r"^\s*-+>\s*\d+\s?(.*)$")
_MADE_UP_NAME = re.compile(r" \(\d+\.py, line \d+\)$")
_R_CALL = re.compile(r"^\d+\. (.*)")


def error_text(output: Mapping[str, Any]) -> str:
    """An nbformat error as a few lines; the exception comes last.

    Of chained exceptions the last one counts, since that is what the cell ended with; the one before it has a line.
    """
    trace = clean("\n".join(map(str, output.get("traceback", []))))
    *earlier, last = _CHAINED.split(trace)
    lines = _python_frames(last.split("\n")) or _python_frames(trace.split("\n")) or _r_frames(trace.split("\n"))
    told = exception_line(output)
    cause = _exception_of(earlier[-2]) if earlier else ""
    if cause and cause != told.split("\n", 1)[0]:
        how = "from" if earlier[-1].startswith("The") else "while handling"
        lines = [*lines, f"{how} {first_line(cause, CAUSE_CHARS)}"]
    return "\n".join([*lines, told])


def exception_line(output: Mapping[str, Any]) -> str:
    """`KeyError: 'gene'`."""
    value = _MADE_UP_NAME.sub("", clean(str(output.get("evalue", ""))))
    return f"{clean(str(output.get('ename', 'Error')))}: {value}"


def _exception_of(trace: str) -> str:
    """The first line of what a traceback ends with; '' where that is not found."""
    name = _HEADER.search(trace)
    lines = reversed(trace.split("\n")) if name else ()
    return next((line for line in lines if name and line.partition(":")[0] == name[1]), "")


def _python_frames(lines: Sequence[str]) -> list[str]:
    """Frames in the agent's cells, innermost last, and the library frame below them where there is one."""
    frames: list[str] = []
    library = place = cell = current = ""
    for at, line in enumerate(lines):
        if found := _CELL.match(line):
            current = found[1] or found[2]
            cell = cell or current
            place, library = ("at:" if current == cell else f"at In[{current}]:"), ""
            follows = lines[at + 1] if at + 1 < len(lines) else ""
            if follows[:1] == " " and not any(_ARROW.match(other) for other in lines[at + 1 : at + 12]):
                frames.append(f"{place} {follows.strip()}")  # A syntax error: the line itself, without an arrow.
        elif in_file := _in_file(line):
            place, library = "", in_file
        elif place and (found := _ARROW.match(line)):
            frames.append(f"{place} {found[1].strip()}")
            place = ""
    if not frames:
        arrows = [found[1].strip() for line in lines if (found := _ARROW.match(line))]
        frames = [f"at: {arrows[0]}"] if arrows else []
    if (more := len(frames) - FIRST_FRAMES - LAST_FRAMES) > 1:
        frames[FIRST_FRAMES:-LAST_FRAMES] = [f"{ELIDED} {more} frames cut {ELIDED}"]
    return [*frames, library] if library and frames else frames


def _in_file(line: str) -> str:
    """`in pandas/base.py:3812 Index.get_loc` of a frame in a file, its path from the library's own folder on; or ''."""
    found = _LINE_NUMBER.search(line) if line.startswith("File ") else None
    if found is None:
        return ""
    path = line[len("File ") : found.start()]
    starts = [at + len(folder) for folder in ("/site-packages/", "/dist-packages/") if (at := path.rfind(folder)) >= 0]
    path = path[max([*starts, *(folder.end() for folder in _PYTHON_FOLDER.finditer(path))], default=0) :]
    if not path or any(map(str.isspace, path)):
        return ""
    return f"in {path}:{found[1]}" + (f" {found[2]}" if found[2] else "")


def _r_frames(lines: Sequence[str]) -> list[str]:
    """The agent's own call and the innermost one, of R's numbered traceback."""
    calls = [found[1] for line in lines if (found := _R_CALL.match(line))]
    return [f"at: {calls[0]}", *([f"in {calls[-1]}"] if len(calls) > 1 else [])] if calls else []
