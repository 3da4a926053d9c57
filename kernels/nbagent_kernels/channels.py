"""Jupyter's channels of one kernel process over ipc: signed requests out, checked messages in.

The key that signs messages is known to the code in the kernel: a good signature makes a message well-formed, never
true.
"""

from __future__ import annotations

import hmac
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jupyter_client.session import DELIM
from jupyter_client.session import Session as Signer

from nbagent_kernels.wire import Listener, Message, message
from nbagent_kernels.zmtp import ZmtpSocket

PORTS: Mapping[str, int] = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "hb_port": 4, "control_port": 5}
"""What ends the names of the sockets' files, in place of ports."""
_KINDS: Mapping[str, str] = {"shell": "DEALER", "iopub": "SUB", "control": "DEALER", "stdin": "DEALER"}
# A kernel asks for input under the identity that the request came from.
_IDENTITY = b"nbagent"


class Channels:
    """Shell, iopub, control and stdin.

    Args:
        key: signs the messages.
        largest: bytes; a larger message is read past, and told as `dropped`.
        ended: called when the kernel closed a channel.
    """

    def __init__(self, key: str, largest: int, ended: Callable[[], None]) -> None:
        self._signer = Signer(key=key.encode(), session=key, username="nbagent")
        self._largest = largest
        self._ended = ended
        self._sockets: dict[str, ZmtpSocket] = {}
        self.listener: Listener | None = None
        """Takes every message but control's; None drops them unread."""

    def connect(self, dial: Callable[[int], socket.socket]) -> bool:
        """Connect; False where the kernel has not bound all its sockets yet.

        Args:
            dial: gives a connected socket for one of `PORTS`; raises OSError where nobody listens.
        """
        for name, kind in _KINDS.items():
            if name not in self._sockets:
                take = self._take_of(name)
                try:
                    sock = dial(PORTS[f"{name}_port"])
                except OSError:
                    return False
                self._sockets[name] = ZmtpSocket(sock, kind, _IDENTITY, self._largest, take, self._ended)
        return True

    def send(self, channel: str, kind: str, content: Mapping[str, Any], parent: str) -> None:
        """Send a request with `parent` as its id."""
        if channel in self._sockets:
            request = self._signer.msg(kind, dict(content))
            request["header"]["msg_id"] = request["msg_id"] = parent
            self._sockets[channel].send(self._signer.serialize(request))

    def unsent(self, channel: str) -> int:
        """Bytes of requests that the kernel has not taken yet."""
        return self._sockets[channel].unsent if channel in self._sockets else 0

    def drain(self) -> None:
        """Take in what the kernel sent before its end."""
        for sock in self._sockets.values():
            sock.drain()

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def _take_of(self, name: str) -> Callable[[Sequence[bytes], int], bool]:
        def take(frames: Sequence[bytes], size: int) -> bool:
            if self.listener is None or name == "control":
                return True
            given = self._checked(frames, size) if frames else Message("dropped", "", {"reply": name == "shell"}, size)
            return self.listener(given) if given is not None else True

        return take

    def _checked(self, frames: Sequence[bytes], size: int) -> Message | None:
        """The message in these frames, None where it is none."""
        try:
            at = frames.index(DELIM) + 1
            signature, signed = frames[at], list(frames[at + 1 : at + 5])
            if not hmac.compare_digest(signature, self._signer.sign(signed)):
                return None
            header, parent, _, content = signed
            parent_id = json.loads(parent).get("msg_id", "")
            return message(json.loads(header)["msg_type"], parent_id, Content(content), size)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return None


class Content(Mapping[str, Any]):
    """A message's content, decoded when it is first looked at; empty where it is no JSON object."""

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._decoded: dict[str, Any] | None = None

    def __getitem__(self, key: str) -> Any:
        return self._dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def _dict(self) -> dict[str, Any]:
        if self._decoded is None:
            try:
                decoded = json.loads(self._raw)
            except (ValueError, RecursionError):
                decoded = None
            self._decoded = decoded if isinstance(decoded, dict) else {}
            self._raw = b""
        return self._decoded
