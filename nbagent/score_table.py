"""Scores and comparisons as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from nbagent.compare import Comparison
from nbagent.score import Score, Summary
from nbagent.stats import Estimate, PairedDifference
from nbagent.tasks import Outcome
from nbagent.terminal import foreign


def percent(share: float, decimals: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * share:.{decimals}f}"


def interval(estimate: Estimate | None, decimals: int = 1) -> str:
    """`37.5 [31.6, 43.8]`, in per cent; a dash for nothing."""
    if estimate is None:
        return "–"
    value, low, high = (percent(x, decimals) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def points(estimate: Estimate) -> str:
    """`+46.7 [+39.1, +54.2]`, in percentage points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in (estimate.value, estimate.low, estimate.high)))


def how_intervals(estimate: Estimate | None) -> str:
    """What kind of interval it is, in words."""
    if estimate is None:
        return "no interval: nothing was graded"
    kind = {
        "wilson": "Wilson's score interval over tasks",
        "bootstrap": "bootstrap over tasks",
        "bound": "Wilson's bound: every task gave the same",
    }[estimate.method]
    return f"{100 * estimate.level:.0f} % intervals: {kind}"


def score_table(score: Score) -> Table:
    """pass@1, pass@n and every outcome's share, overall and by family; outcomes that never came up are left out."""
    ks = sorted({1, max(score.overall.pass_at, default=1)})
    seen = [outcome for outcome, share in score.overall.outcomes.items() if share.count]
    title = Text.assemble("Score of ", foreign(score.name or score.model or "a model", 60))
    caption = how_intervals(score.overall.pass_1)
    if score.overall.n_excluded:
        caption += f"; {score.overall.n_excluded} of {score.overall.n_attempts} attempts excluded from pass@k"
    table = _table(title, caption)
    headings = "tasks", *(f"pass@{k} %" for k in ks), *(_HEADINGS[outcome] for outcome in seen), "steps"
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for family, summary in score.families.items():
        table.add_row(foreign(family, 32), *_cells(summary, ks, seen))
    table.add_section()
    table.add_row("all", *_cells(score.overall, ks, seen), style="bold")
    return table


_HEADINGS = {
    Outcome.CORRECT: "correct\n%",
    Outcome.INCORRECT: "incorr.\n%",
    Outcome.NO_ANSWER: "no ans.\n%",
    Outcome.REFUSED: "refused\n%",
    Outcome.UNGRADED: "ungrad.\n%",
    Outcome.INFRASTRUCTURE: "infra.\n%",
}


def _table(title: Text, caption: str) -> Table:
    """An empty table with its first column; narrow, so that it fits 80 characters."""
    table = Table(title=title, caption=caption, caption_justify="left", title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    table.padding = 0, 0, 0, 1
    # The one column that may give way: a cut interval would be worse than a wrapped name.
    table.add_column("family", min_width=8)
    return table


def _cells(summary: Summary, ks: Sequence[int], outcomes: Sequence[Outcome]) -> list[str]:
    shares = (summary.outcomes[outcome].share.value for outcome in outcomes)
    return [
        str(summary.n_tasks),
        *(interval(summary.pass_at.get(k), 1 if len(ks) == 1 else 0) for k in ks),
        *(percent(share) if share else "·" for share in shares),
        f"{summary.steps:.1f}",
    ]


def comparison_table(comparison: Comparison) -> Table:
    """The paired difference, overall and by family, in percentage points."""
    names = foreign(comparison.after, 40), " minus ", foreign(comparison.before, 40)
    caption = f"{how_intervals(comparison.overall.difference)}; p: exact McNemar, two-sided"
    if comparison.n_left_out:
        caption += f"; {comparison.n_left_out} tasks not graded in both left out"
    title = Text.assemble(*names)
    table = _table(title, caption)
    for heading in ("tasks", "before\n%", "after\n%", "difference\npoints", "better–\nworse", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for family, difference in comparison.families.items():
        table.add_row(foreign(family, 32), *_difference_cells(difference))
    table.add_section()
    table.add_row("all", *_difference_cells(comparison.overall), style="bold")
    return table


def _difference_cells(difference: PairedDifference) -> list[str]:
    p = difference.p_value
    return [
        str(difference.difference.n),
        percent(difference.before),
        percent(difference.after),
        points(difference.difference),
        f"{difference.better}–{difference.worse}",
        "–" if p is None else f"{p:.2g}" if p >= 1e-4 else "< 0.0001",
    ]
