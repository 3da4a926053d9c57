"""The same notebook through nbclient and through sessions: outputs must be equal."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any

import nbformat
import pytest
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
)


def plain(value: Any) -> Any:
    """Outputs without what may differ between two kernels: addresses, pids in paths, colour of time."""
    if isinstance(value, str):
        value = re.sub(r"0x[0-9a-f]+", "0x", value)
        return re.sub(r"/\S{0,80}ipykernel_\d+\S{0,40}", "<cell>", value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def expected() -> NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    client = NotebookClient(notebook, allow_errors=True, coalesce_streams=True, kernel_name="python3")
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return asyncio.run(client.async_execute(env=environment))


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("backend", ["local", "fork"])
async def test_outputs_equal_nbclients(opened, expected):
    session = await opened()
    for cell, code in zip(expected.cells, CELLS, strict=True):
        result = await session.execute(code)
        assert plain(result.outputs) == plain([dict(output) for output in cell.outputs]), code
        outputs = [nbformat.from_dict(output) for output in result.outputs]
        nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, outputs=outputs)]))
