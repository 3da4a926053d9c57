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

OUTER = "nbagent_kernels"
NAMES = ("work", "home", "tmp", "b")


def answer(sock: socket.socket) -> None:
    """Answer one request."""
    package = types.ModuleType(OUTER)  # the modules beside this one, without what the package itself imports
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules[OUTER] = package
    from nbagent_kernels.filestream import Frames, error_frame

    frames = Frames(sock)
    try:
        request = frames.hear()
        if request["verb"] == "connect":
            from .containedkernel import connect

            connect(sock, request)
            return
        VERBS[request["verb"]](frames, request)
    except Exception as error:
        frames.say(error_frame(error))


def make(frames: Any, request: dict[str, Any]) -> None:
    """Make a session's folders, with what the host sends in its working directory."""
    from nbagent_kernels.filestream import receive_tree

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
    from nbagent_kernels.filestream import CHUNK

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
    from nbagent_kernels.removal import FOLDER
    from nbagent_kernels.snapshot import copy_session

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
    from nbagent_kernels.removal import remove_tree

    remove_tree(Path(request["folder"]))
    frames.say({"kind": "done"})


def kernelspecs(frames: Any, request: dict[str, Any]) -> None:
    """Kernels that are installed here."""
    from jupyter_client.kernelspec import KernelSpecManager

    frames.say({"kind": "done", "specs": KernelSpecManager().get_all_specs()})


def files(request: dict[str, Any]) -> Any:
    """The file verbs on a session's working directory."""
    from nbagent_kernels.files import Files
    from nbagent_kernels.removal import FOLDER

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
