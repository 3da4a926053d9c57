"""Folds a kernel's messages into nbformat outputs by nbclient's rules, under a cap that holds while they arrive.

The rules are nbclient 0.11's with `coalesce_streams`: text of one stream is joined into its first output, carriage
returns overwrite their line, stderr right before stdout trades places with it, `clear_output(wait=True)` acts at the
next output, `update_display_data` rewrites the cell's outputs of that display id and adds none.

Two things are on purpose otherwise. A result is a record of what its cell gave: an update of something that an earlier
cell displayed changes nothing, where nbclient rewrites the earlier cell. And a message that no notebook may hold (a
text that is a number, JSON nested beyond `DEEPEST`) is dropped and counted, where nbclient writes an invalid notebook.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbagent_kernels.types import Limits, Output

OUTPUTS = ("stream", "display_data", "execute_result", "update_display_data")
ERROR_BYTES = 1 << 16
"""An error is kept up to this size even where the cap is reached: it is what the reader needs most."""
DEEPEST = 64
"""Levels of nesting in an output's JSON; what walks outputs may recurse."""


@dataclass(slots=True)
class _Display:
    """What is shown under one display id."""

    outputs: list[Output]
    size: int


class OutputFold:
    """The outputs of one cell, as they stand after the messages fed so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._outputs: list[Output] = []
        self._streams: dict[str, bytearray] = {}
        self._displays: dict[str, _Display] = {}
        self._kept = 0
        self._overwrite_at = 0
        self._clear_next = False
        self.dropped_bytes = 0
        """Bytes that the caps kept out."""

    @property
    def full(self) -> bool:
        """Whether the byte cap has been reached."""
        return self._kept >= self._limits.output_bytes

    def drop(self, size: int) -> None:
        """Count bytes that were dropped before they became a message."""
        self.dropped_bytes += size

    def feed(self, kind: str, content: Mapping[str, Any], size: int) -> None:
        """Take one message; `size` in bytes, as it came over the wire. Malformed ones are dropped."""
        if self.full and size > ERROR_BYTES and kind in OUTPUTS and not self._clear_next:
            self.dropped_bytes += size  # unread: a flood is met with as little work as can be
            return
        try:
            if kind == "stream":
                self._stream(str(content["name"]), str(content["text"]))
            elif kind in ("display_data", "execute_result", "update_display_data"):
                self._display(kind, content, size)
            elif kind == "error":
                self._error(content, size)
            elif kind == "clear_output":
                if content.get("wait"):
                    self._clear_next = True
                else:
                    self._clear()
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
            self.dropped_bytes += size

    def finish(self) -> list[Output]:
        """The outputs, plain nbformat v4 dicts."""
        for output in self._outputs:
            if output["output_type"] == "stream":
                output["text"] = _overwrite(self._streams[output["name"]]).decode("utf-8", "ignore")
        outputs = list(self._outputs)
        for i in range(len(outputs) - 1):
            if _is_stream(outputs[i], "stderr") and _is_stream(outputs[i + 1], "stdout"):
                outputs[i], outputs[i + 1] = outputs[i + 1], outputs[i]
        return outputs

    def _clear(self) -> None:
        self._outputs.clear()
        self._streams.clear()
        self._displays.clear()
        self._kept = self._overwrite_at = 0
        self._clear_next = False

    def _left(self, size: int) -> int:
        """Bytes that are left for the next `size`; overwritten lines make way, as a long progress bar has many."""
        left = self._limits.output_bytes - self._kept
        if size > left and self._kept >= self._overwrite_at:
            for name, text in self._streams.items():
                self._streams[name] = _overwrite(text)
                self._kept -= len(text) - len(self._streams[name])
            left = self._limits.output_bytes - self._kept
            # Not again before much has come: each time looks at all of the text.
            self._overwrite_at = self._kept + self._limits.output_bytes // 64
        return left

    def _room(self, size: int) -> bool:
        """Make way for one more output; False where the caps keep it out."""
        if self._clear_next:
            self._clear()
        if len(self._outputs) >= self._limits.output_messages or size > self._left(size):
            self.dropped_bytes += size
            return False
        self._kept += size
        return True

    def _stream(self, name: str, text: str) -> None:
        if name not in ("stdout", "stderr"):
            raise ValueError(name)
        if self._clear_next:
            self._clear()
        raw = text.encode("utf-8", "replace")
        new = name not in self._streams
        left = self._left(len(raw))
        if new and len(self._outputs) >= self._limits.output_messages:
            left = 0
        kept = raw[: max(left, 0)]
        self.dropped_bytes += len(raw) - len(kept)
        if not kept:
            return
        self._kept += len(kept)
        if new:
            self._streams[name] = bytearray()
            self._outputs.append({"output_type": "stream", "name": name, "text": ""})
        self._streams[name] += kept

    def _display(self, kind: str, content: Mapping[str, Any], size: int) -> None:
        data, metadata = _bundle(content["data"]), _clean(dict(content.get("metadata") or {}))
        display_id = str((content.get("transient") or {}).get("display_id") or "")
        if (display := self._displays.get(display_id)) is not None:
            if size - display.size > self._left(size - display.size):
                self.dropped_bytes += size
                return
            self._kept += size - display.size
            display.size = size
            for shown in display.outputs:
                shown["data"], shown["metadata"] = data, metadata
        if kind == "update_display_data":
            return
        output: Output = {"output_type": kind, "data": data, "metadata": metadata}
        if kind == "execute_result":
            count = content["execution_count"]
            output["execution_count"] = count if type(count) is int and 0 <= count < 1 << 31 else None
        if not self._room(size):
            return
        self._outputs.append(output)
        if display_id:
            self._displays.setdefault(display_id, _Display([], size)).outputs.append(output)

    def _error(self, content: Mapping[str, Any], size: int) -> None:
        if type(content["traceback"]) is not list:
            raise TypeError("traceback")
        traceback = [_clean(str(line)) for line in content["traceback"]]
        output: Output = {
            "output_type": "error",
            "ename": _clean(str(content["ename"])),
            "evalue": _clean(str(content["evalue"])),
            "traceback": traceback,
        }
        if self._room(size):
            self._outputs.append(output)
        elif not any(kept["output_type"] == "error" for kept in self._outputs):
            output |= {name: output[name][:ERROR_BYTES] for name in ("ename", "evalue")}
            output["traceback"] = traceback if size <= ERROR_BYTES else []
            self._outputs.append(output)


def _overwrite(text: bytearray) -> bytearray:
    """Each line from after its last carriage return; one at the very end of a line stays, as in nbclient."""
    if b"\r" not in text:
        return text
    # nbclient's `.*\r(?=[^\n])` takes quadratic time on a long line.
    lines = text.split(b"\n")
    return bytearray(b"\n").join(line[line.rfind(b"\r", 0, max(len(line) - 1, 0)) + 1 :] for line in lines)


def _is_stream(output: Output, name: str) -> bool:
    return bool(output["output_type"] == "stream" and output["name"] == name)


def _bundle(value: Any) -> dict[str, Any]:
    """A display's data by type of content. Raises ValueError where a notebook may not hold it."""
    data: dict[str, Any] = _clean(dict(value))
    for name, item in data.items():
        texts = item if isinstance(item, list) else [item]
        if not name.endswith(("/json", "+json")) and not all(isinstance(text, str) for text in texts):
            raise ValueError(name)
    return data


def _clean(value: Any, deep: int = 0) -> Any:
    """The same value without lone surrogates, which no UTF-8 file can hold, and numbers that are none in JSON."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # as jupyter_client does on the kernel's side
    if isinstance(value, (dict, list)) and deep >= DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, dict):
        return {_clean(key): _clean(item, deep + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, deep + 1) for item in value]
    return value
