"""The same things said in each language, for the tests of what holds in all of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from jupyter_client.kernelspec import KernelSpecManager

DOCKER = pytest.param("docker", marks=pytest.mark.docker)
HOSTED = ("local", "fork")
"""Backends that run Python on this system."""
PYTHON = (*HOSTED, DOCKER)
"""Backends that run Python."""
AND_BRANCHES = (
    *PYTHON,
    pytest.param("fork-branch", marks=pytest.mark.slow),
    pytest.param("docker-branch", marks=(pytest.mark.slow, pytest.mark.docker)),
)
"""The same, and sessions that are a branch of another."""
R_IS_HERE = shutil.which("Rscript") is not None and "ir" in KernelSpecManager().find_kernel_specs()
EVERY = (
    *PYTHON,
    pytest.param(
        "local-R",
        marks=pytest.mark.skipif(
            not R_IS_HERE, reason="no R kernel; Debian, Ubuntu: apt install r-base-core r-cran-irkernel"
        ),
    ),
    pytest.param("docker-R", marks=(pytest.mark.slow, pytest.mark.docker)),
)
"""Every backend, with the language after a hyphen where it is not Python."""


@dataclass(frozen=True, slots=True)
class Language:
    """Cells of one language. All expect what the tests' names say."""

    keep: str
    """Sets x to 41."""
    kept: str
    """Displays x + 1."""
    is_kept: str
    """Prints yes where x is there, else no."""
    say: str
    """Prints hello."""
    warn: str
    """Prints careful to stderr."""
    many: str
    """Prints step 0 to step 2 over each other, then done."""
    unicode: str
    """Prints `Ω 🧬 ü`."""
    fail: str
    """Fails with the message `no`."""
    broken: str
    """Cannot be parsed."""
    table: str
    """Displays a table of two rows."""
    plot: str
    """Plots once."""
    html: str
    """Displays <b>h</b> as HTML."""
    cleared: str
    """Prints a, clears, prints b."""
    ask: str
    """Asks for input."""
    waits: Mapping[str, str]
    """Cells that an interrupt ends, by what they do."""
    deaf: str
    """Ignores interrupts for ever."""
    deaths: Mapping[str, str]
    """Cells that end the kernel, by cause."""
    pid: str
    """Prints the kernel's process id."""
    endless: str
    """Prints for ever."""
    huge: str
    """Displays 300 million characters at once; R, which is slow at it, 60 million."""
    huge_text: str
    """Prints 40 million characters at once."""
    write: str
    """Writes `content` to the file f.txt."""
    draw: str
    """Prints a random number."""
    greedy: str
    """Asks for more memory than 3 GiB."""


LANGUAGES = {
    "python": Language(
        keep="x = 41",
        kept="x + 1",
        is_kept="print('yes' if 'x' in globals() else 'no')",
        say="print('hello')",
        warn="import sys\nprint('careful', file=sys.stderr)",
        many="for i in range(3): print(f'step {i}', end='\\r')\nprint('done  ')",
        unicode="print('Ω 🧬 ü')",
        fail="raise ValueError('no')",
        broken="def broken(:",
        table="import pandas\npandas.DataFrame({'a': [1, 2]})",
        plot="import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        html="from IPython.display import HTML\nHTML('<b>h</b>')",
        cleared="from IPython.display import clear_output\nprint('a')\nclear_output()\nprint('b')",
        ask="input('name?')",
        waits={
            "sleeps": "import time\ntime.sleep(60)",
            "computes": "while True:\n    pass",
            "awaits": "import asyncio\nawait asyncio.sleep(60)",
            "waits for a process": "import subprocess\nsubprocess.run(['sleep', '60'])",
            "waits in C for a process": "import os\nos.system('sleep 60')",
            "backtracks in a pattern": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
        },
        deaf="while True:\n    try:\n        import time; time.sleep(60)\n    except KeyboardInterrupt:\n        pass",
        deaths={
            "exit code 3": "import os\nos._exit(3)",
            "exit code 0": "import os\nos._exit(0)",
            "signal SIGKILL": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            "signal SIGTERM": "import os, signal\nos.killpg(0, signal.SIGTERM)",
            "signal SIGSEGV": "import ctypes\nctypes.string_at(0)",
        },
        pid="import os\nprint(os.getpid())",
        endless="while True: print('y' * 1000)",
        huge="display({'text/plain': 'z' * 300_000_000}, raw=True)",
        huge_text="print('z' * 40_000_000)",
        write="open('f.txt', 'w').write('content');",
        draw="import random\nprint(random.random())",
        greedy="b = bytearray(4 << 30)",
    ),
    "R": Language(
        keep="x <- 41",
        kept="x + 1",
        is_kept="cat(if (exists('x')) 'yes' else 'no')",
        say="cat('hello\\n')",
        warn="message('careful')",
        many="for (i in 0:2) cat(sprintf('step %d\\r', i)); cat('done  \\n')",
        unicode="cat('Ω 🧬 ü\\n')",
        fail="stop('no')",
        broken="f <- function( {",
        table="data.frame(a = 1:2)",
        plot="plot(1:3)",
        html="IRdisplay::display_html('<b>h</b>')",
        cleared="cat('a'); IRdisplay::clear_output(); cat('b\\n')",
        ask="readline('name?')",
        waits={
            "sleeps": "Sys.sleep(60)",
            "computes": "while (TRUE) {}",
            "waits in C for a process": "system('sleep 60')",
        },
        deaf="repeat tryCatch(Sys.sleep(60), interrupt = function(e) NULL)",
        deaths={
            "exit code 3": ".Internal(quit('no', 3, FALSE))",
            "signal SIGKILL": "tools::pskill(Sys.getpid(), 9)",
            "signal SIGSEGV": "tools::pskill(Sys.getpid(), 11)",
        },
        pid="cat(Sys.getpid())",
        endless="while (TRUE) { IRdisplay::display_text(strrep('y', 100000)) }",
        huge="IRdisplay::display_text(strrep('z', 6e7))",
        huge_text="cat(strrep('z', 4e7))",
        write="cat('content', file = 'f.txt')",
        draw="print(runif(1))",
        greedy="x <- numeric(1e9)",
    ),
}


def language_of(backend: str) -> str:
    """The language of a member of EVERY."""
    return "R" if backend.endswith("-R") else "python"
