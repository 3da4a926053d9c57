"""Errors as text: the frames of the agent's own cells, the last frame of a library, and the exception."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbagent_context.clean import clean

_CHAINED = re.compile(r"^(?:During handling of the above exception|The above exception was the direct cause)", re.M)
_CELL = re.compile(r"^\s*Cell In\s?\[(\d+)\]|^\s*<ipython-input-(\d+)-")
_FILE = re.compile(r"^File (?:.*/(?:site-packages|dist-packages|lib/python3\.\d+)/)?(\S+?):(\d+)(?:, in (\w[\w.]*))?")
_ARROW = re.compile(r"^\s*-+>\s*\d+\s?(.*)$")
_MADE_UP_NAME = re.compile(r" \(\d+\.py, line \d+\)$")
_R_CALL = re.compile(r"^\d+\. (.*)")


def error_text(output: Mapping[str, Any]) -> str:
    """An nbformat error as a few lines; the exception comes last.

    Of chained exceptions the last one counts, since that is what the cell ended with.
    """
    trace = clean("\n".join(output.get("traceback", [])))
    parts = _CHAINED.split(trace)
    lines = _python_frames(parts[-1].split("\n")) or _python_frames(trace.split("\n")) or _r_frames(trace.split("\n"))
    return "\n".join([*lines, exception_line(output)])


def exception_line(output: Mapping[str, Any]) -> str:
    """`KeyError: 'gene'`."""
    value = _MADE_UP_NAME.sub("", clean(str(output.get("evalue", ""))))
    return f"{clean(str(output.get('ename', 'Error')))}: {value}"


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
        elif found := _FILE.match(line):
            place, library = "", f"in {found[1]}:{found[2]}" + (f" {found[3]}" if found[3] else "")
        elif place and (found := _ARROW.match(line)):
            frames.append(f"{place} {found[1].strip()}")
            place = ""
    if not frames:
        arrows = [found[1].strip() for line in lines if (found := _ARROW.match(line))]
        frames = [f"at: {arrows[0]}"] if arrows else []
    return [*frames, library] if library and frames else frames


def _r_frames(lines: Sequence[str]) -> list[str]:
    """The agent's own call and the innermost one, of R's numbered traceback."""
    calls = [found[1] for line in lines if (found := _R_CALL.match(line))]
    return [f"at: {calls[0]}", *([f"in {calls[-1]}"] if len(calls) > 1 else [])] if calls else []
