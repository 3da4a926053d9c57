"""Folds a kernel's messages into nbformat outputs by nbclient's rules, under a cap that holds while they arrive.

The rules are nbclient 0.11's with `coalesce_streams`: text of one stream is joined into its first output, carriage
returns overwrite their line, stderr right before stdout trades places with it, `clear_output(wait=True)` acts at the
next output, `update_display_data` rewrites the cell's outputs of that display id and adds none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbagent_kernels.types import Limits, Output

ERROR_BYTES = 1 << 16
"""An error is kept up to this size even where the cap is reached: it is what the reader needs most."""


class OutputFold:
    """The outputs of one cell, as they stand after the messages fed so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._outputs: list[Output] = []
        self._streams: dict[str, list[str]] = {}
        self._displays: dict[str, list[Output]] = {}
        self._kept = 0
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
        """Take one message; `size` in bytes, as it came over the wire. Malformed ones are ignored."""
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
        except (KeyError, TypeError, AttributeError, ValueError):
            self.dropped_bytes += size

    def finish(self) -> list[Output]:
        """The outputs, plain nbformat v4 dicts."""
        for output in self._outputs:
            if output["output_type"] == "stream":
                output["text"] = _overwrite("".join(self._streams[output["name"]]))
        outputs = list(self._outputs)
        for i in range(len(outputs) - 1):
            if _is_stream(outputs[i], "stderr") and _is_stream(outputs[i + 1], "stdout"):
                outputs[i], outputs[i + 1] = outputs[i + 1], outputs[i]
        return outputs

    def _clear(self) -> None:
        self._outputs.clear()
        self._streams.clear()
        self._displays.clear()
        self._kept = 0
        self._clear_next = False

    def _room(self, size: int) -> bool:
        """Make way for one more output; False where the caps keep it out."""
        if self._clear_next:
            self._clear()
        if len(self._outputs) >= self._limits.output_messages or self._kept + size > self._limits.output_bytes:
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
        left = self._limits.output_bytes - self._kept
        if new and len(self._outputs) >= self._limits.output_messages:
            left = 0
        kept = raw[: max(left, 0)]
        self.dropped_bytes += len(raw) - len(kept)
        if not kept:
            return
        self._kept += len(kept)
        if new:
            self._streams[name] = []
            self._outputs.append({"output_type": "stream", "name": name, "text": ""})
        self._streams[name].append(kept.decode("utf-8", "ignore"))

    def _display(self, kind: str, content: Mapping[str, Any], size: int) -> None:
        data, metadata = _clean(dict(content["data"])), _clean(dict(content.get("metadata") or {}))
        display_id = str((content.get("transient") or {}).get("display_id") or "")
        if self._displays.get(display_id):
            if self._kept + size > self._limits.output_bytes:
                self.dropped_bytes += size
                return
            self._kept += size
            for shown in self._displays[display_id]:
                shown["data"], shown["metadata"] = data, metadata
        if kind == "update_display_data" or not self._room(size):
            return
        output: Output = {"output_type": kind, "data": data, "metadata": metadata}
        if kind == "execute_result":
            output["execution_count"] = content["execution_count"]
        self._outputs.append(output)
        if display_id:
            self._displays.setdefault(display_id, []).append(output)

    def _error(self, content: Mapping[str, Any], size: int) -> None:
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
            output["evalue"] = output["evalue"][:ERROR_BYTES]
            output["traceback"] = traceback if size <= ERROR_BYTES else []
            self._outputs.append(output)


def _overwrite(text: str) -> str:
    """Each line from after its last carriage return; one at the very end of a line stays, as in nbclient."""
    if "\r" not in text:
        return text
    # nbclient's `.*\r(?=[^\n])` takes quadratic time on a long line.
    return "\n".join(line[line.rfind("\r", 0, max(len(line) - 1, 0)) + 1 :] for line in text.split("\n"))


def _is_stream(output: Output, name: str) -> bool:
    return bool(output["output_type"] == "stream" and output["name"] == name)


def _clean(value: Any) -> Any:
    """The same value without lone surrogates, which no UTF-8 file can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value
