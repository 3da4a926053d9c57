"""Long tasks for the ablation of context policies: what an early output said is needed at the end.

A capsule holds files of counts, and one of them notes the background. The agent reads the files one by one, then takes
the background off the total of one file: with seven files nine steps. The note stands either in the first line of its
file or in the middle, so that a policy that keeps a line of an older output keeps one kind and loses the other. The
answer cannot be had without the background: each gives another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import nbformat

from nbagent.tasks import Task
from nbagent_bixbench.families.words import FILES
from nbagent_bixbench.grade import KeyVerifier
from nbagent_context import Exchange

N_FILES = 7
STEPS = N_FILES + 2
"""Model calls of the reference: a cell for each file, one that counts, the answer."""
PLACES = ("first", "middle")
NOTE = re.compile(r"background=\d+")
"""What is needed at the end, as its file writes it."""


def make_task(folder: Path, number: int, seed: str, n_files: int, n_values: int) -> Task:
    """Draw a task whose files have so many values each; the same seed and number draw the same one."""
    r = Random(f"{seed} {number}")
    place = PLACES[number % 2]
    names = sorted(f"{word}.txt" for word in r.sample(FILES, n_files))
    noted, asked, background = r.randrange(n_files), r.randrange(n_files), r.randrange(10, 100, 3)
    values = [[r.randint(0, 9) for _ in range(n_values)] for _ in names]
    folder = folder / f"{number:05d}"
    (folder / "capsule").mkdir(parents=True, exist_ok=True)
    texts = []
    for file, name in enumerate(names):
        lines = list(map(str, values[file]))
        if file == noted:
            lines.insert(0 if place == "first" else n_values // 2, f"background={background}")
        texts.append("\n".join(lines) + "\n")
        (folder / "capsule" / name).write_text(texts[-1])
    key = str(sum(values[asked]) - background)
    cells = [(f'print(open("{name}").read())', text + "\n") for name, text in zip(names, texts, strict=True)]
    total = f'print(sum(int(x) for x in open("{names[asked]}").read().split() if x.isdigit())-{background})'
    reference = folder / "reference.ipynb"
    reference.write_text(nbformat.writes(_notebook([*cells, (total, f"{key}\n")])))
    return Task(
        task_id=f"background-{place}-{number}",
        question=f"One file notes the background. What is the total of {names[asked]} less the background?",
        capsule=folder / "capsule",
        verifier=KeyVerifier(key),
        family=place,
        reference=reference,
        key=key,
    )


def _notebook(cells: Sequence[tuple[str, str]]) -> nbformat.NotebookNode:
    make = nbformat.v4
    return make.new_notebook(
        cells=[
            make.new_code_cell(
                source, execution_count=number, outputs=[make.new_output("stream", name="stdout", text=printed)]
            )
            for number, (source, printed) in enumerate(cells, 1)
        ]
    )


def remember(covered: Sequence[Exchange], before: str) -> str:
    """The memory of a demonstration: the background, once it was seen."""
    found = NOTE.search("".join(exchange.observation for exchange in covered))
    return found[0] if found else "no background yet"
