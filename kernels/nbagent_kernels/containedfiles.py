"""The sandbox's side of file verbs: answers one request over a stream socket. Runs in the kernel's interpreter.

The host opens nothing in a sandbox; it takes what comes over the stream, within bounds of its own (filestream.py).
"""

from __future__ import annotations

import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

from .containedkernel import connect, relay

OUTER = "nbagent_kernels"
if __package__ != OUTER:  # inside: the modules beside this one, without what the package itself imports
    package = types.ModuleType(OUTER)
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules[OUTER] = package

from nbagent_kernels.files import Files  # noqa: E402
from nbagent_kernels.filestream import CHUNK, Frames, error_frame, receive_tree  # noqa: E402
from nbagent_kernels.removal import FOLDER, remove_tree  # noqa: E402
from nbagent_kernels.snapshot import copy_session  # noqa: E402

NAMES = ("work", "home", "tmp", "b")


def answer(sock: socket.socket) -> None:
    """Answer one request."""
    frames = Frames(sock)
    try:
        request = frames.hear()
        if request["verb"] in SOCKETS:
            SOCKETS[request["verb"]](sock, request)
        else:
            VERBS[request["verb"]](frames, request)
    except Exception as error:
        frames.say(error_frame(error))


def make(frames: Any, request: dict[str, Any]) -> None:
    """Make a session's folders, with what the host sends in its working directory."""
    for name in NAMES:
        Path(request["folder"], name).mkdir(mode=0o755, parents=True, exist_ok=True)
    fill = os.open(f"{request['folder']}/work", os.O_RDONLY | os.O_DIRECTORY)
    receive_tree(frames, fill, sys.maxsize, links=True)
    frames.say({"kind": "done"})


def list_folder(frames: Any, request: dict[str, Any]) -> None:
    """Entries of a folder."""
    entries = files(request).list(request["path"])
    frames.say({"kind": "done", "entries": [[entry.path, entry.size, entry.is_dir] for entry in entries]})


def read(frames: Any, request: dict[str, Any]) -> None:
    """The begin of a file."""
    content = files(request).read(request["path"], request["max_bytes"])
    frames.say({"kind": "done"})
    for at in range(0, len(content), CHUNK):
        frames.send(content[at : at + CHUNK])
    frames.send(b"")


def export(frames: Any, request: dict[str, Any]) -> None:
    """The working directory as a tree."""
    files(request).send(frames, request["max_bytes"])
    frames.say({"kind": "end"})


def copy(frames: Any, request: dict[str, Any]) -> None:
    """Copy a session's folders to those of its branch, made here."""
    target = Path(request["target"])
    for name in NAMES:
        (target / name).mkdir(mode=0o755, parents=True)
    ends = [
        types.SimpleNamespace(
            folder=folder, work=folder / "work", home=folder / "home", tmp=folder / "tmp", fd=os.open(folder, FOLDER)
        )
        for folder in (Path(request["folder"]), target)
    ]
    copy_session(*ends)  # type: ignore[arg-type]
    frames.say({"kind": "done"})


def remove(frames: Any, request: dict[str, Any]) -> None:
    """Remove a branch's folders."""
    remove_tree(Path(request["folder"]))
    frames.say({"kind": "done"})


def kernelspecs(frames: Any, request: dict[str, Any]) -> None:
    """Kernels that are installed here."""
    from jupyter_client.kernelspec import KernelSpecManager

    frames.say({"kind": "done", "specs": KernelSpecManager().get_all_specs()})


def files(request: dict[str, Any]) -> Any:
    """The file verbs on a session's working directory."""
    work = Path(request["folder"], "work")
    return Files(work, os.open(work, FOLDER), [Path(path) for path in request["shared"]])


VERBS = {
    "make": make,
    "list": list_folder,
    "read": read,
    "export": export,
    "copy": copy,
    "remove": remove,
    "kernelspecs": kernelspecs,
}
SOCKETS = {"connect": connect, "relay": relay}
"""Verbs whose answer is no frame."""
