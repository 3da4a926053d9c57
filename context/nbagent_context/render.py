"""Cells and outputs as the text a model reads: no ANSI codes, no progress bars, long text cut in the middle."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
PLAIN_FIRST = ("text/plain", "text/markdown", "text/latex", "application/json", "text/html")
ELIDED = "…"


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def clean(text: str) -> str:
    """Text as a terminal would leave it: ANSI codes removed, of overwritten lines the last state."""
    text = ANSI.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return text


def head_tail(text: str, chars: int) -> str:
    """At most about `chars` characters: the head, a line saying how many characters were cut, the tail."""
    if len(text) <= chars:
        return text
    half = max(chars // 2, 1)
    return f"{text[:half]}\n{ELIDED} {len(text) - 2 * half} characters cut {ELIDED}\n{text[-half:]}"


def first_line(text: str, chars: int) -> str:
    """The first line, at most `chars` characters, and a mark that more was there."""
    line = text.strip().split("\n", 1)[0][:chars]
    return f"{line}{ELIDED}"


def error_text(output: Mapping[str, Any]) -> str:
    """An error: the failing line of the cell where the traceback shows it, and the exception."""
    arrows = [
        line.strip()
        for line in clean("\n".join(output.get("traceback", []))).split("\n")
        if re.match(r"\s*-+>\s*\d+", line)
    ]
    shown = re.sub(r"^-+>\s*\d+\s*", "at: ", arrows[0]) + "\n" if arrows else ""
    return f"{shown}{output.get('ename', 'Error')}: {clean(str(output.get('evalue', '')))}"


def output_text(outputs: Sequence[Mapping[str, Any]]) -> str:
    """All outputs of a cell as text, in their order; images and other media as one placeholder line each."""
    pieces: list[str] = []
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":
            pieces.append(clean(_text(output.get("text", ""))).rstrip("\n"))
        elif kind == "error":
            pieces.append(error_text(output))
        else:
            data = output.get("data", {})
            images = [mime for mime in data if mime.startswith("image/")]
            plain = next((mime for mime in PLAIN_FIRST if mime in data), None)
            if images:
                pieces.append(f"[{images[0]}]")
            elif plain is not None:
                pieces.append(clean(_text(data[plain])).rstrip("\n"))
            elif data:
                pieces.append(f"[{next(iter(data))}]")
    return "\n".join(piece for piece in pieces if piece)


def cell_text(cell: Mapping[str, Any], language: str = "python") -> str:
    """A cell's id and source, without its outputs."""
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"[{cell['id']}]\n{source}\n"
    return f"[{cell['id']}]\n```{language}\n{source}\n```\n"


def language_of(notebook: Mapping[str, Any]) -> str:
    """Language of the notebook's kernel, lower case, `python` where it does not say."""
    metadata = notebook.get("metadata", {})
    name = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(name or "python").lower()
