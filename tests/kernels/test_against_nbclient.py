"""The same notebook through nbclient and through sessions: outputs must be equal.

What a process or a descriptor writes is left out: ipykernel sends it under whatever cell its own thread thinks of, and
nbclient loses it then. test_conformance.py says what a session gives.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Sequence
from typing import Any

import nbformat
import pytest
from languages import HOSTED, PYTHON
from nbclient import NotebookClient
from nbformat import NotebookNode

CELLS = (
    "x = 1\nx + 1",
    "import sys\nprint('a')\nprint('b')\nprint('e', file=sys.stderr)",
    "import sys, time\nprint('e', file=sys.stderr, flush=True)\ntime.sleep(0.1)\nprint('o', flush=True)",
    "print('one', flush=True)\ndisplay(1)\nprint('two', flush=True)\nimport time\ntime.sleep(0.05)\n2",
    "from IPython.display import HTML, Markdown, JSON, SVG\ndisplay(HTML('<p>'), Markdown('**m**'))\nJSON({'a': [1]})",
    "1 / 0",
    "def f(n): return f(n - 1) if n else [][1]\nf(3)",
    "def broken(:",
    "from IPython.display import clear_output\nprint('gone', flush=True)\ntime.sleep(0.05)\nclear_output()\nprint(1)",
    "for i in range(3):\n    clear_output(wait=True)\n    print(i, flush=True)\n    time.sleep(0.05)",
    "print('kept', flush=True)\ntime.sleep(0.05)\nclear_output(wait=True)",
    "handle = display('first', display_id='one')\ndisplay('second')\nhandle.update('third')",
    "display('again', display_id='two')\nclear_output()\ndisplay('after', display_id='two')",
    "for i in range(5): print(f'{i}/5', end='\\r')\nprint('ready')\nprint('tail\\r')\nprint('q\\r\\nr\\rs')",
    "print('Ω 🧬', 'é')\n'🧬'",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);",
    "fig, ax = plt.subplots()\nax.bar([1, 2], [3, 4])\nplt.show()\nprint('after')",
    "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', None]})",
    "import warnings\nwarnings.warn('careful')",
    "!echo from the shell",
    "%%timeit -n1 -r1 -q\npass",
    "%who_ls str",
    "import sys\nsys.exit(2)",
    "raise KeyboardInterrupt",
    "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "class Odd:\n    def __repr__(self): raise ValueError('no repr')\nOdd()",
    "import asyncio\nawait asyncio.sleep(0)\n'awaited'",
    "None",
    "'semicolon';",
    "# only a comment",
    "",
    "In[1], Out[1], _",
    "print('x' * 100_000)",
    "input()",
    "import getpass\ngetpass.getpass()",
    "from comm import create_comm\nc = create_comm(target_name='t', data={'a': 1}, buffers=[b'x'])\nc.send({'b': 2})\n"
    "c.close()\nprint('widgets speak past us')",
    "print('ab\\b\\bc', '\\x1b[31mred\\x1b[0m', '\\a')",
    "print('10%\\r', end='', flush=True)\nprint('20%\\r', end='', file=sys.stderr, flush=True)\nprint('30%')",
    "for i in range(3): print(i, file=(sys.stdout, sys.stderr)[i % 2], flush=True)\ndisplay(3)\nprint(4)",
    "import threading\nfor i in range(3):\n    t = threading.Thread(target=print, args=(i,)); t.start(); t.join()",
    "import threading\nt = threading.Thread(target=display, args=('from a thread',)); t.start(); t.join()",
    "display({'text/plain': 'raw', 'application/json': {'a': [1, None, 0.5]}}, raw=True)",
    "import numpy\ndisplay({'application/json': {'a': [numpy.int64(3), numpy.float32(0.5), {4}]}}, raw=True)",
    "display({'image/png': 'aGVsbG8=', 'text/plain': 'p'}, raw=True, metadata={'image/png': {'width': 5}})",
    "class Rich:\n    def _repr_mimebundle_(self, **kw): return {'text/html': '<b>'}, {'m': 1}\nRich()",
    "class Png:\n    def _repr_png_(self): return b'\\x89PNG'\nPng()",
    "class No:\n    def _repr_html_(self): raise KeyError('x')\n    def __repr__(self): return 'no'\nNo()",
    "handle = display(display_id=True)\nfor i in range(5): handle.update(i)",
    "display(1, display_id='same')\ndisplay(2, display_id='same')\nupdate_display(3, display_id='same')",
    "display(1, display_id='gone')\nclear_output(wait=True)\nupdate_display(2, display_id='gone')\nprint('now')",
    "print('a')\nclear_output(wait=True)\n1 / 0",
    "sys.stdout.write('no newline')\nsys.stderr.write('')\nNone",
    "print('\\u2028 \\x00 \\x85')\n'\\x00'",
    "raise ValueError('Ω' * 10)",
    "class Own(Exception):\n    def __str__(self): raise RuntimeError('worse')\nraise Own",
    "%precision 2\n3.14159",
    "from IPython.display import Image\nImage(data=b'\\x89PNG\\r\\n\\x1a\\n', format='png')",
    "pd.DataFrame({'a': range(3)}).style.format('{:.1f}').set_uuid('u')",
    "import warnings\nwarnings.warn('again')\nprint('out')",
    "display(*range(3))\n(1, 2)",
    "_ = 5\n_",
)


def plain(value: Any) -> Any:
    """Outputs without what may differ between two kernels: addresses, pids in paths, colour of time."""
    if isinstance(value, str):
        value = re.sub(r"0x[0-9a-f]+", "0x", value)
        return re.sub(r"/\S{0,80}ipykernel_\d+\S{0,40}", "<cell>", value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


STATEMENTS = (
    "print({text!r}, end={end!r}, flush={flag})",
    "print({text!r}, file=sys.stderr, flush={flag})",
    "sys.stdout.write({text!r})",
    "display({text!r})",
    "display(HTML({text!r}), {number})",
    "display({number}, display_id='i{where}-{number}')",
    "update_display({text!r}, display_id='i{where}-{number}')",
    "clear_output(wait={flag})",
    "for k in range({number}): print(k, end={end!r})",
    "for k in range({number}): display(k, display_id='i{where}-' + str(k))",
    "plt.plot([{number}, 1])",
    "plt.show()",
    "x = x * {number} % 97",
    "x",
    "x / ({number} - 2)",
    "[][{number}]",
    "int({text!r})",
    "def f(n): return 1 // n if n < 1 else f(n - 1)\nf({number})",
    "threading.Thread(target=print, args=({text!r},)).run()",
    "await asyncio.sleep(0)",
    "try: 1 // ({number} % 2)\nexcept ZeroDivisionError: print('caught')\nelse: display(x)",
)
TEXTS = (
    "a",
    "Ω🧬",
    "line\n",
    "one\ntwo\r\nthree",
    "50%\r",
    "\rover",
    "ab\b",
    "",
    "\x1b[1mbold\x1b[0m",
    "<b>&amp;",
    "\t",
)
FIRST = (
    "import asyncio, sys, threading\nfrom IPython.display import HTML, clear_output, update_display\n"
    "import matplotlib.pyplot as plt\nx = 3"
)


def random_cells(seed: int, n_notebooks: int = 30, n_cells: int = 8) -> list[str]:
    """Notebooks of statements drawn from the grammar, one after the other."""
    rng = random.Random(seed)
    cells = [FIRST]
    for where in range(n_notebooks * n_cells):
        drawn = rng.choices(STATEMENTS, k=rng.randint(1, 6))
        cells.append(
            "\n".join(
                statement.format(
                    text=rng.choice(TEXTS),
                    end=rng.choice(("\n", "", "\r", " ")),
                    flag=rng.random() < 0.5,
                    number=rng.randint(0, 4),
                    where=where,
                )
                for statement in drawn
            )
        )
    return cells


def by_nbclient(cells: Sequence[str]) -> NotebookNode:
    """The cells as nbclient runs them."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    client = NotebookClient(notebook, allow_errors=True, coalesce_streams=True, kernel_name="python3")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return asyncio.run(client.async_execute(env=environment))


@pytest.fixture(scope="module")
def expected() -> NotebookNode:
    return by_nbclient((*CELLS, *random_cells(seed=5)))


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("backend", HOSTED)  # an image has other versions
async def test_outputs_equal_nbclients(opened, expected):
    session = await opened()
    for cell in expected.cells:
        code = cell.source
        result = await session.execute(code)
        assert plain(result.outputs) == plain([dict(output) for output in cell.outputs]), code
        outputs = [nbformat.from_dict(output) for output in result.outputs]
        nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, outputs=outputs)]))


UPDATES = ("handle = display(1, display_id='one')", "handle.update(2);", "display(3, display_id='one');")


@pytest.fixture(scope="module")
def rewritten() -> NotebookNode:
    return by_nbclient(UPDATES)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("backend", PYTHON)
async def test_an_update_of_what_an_earlier_cell_displayed_rewrites_no_result(opened, rewritten):
    shown = [[output["data"]["text/plain"] for output in cell.outputs] for cell in rewritten.cells]
    assert shown == [["3"], [], ["3"]]
    session = await opened()
    results = [await session.execute(code) for code in UPDATES]
    given = [[output["data"]["text/plain"] for output in result.outputs] for result in results]
    assert given == [["1"], [], ["3"]]
