"""The report of a run: `bixbench.json`, and `bixbench.html`, one self-contained page without scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

from nbagent.blobs import storage_failed
from nbagent.report.charts import Dot, dot_plot
from nbagent.report.page import page_environment, write_notebook_page, write_page
from nbagent.score import Attempt
from nbagent.score_table import interval, percent
from nbagent.stats import Estimate
from nbagent_bixbench.charts import Line, line_plot
from nbagent_bixbench.policies import POLICIES
from nbagent_bixbench.published_scores import PUBLISHED_ID, PublishedScore, published_scores
from nbagent_bixbench.regrade import regrade
from nbagent_bixbench.results import Mode, Result, Setting, read_results, results_path
from nbagent_bixbench.summary import Summary, Tally, summarize, summary_json, tally
from nbagent_bixbench.summary_table import notes, summary_tables

PAGE, NUMBERS = "bixbench.html", "bixbench.json"
MODES: dict[Mode, str] = {
    "open": "open answer",
    "mcq": "multiple choice",
    "mcq_refusal": "multiple choice with refusal",
    "hypothesis": "hypothesis",
}
"""What a reader calls the modes."""


@dataclass(frozen=True, slots=True)
class Part:
    """The results of one mode and setting."""

    mode: Mode
    setting: Setting
    summary: Summary
    policies: dict[str, Tally]
    """The same answers under every policy, with the judges' verdicts that are recorded."""
    published: tuple[PublishedScore, ...]
    """Of the same mode and setting."""
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """E.g. `open answer, zero-shot`."""
        return MODES[self.mode] + (", zero-shot" if self.setting == "zero-shot" else "")

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return f"{self.mode}-{self.setting}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    page: Path
    numbers: Path
    parts: tuple[Part, ...]


