"""Streams without what tells a reader nothing, and with all that tells something."""

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from nbagent_context.clean import clean, quiet

SOURCE = "  df['a'] = 1\n"
SETTING = (
    "/tmp/ipykernel_1/2.py:1: SettingWithCopyWarning: \nA value is trying to be set on a copy of a slice from a "
    "DataFrame.\nTry using .loc[row_indexer,col_indexer] = value instead\n\nSee the caveats in the documentation\n"
)


def test_terminal_noise_is_removed():
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07plain\x00\x07") == "red plain"
    assert clean("\x1b(B\x1b[mplain \x1bMx\x1b7\x1bP1;2q#\x1b\\") == "plain x"
    assert clean("10%\r50%\r100%\ndone\r\n") == "100%\ndone\n"


def test_a_title_without_an_end_takes_no_line_along():
    assert clean("\x1b]0;title\nAUC 0.9\n\x07") == "]0;title\nAUC 0.9\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("  10%\b\b\b\b\b  20%", "  20%"),
        ("".join(f"{n}%" + "\b" * len(f"{n}%") for n in range(0, 101, 10)), "100%"),
        ("sample 12\b\b5\nnext", "sample 52\nnext"),
        ("\b\b\bab", "ab"),
        ("loss 0.3\b\b\b", "loss 0.3"),
        ("\r1/2 [>]\b\b\b\b\b\b\b\r2/2 [=]\b\b\b\b\b\b\b\n", "2/2 [=]\n"),
    ],
)
def test_backspaces_move_and_what_follows_is_written_over(text, left):
    assert clean(text) == left


def test_progress_bars_go_when_they_are_done():
    done = "start\n 50%|#####     | 1/2 [00:00<00:00]\n100%|██████████| 2/2 [00:00<00:00]\nend"
    assert quiet(done) == "start\nend"
    assert quiet("  |=====     |  40%\n  |========  |  80%\nstopped") == "  |========  |  80%\nstopped"
    assert quiet("  |==========| 100%\nend") == "end"
    assert quiet("100 % of 3 | genes") == "100 % of 3 | genes"


def bars(**options):
    written = io.StringIO()
    with tqdm(total=10, file=written, mininterval=0, ncols=70, **options) as bar:
        for step in range(10):
            bar.set_postfix(loss=1 / (step + 1))
            bar.update()
    return quiet(clean(written.getvalue()))


def test_a_finished_bar_with_a_result_keeps_its_last_state():
    assert bars().endswith("loss=0.1]\n")
    assert "10/10" in bars(desc="fit")
    assert bars(desc="fit").startswith("fit: 100%|")
    # Two epochs are two bars, though they have the same name.
    two = "100%|####| 9/9 [00:01<00:00, 9it/s, loss=0.3]\n100%|####| 9/9 [00:01<00:00, 9it/s, loss=0.1]"
    assert quiet(two) == two


def test_of_a_bar_that_has_a_name_the_last_state_stays():
    state = "{}: {:3}%|##  | {}/4 [00:00<00:00, 3it/s]".format
    text = "\n".join([state("a", 50, 2), state("b", 25, 1), state("a", 100, 4), "x", state("b", 75, 3)])
    assert quiet(text) == "\n".join([state("a", 100, 4), "x", state("b", 75, 3)])


@pytest.mark.parametrize(
    "text",
    [
        pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [2.0, 3, 4, 5]}).describe().to_string(),
        "|       |    a |\n|:------|-----:|\n| 25%   | 1.75 |\n| 50%   | 2.5  |\n| 100%  | 4    |",
        "| s1 | 100% | 3 |\n| s2 | 100% | 4 |\n| s3 | 97% | 5 |",
        "s1 | 100%| 3 |\ns2 | 90%| 4 |",
        "s1 100%|5|\ns2 90%|5|",
        "90%|12| 3/4\n95%|12| 4/4",
        "mapped 90%|     | 1/2 [a]\nmapped 95%|     | 2/2 [a]",
        "|====|\n|    |  25%\n|    |  50%",
        "100%|##########| 2/2 [00:00<00:00, 3it/s]AUC 0.93",
        "100%|##########| AUC 0.93",
    ],
)
def test_tables_with_percentages_are_no_progress_bars(text):
    assert quiet(text) == text


