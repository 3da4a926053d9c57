"""Held-out score of one trained model per context policy and budget, on tasks of nine steps.

    python benchmarks/context_ablation.py --out DIR [--scale 8] [--n 40] [--resume]
    python benchmarks/context_ablation.py --out DIR --survival-only [--scale 1]

First what needs no model: in how many held-out tasks the prompt of the decisive step still holds the fact that the
answer needs, per policy and budget (`context_arms.py`). Then one small model is made from scratch and trained on
demonstrations of every policy at every budget, so that no policy's prompts are strange to it: on short tasks, where it
learns to copy, then on longer ones. The same weights attempt the same held-out tasks (`context_tasks.py`) under each
policy and budget, greedily, in real kernels. Budgets of 2k, 4k and 8k tokens and all lengths are divided by `--scale`,
since a model of three million parameters on a CPU cannot be trained on rows of 5,000 tokens in an hour. Prints Markdown
tables, with 95 % Wilson intervals, and writes DIR/ablation.json. With --resume, what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from context_arms import ANSWER, LIMITS, Arm, arms, decisive, long_tasks, survival
from context_tasks import N_FILES, PLACES, make_task, remember

from nbagent.models.base import SamplingParams
from nbagent.models.hf import HFModel, load
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.score import Score, read_score
from nbagent.score_run import run_score
from nbagent.tasks import Task
from nbagent_training.demonstrations import text_of_steps
from nbagent_training.journal import Journal
from nbagent_training.packing import TreeRow, pack
from nbagent_training.precision import has_bfloat16
from nbagent_training.scratch import Size, make_model, make_tokenizer
from nbagent_training.warmstart import warm_start

SIZE = Size(vocabulary=600, positions=8192 + ANSWER)
ROOMY = 1 << 20
"""Tokens that nothing is cut for."""
SHORT_SCALE = 4
"""What the budgets of short tasks are divided by: little is cut there."""
STAGES = (("short", 1.0), ("middle", 1.0), ("long", 0.5))
"""What is trained on, one after the other, and its learning rates as a multiple of the demo's warm start."""
OTHERS = 3
"""Of a long task's easy steps, which read the next file, so many are trained on."""


def short_tasks(folder: Path, n: int, seed: str, n_files: int = 3, n_values: int = 6) -> list[Task]:
    """Tasks of two to `n_files` files of three to `n_values` values each."""
    sizes = [Random(f"{seed} {number} size") for number in range(n)]
    return [make_task(folder, i, seed, r.randint(2, n_files), r.randint(3, n_values)) for i, r in enumerate(sizes)]


def tokenizer_of(tasks: Sequence[Task]) -> Any:
    """A tokenizer made from what the tasks show, with and without elision."""
    kinds = [Arm("full", ROOMY), Arm("drop", ROOMY, {"frugal": True})]
    texts = [text_of_steps(arm.steps(task, None)) for task in tasks for arm in kinds]
    return make_tokenizer([*texts, remember([], "")], SIZE.vocabulary)


def row_of(task: Task, arm: Arm, tokenizer: Any, others: int, r: Random) -> TreeRow | None:
    """The steps of a demonstration: memories, the last two, and some others.

    The decisive step is left out where its prompt lacks what it needs.
    """
    steps = arm.steps(task, tokenizer)
    if not steps:
        return None
    number, shown = decisive(steps)
    easy = [place for place, (_, text) in enumerate(steps[:number]) if text.startswith("```")]
    left_out = {*r.sample(easy, max(len(easy) - others, 0)), *([] if shown else [number])}
    prompts = arm.prompts(tokenizer)
    kept = [step for place, step in enumerate(steps) if place not in left_out]
    return pack([(prompts.build(window).ids or (), prompts.completion_ids(text)) for window, text in kept])


def train(run: RunFolder, n: Sequence[int], steps: Sequence[int], scale: int, seed: int) -> Path:
    """The model's folder. Stages that are done are not done again."""
    before: Path | None = None
    for number, (name, lr) in enumerate(STAGES):
        folder = run.checkpoints / name
        if not folder.exists():
            place, drawn = run.path / "tasks" / name, f"{seed} {name}"
            if before is None:
                tasks = short_tasks(place, n[number], drawn)
                tokenizer = tokenizer_of(tasks[:300])
                model = make_model(tokenizer, SIZE, seed)
                rows = rows_of(tasks, arms(SHORT_SCALE), N_FILES, tokenizer, seed)
            else:
                model, tokenizer = load(before)
                middle = name == "middle"
                tasks = (
                    short_tasks(place, n[number], drawn, N_FILES, 12)
                    if middle
                    else long_tasks(place, n[number], drawn, scale)
                )
                rows = rows_of(tasks, arms(scale), N_FILES if middle else OTHERS, tokenizer, seed)
            learn(run, folder, model, tokenizer, rows, steps[number], lr, seed)
        before = folder
    assert before is not None
    return before


