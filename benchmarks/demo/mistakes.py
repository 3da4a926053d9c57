"""What GRPO mended in a demo run, and what it left: usual mistakes, or something else.

Run it as `python benchmarks/demo/mistakes.py runs/demo`. An attempt counts as a known mistake when no cell of it failed
and its answer is one of the task's distractors, which the bundled sets compute from each family's wrong analyses.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from nbagent.runfolder import RunFolder
from nbagent.score import Attempt, read_score
from nbagent.tasks import Outcome


def kind(run: RunFolder, attempt: Attempt, distractors: dict[str, list[str]]) -> str:
    """right, known mistake, failed cell, or other."""
    if attempt.outcome is Outcome.CORRECT:
        return "right"
    events = run.load(attempt.rollout_id).events
    if any(event["kind"] == "execution" and event["status"] != "ok" for event in events):
        return "failed cell"
    return "known mistake" if attempt.answer in distractors[attempt.task_id] else "other"


def main(path: Path) -> None:
    """Print the warm start's kinds among the tasks that GRPO turned right, and by family what is still wrong."""
    run = RunFolder.open(path)
    rows = [json.loads(line) for file in path.glob("tasks/heldout/*/BixBench.jsonl") for line in file.open()]
    distractors = {row["question_id"]: row["distractors"] for row in rows}
    for how in ("sampled", "greedy"):
        before = {a.task_id: a for a in read_score(path / "scores" / f"warm_{how}.json").attempts}
        after = {a.task_id: a for a in read_score(path / "scores" / f"grpo_{how}.json").attempts}
        kinds = {task: (kind(run, before[task], distractors), kind(run, a, distractors)) for task, a in after.items()}
        mended = Counter(was for was, now in kinds.values() if now == "right" and was != "right")
        left = Counter((after[task].family, now) for task, (_, now) in kinds.items() if now != "right")
        print(f"{how}: turned right {sum(mended.values())}: {dict(mended)}")
        for (family, what), n in left.most_common(6):
            print(f"  still wrong: {family}, {what}: {n}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