def write_report(run: Path, zero_shot: Path | None = None) -> Report:
    """Write the page and the numbers of a run.

    Args:
        run: a folder with `results.jsonl`, or a file of results, beside which the report is written.
        zero_shot: results of the same questions without data, which mark those that can be guessed.

    Raises:
        UsageError: a file of results cannot be used.
        StorageError: the report cannot be written.
    """
    file = results_path(run)
    results = read_results(file)
    without_data = read_results(results_path(zero_shot)) if zero_shot is not None else []
    parts = tuple(_parts(results, without_data))
    folder = file.parent
    report = Report(folder / PAGE, folder / NUMBERS, parts)
    try:
        report.numbers.write_text(json.dumps(report_json(parts), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        storage_failed(report.numbers, error)
    environment = page_environment("nbagent_bixbench")
    pages = _notebook_pages(results, folder, environment)
    context = _context(folder.resolve().name, parts, pages)
    write_page(report.page, environment.get_template("report.html.j2").render(context))
    return report


def show_report(report: Report) -> None:
    """Print the tables of a report, and where it is."""
    console = Console()
    for part in report.parts:
        for table in summary_tables(part.summary, part.label):
            console.print(table)
    print(f"numbers: {report.numbers}\nreport: {report.page}")


def report_json(parts: Sequence[Part]) -> dict[str, Any]:
    """The numbers of a report as plain JSON, by mode and setting."""
    return {
        part.anchor: {
            "mode": part.mode,
            "setting": part.setting,
            **summary_json(part.summary),
            "by_policy": {name: summary_json(found) for name, found in part.policies.items()},
        }
        for part in parts
    }


def _parts(results: Sequence[Result], without_data: Sequence[Result]) -> Iterator[Part]:
    for mode in MODES:
        for setting in ("agentic", "zero-shot"):
            rows = [row for row in results if row.mode == mode and row.setting == setting]
            if rows:
                policies = {policy: tally(regrade(rows, policy)) for policy in POLICIES} if mode != "hypothesis" else {}
                # Beside other questions a published score would say nothing, and look as if it did.
                theirs = all(PUBLISHED_ID.fullmatch(row.question_id) for row in rows)
                known = tuple(s for s in published_scores() if theirs and s.mode == mode and s.setting == setting)
                # Questions are not marked as guessable by the very attempts that are reported.
                marks = without_data if setting == "agentic" else []
                yield Part(mode, setting, summarize(rows, marks), policies, known, tuple(rows))


def _context(name: str, parts: Sequence[Part], pages: Mapping[str, str]) -> dict[str, Any]:
    models = sorted({row.model for part in parts for row in part.results if row.model})
    return {
        "title": name,
        "models": models,
        "parts": parts,
        "modes": MODES,
        "plot": dot_plot(list(_dots(parts)), "accuracy beside published scores and answers at random", left=330),
        "curves": {part.anchor: _curve(part) for part in parts},
        "notes": notes,
        "questions": _questions,
        "pages": pages,
        "groups": _groups,
    }


def _dots(parts: Sequence[Part]) -> Iterator[Dot]:
    for part in parts:
        accuracy = part.summary.intervals.get("accuracy")
        yield Dot(f"This run: {part.label}", accuracy, f"{interval(accuracy)} %")
        if part.summary.baseline:
            yield _point("answers at random", part.summary.baseline)
        for score in part.published:
            if score.questions.startswith("BixBench 1.5"):
                yield _point(score.agent, score.accuracy)


def _point(label: str, share: float) -> Dot:
    return Dot(label, Estimate(share, share, share, 0, "bound"), f"{percent(share)} %", hollow=True)


def _curve(part: Part) -> Markup:
    """pass@k and the vote over k; '' where there is one attempt."""
    summary = part.summary
    lines = [_line("pass@k", summary.pass_at), _line("majority vote", summary.vote)]
    if summary.letter_vote:
        lines.append(Line("published letter vote", tuple(sorted(summary.letter_vote.items()))))
    lines = [line for line in lines if line.points]
    most = max((line.points[-1][0] for line in lines), default=1)
    if most < 2:
        return Markup("")
    if summary.baseline:
        lines.append(Line("at random", ((1, summary.baseline), (most, summary.baseline))))
    ks = sorted({k for line in lines for k, _ in line.points})
    ticks = ks if len(ks) <= 10 else sorted({1.0, most, *(k for k in ks if k % 5 == 0)})
    return line_plot(lines, f"pass@k and votes, {part.label}", "k attempts", ticks)


def _line(label: str, estimates: Mapping[int, Estimate]) -> Line:
    ordered = sorted(estimates.items())
    return Line(label, tuple((k, e.value) for k, e in ordered), tuple((e.low, e.high) for _, e in ordered))


def _groups(summary: Summary) -> Iterator[tuple[str, dict[str, Tally]]]:
    yield "eval mode", summary.by_eval_mode
    yield "need of data", summary.by_guessable
    yield "category", summary.by_category
    yield "capsule", summary.by_capsule


def _questions(part: Part) -> Iterator[dict[str, Any]]:
    """One row per question, its attempts in order; the key stays out of the page."""
    found: dict[str, list[Result]] = {}
    for row in part.results:
        found.setdefault(row.question_key, []).append(row)
    for key in sorted(found):
        rows = sorted(found[key], key=lambda row: row.replica)
        yield {
            "id": rows[0].question_id,
            "question": rows[0].question,
            "rows": rows,
            "eval_mode": rows[0].eval_mode,
            "why": part.summary.guessable.get(f"{key} ({part.mode})", ""),
        }


def _notebook_pages(results: Sequence[Result], folder: Path, environment: Any) -> dict[str, str]:
    """Write a page beside every notebook of the run; links to these, by the notebook's path in its result."""
    pages: dict[str, str] = {}
    for row in results:
        if not row.notebook or row.notebook in pages:
            continue
        notebook = folder / row.notebook
        # The path is whatever the file of results says: only a notebook inside the folder is one of this run.
        if notebook.suffix != ".ipynb" or not notebook.resolve().is_relative_to(folder.resolve()):
            continue
        if notebook.is_file():
            back = os.path.relpath(folder / PAGE, notebook.parent)
            page = write_notebook_page(notebook, _attempt(row), MODES[row.mode], environment, back)
            pages[row.notebook] = page.relative_to(folder).as_posix()
    return pages


def _attempt(row: Result) -> Attempt:
    return Attempt(
        task_id=row.question_id,
        rollout_id=f"{row.question_id}-{row.replica}",
        outcome=row.outcome,
        family=", ".join(row.categories),
        reward=row.outcome.reward,
        n_steps=row.steps,
        seconds=row.seconds,
        question=row.question,
        answer=row.answer,
        reason=row.reason,
        error=row.error,
    )
