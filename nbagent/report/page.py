"""Write the page: templates filled with what was gathered; no script, a strict content security policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nbagent.blobs import storage_failed
from nbagent.report.charts import interval_plot, learning_curve
from nbagent.report.gather import STAGES, Findings, gather
from nbagent.report.notebook_page import shown_cells
from nbagent.runfolder import RunFolder
from nbagent.score import Attempt
from nbagent.score_table import how_intervals, interval, percent, points
from nbagent.tasks import Outcome
from nbagent.terminal import plain

MARKS = {
    Outcome.CORRECT: "✓",
    Outcome.INCORRECT: "✗",
    Outcome.NO_ANSWER: "○",
    Outcome.REFUSED: "–",
    Outcome.UNGRADED: "?",
    Outcome.INFRASTRUCTURE: "!",
}
_PROSE = ("title", "summary", "demonstrations", "caveats")


def build_report(path: Path | str) -> Path:
    """Write `report.html` and a page beside every notebook; the report's path.

    Args:
        path: a run folder. Scores are read from `scores/*.json` and `score.json`, learning curves from
            `metrics.jsonl`, facts from `demo.json`, notebooks from `notebooks/ROLLOUT_ID.ipynb`; what is not there
            is left out.

    Raises:
        RunFolderError: no run is there.
        UsageError: a file in it is damaged.
        StorageError: the page cannot be written.
    """
    run = RunFolder.open(path)
    findings = gather(run)
    environment = page_environment()
    pages = _notebook_pages(run, findings, environment)
    write_page(run.report, environment.get_template("template.html.j2").render(_context(findings, pages)))
    return run.report


def content_security_policy(style: str) -> str:
    """Nothing may load or run but this very style sheet and images inside the page."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def page_environment(package: str = "nbagent.report") -> Environment:
    """What renders our templates and those of a package, which has our style; everything is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "") for name in dict.fromkeys((package, "nbagent.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "\n" + files("nbagent.report").joinpath("style.css").read_text(encoding="utf-8")
    environment.globals.update(
        # Our own style sheet, which the policy's hash pins.
        style=Markup(style),
        policy=content_security_policy(style),
        marks=MARKS,
        Outcome=Outcome,
        interval=interval,
        points=points,
        percent=percent,
        how_intervals=how_intervals,
    )
    environment.filters["plain"] = plain
    return environment


def _context(findings: Findings, pages: Mapping[str, str]) -> dict[str, Any]:
    facts = findings.facts
    every = (*findings.scores, *findings.validation)
    used = {outcome for s in every for outcome, share in s.score.overall.outcomes.items() if share.count}
    return {
        "findings": findings,
        "title": str(facts.get("title") or findings.name),
        "staged": any(scored.stage in STAGES for scored in findings.scores),
        "summary": str(facts.get("summary") or ""),
        "demonstrations": _paragraphs(facts.get("demonstrations")),
        "caveats": _paragraphs(facts.get("caveats")),
        "rows": list(_rows({key: value for key, value in facts.items() if key not in _PROSE})),
        "pages": pages,
        "outcomes": [outcome for outcome in Outcome if outcome in used],
        "ks": sorted({k for s in findings.scores for k in s.score.overall.pass_at if k > 1}),
        "families": sorted({family for s in findings.scores for family in s.score.families}),
        "curves": [(series, learning_curve(series)) for series in findings.curves],
        "plot": interval_plot(findings.scores) if findings.scores else "",
        "heat": _heat,
    }


def _heat(share: float) -> str:
    """The class of a cell's shade, h0 to h10."""
    return f"h{round(10 * share)}"


def _paragraphs(value: Any) -> list[str]:
    if not value:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _rows(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts as label and value, nested tables flattened."""
    for key, value in facts.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            # `stage_seconds = {grpo = 274}` gives its unit to what is in it.
            unit = "_s" if key.endswith("_seconds") else ""
            named = {f"{inner}{unit}": content for inner, content in value.items()}
            yield from _rows(named, f"{key.removesuffix('_seconds')} · ")
        elif isinstance(value, list):
            yield label, ", ".join(str(item) for item in value) or "none"
        else:
            yield _with_unit(key, label, value)


def _with_unit(key: str, label: str, value: Any) -> tuple[str, str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return label, "–" if value is None else str(value)
    if key.endswith("_bytes"):
        return label.removesuffix(" bytes"), f"{value / 1e9:.2f} GB"
    if key.endswith(("_s", "seconds")):
        label = label.removesuffix(" s").removesuffix(" seconds")
        return label, f"{int(value // 60)} min {value % 60:02.0f} s" if value >= 100 else f"{value:.1f} s"
    return label, f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value:.6g}"


def _notebook_pages(run: RunFolder, findings: Findings, environment: Environment) -> dict[str, str]:
    """Write `notebooks/ID.html` for every attempt that has a notebook; ids of these, with the stem to link to."""
    pages = {}
    for scored in (*findings.scores, *findings.validation):
        for attempt in scored.score.attempts:
            notebook = run.notebooks / f"{attempt.rollout_id}.ipynb"
            if notebook.name.startswith(".") or "/" in attempt.rollout_id or not notebook.is_file():
                continue
            pages[attempt.rollout_id] = f"notebooks/{attempt.rollout_id}"
            write_notebook_page(notebook, attempt, scored.label, environment)
    return pages


def write_notebook_page(
    notebook: Path, attempt: Attempt, label: str, environment: Environment, report: str = "../report.html"
) -> Path:
    """Write a notebook's page beside it, where there is none or an older one; the page's path.

    Args:
        notebook: the `.ipynb` file.
        attempt: what it is of.
        label: name of the score that the attempt belongs to.
        environment: of `page_environment`.
        report: where the page leads back to, relative to the notebook.
    """
    page = notebook.with_suffix(".html")
    if not page.exists() or page.stat().st_mtime < notebook.stat().st_mtime:
        context = {**_notebook_context(notebook, attempt, label), "report": report}
        write_page(page, environment.get_template("notebook.html.j2").render(context))
    return page


def _notebook_context(notebook: Path, attempt: Attempt, label: str) -> dict[str, Any]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return {"attempt": attempt, "label": label, "cells": shown_cells(content), "notebook": notebook.name}


def write_page(path: Path, text: str) -> None:
    """Write a page's text. Raises StorageError."""
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        storage_failed(path, error)
