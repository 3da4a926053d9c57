"""Summaries as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from nbagent.score_table import how_intervals, interval, percent
from nbagent.stats import Estimate
from nbagent.terminal import foreign
from nbagent_bixbench.summary import Summary, Tally

MOST_ROWS = 12
"""Categories and capsules beyond that many are left to the page and the JSON."""


def summary_tables(summary: Summary, name: str) -> Iterator[Table | Text]:
    """Accuracy, precision, coverage and outcomes, overall and by kind; then pass@k and the votes."""
    yield _tallies(summary, name)
    if max(summary.pass_at, default=1) > 1 or summary.letter_vote:
        yield _curves(summary)
    yield Text("\n".join(notes(summary)), style="dim")


def notes(summary: Summary) -> Iterator[str]:
    """What else is to be said, one sentence each; a page and a terminal say the same."""
    yield "outcomes: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in summary.outcomes.items())
    yield how_intervals(summary.intervals.get("accuracy"))
    left_out = summary.n_total - summary.n_graded
    if left_out:
        yield f"{left_out} of {summary.n_total} results are ungraded or failed on the host's side: counted, not scored"
    if summary.baseline:
        yield f"answers at random: {percent(summary.baseline)} %"
    for name, tally in summary.by_guessable.items():
        yield f"{name}: {tally.n_correct} of {tally.n_graded} correct ({interval(tally.intervals.get('accuracy'))} %)"
    if summary.judging is not None:
        judging = summary.judging
        agreement = "" if judging.agreement is None else f", agreement with itself {percent(judging.agreement)} %"
        yield f"judged: {judging.n_judged} results by {', '.join(judging.models)}{agreement}"
        if judging.n_undecided:
            yield f"of these without a verdict: {judging.n_undecided}"
    effort = summary.effort
    if effort.prompt_tokens or effort.completion_tokens or effort.seconds:
        cost = "" if effort.cost is None else f", cost {effort.cost:.2f}"
        tokens = f"{effort.prompt_tokens:,} tokens read and {effort.completion_tokens:,} written"
        yield f"{tokens}, {effort.seconds:,.0f} s summed over the attempts{cost}"


def _tallies(summary: Summary, name: str) -> Table:
    policy = ", ".join(summary.policies) or "as recorded"
    title = Text.assemble(foreign(name, 60), f": {summary.n_questions} questions, graded {policy}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", min_width=14)
    for heading in ("total", "correct", "sure", "accuracy %", "precis. %", "cover. %"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: list[Mapping[str, Tally]] = [summary.by_mode, summary.by_eval_mode, summary.by_category]
    for group in groups:
        if 1 < len(group) <= MOST_ROWS:
            for label, tally in group.items():
                table.add_row(foreign(label, 32), *_cells(tally))
            table.add_section()
    table.add_row("all", *_cells(summary), style="bold")
    return table


def _cells(tally: Tally) -> list[str]:
    return [
        str(tally.n_total),
        str(tally.n_correct),
        str(tally.n_sure),
        interval(tally.intervals.get("accuracy")),
        _rate(tally.intervals.get("precision")),
        _rate(tally.intervals.get("coverage")),
    ]


def _rate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else percent(estimate.value)


def _curves(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("k", justify="right")
    table.add_column("pass@k %", justify="right")
    table.add_column("vote over answers %", justify="right")
    if summary.letter_vote:
        table.add_column("published vote over letters %", justify="right")
    for k in sorted({*summary.pass_at, *summary.vote, *summary.letter_vote}):
        letter = [percent(summary.letter_vote[k]) if k in summary.letter_vote else "–"] if summary.letter_vote else []
        table.add_row(str(k), interval(summary.pass_at.get(k)), interval(summary.vote.get(k)), *letter)
    return table
