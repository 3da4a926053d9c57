"""A training run from the recipe to the report: tasks, model, warm start, GRPO, scores before and after.

Every phase leaves its result in the run folder and is skipped when it is there, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from nbagent.models.hf import HFModel, load
from nbagent.progress import Advance
from nbagent.prompts import PromptBuilder
from nbagent.report import build_report
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.score import Score, read_score
from nbagent.score_run import run_score
from nbagent.task_filter import TaskFilter, kept_filter
from nbagent.tasks import Task, TaskSource, open_tasks
from nbagent_context import policy
from nbagent_training.curriculum import Curriculum
from nbagent_training.demonstrations import Step, demonstrate, text_of_steps
from nbagent_training.learn import learn
from nbagent_training.packing import TreeRow, pack
from nbagent_training.practice import Practice, check_rewards
from nbagent_training.recipe import TrainRecipe
from nbagent_training.scratch import make_model, make_tokenizer
from nbagent_training.warmstart import warm_start
from nbagent_training.watch import MemoryWatch, Stages

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainingRun:
    """One run. Call `go` once."""

    recipe: TrainRecipe
    run: RunFolder
    console: Console
    stages: Stages = field(init=False)
    rollouts: Rollouts = field(init=False)
    heldout: list[Task] = field(default_factory=list)
    filter: TaskFilter | None = None
    scores: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = Stages(self.console)

    def go(self) -> None:
        """Run what is not done yet.

        Raises:
            UsageError: a training task may not be trained on.
            KeyboardInterrupt: after saving; `resume` goes on from there.
        """
        recipe = self.recipe
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        begin = time.monotonic()
        with MemoryWatch() as memory, Rollouts() as rollouts:
            self.rollouts = rollouts
            practised = self._practised()
            self.heldout = self._tasks("heldout", recipe.tasks.heldout, recipe.tasks.n_heldout, 2)
            if self.heldout and not recipe.model.folder:
                self._untrained()
            self._warm()
            self._grpo(practised)
            self._facts(time.monotonic() - begin, memory)
        with self.stages.stage("report"):
            build_report(self.run.path)

    def _bundled(self, name: str, n: int, seed: int) -> str:
        split = self.recipe.tasks.heldout_split if name == "heldout" else "train"
        tasks = self.recipe.tasks
        families = f"&families={','.join(tasks.families)}" if tasks.families else ""
        flawed = f"&flawed={tasks.flawed}" if name == "demonstrations" and tasks.flawed else ""
        return f"bundled:{split}?n={n}&seed={self.recipe.seed * 3 + seed}{families}{flawed}"

    def _tasks(self, name: str, location: str, n: int, seed: int) -> list[Task]:
        if not location:
            if not n:
                return []
            location = self._bundled(name, n, seed)
        with self.stages.stage(f"{name} tasks"):
            source: TaskSource = open_tasks(location, self.run.path / "tasks" / name)
            tasks = list(source.tasks())
            self.run.add_tasks(source.fingerprint(), self.run.path / "tasks" / name)
        return tasks

    def _practised(self) -> list[Task]:
        """The training tasks; taken first, so that what may not be trained on is refused before hours of warm start."""
        if not self.recipe.grpo.updates or self._folder("final").exists():
            return []
        tasks = self._tasks("train", self.recipe.tasks.train, self.recipe.tasks.n_train, 1)
        if self.recipe.tasks.filter:
            self.filter = kept_filter(Path(self.recipe.tasks.filter), self.run.path)
            chosen = self.filter.select(tasks, self.recipe.tasks.filter)
            self.console.print(f"  {len(chosen)} of {len(tasks)} training tasks kept ({self.filter.rule})")
            tasks = chosen
        check_rewards(tasks)
        return tasks

    def _settings(self, temperature: float) -> RolloutSettings:
        return self.recipe.agent.rollouts(temperature, self.recipe.seed)

    def _wrap(self, model: Any, tokenizer: Any, name: str) -> HFModel:
        return HFModel(
            model,
            tokenizer,
            name,
            sampling_dtype=torch.bfloat16 if self.recipe.bf16 else None,
            lockstep=torch.get_num_threads() == 1,
        )

    def _score(self, stage: str, model: Any, tokenizer: Any, greedy: bool) -> None:
        if not self.heldout:
            return
        for suffix, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            if suffix == "greedy" and not greedy:
                continue
            name = f"{stage}_{suffix}"
            path = self.run.path / "scores" / f"{name}.json"
            if path.exists():
                score = read_score(path)
            else:
                with self.stages.timed(f"score {name}"):
                    score = self._attempts(name, model, tokenizer, temperature)
                score.write(path)
            self.scores[name] = score
            estimate = score.overall.pass_1
            if estimate is not None:
                self.console.print(
                    f"  {name}: pass@1 {100 * estimate.value:.1f} % "
                    f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]",
                    highlight=False,
                )

    def _attempts(self, name: str, model: Any, tokenizer: Any, temperature: float) -> Score:
        settings = self._settings(temperature)
        return run_score(
            self.heldout,
            self._wrap(model, tokenizer, str(self.run.checkpoints / name.rsplit("_", 1)[0])),
            settings,
            self.run,
            name=name,
            prefix=name,
            details={"temperature": temperature, "seed": self.recipe.seed, **self.recipe.agent.model_dump(mode="json")},
            rollouts=self.rollouts,
        )

    def _demonstrations(self) -> list[list[Step]]:
        tasks = self._tasks("demonstrations", self.recipe.tasks.demonstrations, self.recipe.tasks.n_demonstrations, 0)
        chosen = policy(self.recipe.agent.policy, **self.recipe.agent.policy_options)
        # Windows are made before there is a tokenizer, so the budget is that of the characters' bound.
        roomy = PromptBuilder(None, 1 << 30, 0)
        limits = self.recipe.agent.limits()
        return [demonstrate(task, self.recipe.agent.action_format, chosen, roomy, limits) for task in tasks]

    def _folder(self, name: str) -> Path:
        return self.run.checkpoints / name

    def _save(self, name: str, model: Any, tokenizer: Any) -> None:
        """Written beside and moved, so that a folder of that name is whole."""
        folder, part = self._folder(name), self._folder(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        self.recipe.agent.write_beside(part)
        part.rename(folder)

    def _load(self, name: str) -> tuple[Any, Any]:
        return load(self._folder(name))

    def _untrained(self) -> None:
        """A model from scratch: its tokenizer is trained on the demonstrations."""
        if not self._folder("untrained").exists():
            texts = [text_of_steps(steps) for steps in self._demonstrations()]
            with self.stages.stage("tokenizer and model"):
                size = self.recipe.model.scratch
                tokenizer = make_tokenizer(texts, size.vocabulary)
                self._save("untrained", make_model(tokenizer, size, self.recipe.seed), tokenizer)
        model, tokenizer = self._load("untrained")
        self._score("untrained", model, tokenizer, greedy=False)

    def _start(self) -> tuple[Any, Any]:
        if self.recipe.model.folder:
            return load(Path(self.recipe.model.folder))
        return self._load("untrained")

    def _warm(self) -> None:
        settings = self.recipe.warm_start
        if settings.steps and not self._folder("warm").exists():
            if not self.recipe.model.folder and not self._folder("untrained").exists():
                self._untrained()
            model, tokenizer = self._start()
            prompts = PromptBuilder(tokenizer, model.config.max_position_embeddings, self.recipe.agent.max_new_tokens)
            rows = [self._row(steps, prompts) for steps in self._demonstrations()]
            part = self._folder("sft")
            with self.stages.stage("warm start", settings.steps) as advance:
                warm_start(
                    model,
                    tokenizer,
                    rows,
                    out=part,
                    steps=settings.steps,
                    tokens=settings.tokens,
                    muon_lr=settings.muon_lr,
                    adamw_lr=settings.adamw_lr,
                    seed=self.recipe.seed,
                    bf16=self.recipe.bf16,
                    report=self._report("sft", "loss", advance),
                    save_steps=max(20, settings.steps // 10),
                )
            self._save("warm", model, tokenizer)
            shutil.rmtree(part, ignore_errors=True)
        model, tokenizer = self._load("warm") if settings.steps else self._start()
        self._score("warm" if settings.steps else "start", model, tokenizer, self.recipe.score_greedy)

    def _report(self, phase: str, shown: str, advance: Advance) -> Callable[[int, dict[str, float]], None]:
        """Takes a trainer's log lines: those that have `shown` move the bar and are kept as metrics."""
        done = 0

        def report(step: int, logs: dict[str, float]) -> None:
            nonlocal done
            if shown in logs:
                advance(step - done, note=f"{shown} {logs[shown]:.3f}")
                done = step
                self.run.log_metrics({"phase": phase, "step": step, **_numbers(logs)})

        return report

    def _row(self, steps: list[Step], prompts: PromptBuilder) -> TreeRow:
        return pack([(prompts.build(window).ids or (), prompts.completion_ids(text)) for window, text in steps])

    def _grpo(self, tasks: list[Task]) -> None:
        settings = self.recipe.grpo
        if settings.updates and not self._folder("final").exists():
            model, tokenizer = self._load("warm") if self.recipe.warm_start.steps else self._start()
            sampler = self._wrap(model, tokenizer, "grpo")
            with self.stages.stage("grpo", settings.updates) as advance:
                curriculum = Curriculum(
                    self.run.path / "practice.json",
                    tasks,
                    seed=self.recipe.seed,
                    rule=settings.curriculum,
                    group_size=settings.group_size,
                    start=self.filter.counts() if self.filter else None,
                )
                practice = Practice(curriculum, self.rollouts, sampler, self._settings(settings.temperature), self.run)
                learn(
                    model,
                    tokenizer,
                    sampler,
                    practice,
                    settings,
                    out=self._folder("grpo"),
                    seed=self.recipe.seed,
                    bf16=self.recipe.bf16,
                    report=self._report("grpo", "reward", advance),
                )
            self._save("final", model, tokenizer)
            shutil.rmtree(self._folder("grpo"), ignore_errors=True)
        if settings.updates:
            model, tokenizer = self._load("final")
            self._score("grpo", model, tokenizer, self.recipe.score_greedy)

    def _facts(self, seconds: float, memory: MemoryWatch) -> None:
        """demo.json: what the report says beside scores and curves."""
        path = self.run.path / "demo.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        spent = dict(known.get("stage_seconds", {}))
        for name, took in self.stages.seconds.items():
            spent[name] = round(spent.get(name, 0.0) + took, 1)
        facts = {
            "seed": self.recipe.seed,
            "seconds": round(known.get("seconds", 0.0) + seconds, 1),
            "stage_seconds": spent,
            "peak_memory_bytes": max(memory.peak, known.get("peak_memory_bytes", 0)),
            "peak_process_bytes": max(memory.process_peak, known.get("peak_process_bytes", 0)),
            "torch_threads": torch.get_num_threads(),
        }
        path.write_text(json.dumps({**known, **facts}, indent=1) + "\n")


def _numbers(logs: dict[str, float]) -> dict[str, float]:
    """What a metrics line keeps: finite numbers under short names."""
    return {k: round(float(v), 6) for k, v in logs.items() if isinstance(v, int | float) and float(v) == float(v)}
