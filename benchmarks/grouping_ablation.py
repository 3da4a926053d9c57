"""Held-out score against model calls, one short GRPO run per grouping and seed from the same warm start.

    OMP_NUM_THREADS=1 python benchmarks/grouping_ablation.py --warm runs/demo --out DIR [--arms …] [--seeds 3] [--table]

Every run starts from RUN/checkpoints/warm of a finished training run (the demo's, with its tasks), practises the same
tasks in the same order at the same learning rate, and ends when it has asked the model --calls times, whatever became
of the calls: where attempts share their first steps there are more updates for the same calls. Looks at the entropy of
the next tokens count as calls. At half of the calls and at the end the model attempts questions of the validation
split, sampled at temperature 1, in real kernels. One thread, so a run repeats number for number where kernels do.

Each run leaves DIR/ARM-SEED.json; called again with the same --out it makes what is missing, all arms of one seed
before the next. Prints a Markdown table; its intervals are over seeds (Student's t), differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from nbagent.agent import Agent, agent_beside
from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent.models.hf import HFModel, load
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.score_run import make_attempts
from nbagent.tasks import Task, open_tasks
from nbagent_training.attention import use_own_attention
from nbagent_training.branch_practice import BranchPractice
from nbagent_training.curriculum import Curriculum
from nbagent_training.groups import Batch, batch_of
from nbagent_training.practice import Practice
from nbagent_training.precision import has_bfloat16
from nbagent_training.recipe import Grpo
from nbagent_training.trainer import StepGRPOTrainer, settings

ARMS: dict[str, dict[str, Any]] = {
    "trajectory": {},
    "branch": {"grouping": "branch"},
    "state": {"grouping": "state", "gamma": 0.95},
    "step_index": {"grouping": "step_index"},
    "branch_entropy": {"grouping": "branch", "branch": {"where": "entropy"}},
    # Bundled tasks give no step rewards: what is compared are the penalties and, at the last step, the return. A recipe
    # with this is refused (practice.py); here it is measured.
    "rollout": {"grouping": "rollout", "failed_penalty": 0.5, "malformed_penalty": 0.5},
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 97.5 %, by the number of seeds."""
MOST_UPDATES = 1000


@dataclass(slots=True)
class Result:
    """One run."""

    arm: str
    seed: int
    marks: list[dict[str, float]] = field(default_factory=list)
    """calls, updates and score (share of the questions answered rightly) at each mark, the warm start first."""
    rewards: list[float] = field(default_factory=list)
    """Mean reward of each update's practice."""
    live: list[float] = field(default_factory=list)
    """Share of each update's groups that had a gradient."""
    seconds: float = 0.0


class CountingModel(HFModel):
    """Counts what it is asked in practice."""

    calls = 0
    practising = True

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """One completion."""
        self.calls += self.practising
        return await super().sample(prompt, params)


class Marks(TrainerCallback):  # type: ignore[misc]
    """Scores at half of the calls and when they are used up, and ends the training then."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After each update."""
        made, most = len(self.run.result.marks) - 1, self.run.options.calls
        if self.run.model.calls >= most * (made + 1) / 2:
            self.run.mark(int(state.global_step))
        control.should_training_stop = self.run.model.calls >= most