def test_a_warning_stands_once_without_its_place():
    text = (
        "/x/pandas/core/frame.py:12: FutureWarning: mean is old\n  df.mean()\n"
        "/tmp/ipykernel_3/1.py:7: FutureWarning: mean is old\n  df.mean()\n"
        "run.py:7: FutureWarning: mean is old\n  df.mean()\n"
        "<ipython-input-3>:1: UserWarning: odd\n5\n  indented"
    )
    assert quiet(text) == "FutureWarning: mean is old\nUserWarning: odd\n5\n  indented"


def test_a_warning_of_several_lines_stands_once():
    message = SETTING.partition("1: ")[2] + SOURCE
    assert quiet((SETTING + SOURCE) * 5 + "end") == message + "end"
    # What differs stays: another source line, another message.
    other = SETTING + "  df['b'] = 2\n"
    assert quiet(SETTING + SOURCE + other) == message + "  df['b'] = 2\n"
    assert (
        quiet(SETTING + SOURCE + SETTING.replace("Try", "Or")) == message + message.replace("Try", "Or")[: -len(SOURCE)]
    )


@pytest.mark.parametrize(
    "text",
    [
        "<string>:1: UserWarning: odd\n   a  b\n0  1  2",
        "/x.py:1: UserWarning: odd\n   a  b\n0  1  2",
        "<string>:1: UserWarning: odd\n  12 genes",
    ],
)
def test_what_follows_a_warning_and_is_not_its_source_stays(text):
    assert quiet(text) == text.partition("1: ")[2]


def test_what_stands_before_a_warning_and_is_no_place_stays():
    text = "/data/a.csv: 100 rows at 12:30: DataWarning: odd\nat 12:30: UserWarning: odd"
    assert quiet(text) == text


def test_warnings_of_r_stand_once():
    warning = "Warning message:\nIn mean.default(x) : argument is not numeric\n"
    assert quiet(warning * 5 + "end") == warning + "end"
    long = "Warning message in f(x):\nIn f(x) :\n  odd\n"
    assert quiet(long * 2 + "end") == long + "end"
    assert quiet(warning + "1\n" + warning) == warning + "1\n" + warning


def test_repeated_lines_are_counted_where_that_is_shorter():
    assert quiet("a\n" + "retry\n" * 41 + "b\nb\nb") == "a\nretry\n[the same 40 more times]\nb\nb\nb"
    assert quiet("a\n\n\n\n\n\nb") == "a\n\nb"
    assert quiet("0\n0\n0\n0\n0") == "0\n0\n0\n0\n0"


PIECES = [
    *("\x1b[3", "1m", "\r", "\n", "x", "\x1b", "]0;", "\x07", "\b", "\x1b(B", "\x1bP", "\x1b\\", "\t", " ", "ü漢"),
    *("\n 10%|#####     | 1/9 [a]\n", "\nfit: 20%|##| 2/9 [a, b, c=1]\n", "\n100%|##########| 9/9 [a, b, c=1]\n"),
    *("\n100%|######|\n", "\n 40%|######|\n", "\n  |===   |  50%\n", "| 50% | 3 |\n", "fit: "),
    *("\n/x.py:1: UserWarning: odd", "\n/x.py:2: UserWarning: odd\n", "\n  source\n", "<a>:1: AWarning: ", "Warning: "),
    *("\nWarning message:\n", "In f(x) :\n", "  more\n", "retry\n" * 3, "retry\n", "\n\n", "[the same 4 more times]\n"),
]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_cleaning_twice_is_cleaning_once_and_never_lengthens(text):
    left = clean(text)
    assert len(left) <= len(text)
    assert clean(left) == left
    assert not set(left) & {"\x1b", "\r", "\x00", "\b"}
    once = quiet(left)
    assert len(once) <= len(left)
    assert quiet(clean(text)) == once
    assert quiet(clean(once)) == once
