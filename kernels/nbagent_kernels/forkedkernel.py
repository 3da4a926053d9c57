"""A kernel made before a fork and given life after it. Runs in the kernel's interpreter, which needs ipykernel.

It is ipykernel's own IPythonKernel, with its shell, without zmq's threads and ports: Jupyter's messages pass over a
stream socket (forkedstreams.py, forkedservice.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

from .confine import confine
from .forkedservice import Service
from .forkedstreams import Channel, make_stream, pipe_descriptors, watch_descriptors

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def make_kernel(channel: Channel, warm: bool) -> Any:
    """IPythonKernel with its shell, as far as it can be made before the fork: no thread, no loop, no socket.

    Args:
        warm: run the first cells here, once for all forks.
    """
    import logging

    from traitlets.config import Config

    sys.modules["debugpy"] = None  # type: ignore[assignment]
    import ipykernel.debugger  # noqa: F401  (finds no debugpy, so that no debugger is made)

    del sys.modules["debugpy"]
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp
    from jupyter_client.session import Session, extract_header

    class ChannelSession(Session):  # type: ignore[misc]
        def send(self, stream: Any, kind: Any, content: Any = None, parent: Any = None, *args: Any, **kw: Any) -> Any:
            header = None
            if isinstance(kind, dict):
                content, header, kind = kind["content"], kind.get("parent_header"), kind["header"]["msg_type"]
            elif parent:
                header = extract_header(parent)
            if kind == "execute_reply":
                channel.replied = True
                content = {k: content[k] for k in ("status", "execution_count", "ename", "evalue") if k in content}
            elif kind == "execute_input":
                content = {"execution_count": content["execution_count"]}  # the host has the code
            if not (kind == "status" and content["execution_state"] != "idle"):
                channel.send(kind, content, (header or {}).get("msg_id", channel.current))
            return {"content": content}

        def feed_identities(self, msg: Any, copy: bool = True) -> Any:
            return [], msg

        def deserialize(self, msg: Any, content: bool = True, copy: bool = True) -> Any:
            return msg

    class ForkedKernel(IPythonKernel):  # type: ignore[misc]
        _supports_kernel_subshells = False

        def pre_handler_hook(self) -> None:
            channel.interrupted = False
            signal.signal(signal.SIGINT, channel.on_sigint)

        @contextlib.contextmanager
        def _cancel_on_sigint(self, future: Any) -> Any:
            # ipykernel's own handler does not wake a loop that waits, and cannot interrupt one that computes.
            loop = asyncio.get_running_loop()

            def handle(*args: Any) -> None:
                if asyncio.current_task(loop) is None:
                    loop.call_soon_threadsafe(future.cancel)
                else:
                    channel.on_sigint(*args)

            saved = signal.signal(signal.SIGINT, handle)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, saved)

        def post_handler_hook(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    config = Config()
    config.HistoryManager.enabled = False
    config.Completer.use_jedi = False
    config.Kernel._execute_sleep = 0.0
    session = ChannelSession(key=b"", config=config)
    # Never initialized: it is there for those that look the kernel up through it, as %matplotlib does.
    app = IPKernelApp.instance(config=config)
    kernel = ForkedKernel.instance(
        parent=app,
        session=session,
        user_ns={},
        iopub_socket=channel,
        log=logging.getLogger("ipykernel"),
        shell_channel_thread=types.SimpleNamespace(parent_thread=threading.main_thread()),
    )
    app.kernel, app.shell = kernel, kernel.shell
    kernel.shell.displayhook.get_execution_count = lambda: kernel.execution_count
    if "matplotlib.pyplot" in sys.modules:
        kernel.shell.enable_matplotlib("inline")
    if warm:
        warm_up(kernel)
    skip_search_for_cells()
    return kernel


WARM = (
    ("sys", "1 + 1"),
    ("sys", "1 / 0"),
    ("sys", "__import__('IPython').display.HTML('')"),
    ("pandas", "__import__('pandas').DataFrame({'a': [1.0]}).describe()"),
    ("matplotlib.pyplot", "import matplotlib.pyplot as plot; plot.plot([1, 2]); plot.show()"),
)
"""Cells run before the fork where the module is imported, so that their caches are made once; outputs go nowhere."""


def skip_search_for_cells() -> None:
    """Let inspect.getmodule say at once that a cell's code belongs to no module.

    It would look through all of sys.modules to say the same, at each traceback: 15 ms with scanpy imported.
    """
    import inspect

    search = inspect.getmodule

    def getmodule(object: Any, _filename: str | None = None) -> Any:
        code = object.f_code if isinstance(object, types.FrameType) else object
        if isinstance(code, types.CodeType) and "/ipykernel_" in code.co_filename:
            return None
        return search(object, _filename)

    inspect.getmodule = getmodule


def warm_up(kernel: Any) -> None:
    """Run the cells every session is likely to need as a request would run them, then forget them."""
    shell = kernel.shell
    before = set(shell.user_ns)
    stdout, stderr = sys.stdout, sys.stderr
    content = {"silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": False}

    async def run() -> None:
        """Every kind of cell once."""
        for module, code in WARM:
            if module in sys.modules:
                header = {"msg_id": "warm", "msg_type": "execute_request"}
                await kernel.shell_main(None, {"header": header, "content": {**content, "code": code}, "metadata": {}})

    with Path(os.devnull).open("w") as sink:
        sys.stdout = sys.stderr = sink
        try:
            asyncio.run(run())
        finally:
            sys.stdout, sys.stderr = stdout, stderr
    for name in set(shell.user_ns) - before:
        del shell.user_ns[name]
        shell.user_ns_hidden.pop(name, None)
    shell.displayhook.flush()
    for name in ("_", "__", "___"):  # the hook follows them only while both hold the same
        setattr(shell.displayhook, name, "")
        shell.push({name: ""}, interactive=False)
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        with contextlib.suppress(AttributeError):
            delattr(sys, name)
    shell.execution_count = 1


def become_kernel(kernel: Any, channel: Channel, sock: socket.socket, request: dict[str, Any]) -> None:
    """In the child: take on the session's environment, limits and seeds, then serve until killed."""
    import random
    import resource
    import tempfile

    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    kept = {name: os.environ[name] for name in request.get("keep", ()) if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | request["env"])
    kernel.shell.init_environment()
    os.chdir(request["cwd"])
    kernel.shell.user_ns["_dh"][:] = [str(Path.cwd())]
    tempfile.tempdir = None
    random.seed(request["seed"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(request["seed"] % (1 << 32))

    confine(request["confine"])  # this thread and those to come
    channel.sock, channel.pid, channel.largest = sock, os.getpid(), request["largest"]
    channel.streams = sys.stdout, sys.stderr = make_stream(channel, "stdout", 1), make_stream(channel, "stderr", 2)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    pipe_descriptors(channel.streams)
    watch_descriptors(channel.streams)
    for name, value in request["rlimits"].items():
        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    Service(kernel, channel, sock).serve()
