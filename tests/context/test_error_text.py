"""Errors as the lines that a reader needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.failure import error_text, exception_line
from nbagent_context.render import one_line


def error(name, value, *trace):
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": list(trace)}


def chained(how, cause="KeyError: 'gene'"):
    return error(
        "RuntimeError",
        "load failed",
        "\x1b[31m-----\x1b[39m",
        "\x1b[31mKeyError\x1b[39m                 Traceback (most recent call last)",
        "Cell In[1], line 2\n----> 2 d['gene']",
        cause,
        f"\n{how}:\n",
        "RuntimeError                 Traceback (most recent call last)",
        "Cell In[1], line 4\n----> 4 raise RuntimeError('load failed') from e",
        "RuntimeError: load failed",
    )


FROM = "The above exception was the direct cause of the following exception"
DURING = "During handling of the above exception, another exception occurred"


def test_an_error_shows_the_agents_frames_the_last_library_frame_and_the_exception():
    # As IPython writes it, with a library in between and another exception as the cause.
    output = error(
        "KeyError",
        "'x'",
        "KeyError   Traceback (most recent call last)",
        "File /v/lib/python3.11/site-packages/pandas/base.py:10, in Index.get_loc(self, key)\n---> 10 return key",
        "KeyError: 'x'",
        "The above exception was the direct cause of the following exception:",
        "KeyError   Traceback (most recent call last)",
        "Cell In[7], line 2\n      1 a=1\n----> 2 total('x')\n      3 b=2",
        "Cell In[3], line 5, in total(name)\n      4 d = 0\n----> 5 return df[name]",
        "File /v/lib/python3.11/site-packages/pandas/frame.py:4102, in DataFrame.__getitem__(self, key)\n-> 4102 pass",
        "File /v/lib/python3.11/site-packages/pandas/base.py:3812, in Index.get_loc(self, key)\n-> 3812 raise",
        "KeyError: 'x'",
    )
    assert error_text(output) == (
        "at: total('x')\nat In[3]: return df[name]\nin pandas/base.py:3812 Index.get_loc\nKeyError: 'x'"
    )
    assert one_line([output], error_text(output), 80) == "KeyError: 'x'…"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            error("SyntaxError", "invalid syntax (18.py, line 1)", "  Cell In[4], line 1\n    x = = 1\n        ^\n"),
            "at: x = = 1\nSyntaxError: invalid syntax",
        ),
        (error("KeyError", "'g'", "\x1b[31mKeyError\x1b[0m", "Cell In[3], line 1", "KeyError: 'g'"), "KeyError: 'g'"),
        (
            error(
                "ERROR", "Error in file(f): no", "Error in file(f): no\nTraceback:\n", '1. read.csv("a")\n2. file(f)'
            ),
            'at: read.csv("a")\nin file(f)\nERROR: Error in file(f): no',
        ),
        (error("SystemExit", "3"), "SystemExit: 3"),
    ],
)
def test_other_errors_show_what_they_have(output, text):
    assert error_text(output) == text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v/lib/python3.11/json/decoder.py", "json/decoder.py"),
        ("/v/lib/python3.11/site-packages/my lib/site-packages/a.py", "a.py"),
        ("~/notes/b.py", "~/notes/b.py"),
        ("C:\\work\\c.py", "C:\\work\\c.py"),
    ],
)
def test_a_library_frame_has_the_path_from_the_librarys_folder(path, shown):
    trace = "Cell In[1], line 1\n----> 1 f()", f"File {path}:7, in A.f(x)\n----> 7 pass"
    assert error_text(error("E", "e", *trace)) == f"at: f()\nin {shown}:7 A.f\nE: e"


@pytest.mark.parametrize(("number", "cut"), [(6, ""), (7, "… 2 frames cut …"), (3000, "… 2995 frames cut …")])
def test_of_many_frames_the_first_and_the_last_stay(number, cut):
    trace = [f"Cell In[1], line {n}, in f(n)\n----> {n} return f{n}()" for n in range(number)]
    lines = error_text(error("RecursionError", "too deep", *trace)).split("\n")
    ends = [*range(2), *range(number - 3, number)] if cut else range(number)
    assert lines == [
        *[f"at: return f{n}()" for n in ends if n < 2],
        *([cut] if cut else []),
        *[f"at: return f{n}()" for n in ends if n >= 2],
        "RecursionError: too deep",
    ]


def test_the_exception_that_led_to_another_has_a_line():
    frame = "at: raise RuntimeError('load failed') from e\n"
    assert error_text(chained(FROM)) == f"{frame}from KeyError: 'gene'\nRuntimeError: load failed"
    assert error_text(chained(DURING)) == f"{frame}while handling KeyError: 'gene'\nRuntimeError: load failed"
    assert error_text(chained(FROM, "KeyError")) == f"{frame}from KeyError\nRuntimeError: load failed"
    assert error_text(chained(FROM, "gone")) == f"{frame}RuntimeError: load failed"
    assert max(map(len, error_text(chained(FROM, "KeyError: " + "x" * 9999)).split("\n"))) < 210


TRACES = st.lists(
    st.text()
    | st.sampled_from(
        [
            *(
                "Cell In[1], line 1\n----> 1 f()",
                "<ipython-input-3-x>\n",
                "File /lib/python3.1/a.py:3, in f\n",
                "1. f\n",
            ),
            *(
                FROM,
                DURING,
                "KeyError   Traceback (most recent call last)",
                "KeyError: 1",
                "  Cell In[1]\n x",
                "\x1b[1",
            ),
        ]
    ),
    max_size=20,
)


@given(st.text(), st.text(), TRACES)
def test_any_error_has_a_text_that_ends_with_the_exception(name, value, trace):
    output = error(name, value, *trace)
    text = error_text(output)
    assert error_text(output) == text
    assert text.endswith(exception_line(output))
    assert "\x1b" not in text
