"""A notebook as a static page: sources and outputs as text, images as data; nothing the agent wrote is live."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nbagent.terminal import plain

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_IMAGES = ("image/png", "image/jpeg")


@dataclass(frozen=True, slots=True)
class Shown:
    """One output, ready for the template."""

    kind: str
    """text, error, image or note."""
    text: str
    """The text, or for an image its data: URL."""


@dataclass(frozen=True, slots=True)
class ShownCell:
    """One cell, ready for the template."""

    kind: str
    """code or markdown."""
    label: str
    """`[3]`, or ''."""
    source: str
    outputs: tuple[Shown, ...]


def shown_cells(notebook: Mapping[str, Any]) -> list[ShownCell]:
    """The cells of an nbformat v4 notebook; of outputs only text and checked PNG and JPEG images."""
    cells = []
    for cell in notebook.get("cells", ()):
        if cell.get("metadata", {}).get("nbagent", {}).get("role"):
            # Our own frame: the page says the question and the ending itself.
            continue
        code = cell.get("cell_type") == "code"
        count = cell.get("execution_count")
        outputs = tuple(shown for output in cell.get("outputs", ()) if code for shown in _shown(output))
        label = f"[{count if isinstance(count, int) else ' '}]" if code else ""
        cells.append(ShownCell("code" if code else "markdown", label, _lines(cell.get("source", "")), outputs))
    return cells


def _shown(output: Mapping[str, Any]) -> Iterator[Shown]:
    kind = output.get("output_type")
    if kind == "stream":
        yield Shown("text", _lines(output.get("text", "")))
    elif kind == "error":
        trace = output.get("traceback") or [f"{output.get('ename', '')}: {output.get('evalue', '')}"]
        yield Shown("error", _lines("\n".join(map(str, trace))))
    else:
        data = output.get("data") or {}
        image = next((mime for mime in _IMAGES if mime in data), None)
        if image is not None and (url := _data_url(image, data[image])):
            yield Shown("image", url)
        elif "text/plain" in data:
            yield Shown("text", _lines(data["text/plain"]))
        else:
            yield Shown("note", f"not shown: {', '.join(sorted(map(plain, data))) or 'an empty output'}")


def _data_url(mime: str, encoded: Any) -> str:
    try:
        content = base64.b64decode("".join(_joined(encoded).split()), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _lines(value: Any) -> str:
    text = _COLOURS.sub("", _joined(value)).expandtabs(4)
    return "\n".join(plain(line.rstrip("\r")) for line in text.split("\n"))


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)
