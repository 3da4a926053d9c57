"""What prompts cost: the next prompt of a long notebook, and an episode of 300 steps under small budgets.

    python benchmarks/speed/context.py [--json FILE]

One run prints both tables: milliseconds to render, count and encode the next prompt of a notebook of 300 (and 10,000)
cells after one cell has changed, by policy; and for every policy and a budget of 2k, 4k and 8k tokens what 300 prompts
sum up to, beside aviary.notebook's rendering of the same notebook where it can be installed (`aviary_peer.py`). The
tokenizer is the demo's kind, made from the notebook's own text. `shared` is the mean share of a prompt that is a prefix
of the next one, token by token: what a prefix cache without blocks could save. Each figure that has a target says
whether it is reached: the next prompt of STEPS cells in NEXT_MS, and no prompt of an episode above its budget.
Milliseconds depend on the machine and
on what else runs; characters and tokens do not. What a server's cache does save: `prefix_cache.py`; what the model
answers at each budget: `benchmarks/context_ablation.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

from nbagent.notebook import NotebookDocument
from nbagent.prompts import PromptBuilder
from nbagent.trajectory import shared_length
from nbagent_context import Brief, BudgetTooSmall, Exchange, Memory, Policy, SummaryRequest, message, policy, text_of
from nbagent_training.scratch import make_tokenizer

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "window": ("window", {}),
    "drop": ("drop", {}),
    "frugal": ("drop", {"frugal": True}),
    "summarize": ("summarize", {}),
}
STEPS = 300
NEXT_MS = 5.0
"""Target: most milliseconds, in the median, of the next prompt of STEPS cells; a model call takes hundreds."""
ANSWER = 256
BRIEF = Brief("Answer with Python.", "Which gene has the highest mean count?\nFiles: counts.csv, samples.csv")
VERDICT = {True: "reached", False: "NOT REACHED"}
MEMORY = "The table counts has 60 genes; mean counts of the samples seen so far lie between 3 and 90, GENE7 leads."
_VIEW = """
import json, sys
import nbformat
from aviary.envs.notebook.utils import view_notebook
cells = nbformat.read(sys.argv[1], as_version=4).cells
lengths = [len(view_notebook(cells[:n], "python")[0]) for n in range(1, len(cells) + 1)]
print(json.dumps([lengths[-1], sum(lengths)]))
"""


def cell_of(number: int) -> tuple[str, str]:
    """Source and output of a made-up analysis step."""
    source = f"part_{number} = counts.iloc[{number} : {number + 5}]\nprint(part_{number}.mean(axis=1).round(2))"
    rows = [f"GENE{number + row:<6} {(number * 37 + row * 11) % 97 / 3:8.2f}" for row in range(6)]
    return source, "\n".join([*rows, "dtype: float64", ""])


class Episode:
    """An attempt that runs one new cell a step."""

    def __init__(self) -> None:
        self.document = NotebookDocument()
        self.history: list[Exchange | Memory] = []
        self.steps = 0

    def step(self) -> None:
        """Run the next cell."""
        source, text = cell_of(self.steps)
        cell = self.document.append(source)
        self.document.set_outputs(cell, [{"output_type": "stream", "name": "stdout", "text": text}], self.steps + 1)
        written, short = f"```python\n{source}\n```", f"run_cell {cell}"
        self.history.append(
            Exchange(self.steps, written, "run_cell", f"[{cell}]\n{text}", cell, shown=True, short=short)
        )
        self.steps += 1

    def prompt(self, chosen: Policy, builder: PromptBuilder) -> list[int]:
        """The next prompt's ids; memories that are asked for are written."""
        arguments = BRIEF, self.document.node, self.history, "", builder.budget(), builder.count
        window = chosen.window(*arguments)
        if isinstance(window, SummaryRequest):
            self.history.append(Memory(MEMORY, window.covers, self.steps))
            window = chosen.window(*arguments)
        assert not isinstance(window, SummaryRequest)
        ids = builder.build(window).ids
        assert ids is not None
        return list(ids)


def chosen_policy(name: str) -> Policy:
    """The policy of a row; `frugal` is policy `drop` with that option."""
    kind, options = POLICIES[name]
    return policy(kind, **options)


def next_prompt(name: str, tokenizer: Any, cells: int, budget: int | None) -> dict[str, Any]:
    """Milliseconds of the first prompt, and of the next one after the last cell was changed: median and worst of 51.

    Also the median of the processor's milliseconds, which other work on the machine changes less.
    """
    episode, chosen = Episode(), chosen_policy(name)
    for _ in range(cells):
        episode.step()
    builder = PromptBuilder(tokenizer, (budget or 1 << 30) + ANSWER, ANSWER)
    taken, processor = [], []
    for number in range(52):
        text = f"changed {number}\n" * 8
        episode.document.set_outputs(
            f"c{cells}", [{"output_type": "stream", "name": "stdout", "text": text}], cells + number
        )
        start, worked = time.perf_counter(), time.process_time()
        tokens = len(episode.prompt(chosen, builder))
        processor.append((time.process_time() - worked) * 1e3)
        taken.append((time.perf_counter() - start) * 1e3)
    row = {"policy": name, "cells": cells, "budget": budget, "tokens": tokens, "first_ms": taken[0]}
    row |= {"median_ms": statistics.median(taken[1:]), "worst_ms": max(taken[1:])}
    return row | {"cpu_ms": statistics.median(processor[1:])}


