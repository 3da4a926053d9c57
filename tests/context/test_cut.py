"""Noise removed, and long text cut by rows and columns."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.clean import clean, quiet
from nbagent_context.cut import SHORTEST, first_line, head_tail


def test_terminal_noise_is_removed():
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07plain\x00\x07") == "red plain"
    assert clean("10%\r50%\r100%\ndone\r\n") == "100%\ndone\n"


def test_progress_bars_go_when_they_are_done():
    done = "start\n 50%|#####     | 1/2\n100%|██████████| 2/2 [00:00<00:00]\nend"
    assert quiet(done) == "start\nend"
    assert quiet("  |=====     |  40%\n  |========  |  80%\nstopped") == "  |========  |  80%\nstopped"
    assert quiet("100 % of 3 | genes") == "100 % of 3 | genes"


def test_a_warning_stands_once_without_its_place():
    text = (
        "/x/pandas/core/frame.py:12: FutureWarning: mean is old\n  df.mean()\n"
        "/tmp/ipykernel_3/1.py:7: FutureWarning: mean is old\n  df.mean()\n"
        "<ipython-input-3>:1: UserWarning: odd\n5\n  indented"
    )
    assert quiet(text) == "FutureWarning: mean is old\nUserWarning: odd\n5\n  indented"


def test_repeated_lines_are_counted():
    assert quiet("a\n" + "retry\n" * 41 + "b\nb\nb") == "a\nretry\n[the same 40 more times]\nb\nb\nb"
    assert quiet("a\n\n\n\n\n\nb") == "a\n\nb"


def test_a_table_loses_rows_and_columns_and_stays_a_table():
    table = pd.DataFrame(
        np.arange(4000).reshape(100, 40),
        columns=[f"sample_{i}" for i in range(40)],
        index=[f"g{i}" for i in range(100)],
    ).to_string()
    cut = head_tail(table, 1000)
    head, *_, tail = cut.split("\n")
    assert head.split()[0] == "sample_0"
    assert head.split()[-1] == "sample_39"
    assert tail.split()[0] == "g99"
    assert tail.split()[-1] == "3999"
    rows = [line for line in cut.split("\n") if "lines cut" not in line]
    assert {line.index("…") for line in rows} == {head.index("…")}
    assert {len(line) for line in rows} == {len(head)}
    assert len(cut) <= 1000


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_delimited_rows_lose_the_same_fields(delimiter):
    rows = [delimiter.join(str(r * 1000 + c) for c in range(200)) for r in range(50)]
    cut = head_tail("\n".join(rows), 600).split("\n")
    kept = [line.split(delimiter) for line in cut if "lines cut" not in line]
    assert len({(len(row), row.index("…")) for row in kept}) == 1
    assert kept[0][0] == "0"
    assert kept[0][-1] == "199"


def test_a_long_line_loses_whole_values():
    cut = head_tail(str(list(range(1000))), 200)
    assert cut.startswith("[0, 1, 2,")
    assert cut.endswith("998, 999]")
    head, _, rest = cut.partition(" … ")
    number, _, tail = rest.partition(" values cut … ")
    assert head.count(",") + int(number) + tail.count(",") + 1 == 1000
    assert head_tail("x" * 1000, 100).count("x") < 100


def test_short_text_stays_and_first_lines_are_marked():
    assert head_tail("short", 20) == "short"
    assert first_line("one\ntwo", 10) == "one…"
    assert first_line("one\n", 10) == "one"


TEXTS = st.text() | st.lists(st.text(alphabet=" ab,\t…x1", max_size=300), max_size=80).map("\n".join)


@given(TEXTS, st.integers(0, 2000))
def test_a_cut_keeps_its_length_and_is_not_cut_again(text, chars):
    cut = head_tail(text, chars)
    assert len(cut) <= max(chars, SHORTEST, 0) or cut == text
    assert head_tail(cut, chars) == cut
    if len(text) <= chars:
        assert cut == text


@given(TEXTS | st.lists(st.sampled_from(["\x1b[3", "1m", "\r", "\n", "x", "\x1b", "]0;", "\x07"])).map("".join))
def test_cleaning_twice_is_cleaning_once(text):
    once = quiet(clean(text))
    assert quiet(clean(once)) == once
    assert not set(once) & {"\x1b", "\r", "\x00"}


@pytest.mark.parametrize("text", ["x" * 3_000_000, "a,b\n" * 500_000, "1 " * 1_000_000, "\n".join(["y" * 5000] * 600)])
def test_huge_text_is_cut(text):
    assert len(head_tail(text, 3000)) <= 3000
