"""Long tasks for the ablation of context policies: what an early output said is needed at the end.

A capsule holds plates, and one of the plate files notes a cutoff. The agent reads the plates one by one and then counts
the wells of one plate above the cutoff: nine steps. The note stands either in the first line of its file or in the
middle, so that a policy that keeps a line of an older output keeps one kind and loses the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import nbformat

from nbagent.tasks import Task
from nbagent_bixbench.families.words import GENES
from nbagent_bixbench.grade import KeyVerifier
from nbagent_context import Exchange

PLATES, WELLS, COLUMNS = 7, 12, 3
STEPS = PLATES + 2
"""Model calls of the reference: a cell for each plate, one that counts, the answer."""
PLACES = ("first", "middle")
_NOTE = re.compile(r"# cutoff (\d+)")


def make_tasks(folder: Path, n: int, seed: str) -> list[Task]:
    """Draw n tasks, half of them with the note in the first line of its file; the same seed draws the same ones."""
    return [_task(folder / f"{number:05d}", Random(f"{seed} {number}"), number) for number in range(n)]


def _task(folder: Path, r: Random, number: int) -> Task:
    place = PLACES[number % 2]
    genes = r.sample(GENES, COLUMNS)
    noted, asked = r.randrange(PLATES), r.randrange(PLATES)
    cutoff, gene = r.randint(20, 80), r.randrange(COLUMNS)
    values = [[[r.randint(10, 99) for _ in genes] for _ in range(WELLS)] for _ in range(PLATES)]
    capsule = folder / "capsule"
    capsule.mkdir(parents=True, exist_ok=True)
    texts = []
    for plate in range(PLATES):
        lines = [",".join(["well", *genes])]
        lines += [",".join([f"w{well + 1}", *map(str, row)]) for well, row in enumerate(values[plate])]
        if plate == noted:
            lines.insert(0 if place == "first" else r.randint(5, 9), f"# cutoff {cutoff}")
        texts.append("\n".join(lines) + "\n")
        (capsule / f"p{plate + 1}.csv").write_text(texts[-1])
    key = str(sum(row[gene] > cutoff for row in values[asked]))
    cells = [(f'print(open("p{plate + 1}.csv").read())', texts[plate] + "\n") for plate in range(PLATES)]
    count = (
        f'import pandas as pd\ndf=pd.read_csv("p{asked + 1}.csv",comment="#")\n'
        f'print((df["{genes[gene]}"]>{cutoff}).sum())'
    )
    cells.append((count, f"{key}\n"))
    reference = folder / "reference.ipynb"
    reference.write_text(nbformat.writes(_notebook(cells)))
    return Task(
        task_id=f"plates-{place}-{number}",
        question=f"One of the plates notes a cutoff. How many wells of p{asked + 1} have {genes[gene]} above it?",
        capsule=capsule,
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
    """The memory of a demonstration: the cutoff, once it was seen, and how many plates were read."""
    found = _NOTE.findall("".join(exchange.observation for exchange in covered))
    return f"cutoff {found[0]}, {len(covered)} plates read" if found else f"no cutoff, {len(covered)} plates read"