def episode_of(name: str, tokenizer: Any, budget: int) -> dict[str, Any]:
    """300 prompts: their tokens in all, the longest, and what they share with the next."""
    episode, chosen = Episode(), chosen_policy(name)
    builder = PromptBuilder(tokenizer, budget + ANSWER, ANSWER)
    prompts: list[list[int]] = []
    refused = None
    for step in range(STEPS):
        try:
            prompts.append(episode.prompt(chosen, builder))
        except BudgetTooSmall:
            refused = step
            break
        episode.step()
    shared = [shared_length(one, two) / len(two) for one, two in itertools.pairwise(prompts)]
    row = {"policy": name, "budget": budget, "steps": len(prompts), "refused_at": refused}
    row |= {"tokens": sum(map(len, prompts)), "longest": max(map(len, prompts)), "shared": statistics.mean(shared)}
    return row | {"memories": sum(isinstance(entry, Memory) for entry in episode.history)}


def peer() -> dict[str, Any]:
    """Characters of aviary.notebook's rendering of the same notebook: at 300 cells, and summed over 300 steps."""
    try:
        from aviary_peer import AviaryAbsent, environment
    except ImportError:
        return {"absent": "aviary_peer.py is not here"}
    episode = Episode()
    for _ in range(STEPS):
        episode.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.ipynb"
        nbformat.write(episode.document.node, path)
        try:
            python = environment() / "bin" / "python"
        except AviaryAbsent as error:
            return {"absent": str(error)}
        command = [str(python), "-c", _VIEW, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    last, total = json.loads(done.stdout.splitlines()[-1])
    return {"chars_at_300": last, "chars_in_all": total}


def characters(name: str, tokenizer: Any, budget: int) -> int:
    """Characters of all 300 prompts of a policy, to compare with the peer's."""
    episode, chosen = Episode(), chosen_policy(name)
    builder = PromptBuilder(tokenizer, budget + ANSWER, ANSWER)
    total = 0
    for _ in range(STEPS):
        window = chosen.window(BRIEF, episode.document.node, episode.history, "", builder.budget(), builder.count)
        total += sum(len(text_of(entry)) for entry in window.messages)
        episode.step()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    target = parser.parse_args().json
    texts = ["\n".join(cell_of(number)) for number in range(STEPS)] + [text_of(message("user", [BRIEF.task, MEMORY]))]
    tokenizer = make_tokenizer(texts, 600)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")

    print("next prompt after one changed cell, ms (rendered, counted and encoded)")
    print(f"{'policy':10} {'cells':>6} {'budget':>8} {'tokens':>8} {'first':>8} {'median':>8} {'worst':>8} {'cpu':>8}")
    speed, missed = [], []
    for name, (cells, budget) in itertools.product(POLICIES, [(STEPS, None), (STEPS, 8192), (10_000, 8192)]):
        if name == "full" and budget:
            continue
        row = next_prompt(name, tokenizer, cells, budget)
        row["reached"] = row["median_ms"] <= NEXT_MS if cells == STEPS else None
        speed.append(row)
        if row["reached"] is False:
            missed.append(f"next prompt, {name}, budget {budget or 'none'}")
        print(
            f"{name:10} {cells:6} {budget or 'none':>8} {row['tokens']:8} {row['first_ms']:8.1f} "
            f"{row['median_ms']:8.2f} {row['worst_ms']:8.2f} {row['cpu_ms']:8.2f}"
            + ("" if row["reached"] is None else f"   <= {NEXT_MS:g} ms: {VERDICT[row['reached']]}"),
            flush=True,
        )

    print(f"\n{STEPS} steps, one new cell each")
    head = f"{'policy':10} {'budget':>7} {'steps':>6} {'tokens':>10} {'of steps x budget':>18}"
    print(f"{head} {'longest':>8} {'shared':>7}")
    episodes = []
    for budget, name in itertools.product((2048, 4096, 8192), POLICIES):
        row = episode_of(name, tokenizer, budget)
        row["reached"] = row["longest"] <= budget
        episodes.append(row)
        if not row["reached"]:
            missed.append(f"budget kept, {name}, {budget}")
        ended = f"   refused at step {row['refused_at']}" if row["refused_at"] is not None else ""
        ended += f"   {row['memories']} memories" if row["memories"] else ""
        share = row["tokens"] / (STEPS * budget)
        print(
            f"{name:10} {budget:7} {row['steps']:6} {row['tokens']:10} {share:18.1%} {row['longest']:8} "
            f"{row['shared']:7.1%}   longest <= budget: {VERDICT[row['reached']]}{ended}",
            flush=True,
        )
    beside = peer()
    ours = {budget: characters("drop", tokenizer, budget) for budget in (2048, 4096, 8192)}
    print("\ncharacters of all prompts: " + ", ".join(f"drop at {b} tokens {n / 1e6:.2f} M" for b, n in ours.items()))
    if "absent" in beside:
        print(f"aviary.notebook: not measured ({beside['absent']})")
    else:
        at_end, in_all = beside["chars_at_300"], beside["chars_in_all"] / 1e6
        print(f"aviary.notebook's rendering of the same notebook: {at_end} at {STEPS} cells, {in_all:.2f} M in all")
    print(f"\n{len(missed)} targets not reached" + "".join(f"\n  {what}" for what in missed))
    if target:
        target.write_text(
            json.dumps({"next_prompt": speed, "episodes": episodes, "drop_chars": ours, "aviary": beside}, indent=1)
        )


if __name__ == "__main__":
    main()
