"""A live kernel forks itself between two cells. Runs in the kernel's interpreter: standard library only.

The kernel forks a go-between, which forks the branch and waits. While the kernel stands still the host copies the
working directory; then the server, told of the branch, kills the go-between: the branch is the server's child from then
on, as every kernel is, and the kernel goes on.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from .confine import confine
from .forkedfiles import Move, mappings
from .forkedobstacles import obstacle
from .forkedstreams import pipe_descriptors, watch_descriptors

if TYPE_CHECKING:
    from .forkedservice import Service

PR_SET_PDEATHSIG = 1
ADOPTION_S = 1.0
"""Seconds between the end of the go-between's descriptors and of the go-between itself, at most."""
NESTED, LONG = 3, 10_000
"""Lists and dicts within each other, and entries of one, in which paths are looked for."""

_libc = ctypes.CDLL(None, use_errno=True)


def branch(service: Service, request: dict[str, Any], sock: socket.socket) -> None:
    """Fork; returns in the kernel when the go-between has ended, and in the branch when it is ready.

    `request` has `source` and `target`, the folders of the two sessions, and `env`, what the branch's has anew.
    """
    kernel = os.getpid()
    try:
        move = Move(request["source"], request["target"], mappings("...s"))
        why = "a cell is running" if service.running else obstacle(move)
        if not why and fork_twice(service, request, sock, move):
            return
    except Exception as error:
        if os.getpid() != kernel:
            os._exit(70)
        why = f"{type(error).__name__}: {error}"
    sock.close()
    service.channel.send("branch_reply", {"why": why}, "")


def fork_twice(service: Service, request: dict[str, Any], sock: socket.socket, move: Move) -> bool:
    """True in the branch, False in the kernel."""
    kernel, server = os.getpid(), os.getppid()
    for stream in service.channel.streams:
        stream.flush()
    drawn = random.getstate()
    gate, held = os.pipe()
    try:
        with service.channel.whole(), warnings.catch_warnings():  # so that nothing is half sent in the branch
            warnings.simplefilter("ignore")  # newer Pythons warn of the thread that watches descriptors
            between = os.fork()
            if not between:
                go_between(kernel)
        if not between:
            random.setstate(drawn)  # the random module seeds itself anew in a fork
            os.close(held)
            come_up(service, request, sock, gate, server, move)
            return True
        os.waitpid(between, 0)
        return False
    finally:
        if os.getpid() == kernel:
            os.close(gate)
            os.close(held)


def go_between(kernel: int) -> None:
    """Fork the branch and live as long as it does, or until killed. Returns in the branch only."""
    branch = -1
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == kernel and (branch := os.fork()):
            os.waitpid(branch, 0)
    finally:
        if branch:
            os._exit(0)


def come_up(service: Service, request: dict[str, Any], sock: socket.socket, gate: int, server: int, move: Move) -> None:
    """In the branch: a line to the host, then, once the files are copied, what the kernel held of them."""
    channel = service.channel
    try:
        channel.sock, channel.pid = sock, os.getpid()
        service.take(sock)
        pipe_descriptors(channel.streams)
        channel.send("born", {"pid": os.getpid()}, "")
        if not adopted(sock, gate, server):
            os._exit(0)
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(0)
        move.mappings()
        move.descriptors()
        move_names(service.kernel.shell.user_ns, move, request)
        tempfile.tempdir = None
        confine(request["confine"])  # this thread and those to come
        watch_descriptors(channel.streams)
        channel.send("ready", {"pid": os.getpid()}, "")
    except BaseException:
        for stream in channel.streams:
            stream.flush()
        channel.send("failed", {"why": traceback.format_exc()}, "")
        os._exit(70)


def move_names(variables: dict[str, Any], move: Move, request: dict[str, Any]) -> None:
    """Let what names a place in the parent's folder name the branch's: environment, working directory, sys.path.

    So do the user's variables that are paths, or lists and dicts of them; paths inside of other objects stay the
    parent's.
    """
    for name, value in os.environ.items():
        if f"{move.source}/" in value:
            os.environ[name] = value.replace(f"{move.source}/", f"{move.target}/")
    os.environ.update(request["env"])
    try:
        here = move.path(str(Path.cwd()))
    except FileNotFoundError:  # the folder was removed under the kernel
        here = request["cwd"]
    os.chdir(here)
    variables["_dh"][:] = [here]
    sys.path[:] = [move.path(entry) for entry in sys.path]
    for name, value in list(variables.items()):
        variables[name] = moved(value, move)


def moved(value: Any, move: Move, depth: int = NESTED) -> Any:
    """A path, or a list or dict with paths in it, in the branch's folder; anything else as it is."""
    if type(value) is str or isinstance(value, PurePath):
        place = move.path(str(value))
        return value if place == str(value) else type(value)(place)
    if depth and type(value) in (list, dict) and len(value) <= LONG:
        for key, item in enumerate(value) if type(value) is list else list(value.items()):
            value[key] = moved(item, move, depth - 1)
    return value


def adopted(sock: socket.socket, gate: int, server: int) -> bool:
    """Wait until this process is the server's; False where the host gave up."""
    poll = select.poll()
    poll.register(gate, select.POLLIN)
    poll.register(sock, select.POLLIN)
    if gate not in dict(poll.poll()):
        return False
    os.close(gate)
    end = time.monotonic() + ADOPTION_S
    while os.getppid() != server and time.monotonic() < end:
        time.sleep(0.0005)  # a process closes its descriptors a moment before its children are given away
    return os.getppid() == server
