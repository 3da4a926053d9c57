"""A megabyte made to be slow takes as long as any other: what a cell prints is cleaned on the host."""

import signal

import pytest

from nbagent_context.cut import head_tail
from nbagent_context.failure import error_text
from nbagent_context.render import output_text

SIZES = [1 << 17, pytest.param(1 << 20, marks=pytest.mark.slow)]
"""Characters; the larger is as much output as a cell may have."""
CPU_S = 15
"""Most of these take a tenth of a second for a megabyte. Time with the square of the length: minutes for the eighth of
one, hours for one."""

WORN = [
    # Codes and overwriting.
    *("\x1b[", "\x1b[1;", "\x1b]", "\x1bP1", "\x1b ", "a\b", "a\r", "\r\r\n"),
    # Warnings: places, numbers, names.
    *(".py:", "/:1: a", ":1: aWarning: ", "Warning: ", "/x.py:1: UserWarning: m\nb\n  s\n", "Warning message:\n"),
    # Progress bars.
    *("1%|", "|", "1% ", "1%|##| 1/1 [] ] ] ]\n", "  |=| 1%\n", "a: 1%|#| 1/2 [, , ]\n"),
    # Repeated lines, tables.
    *("\n", "x\n", "[the same 3 more times]\n", '"', '"a,', ",", "\t", "| ", "a ", "1,2,3,4\n"),
    # Markup.
    *("<", "<a", "<a '", "<!--", "<script>", "<script></script ", "</script ", "&#1", "&a"),
    # Tracebacks.
    *("/lib/python3.1/", "/site-packages/", "--> ", "Cell In[1]\n ", " (1.py, line ", "A Traceback ", "1. f\n"),
]
LONG = {
    "code": lambda n: "\x1b[" + "1" * n,
    "title": lambda n: "\x1b]" + "a" * n,
    "place": lambda n: ".py:" * (n // 4) + "\nWarning: ",
    "name of a warning": lambda n: "/x:1: " + "a" * n + "\nWarning: ",
    "bar": lambda n: "1%|" + " " * n + "|1/1 [" + "]" * 1000,
    "bar of R": lambda n: "  |" + "=" * n + " " * n + "%",
    "tag": lambda n: "<" + "a" * n,
    "word": lambda n: "a" * n + " Traceback",
    "spaces": lambda n: " " * n + "x",
}


@pytest.fixture
def cpu_bound():
    """Stop, in the middle of a match too, what takes too much of the processor, however loaded that is."""

    def stop(*_):
        raise AssertionError(f"more than {CPU_S} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def traced(text):
    trace = ["X  Traceback (most recent call last)\nCell In[1]\n", f"\nThe above exception was\n{text}", f"File {text}"]
    return error_text({"output_type": "error", "ename": "E", "evalue": "e", "traceback": trace})


def displayed(text):
    return output_text([{"output_type": "display_data", "data": {"text/html": text}}])


def printed(text):
    return output_text([{"output_type": "stream", "name": "stdout", "text": text}])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", [*WORN, *LONG])
def test_text_made_to_be_slow_is_not(name, n, cpu_bound):
    text = LONG[name](n) if name in LONG else name * (n // len(name))
    printed(text)
    displayed(text)
    traced(text)
    assert len(head_tail(text, 3000)) <= 3000


@pytest.mark.parametrize("n", SIZES)
def test_a_long_value_of_an_error_is_not_slow(n, cpu_bound):
    for value in (" (" * (n // 2), " (1" * (n // 3), " (" + "1" * n):
        error_text({"output_type": "error", "ename": "E", "evalue": value, "traceback": []})
