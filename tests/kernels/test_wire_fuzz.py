"""Anything at all on the lines from a kernel: nothing raises, nothing grows, what is whole is delivered."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from types import SimpleNamespace

import nbformat
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient.client import _RGX_CARRIAGERETURN

from nbagent_kernels import Limits, SessionSpec
from nbagent_kernels.forkedwire import ForkedWire, largest_frame
from nbagent_kernels.outputs import OutputFold
from nbagent_kernels.zmtp import ZmtpSocket

LARGEST = 1000
FEW = settings(max_examples=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
kinds = st.sampled_from(("stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"))
fields = st.sampled_from(
    ("name", "text", "data", "metadata", "transient", "execution_count", "ename", "evalue", "traceback", "wait")
)
contents = st.dictionaries(
    fields,
    json_values | st.sampled_from(("stdout", "stderr", {"text/plain": "x"}, {"display_id": "d"}, ["line"])),
    max_size=10,
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    return [chunk for chunk in (*chunks, data[at:]) if chunk]


def zmtp(tmp_path, chunks: list[bytes]) -> tuple[list[tuple[list[bytes], int]], int]:
    """What a socket hands over of these chunks from its peer, and how much it holds back."""
    given: list[tuple[list[bytes], int]] = []

    async def run() -> int:
        with socket.socket(socket.AF_UNIX) as listener:
            path = tmp_path / "s"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()

            def take(frames, size):
                given.append((list(frames), size))
                return False

            outer = socket.socket(socket.AF_UNIX)
            outer.connect(str(path))
            outer.setblocking(False)
            sock = ZmtpSocket(outer, "SUB", b"", LARGEST, take, lambda: None)
            for chunk in chunks:
                sock._feed(chunk)
            sock.close()
            return len(sock._buffer) + sum(map(len, sock._frames))

    held = asyncio.run(run())
    return given, held


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x06\x05READY"


@FEW
@given(data=st.binary(max_size=3000), greeted=st.booleans(), sizes=st.lists(st.integers(1, 500), max_size=8))
def test_zmtp_takes_any_bytes(tmp_path_factory, data, greeted, sizes):
    _, held = zmtp(tmp_path_factory.mktemp("z"), cut((GREETING + READY if greeted else b"") + data, sizes))
    assert held <= 2 * LARGEST + 500 + 3000


@FEW
@given(
    messages=st.lists(st.lists(st.binary(max_size=700), min_size=1, max_size=4), max_size=5),
    sizes=st.lists(st.integers(1, 400), max_size=12),
)
def test_zmtp_delivers_whole_messages_and_the_sizes_of_too_large_ones(tmp_path_factory, messages, sizes):
    data = GREETING + READY
    for frames in messages:
        for i, frame in enumerate(frames):
            more = i < len(frames) - 1
            long = len(frame) > 255
            data += bytes([more | long << 1]) + struct.pack("!Q" if long else "!B", len(frame)) + frame
    given, held = zmtp(tmp_path_factory.mktemp("z"), cut(data, sizes))
    expected = [(frames if sum(map(len, frames)) <= LARGEST else [], sum(map(len, frames))) for frames in messages]
    assert given == expected
    assert held == 0


def forked(chunks: list[bytes], limits: Limits) -> tuple[list[tuple[str, str, dict]], list[dict], int]:
    """What a forked kernel's wire hands over, what it asks of the server, and how much it holds back."""
    heard: list[tuple[str, str, dict]] = []
    ordered: list[dict] = []

    async def run() -> int:
        ours, theirs = socket.socketpair()
        workspace = SimpleNamespace(oom_kills=lambda: 0, groups=None)
        wire = ForkedWire(1, ours, SessionSpec(limits=limits), workspace, ordered.append, None)

        def listener(message):
            heard.append((message.kind, message.parent, dict(message.content)))
            return False

        wire.listen(listener)
        for chunk in chunks:
            wire._deliver(chunk)
        wire._stream.close()
        theirs.close()
        return len(wire._buffer)

    return heard, ordered, asyncio.run(run())


@FEW
@given(data=st.binary(max_size=3000), sizes=st.lists(st.integers(1, 500), max_size=8))
def test_a_forked_wire_takes_any_bytes(data, sizes):
    limits = Limits(output_bytes=1000)
    _, ordered, held = forked(cut(data, sizes), limits)
    assert held <= largest_frame(limits) + 3000
    assert all(order["op"] == "drop" for order in ordered)


@FEW
@given(
    frames=st.lists(json_values | st.fixed_dictionaries({"type": kinds, "parent": json_values, "content": contents})),
    sizes=st.lists(st.integers(1, 400), max_size=12),
)
def test_a_forked_wire_delivers_what_is_a_message(frames, sizes):
    bodies = [json.dumps(frame).encode() for frame in frames]
    data = b"".join(struct.pack("!I", len(body)) + body for body in bodies)
    heard, ordered, held = forked(cut(data, sizes), Limits())
    whole = [frame for frame in frames if isinstance(frame, dict) and type(frame.get("parent")) is str]
    assert [(kind, parent) for kind, parent, _ in heard] == [(f["type"], f["parent"]) for f in whole if "type" in f]
    assert (ordered, held) == ([], 0)


@given(st.lists(st.tuples(kinds, contents), max_size=12), st.sampled_from((10, 200, 10_000)))
@settings(max_examples=300)
def test_any_messages_fold_to_valid_outputs_under_the_cap(messages, cap):
    fold = OutputFold(Limits(output_bytes=cap))
    for kind, content in messages:
        fold.feed(kind, content, len(json.dumps(content)))
    outputs = fold.finish()
    json.dumps(outputs, allow_nan=False, ensure_ascii=False).encode()
    assert sum(len(output["text"]) for output in outputs if output["output_type"] == "stream") <= cap
    nodes = [nbformat.from_dict(output) for output in outputs]
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=nodes)]))


@given(st.lists(st.text(alphabet="ab\r\n", max_size=6), max_size=60))
def test_lines_overwritten_as_they_come_end_as_lines_overwritten_at_the_end(texts):
    capped = OutputFold(Limits(output_bytes=64))
    for text in texts:
        capped.feed("stream", {"name": "stdout", "text": text}, len(text))
    if not capped.dropped_bytes:
        given = "".join(output["text"] for output in capped.finish())
        assert given == _RGX_CARRIAGERETURN.sub("", "".join(texts))


def test_a_progress_bar_of_any_length_fits():
    fold = OutputFold(Limits(output_bytes=1000))
    for i in range(5000):
        fold.feed("stream", {"name": "stderr", "text": f"\r{i:8d} of 5000"}, 17)
    assert fold.finish()[0]["text"] == "    4999 of 5000"
    assert fold.dropped_bytes == 0


def test_a_display_updated_for_ever_keeps_its_last_state():
    fold = OutputFold(Limits(output_bytes=1000))
    fold.feed("display_data", {"data": {"text/plain": "0"}, "transient": {"display_id": "d"}}, 100)
    for i in range(100):
        fold.feed("update_display_data", {"data": {"text/plain": str(i)}, "transient": {"display_id": "d"}}, 100)
    assert fold.finish()[0]["data"]["text/plain"] == "99"
    assert fold.dropped_bytes == 0
