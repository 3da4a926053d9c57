"""A forked kernel's answers to its host: requests are read from the stream socket and run one after another.

Runs in the kernel's interpreter: standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import types
from typing import Any

from .forkedbranch import branch
from .forkedstreams import Channel

FDS = 4
"""Descriptors that one read may bring."""


class Service:
    """The loop of one kernel. It ends with the process."""

    def __init__(self, kernel: Any, channel: Channel, sock: socket.socket) -> None:
        self.kernel = kernel
        self.channel = channel
        self.sock = sock
        # Unlike epoll's, poll's list of descriptors is the process's own: a fork does not share it.
        self.loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        asyncio.set_event_loop(self.loop)
        self.buffer = bytearray()
        self.fds: list[int] = []
        self.running: set[Any] = set()
        self.asked: list[tuple[dict[str, Any], socket.socket]] = []
        """Branches to be made, each with the kernel's end of its stream pair."""
        # What ipykernel asks of its tornado loop; a real one costs 2 ms to make.
        kernel.io_loop = types.SimpleNamespace(
            call_later=self.loop.call_later, add_callback=self.loop.call_soon, stop=self.loop.stop
        )

    def serve(self) -> None:
        """Say that the kernel is there, and answer until killed."""
        self.loop.add_reader(self.sock, self.readable)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.channel.send("ready", {"pid": os.getpid()})
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                self.loop.run_forever()
                if not self.asked:
                    break  # the cell called exit()
                branch(self, *self.asked.pop(0))
        os._exit(0)

    def take(self, sock: socket.socket) -> None:
        """In a branch: answer another host, on a loop that wakes nobody else."""
        self.loop.remove_reader(self.sock)
        self.sock.close()
        self.loop._close_self_pipe()  # type: ignore[attr-defined]
        self.loop._make_self_pipe()  # type: ignore[attr-defined]
        self.sock = sock
        self.loop.add_reader(sock, self.readable)

    def readable(self) -> None:
        """Take in what the host sent."""
        self.leave_if_forked()
        chunk, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, FDS)
        if not chunk:
            os._exit(0)
        self.fds += fds
        self.buffer += chunk
        while len(self.buffer) >= 4 and len(self.buffer) >= 4 + (size := struct.unpack_from("!I", self.buffer)[0]):
            message = json.loads(bytes(self.buffer[4 : 4 + size]))
            del self.buffer[: 4 + size]
            if message["type"] == "branch":
                self.asked.append((message["content"], socket.socket(fileno=self.fds.pop(0))))
                self.loop.stop()  # to fork outside of it
                continue
            task = self.loop.create_task(self.run(message))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def run(self, message: dict[str, Any]) -> None:
        """One request, from its message to its reply."""
        channel = self.channel
        header = {"msg_id": message["parent"], "msg_type": message["type"]}
        channel.current, channel.replied = message["parent"], False
        try:
            await self.kernel.shell_main(None, {"header": header, "content": message["content"], "metadata": {}})
        except KeyboardInterrupt:
            self.kernel.log.debug("an interrupt came between two lines of the kernel's own code")
        finally:
            self.leave_if_forked()
            channel.interrupted = False
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if not channel.replied:
                channel.send("execute_reply", {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""})
                channel.send("status", {"execution_state": "idle"})

    def leave_if_forked(self) -> None:
        """End a process that a cell's os.fork made: it must not take this kernel's requests."""
        if os.getpid() != self.channel.pid:
            os._exit(0)
