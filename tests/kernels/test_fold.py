"""The fold of messages into outputs, and its caps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from nbclient.client import _RGX_CARRIAGERETURN

from nbagent_kernels import Limits
from nbagent_kernels.outputs import OutputFold


def stream(text, name="stdout"):
    return "stream", {"name": name, "text": text}, len(text)


def test_text_beyond_the_cap_is_dropped_and_counted():
    fold = OutputFold(Limits(output_bytes=10))
    for _ in range(4):
        fold.feed(*stream("éé\n"))
    assert fold.finish() == [{"output_type": "stream", "name": "stdout", "text": "éé\néé\n"}]
    assert fold.dropped_bytes == 10
    assert fold.full


def test_a_character_is_never_cut():
    fold = OutputFold(Limits(output_bytes=3))
    fold.feed(*stream("éé"))
    assert fold.finish()[0]["text"] == "é"


def test_clearing_makes_room_again():
    fold = OutputFold(Limits(output_bytes=10))
    fold.feed(*stream("0123456789"))
    fold.feed("clear_output", {"wait": False}, 2)
    fold.feed(*stream("abc"))
    assert fold.finish()[0]["text"] == "abc"
    assert fold.dropped_bytes == 0


def test_an_error_is_kept_when_the_cap_is_reached():
    fold = OutputFold(Limits(output_bytes=4))
    fold.feed(*stream("01234567"))
    fold.feed("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}, 40)
    assert [output["output_type"] for output in fold.finish()] == ["stream", "error"]


def test_malformed_messages_are_dropped():
    fold = OutputFold(Limits())
    for kind, content in (
        ("stream", {}),
        ("stream", {"name": "other", "text": "x"}),
        ("display_data", {"data": 3}),
        ("display_data", {"data": {}, "transient": 7}),
        ("execute_result", {"data": {}}),
        ("error", {"ename": "E"}),
        ("comm_open", {}),
        ("nonsense", {}),
    ):
        fold.feed(kind, content, 5)
    assert fold.finish() == []


def test_lone_surrogates_do_not_reach_the_notebook():
    fold = OutputFold(Limits())
    fold.feed("display_data", {"data": {"text/plain": "a\ud800", "x/json": {"k\ud800": ["\ud800"]}}, "metadata": {}}, 9)
    str(fold.finish()).encode()


@given(st.text(alphabet="ab\r\n", max_size=40))
def test_carriage_returns_as_in_nbclient(text):
    fold = OutputFold(Limits())
    fold.feed(*stream(text))
    assert "".join(output["text"] for output in fold.finish()) == _RGX_CARRIAGERETURN.sub("", text)
