"""A training run from the recipe to the report: tasks, model, warm start, GRPO, scores before and after.

Every phase leaves its result in the run folder and is skipped when it is there, so a run that was stopped goes on.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from nbagent.errors import UsageError
from nbagent.models.hf import load
from nbagent.models.opening import open_tokenizer
from nbagent.prompts import PromptBuilder
from nbagent.report import build_report
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.score import Score, read_score
from nbagent.score_run import check_room, run_score
from nbagent.task_filter import TaskFilter, kept_filter
from nbagent.tasks import Task, TaskSource, open_tasks
from nbagent_context import BudgetTooSmall, policy
from nbagent_training.alarms import Check, checks_of
from nbagent_training.branch_practice import BranchPractice
from nbagent_training.checkpoints import leave_models
from nbagent_training.curriculum import Curriculum
from nbagent_training.dashboard import Dashboard
from nbagent_training.demonstrations import Step, demonstrate, text_of_steps
from nbagent_training.distill import open_teacher
from nbagent_training.engine import Engine, TrainedSampler
from nbagent_training.journal import Journal
from nbagent_training.learn import follow, learn
from nbagent_training.lora import add_lora
from nbagent_training.offline import passed_over
from nbagent_training.packing import TreeRow, pack
from nbagent_training.practice import Practice, check_rewards
from nbagent_training.precision import SLOW, has_bfloat16
from nbagent_training.readiness import check_ready
from nbagent_training.recipe import TrainRecipe
from nbagent_training.recorded import Recorded, own_examples
from nbagent_training.scratch import make_model, make_tokenizer
from nbagent_training.trackers import Tracker, open_trackers
from nbagent_training.warmstart import warm_start
from nbagent_training.watch import MemoryWatch, Stages, note_facts

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainingRun:
    """One run. Call `go` once."""

    recipe: TrainRecipe
    run: RunFolder
    console: Console
    stages: Stages = field(init=False)
    bf16: bool = field(init=False)
    rollouts: Rollouts = field(init=False)
    engine: Engine = field(init=False)
    trackers: list[Tracker] = field(default_factory=list)
    heldout: list[Task] = field(default_factory=list)
    filter: TaskFilter | None = None
    scores: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = Stages(self.console)
        self.bf16 = self.recipe.bf16 and has_bfloat16()

    def check(self) -> None:
        """Find what is wrong before anything is made; the run folder need not be there. Raises UsageError."""
        if not self.run.description().get("finished"):
            check_ready(self.recipe, self._newest(), over=self._folder("final").exists())

    def go(self) -> None:
        """Run what is not done yet.

        Raises:
            UsageError: a training task may not be trained on.
            KeyboardInterrupt: after saving; `resume` goes on from there.
        """
        if self.run.description().get("finished"):
            self.scores = {path.stem: read_score(path) for path in sorted((self.run.path / "scores").glob("*.json"))}
            self.console.print(f"{self.run.path}: this run is finished; its report: {self.run.report}", soft_wrap=True)
            return
        recipe = self.recipe
        self._settle()
        if recipe.bf16 and not self.bf16:
            self.console.print(SLOW, highlight=False)
        begin = time.monotonic()
        with MemoryWatch() as memory, Rollouts(recipe.concurrency) as rollouts, ExitStack() as stack:
            self.rollouts = rollouts
            self.engine = Engine(recipe.sampler, self.run.path, rollouts, bf16=self.bf16, starting=self.stages.stage)
            stack.callback(self.engine.close)
            self.trackers = open_trackers(recipe.watch, self.run, recipe.model_dump(mode="json"))
            for tracker in self.trackers:
                stack.callback(tracker.close)
            practised = self._practised()
            self.heldout = self._tasks("heldout", recipe.tasks.heldout, recipe.tasks.n_heldout, 2)
            source = self._recorded()
            if self.heldout and not recipe.model.folder:
                self._untrained()
            self._warm()
            self._grpo(practised, source)
            note_facts(self.run.path, recipe.seed, time.monotonic() - begin, self.stages, memory)
        with self.stages.stage("report"):
            build_report(self.run.path)
        self.run.describe(finished=datetime.now(UTC).isoformat(timespec="seconds"))

    def follow(self) -> None:
        """What a process that is not the first does under `accelerate launch`: its share of the updates.

        Raises:
            UsageError: what is done once, before GRPO, is not done yet.
        """
        recipe = self.recipe
        self._settle()
        if not recipe.grpo.updates or self._folder("final").exists():
            return
        model, tokenizer = self._load("warm") if recipe.warm_start.steps else self._start()
        adapted = add_lora(model, recipe.lora, recipe.seed)
        follow(adapted, tokenizer, recipe.grpo, out=self._folder("grpo"), seed=recipe.seed, bf16=self.bf16)

    def _settle(self) -> None:
        if self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if not several and torch.cuda.device_count() > 1:
            # Transformers would spread micro-batches over them by DataParallel, which packed rows do not bear.
            raise UsageError(
                f"{torch.cuda.device_count()} GPUs are visible to one process; set CUDA_VISIBLE_DEVICES to the one "
                "that trains, or start a process for each with `accelerate launch -m nbagent.cli train …`"
            )
        if several and self.recipe.warm_start.steps and not self._folder("warm").exists():
            raise UsageError(
                "warm_start: is done in one process; run the same command without `accelerate launch` until it is over"
            )

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
        if not self.recipe.grpo.updates or self.recipe.grpo.from_run or self._folder("final").exists():
            return []
        tasks = self._tasks("train", self.recipe.tasks.train, self.recipe.tasks.n_train, 1)
        if self.recipe.tasks.filter:
            self.filter = kept_filter(Path(self.recipe.tasks.filter), self.run.path)
            chosen = self.filter.select(tasks, self.recipe.tasks.filter)
            self.console.print(f"  {len(chosen)} of {len(tasks)} training tasks kept ({self.filter.rule})")
            tasks = chosen
        check_rewards(tasks, self.recipe.grpo.grouping)
        return tasks

    def _settings(self, temperature: float) -> RolloutSettings:
        return self.recipe.agent.rollouts(temperature, self.recipe.seed)

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

    def _sampler(self, model: Any, tokenizer: Any, name: str) -> TrainedSampler:
        """Raises UsageError: what it samples from takes fewer tokens than it was thought to, too few for a prompt."""
        sampler = self.engine.of(model, tokenizer, name)
        check_room(sampler, self._settings(1.0), "agent.max_new_tokens")
        return sampler

    def _attempts(self, name: str, model: Any, tokenizer: Any, temperature: float) -> Score:
        settings = self._settings(temperature)
        return run_score(
            self.heldout,
            self._sampler(model, tokenizer, str(self.run.checkpoints / name.rsplit("_", 1)[0])),
            settings,
            self.run,
            name=name,
            prefix=name,
            details={"temperature": temperature, "seed": self.recipe.seed, **self.recipe.agent.model_dump(mode="json")},
            rollouts=self.rollouts,
        )

    def _demonstrations(self, prompts: PromptBuilder | None = None) -> list[list[Step]]:
        """Their steps as `prompts` will show them; with room for everything while there is no tokenizer yet."""
        tasks = self._tasks("demonstrations", self.recipe.tasks.demonstrations, self.recipe.tasks.n_demonstrations, 0)
        chosen = policy(self.recipe.agent.policy, **self.recipe.agent.policy_options)
        prompts = prompts or PromptBuilder(None, 1 << 30, 0)
        limits = self.recipe.agent.limits()
        try:
            return [demonstrate(task, self.recipe.agent.action_format, chosen, prompts, limits) for task in tasks]
        except BudgetTooSmall as error:
            raise UsageError(f"a demonstration does not fit: {error}") from error

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

    def _newest(self) -> Path | None:
        """Folder of the newest model that there is; None where it is yet to be made."""
        given = Path(self.recipe.model.folder) if self.recipe.model.folder else None
        return next((made for name in ("final", "warm", "untrained") if (made := self._folder(name)).exists()), given)

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
            rows = self._own_rows(tokenizer) or [self._row(steps, prompts) for steps in self._demonstrations(prompts)]
            part = self._folder("sft")
            with self.stages.timed("warm start"), Dashboard(self.console, "warm start", settings.steps) as board:
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
                    bf16=self.bf16,
                    journal=self._journal("sft", board),
                    save_steps=20 * max(1, settings.steps // 200),
                    lora=self.recipe.lora if self.recipe.model.folder else None,
                    recompute=self.recipe.grpo.recompute,
                )
            self._save("warm", model, tokenizer)
            shutil.rmtree(part, ignore_errors=True)
        model, tokenizer = self._load("warm") if settings.steps else self._start()
        self._score("warm" if settings.steps else "start", model, tokenizer, self.recipe.score_greedy)

    def _journal(self, phase: str, board: Dashboard, checks: Sequence[Check] = ()) -> Journal:
        return Journal(self.run, phase, board.show, self.trackers, checks)

    def _own_rows(self, tokenizer: Any) -> list[TreeRow]:
        """Rows of the rollouts of `warm_start.from_run`, their ids as they were sampled; none where none is named."""
        settings = self.recipe.warm_start
        if not settings.from_run:
            return []
        examples = own_examples(
            Path(settings.from_run),
            tokenizer,
            keep=settings.keep,
            per_task=settings.per_task,
            order=settings.order,
            seed=self.recipe.seed,
            heldout=self.heldout,
        )
        self.console.print(f"  {len(examples)} own rollouts as examples", highlight=False)
        return [pack([(row.prompt_ids, row.completion_ids) for row in rows]) for rows in examples]

    def _row(self, steps: list[Step], prompts: PromptBuilder) -> TreeRow:
        return pack([(prompts.build(window).ids or (), prompts.completion_ids(text)) for window, text in steps])

    def _recorded(self) -> Recorded | None:
        """The rollouts of `grpo.from_run`; opened before any stage, which would be in vain if they cannot be used."""
        settings = self.recipe.grpo
        if not settings.updates or not settings.from_run or self._folder("final").exists():
            return None
        source = Recorded(
            Path(settings.from_run),
            open_tokenizer(Path(self.recipe.model.folder)),
            self.run,
            settings,
            seed=self.recipe.seed,
            heldout=self.heldout,
        )
        passes = settings.updates * settings.tasks_per_update / len(source)
        self.console.print(
            f"  {len(source)} groups with a gradient, {source.n_left_out} without; {passes:.1f} passes",
            highlight=False,
        )
        if idle := passed_over(self.recipe):
            self.console.print(f"  no rollouts are made, so these say nothing: {', '.join(idle)}", highlight=False)
        return source

    def _practice(self, tasks: list[Task], sampler: TrainedSampler) -> Practice:
        settings = self.recipe.grpo
        curriculum = Curriculum(
            self.run.path / "practice.json",
            tasks,
            seed=self.recipe.seed,
            rule=settings.curriculum,
            group_size=settings.group_size,
            start=self.filter.counts() if self.filter else None,
        )
        own = self._settings(settings.temperature)
        if settings.grouping == "branch":
            return BranchPractice(curriculum, self.rollouts, sampler, own, self.run, settings.branch)
        return Practice(curriculum, self.rollouts, sampler, own, self.run)

    def _grpo(self, tasks: list[Task], source: Recorded | None) -> None:
        settings = self.recipe.grpo
        if settings.updates and not self._folder("final").exists():
            model, tokenizer = self._load("warm") if self.recipe.warm_start.steps else self._start()
            model = add_lora(model, self.recipe.lora, self.recipe.seed)
            sampler = (self._sampler if source is None else self.engine.of)(model, tokenizer, "grpo")
            with self.stages.timed("grpo"), Dashboard(self.console, "grpo", settings.updates) as board:
                learn(
                    model,
                    tokenizer,
                    sampler,
                    self._practice(tasks, sampler) if source is None else source,
                    settings,
                    out=self._folder("grpo"),
                    seed=self.recipe.seed,
                    bf16=self.bf16,
                    journal=self._journal("grpo", board, checks_of(self.recipe)),
                    failures=self.recipe.failures,
                    staleness=self.recipe.sampler.staleness,
                    teacher=open_teacher(self.recipe.distill.teacher, tokenizer, sampler.context_length),
                )
            if self.recipe.lora.rank:
                model.save_pretrained(self._folder("adapter"))
                model = model.merge_and_unload()
            self._save("final", model, tokenizer)
        if settings.updates:
            leave_models(self._folder("grpo"), settings.keep_every)
            model, tokenizer = self._load("final")
            self._score("grpo", model, tokenizer, self.recipe.score_greedy)