def rows_of(tasks: Sequence[Task], seen: Sequence[Arm], others: int, tokenizer: Any, seed: int) -> list[TreeRow]:
    """A row of each task, under one arm after the other."""
    began, r = time.monotonic(), Random(f"{seed} steps")
    made = [row_of(task, seen[i // 2 % len(seen)], tokenizer, others, r) for i, task in enumerate(tasks)]
    rows = [row for row in made if row is not None]
    print(f"{len(rows)} rows, {sum(map(len, rows)):,} tokens, made in {time.monotonic() - began:.0f} s", flush=True)
    return rows


def learn(
    run: RunFolder, folder: Path, model: Any, tokenizer: Any, rows: list[TreeRow], steps: int, lr: float, seed: int
) -> None:
    """Train, with learning rates of the demo's warm start times `lr`, and save."""
    began = time.monotonic()

    def show(lines: Sequence[Mapping[str, Any]], begun: Sequence[str]) -> None:
        took = time.monotonic() - began
        print(f"step {lines[-1]['step']}: loss {lines[-1]['loss']:.4f}, {took:.0f} s", flush=True)

    warm_start(
        model,
        tokenizer,
        rows,
        out=run.path / "sft" / folder.name,
        steps=steps,
        tokens=2048,
        muon_lr=0.01 * lr,
        adamw_lr=4e-3 * lr,
        seed=seed,
        bf16=has_bfloat16(),
        journal=Journal(run, folder.name, show),
        save_steps=100,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def score(arm: Arm, tasks: Sequence[Task], folder: Path, run: RunFolder, rollouts: Rollouts) -> Score:
    """The held-out score of one arm, read where it was made before."""
    path = run.path / "scores" / f"{arm.name}.json"
    if path.exists():
        return read_score(path)
    model, tokenizer = load(folder)
    model.config.max_position_embeddings = arm.context
    settings = RolloutSettings(
        action_format="fenced",
        policy=arm.policy,
        policy_options=arm.options,
        limits=LIMITS,
        sampling=SamplingParams(max_new_tokens=ANSWER, temperature=0.0),
    )
    made = run_score(
        tasks,
        HFModel(model, tokenizer, str(folder), sampling_dtype=torch.bfloat16 if has_bfloat16() else None),
        settings,
        run,
        name=arm.name,
        prefix=arm.name,
        rollouts=rollouts,
    )
    made.write(path)
    return made


def figures(arm: Arm, made: Score) -> dict[str, Any]:
    """What the table shows of one arm."""
    estimate = made.overall.pass_1
    assert estimate is not None
    places = {place: made.families[place].pass_1 for place in PLACES}
    n = len(made.attempts)
    return {
        "n": n,
        "score": estimate.value,
        "interval": [estimate.low, estimate.high],
        "by_place": {place: found.value if found else None for place, found in places.items()},
        "prompt_tokens": sum(attempt.prompt_tokens for attempt in made.attempts) / n,
        "too_small": sum("does not fit" in attempt.reason for attempt in made.attempts),
    }


def survive(tasks: Sequence[Task], tokenizer: Any, scale: int) -> list[dict[str, Any]]:
    """The table of what survives."""
    n = len(tasks) // len(PLACES)
    print(f"\nFact in the decisive prompt, of {n} tasks each; budgets and lengths divided by {scale}\n")
    print("| policy | budget | note first | note in the middle | tokens of that prompt | did not fit |\n|" + "---|" * 6)
    rows = []
    for arm in arms(scale):
        found = survival(arm, tasks, tokenizer)
        rows.append({"policy": arm.label, "budget": arm.budget, **asdict(found)})
        counts = " | ".join(f"{found.by_place[place]}" for place in PLACES)
        print(f"| {arm.label} | {arm.budget} | {counts} | {found.tokens:,.0f} | {found.too_small} |", flush=True)
    return rows


def main() -> None:
    """Count survival, train once, score every arm, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=40, help="held-out tasks")
    parser.add_argument("--scale", type=int, default=8, help="what budgets and lengths are divided by")
    parser.add_argument("--demonstrations", type=int, nargs=3, default=(3500, 900, 1500), help="of each stage")
    parser.add_argument("--steps", type=int, nargs=3, default=(500, 200, 500), help="optimizer steps of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survival-only", action="store_true", help="no model")
    parser.add_argument("--resume", action="store_true", help="go on in --out")
    args = parser.parse_args()
    logging.getLogger("nbagent.rollout").setLevel(logging.ERROR)  # Prompts that do not fit are counted in the table.
    run = RunFolder.create(args.out, f"seed = {args.seed}\n", resume=args.resume)
    tasks = long_tasks(args.out / "tasks" / "heldout", args.n, f"{args.seed} heldout", args.scale)
    results = args.out / "ablation.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if "survival" not in found:
        counting = tokenizer_of(short_tasks(args.out / "tasks" / "counting", 300, f"{args.seed} short"))
        found["survival"] = survive(tasks, counting, args.scale)
        results.write_text(json.dumps(found, indent=1) + "\n")
    if args.survival_only:
        return
    folder = train(run, args.demonstrations, args.steps, args.scale, args.seed)
    rows: list[dict[str, Any]] = []
    print(f"\nHeld-out score, {args.n} tasks of {N_FILES + 2} steps; budgets and lengths divided by {args.scale}\n")
    print("| policy | budget | score | note first | note in the middle | prompt tokens, all steps | did not fit |")
    print("|" + "---|" * 7)
    with Rollouts() as rollouts:
        for arm in arms(args.scale):
            row = figures(arm, score(arm, tasks, folder, run, rollouts))
            rows.append({"policy": arm.label, "budget": arm.budget, **row})
            low, high = row["interval"]
            by_place = " | ".join(f"{100 * row['by_place'][place]:.0f} %" for place in PLACES)
            print(
                f"| {arm.label} | {arm.budget} | {100 * row['score']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] | "
                f"{by_place} | {row['prompt_tokens']:,.0f} | {row['too_small']} |",
                flush=True,
            )
    results.write_text(json.dumps({**found, "scores": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
