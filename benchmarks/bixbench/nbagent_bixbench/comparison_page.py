"""A comparison as tables for a terminal, as JSON, and as one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from nbagent.report.page import page_environment, write_page
from nbagent.score_table import comparison_table
from nbagent.terminal import foreign
from nbagent_bixbench.charts import Line, line_plot
from nbagent_bixbench.comparison import ModeComparison
from nbagent_bixbench.report import MODES


def comparison_tables(comparisons: Sequence[ModeComparison]) -> Iterator[Table | Text]:
    """The paired differences and the areas under the profiles, mode by mode."""
    for found in comparisons:
        yield Text(MODES[found.mode], style="bold")
        for difference in found.differences:
            yield comparison_table(difference)
        if found.profiles:
            yield _areas(found)


def _areas(found: ModeComparison) -> Table:
    caption = f"over questions that at least one model solved; {found.n_unsolved} that none did are left out"
    table = Table(
        title="Area under the performance profile",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("model", "AUP", "solved at least once"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, profile in found.named_profiles:
        table.add_row(foreign(name, 40), f"{profile.aup:.3f}", f"{profile.n_solved} of {profile.n_questions}")
    return table


def comparison_json(comparisons: Sequence[ModeComparison]) -> list[dict[str, Any]]:
    """The comparisons as plain JSON."""
    return [asdict(found) for found in comparisons]


def write_comparison(path: Path, comparisons: Sequence[ModeComparison]) -> None:
    """Write the page. Raises StorageError."""
    context = {
        "names": comparisons[0].names,
        "comparisons": comparisons,
        "modes": MODES,
        "plots": {found.mode: _plot(found) for found in comparisons if found.profiles},
    }
    write_page(path, page_environment("nbagent_bixbench").get_template("comparison.html.j2").render(context))


def _plot(found: ModeComparison) -> Markup:
    widest = max(tau for profile in found.profiles for tau, _ in profile.steps)
    ticks = [tau for tau in (1, 2, 3, 5, 10, 20, 50, 100) if tau < widest] + [max(widest, 2)]
    lines = [Line(f"{name} {profile.aup:.2f}", _to(profile.steps, ticks[-1])) for name, profile in found.named_profiles]
    return line_plot(
        lines, f"performance profiles, {MODES[found.mode]}", "τ, log scale", ticks, place=math.log, steps=True
    )


def _to(steps: tuple[tuple[float, float], ...], last: float) -> tuple[tuple[float, float], ...]:
    """Steps as far as the axis goes, which has a width even where n is 1."""
    return steps if steps[-1][0] >= last else (*steps, (last, steps[-1][1]))
