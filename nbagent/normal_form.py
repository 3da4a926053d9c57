"""The normal form of outputs: what two runs of the same code share, with addresses, paths and counters aside."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_RULES = (
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"\S*ipykernel_\d+/\d+\.py"), "<cell>"),
    (re.compile(r"\b0x[0-9a-fA-F]{6,}"), "<address>"),
    (re.compile(r"\bCell In\s?\[\d+\]"), "Cell In[]"),
    (re.compile(r"<ipython-input-\d+-[0-9a-f]+>"), "<cell>"),
    (re.compile(r"(?<![\w/.:])/(?:[\w.+@%~-]+/)+"), "<path>/"),
    (re.compile(r"\btmp[a-z0-9_]{8}\b"), "tmp<name>"),
    (re.compile(r"\bT_[0-9a-f]{5}(?=\b|_)"), "T_<style>"),
)


def normal_text(text: str) -> str:
    """`text` without terminal colours, object addresses, folders of absolute paths, temporary names, cell numbers."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _joined(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _data(bundle: Mapping[str, Any]) -> dict[str, Any]:
    # Only text can hold paths and addresses; images are compared byte for byte.
    return {
        mime: normal_text(_joined(value)) if mime.startswith("text/") else value
        for mime, value in sorted(bundle.items())
    }


def normal_outputs(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """nbformat v4 outputs in normal form; neighbouring pieces of one stream are joined, metadata is left out."""
    normal: list[dict[str, Any]] = []
    streams: list[list[str]] = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            text = _joined(output["text"])
            if normal and normal[-1].get("stream") == output["name"]:
                streams[-1].append(text)
                continue
            streams.append([text])
            normal.append({"stream": output["name"], "text": streams[-1]})
        elif kind == "error":
            trace = normal_text("\n".join(output.get("traceback", ())))
            normal.append({"error": output["ename"], "value": normal_text(output["evalue"]), "traceback": trace})
        else:
            normal.append({kind: _data(output["data"])})
    for entry in normal:
        if "stream" in entry:
            entry["text"] = normal_text("".join(entry["text"]))
    return normal


def digest(outputs: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the normal form; '' for no outputs."""
    normal = normal_outputs(outputs)
    return hashlib.sha256(json.dumps(normal, sort_keys=True).encode("ascii")).hexdigest() if normal else ""


def ran(before: str, execution: Mapping[str, Any], outputs: str) -> str:
    """Hash of what ran in a kernel since it was last started: each cell's source and how it ended, in order.

    Args:
        before: the hash before this cell; '' for a kernel in which none ran.
        execution: the cell's `execution` event.
        outputs: digest of its outputs, in which what is random in a cell most often shows.
    """
    ended = json.dumps([before, execution["source"], execution["status"], outputs])
    return hashlib.sha256(ended.encode("ascii")).hexdigest()


def state_key(notebook: Mapping[str, Any], digests: Mapping[str, str], kernel: str = "") -> str:
    """Hash of the normalised state: cell types, sources and outputs in order, ids and counts aside; and the kernel.

    Two notebooks may look alike while one kernel has all variables and the other, started anew, has none. Variables
    cannot be compared cheaply, so what ran stands for them (`ran`): kernels in which the same cells ran in the same
    order and gave the same outputs are held to be alike. This parts some states that are alike, such as after a cell
    that changed nothing. Not covered: files that cells wrote, which a restart leaves, and what differs in variables and
    shows in no output.

    Args:
        notebook: nbformat v4.
        digests: by cell id, the digest of its outputs, so that long outputs are hashed once, when they arrive, and not
            at every step.
        kernel: what ran in the kernel, see `ran`; '' for one in which nothing did.
    """
    state = hashlib.sha256(kernel.encode("ascii"))
    for cell in notebook["cells"]:
        shown = digests.get(cell["id"], "") if cell.get("outputs") else ""
        # The parts are told apart by their lengths: joined bare, ("ab", "c") and ("a", "bc") would collide.
        source = _joined(cell["source"]).encode("utf-8", "surrogatepass")
        state.update(f"{cell['cell_type']}:{len(source)}:{shown}:".encode("ascii"))
        state.update(source)
    return state.hexdigest()[:32]
