"""Run a set: every question as often as asked, in one mode, with a notebook or without; graded and written as results.

The event logs are what a resumed run goes on from. Results are made from them at the end: `results.jsonl` with a row
per attempt, the same row as `questions/<attempt>.json`, and the attempt's notebook.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nbagent.agent import Agent
from nbagent.blobs import storage_failed
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.execute_notebook import write_notebook
from nbagent.models.base import Model
from nbagent.models.opening import open_model
from nbagent.progress import progress_bar
from nbagent.recipe import Recipe
from nbagent.replay import notebook_at
from nbagent.rollout import RolloutSettings
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.score import Attempt as Counts
from nbagent.score_run import check_room, make_attempts
from nbagent.tasks import Task, open_tasks
from nbagent.trajectory import Trajectory
from nbagent_bixbench.judge import EndpointJudge, Judge, open_judge
from nbagent_bixbench.modes import Asked, ask, rows_in_mode, task_of, verifier_of
from nbagent_bixbench.policies import Policy
from nbagent_bixbench.posthoc_run import choose_afterwards
from nbagent_bixbench.regrade import regrade
from nbagent_bixbench.results import RESULTS_FILE, Mode, Result, Setting, result_line, write_results
from nbagent_bixbench.source import BixBenchSource
from nbagent_bixbench.types import Row
from nbagent_context import policy as context_policy

ZERO_SHOT_LIMITS = EnvLimits(max_steps=1, warn_steps=0, warn_s=0.0)
"""One model call, and no word on steps left."""


class RunRecipe(Recipe):
    """What a run depends on; the same recipe may resume it, another may not."""

    tasks: str
    """Location of the set."""
    model: str
    """A model folder, `vllm:FOLDER`, or `openai:URL#MODEL`."""
    mode: Mode = "open"
    """How each question is asked."""
    setting: Setting = "agentic"
    """With a notebook and the data, or one model call without either."""
    replicas: int = Field(5, ge=1)
    """Attempts per question; five as in the published runs."""
    limit: int | None = None
    """Only the first so many questions; None: all."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling; the published runs take 1."""
    seed: int = 0
    """Seed of all sampling noise and of the options' letters."""
    policy: Policy = "strict"
    """Grading policy."""
    judge: str = ""
    """`URL#MODEL` of the judge; '': what needs one is ungraded."""
    mcq: Literal["direct", "posthoc"] = "direct"
    """Whether the agent is shown the options, or a second model picks one after reading the agent's notebook."""
    mcq_model: str = ""
    """`URL#MODEL` of that second model."""
    language: Literal["", "python", "r"] = ""
    """Language of the kernels; '': as each row says, Python where it does not."""
    agent: Agent = Agent()
    """How the agent acts."""

    @property
    def asked_mode(self) -> Mode:
        """The mode in which the agent is asked: open, where the choice comes afterwards."""
        return "open" if self.mcq == "posthoc" else self.mode

    def settings(self) -> RolloutSettings:
        """The settings of its rollouts."""
        settings = self.agent.rollouts(self.temperature, self.seed)
        if self.setting == "agentic":
            return settings
        return replace(
            settings,
            action_format="answer",
            policy="full",
            policy_options={},
            limits=ZERO_SHOT_LIMITS,
            images=False,
        )

    def check(self) -> None:
        """What can be said before anything is opened. Raises UsageError."""
        try:
            context_policy(self.agent.policy, **self.agent.policy_options)
        except ValueError as error:
            raise UsageError(f"--context: {error}") from None
        judged = self.policy == "judge" or (self.policy == "official-agentic" and self.mode == "open")
        if judged and not self.judge:
            raise UsageError(f"--policy {self.policy}: asks a judge about every answer; name one: --judge URL#MODEL")
        if self.mcq == "posthoc":
            if not self.mode.startswith("mcq") or self.setting != "agentic":
                raise UsageError("--mcq posthoc: for the modes mcq and mcq_refusal of `nbagent bixbench run`")
            if not self.mcq_model:
                raise UsageError("--mcq posthoc: name the model that picks: --mcq-model URL#MODEL")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one question."""

    asked: Asked
    """As its result shows it."""
    replica: int
    """From 0."""
    rollout_id: str
    """Its name in the run folder."""
    task: Task
    """As the agent is asked it."""


def run_command(
    recipe: RunRecipe,
    out: Path,
    remote: Mapping[str, Any],
    *,
    concurrency: int = 8,
    resume: bool = False,
    cache: Path | None = None,
) -> list[Result]:
    """What `nbagent bixbench run` does: checks what can be checked first, then runs, grades and writes the results.

    Args:
        recipe: what to run and how.
        out: the run folder.
        remote: settings of an `openai:` model; empty for a local one.
        concurrency: attempts under way at once.
        resume: go on with the run in `out`.
        cache: where unpacked capsules are kept; None: they go with the process.

    Raises:
        UsageError: a set, model, judge or run folder that cannot be used.
        ModelError: the model failed in every attempt of a batch, or reached its cap on cost; what was done is kept.
        KeyboardInterrupt: with a word on what was saved and how to go on.
    """
    recipe.check()
    judge = open_judge(recipe.judge, cache=out / "judge") if recipe.judge else None
    picker = open_judge(recipe.mcq_model) if recipe.mcq == "posthoc" else None
    source = open_tasks(recipe.tasks, cache)
    if not isinstance(source, BixBenchSource):
        raise UsageError(f"{recipe.tasks}: no set in BixBench's format; `nbagent score` takes questions of one's own")
    rows = rows_in_mode(source.rows, recipe.mode)[: recipe.limit]
    native = {"native_tools": recipe.agent.action_format == "native" and recipe.setting == "agentic"}
    model = open_model(recipe.model, **({**remote, **native} if remote else {}))
    check_room(model, recipe.settings())
    if recipe.setting == "agentic":
        with progress_bar("capsules", len({row.data_folder for row in rows})) as advance:
            source.capsules(rows, advance)
    run = RunFolder.create(out, recipe, resume=resume)
    run.add_tasks(source.fingerprint(), cache)
    return run_set(recipe, rows, source, model, run, concurrency=concurrency, judge=judge, picker=picker)


def run_set(
    recipe: RunRecipe,
    rows: Sequence[Row],
    source: BixBenchSource,
    model: Model,
    run: RunFolder,
    *,
    concurrency: int = 8,
    judge: Judge | None = None,
    picker: EndpointJudge | None = None,
) -> list[Result]:
    """Make the attempts that are not in the run folder yet, grade all and write the results.

    Args:
        recipe: how.
        rows: of the set; each is asked `recipe.replicas` times.
        source: the set, for the capsules.
        model: who answers; closed afterwards.
        run: where everything goes.
        concurrency: attempts under way at once.
        judge: decides on free text.
        picker: the second model of `mcq = "posthoc"`.

    Raises:
        ModelError: the model failed in every attempt of a batch, or reached its cap on cost; what was done is kept.
        KeyboardInterrupt: with a word on what was saved and how to go on.
    """
    run.describe(model=model.name)
    attempts = plan(recipe, rows, source, run)
    jobs = [(attempt.task, attempt.rollout_id) for attempt in attempts]
    try:
        made = make_attempts(jobs, model, recipe.settings(), run, concurrency=concurrency)
    except BaseException:
        # What has ended can be looked at; a choice that is made afterwards has no result yet.
        ended = run.done_ids() if picker is None else ()
        kept = [(attempt, run.load(attempt.rollout_id)) for attempt in attempts if attempt.rollout_id in ended]
        _write(run, regrade([_result(a, t, recipe, model.name) for a, t in kept], recipe.policy))
        raise
    results = [_result(a, t, recipe, model.name) for a, t in zip(attempts, made, strict=True)]
    if picker is not None:
        results = choose_afterwards(results, made, picker, run.path / "posthoc", concurrency)
    for trajectory in made if recipe.setting == "agentic" else ():
        write_notebook(notebook_at(trajectory), run.notebooks / f"{trajectory.rollout_id}.ipynb")
    with progress_bar("graded", len(results)) as advance:
        results = regrade(results, recipe.policy, judge, advance)
    _write(run, results)
    return results


def plan(recipe: RunRecipe, rows: Sequence[Row], source: BixBenchSource, run: RunFolder) -> list[Attempt]:
    """Every attempt of a run, question by question: each question exactly `replicas` times."""
    nothing = run.path / "no-data"
    nothing.mkdir(exist_ok=True)
    capsules = source.capsules(rows) if recipe.setting == "agentic" else {}
    attempts = []
    for row in rows:
        data = capsules[row.data_folder].data if capsules else nothing
        for replica in range(recipe.replicas):
            told = ask(row, recipe.asked_mode, recipe.seed, replica)
            attempts.append(
                Attempt(
                    asked=ask(row, recipe.mode, recipe.seed, replica),
                    replica=replica,
                    rollout_id=rollout_id(row.question_id, replica),
                    # The judge is asked when all have ended: sixteen at a time, and again where it was not there.
                    task=task_of(told, data, None, verifier_of(told, recipe.policy), recipe.language),
                )
            )
    return attempts


def _result(attempt: Attempt, trajectory: Trajectory, recipe: RunRecipe, model: str) -> Result:
    row, counts = attempt.asked.row, Counts.of(trajectory)
    priced = any("cost" in (event.get("tokens") or {}) for event in trajectory.events if event["kind"] == "call")
    agentic = recipe.setting == "agentic"
    return Result(
        question_id=row.question_id,
        replica=attempt.replica,
        mode=recipe.mode,
        eval_mode=row.eval_mode,  # type: ignore[arg-type]
        ideal=attempt.asked.ideal,
        answer=counts.answer,
        outcome=counts.outcome,
        capsule_uuid=row.capsule_uuid,
        setting=recipe.setting,
        question=attempt.asked.question,
        options=attempt.asked.options,
        categories=row.categories,
        reason=counts.reason,
        policy=recipe.policy,
        model=model,
        steps=counts.n_steps,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        seconds=counts.seconds,
        cost=counts.cost if priced else None,
        error=counts.error,
        seed=recipe.seed,
        images=recipe.agent.images and agentic,
        language=attempt.task.language,
        trajectory=f"rollouts/{attempt.rollout_id}.jsonl",
        notebook=f"notebooks/{attempt.rollout_id}.ipynb" if agentic else "",
    )


def _write(run: RunFolder, results: Sequence[Result]) -> None:
    write_results(run.path / RESULTS_FILE, results)
    folder = run.path / "questions"
    try:
        folder.mkdir(exist_ok=True)
        for result in results:
            text = json.dumps(json.loads(result_line(result)), indent=1, ensure_ascii=False)
            (folder / f"{Path(result.trajectory).stem}.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        storage_failed(folder, error)
