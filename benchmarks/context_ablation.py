"""Held-out score of one trained model per context policy and budget, on tasks of nine steps.

    python benchmarks/context_ablation.py --out DIR [--steps 1200] [--n 100] [--resume]

One small model is made from scratch and trained on demonstrations of every policy at every budget, so that no policy's
prompts are strange to it; then the same weights attempt the same held-out tasks under each policy and budget, greedily,
in real kernels. The tasks (context_tasks.py) ask at the end for what an early output said. Prints a Markdown table and
writes DIR/ablation.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from context_tasks import PLACES, STEPS, make_tasks, remember

from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.hf import HFModel, load
from nbagent.prompts import PromptBuilder
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.score import Score, read_score
from nbagent.score_run import run_score
from nbagent.tasks import Task
from nbagent_context import BudgetTooSmall, policy
from nbagent_training.demonstrations import Step, demonstrate, text_of_steps
from nbagent_training.packing import TreeRow, pack
from nbagent_training.scratch import Size, make_model, make_tokenizer
from nbagent_training.warmstart import warm_start

ANSWER = 60
"""Tokens one answer may take; the longest action of a demonstration takes about 50."""
BUDGETS = (512, 1024, 2048)
"""Context lengths. From the largest on nothing is elided for want of room, so 4k and 8k give the same prompts."""
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"n": 4},
    "drop": {},
    "summarize": {"max_tokens": 40},
}
LIMITS = EnvLimits(max_steps=STEPS + 1, cell_timeout_s=20, warn_steps=0)
SIZE = Size(vocabulary=1200, positions=max(BUDGETS))


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy at one budget."""

    policy: str
    budget: int

    @property
    def name(self) -> str:
        """Of its score in the run folder."""
        return f"{self.policy}_{self.budget}"


ARMS = tuple(Arm(name, budget) for name in POLICIES for budget in BUDGETS)


def demonstration(task: Task, arm: Arm, tokenizer: Any) -> list[Step]:
    """The steps of a task under a policy and budget; none where the policy refuses that budget."""
    prompts = PromptBuilder(tokenizer, arm.budget, ANSWER)
    try:
        return demonstrate(task, "fenced", policy(arm.policy, **POLICIES[arm.policy]), prompts, LIMITS, remember)
    except BudgetTooSmall:
        return []


def rows_of(tasks: Sequence[Task], tokenizer: Any, seed: int) -> list[TreeRow]:
    """Training rows: of each demonstration its memories, its last two steps, and two of the others at random."""
    rng = random.Random(f"{seed} rows")
    rows = []
    for number, task in enumerate(tasks):
        arm = ARMS[number % len(ARMS)]
        steps = demonstration(task, arm, tokenizer)
        prompts = PromptBuilder(tokenizer, arm.budget, ANSWER)
        kept = [step for step in steps[:-2] if step[1][:3] != "```"]
        others = [step for step in steps[:-2] if step[1][:3] == "```"]
        for window, text in [*kept, *rng.sample(others, min(2, len(others))), *steps[-2:]]:
            rows.append(pack([(prompts.build(window).ids or (), prompts.completion_ids(text))]))
    return rows


def train(out: Path, n: int, steps: int, tokens: int, seed: int) -> Path:
    """The model's folder, made where it is not there yet."""
    folder = out / "model"
    if folder.exists():
        return folder
    tasks = make_tasks(out / "tasks" / "train", n, f"{seed} train")
    roomy = PromptBuilder(None, 1 << 30, 0)
    texts = [
        text_of_steps(demonstrate(task, "fenced", policy("full"), roomy, LIMITS, remember)) for task in tasks[:300]
    ]
    tokenizer = make_tokenizer([*texts, "no cutoff, 3 plates read"], SIZE.vocabulary)
    began = time.monotonic()
    rows = rows_of(tasks, tokenizer, seed)
    print(f"{len(rows)} rows, {sum(map(len, rows)):,} tokens, made in {time.monotonic() - began:.0f} s", flush=True)
    model = make_model(tokenizer, SIZE, seed)
    began = time.monotonic()

    def report(step: int, logs: dict[str, float]) -> None:
        if "loss" in logs:
            print(f"step {step}: loss {logs['loss']:.4f}, {time.monotonic() - began:.0f} s", flush=True)

    warm_start(
        model,
        tokenizer,
        rows,
        out=out / "sft",
        steps=steps,
        tokens=tokens,
        muon_lr=0.01,
        adamw_lr=4e-3,
        seed=seed,
        bf16=True,
        report=report,
        save_steps=max(20, steps // 8),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score(arm: Arm, tasks: Sequence[Task], folder: Path, run: RunFolder, rollouts: Rollouts) -> Score:
    """The held-out score of one arm, read where it was made before."""
    path = run.path / "scores" / f"{arm.name}.json"
    if path.exists():
        return read_score(path)
    model, tokenizer = load(folder)
    model.config.max_position_embeddings = arm.budget
    settings = RolloutSettings(
        action_format="fenced",
        policy=arm.policy,
        policy_options=POLICIES[arm.policy],
        limits=LIMITS,
        sampling=SamplingParams(max_new_tokens=ANSWER, temperature=0.0),
    )
    made = run_score(
        tasks,
        HFModel(model, tokenizer, str(folder), sampling_dtype=torch.bfloat16),
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
    by_place = {}
    for place in PLACES:
        of_place = made.families[place].pass_1
        by_place[place] = of_place.value if of_place else None
    n = len(made.attempts)
    return {
        "policy": arm.policy,
        "budget": arm.budget,
        "n": n,
        "score": estimate.value,
        "interval": [estimate.low, estimate.high],
        "by_place": by_place,
        "steps": sum(attempt.n_steps for attempt in made.attempts) / n,
        "prompt_tokens": sum(attempt.prompt_tokens for attempt in made.attempts) / n,
        "too_small": sum("does not fit" in attempt.reason for attempt in made.attempts),
    }


def main() -> None:
    """Train once, score every arm, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=60, help="held-out tasks")
    parser.add_argument("--demonstrations", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of one optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on in --out")
    args = parser.parse_args()
    logging.getLogger("nbagent.rollout").setLevel(logging.ERROR)  # Prompts that do not fit are counted in the table.
    run = RunFolder.create(args.out, f"seed = {args.seed}\n", resume=args.resume)
    folder = train(args.out, args.demonstrations, args.steps, args.tokens, args.seed)
    heldout = args.out / "tasks" / "heldout"
    tasks = make_tasks(heldout, args.n, f"{args.seed} heldout")
    rows = []
    print("| policy | context | score | note first | note in the middle | prompt tokens | did not fit |")
    print("|---|---|---|---|---|---|---|")
    with Rollouts() as rollouts:
        for arm in ARMS:
            row = figures(arm, score(arm, tasks, folder, run, rollouts))
            rows.append(row)
            low, high = row["interval"]
            print(
                f"| {arm.policy} | {arm.budget} | {100 * row['score']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] | "
                + " | ".join(f"{100 * row['by_place'][place]:.0f} %" for place in PLACES)
                + f" | {row['prompt_tokens']:,.0f} | {row['too_small']} |",
                flush=True,
            )
    (args.out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
