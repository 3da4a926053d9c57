"""A kernel's program started in a container, and its sockets connected there. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1


def become_program(request: dict[str, Any]) -> NoReturn:
    """In the server's child: become the kernel, in a process group of its own, with its connection file."""
    import resource

    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = Path(request["folder"])
    folder.mkdir()
    (folder / "connection.json").write_text(request["connection"])
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir(request["cwd"])
    kept = {name: os.environ[name] for name in request["keep"] if name in os.environ}
    for name, value in request["rlimits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.execvpe(request["argv"][0], request["argv"], kept | request["env"])


def connect(sock: socket.socket, request: dict[str, Any]) -> None:
    """Connect to a kernel's sockets and hand them out; says `n` where it has not bound all of them yet.

    Says `r` where the system hands no socket of its own out, as gVisor's does not: then each is to be relayed.
    """
    dialled = []
    try:
        for port in request["ports"]:
            dialled.append(dial(request["place"], port))
    except OSError:
        sock.sendall(b"n")
        return
    try:
        socket.send_fds(sock, [b"y"], [each.fileno() for each in dialled])
    except OSError:
        sock.sendall(b"r")


def relay(sock: socket.socket, request: dict[str, Any]) -> None:
    """Be one of a kernel's sockets until either side ends; says `n` where it is not bound, else `y` before all else."""
    try:
        kernel = dial(request["place"], request["port"])
    except OSError:
        sock.sendall(b"n")
        return
    sock.sendall(b"y")
    sock.settimeout(None)
    over = threading.Event()
    for source, sink in ((sock, kernel), (kernel, sock)):
        threading.Thread(target=copy, args=(source, sink, over), daemon=True).start()
    over.wait()


def copy(source: socket.socket, sink: socket.socket, over: threading.Event) -> None:
    """Send on what comes."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 18):
            sink.sendall(chunk)
    over.set()


def dial(place: str, port: int) -> socket.socket:
    """A connection to one of a kernel's sockets. Raises OSError where it is not bound."""
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dialled.connect(f"{place}-{port}")
    return dialled