@dataclass(slots=True)
class Run:
    """One arm with one seed."""

    options: argparse.Namespace
    result: Result
    folder: Path
    agent: Agent
    train: list[Task]
    heldout: list[Task]
    rollouts: Rollouts
    warm: float | None
    model: CountingModel = field(init=False)
    store: RunFolder = field(init=False)

    def go(self) -> Result:
        """Train and score."""
        began = time.monotonic()
        grpo = Grpo(
            group_size=self.options.group,
            lr=self.options.lr,
            save_every=MOST_UPDATES,
            tasks_per_update=self.options.tasks,
            # As in the demo, whose warm start and tasks these are.
            mask_truncated=False,
            **ARMS[self.result.arm],
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.store = RunFolder.create(self.folder, "")
        weights, tokenizer = load(Path(self.options.warm) / "checkpoints" / "warm")
        use_own_attention(weights)
        self.model = CountingModel(
            weights, tokenizer, "grpo", sampling_dtype=torch.bfloat16 if has_bfloat16() else None, lockstep=True
        )
        own = self.agent.rollouts(grpo.temperature, self.result.seed)
        curriculum = Curriculum(
            self.folder / "practice.json", self.train, seed=self.result.seed, group_size=grpo.group_size
        )
        practice = (
            BranchPractice(curriculum, self.rollouts, self.model, own, self.store, grpo.branch)
            if grpo.grouping == "branch"
            else Practice(curriculum, self.rollouts, self.model, own, self.store)
        )
        self.mark(0)

        def make_batch(update: int) -> Batch:
            self.model.refresh(update)
            batch = batch_of(practice.next_groups(grpo.tasks_per_update, update), grpo)
            practice.lineage.made(update, batch.rows)
            self.result.rewards.append(round(batch.stats["reward"], 4))
            self.result.live.append(round(batch.stats["groups_live"] / batch.stats["groups"], 4))
            return batch

        optimizer = torch.optim.AdamW(weights.parameters(), lr=grpo.lr, betas=(0.9, 0.95), weight_decay=0.0)
        # The rate rises and stays: the number of updates is known only when the calls are used up.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / grpo.warmup))
        trainer = StepGRPOTrainer(
            weights,
            tokenizer,
            settings(
                self.folder / "grpo",
                steps=MOST_UPDATES,
                seed=self.result.seed,
                bf16=has_bfloat16(),
                save_strategy="no",
                ignore_data_skip=True,
                max_grad_norm=1.0,
            ),
            make_batch,
            token_budget=grpo.token_budget,
            loss=grpo.loss,
            temperature=grpo.temperature,
            optimizers=(optimizer, schedule),
            callbacks=[Marks(self)],
        )
        trainer.train()
        self.rollouts.call(self.model.close())
        self.result.seconds = round(time.monotonic() - began, 1)
        return self.result

    def mark(self, updates: int) -> None:
        """Score the weights as they are."""
        score = self.warm
        if updates or score is None:
            self.model.refresh(updates)
            self.model.practising = False
            jobs = [(task, f"mark-{updates}-{task.task_id}") for task in self.heldout]
            own = self.agent.rollouts(1.0, self.result.seed)
            made = make_attempts(jobs, self.model, own, self.store, rollouts=self.rollouts)
            graded = [t.reward for t in made if t.reward is not None]
            score = sum(graded) / len(graded)
            self.model.practising = True
        self.result.marks.append({"calls": self.model.calls, "updates": updates, "score": score})
        print(f"{self.result.arm} seed {self.result.seed}: {self.result.marks[-1]}", flush=True)


def interval(values: list[float]) -> str:
    """Mean in points with its 95 % interval over seeds."""
    mean = 100 * statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:.1f}"
    half = 100 * T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def table(results: Iterable[Result]) -> str:
    """The arms that have a result, in Markdown."""
    by_arm: dict[str, dict[int, Result]] = {}
    for result in results:
        by_arm.setdefault(result.arm, {})[result.seed] = result
    lines = [
        "| grouping | seeds | calls | updates | warm start | half of the calls | all calls | against trajectory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = by_arm.get("trajectory", {})
    for arm, runs in sorted(by_arm.items(), key=lambda item: list(ARMS).index(item[0])):
        calls, updates = (
            "/".join(f"{run.marks[-1][name]:.0f}" for run in runs.values()) for name in ("calls", "updates")
        )
        scores = [interval([run.marks[mark]["score"] for run in runs.values()]) for mark in range(3)]
        both = sorted(runs.keys() & base.keys())
        gains = [runs[seed].marks[-1]["score"] - base[seed].marks[-1]["score"] for seed in both]
        against = interval(gains) if gains and arm != "trajectory" else ""
        lines.append(f"| {arm} | {len(runs)} | {calls} | {updates} | {' | '.join(scores)} | {against} |")
    return "\n".join(lines)


def kept(out: Path) -> list[Result]:
    """The results that are there."""
    return [Result(**json.loads(path.read_text())) for path in sorted(out.glob("*-[0-9]*.json"))]


def practised(warm: RunFolder) -> tuple[list[Task], str]:
    """The training tasks of a run, and the location of validation questions of the same families."""
    entry = next(e for e in warm.description()["tasks"] if str(e["location"]).startswith("bundled:train"))
    families = next((part for part in entry["location"].split("&") if part.startswith("families=")), "")
    cache = warm.path / entry["cache"] if entry.get("cache") else None
    return list(open_tasks(entry["location"], cache).tasks()), f"bundled:validation?n={{n}}&seed=7&{families}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=Path, help="run folder whose warm start and training tasks are taken")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3000, help="model calls of a run's practice")
    parser.add_argument("--tasks", type=int, default=8, help="tasks an update")
    parser.add_argument("--group", type=int, default=8, help="attempts a task")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--n", type=int, default=160, help="validation questions")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    if options.table:
        print(table(kept(options.out)))
        return
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    train, validation = practised(RunFolder.open(options.warm))
    heldout = list(open_tasks(validation.format(n=options.n), options.out / "tasks").tasks())
    agent = agent_beside(str(options.warm / "checkpoints" / "warm"))
    with Rollouts(options.concurrency) as rollouts:
        for seed in range(options.seeds):
            for arm in options.arms:
                path = options.out / f"{arm}-{seed}.json"
                if path.exists():
                    continue
                # The warm start is the same for all arms, and so is its score with the same seed.
                warm = next((r.marks[0]["score"] for r in kept(options.out) if r.seed == seed), None)
                folder = options.out / f"{arm}-{seed}"
                run = Run(options, Result(arm, seed), folder, agent, train, heldout, rollouts, warm)
                path.write_text(json.dumps(asdict(run.go()), indent=1) + "\n")
                shutil.rmtree(folder)
    print(table(kept(options.out)))


if __name__ == "__main__":
    main()
