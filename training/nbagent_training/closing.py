"""The demo's last words: its table, its figures against what it must reach, and where to look."""

from __future__ import annotations

import json

from rich.console import Console

from nbagent.compare import compare
from nbagent.report import build_report
from nbagent.runfolder import write_whole
from nbagent.score_table import comparison_table, score_table
from nbagent_training.run import TrainingRun

DEMONSTRATIONS = (
    "The demonstrations of the warm start are reference notebooks of bundled training tasks: two cells, the first"
    " loads the data and prints its columns, the second computes and prints the answer, which is then submitted. "
    "{flawed} of them show the family's usual mistake in place of the right analysis, and its output is what is "
    "submitted: the warm start copies both, and GRPO has to find out which is right. GRPO saw other training "
    "tasks than the demonstrations; its only reward is the verifier's. No held-out task shares a seed, a data set"
    " drawn from a seed, or a question about measured data with any training task. How the settings were chosen, and "
    "which of them were not tried on the validation split first, is in training/LOG.md."
)
CAVEATS = (
    "GRPO's learning curve is the mean reward of the tasks that it practised, which were drawn more often from "
    "families whose success was uncertain: it understates how good the model is on all of them. The model is made"
    " for these families of question and knows nothing else. One seed."
)


def close_demo(made: TrainingRun, console: Console, *, smoke: bool) -> None:
    """Print scores and paired differences, and put the demo's words into the report."""
    facts_path = made.run.path / "demo.json"
    facts = json.loads(facts_path.read_text())
    facts["title"] = "nbagent demo (smoke: too short to learn)" if smoke else "nbagent demo"
    facts["demonstrations"] = DEMONSTRATIONS.format(flawed=f"{100 * made.recipe.tasks.flawed:.0f} %")
    facts["caveats"] = CAVEATS
    write_whole(facts_path, json.dumps(facts, indent=1) + "\n")
    report = build_report(made.run.path)
    for how in ("sampled", "greedy"):
        before, after = made.scores.get(f"warm_{how}"), made.scores.get(f"grpo_{how}")
        if after is not None and how == "greedy":
            console.print(score_table(after))
        if before is not None and after is not None:
            console.print(comparison_table(compare(before, after)))
    console.print(
        f"time {facts['seconds'] / 60:.1f} min; the machine's available memory fell by at most "
        f"{facts['peak_memory_bytes'] / 1e9:.1f} GB (this process: {facts['peak_process_bytes'] / 1e9:.1f} GB)",
        highlight=False,
        soft_wrap=True,
    )
    for name, took in facts["stage_seconds"].items():
        console.print(f"  {name}: {took:.0f} s", highlight=False)
    attempt = next(iter(made.scores["grpo_sampled"].attempts)).rollout_id if "grpo_sampled" in made.scores else "ID"
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    console.print(
        f"a trajectory as a notebook: nbagent replay {made.run.path} --rollout {attempt} --out nb.ipynb",
        highlight=False,
        soft_wrap=True,  # a command is copied
    )
