"""The page of a reward profile: how often tasks succeed, which families they are of, and which are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from nbagent.report.charts import Dot, dot_plot, svg, ticks
from nbagent.report.page import page_environment, write_page
from nbagent.reward_profile import Profile, TaskProfile, part_of, parts_by_family
from nbagent.score_table import interval
from nbagent.task_filter import TaskFilter

PAGE = "profile.html"
BINS = 10
"""Bars over 0 to 1; the two ends have bars of their own."""


def build_profile_page(profile: Profile, kept: TaskFilter, folder: Path) -> Path:
    """Write `profile.html` into a run folder; its path. Raises StorageError."""
    parts = parts_by_family(profile.tasks)
    dots = [Dot(name, part.pass_1, f"{interval(part.pass_1)} %") for name, part in parts.items()]
    text = (
        page_environment()
        .get_template("profile.html.j2")
        .render(
            profile=profile,
            kept=kept,
            whole=part_of(profile.tasks),
            parts=parts,
            rates=_rate_bars(profile.tasks, set(kept.kept)),
            plot=dot_plot(dots, "pass@1 by family with its interval") if dots else "",
        )
    )
    write_page(folder / PAGE, text)
    return folder / PAGE


def _rate_bars(tasks: Sequence[TaskProfile], kept: set[str]) -> Markup:
    """Tasks by mean reward as bars, the kept ones in colour."""
    width, height, left, right, top, bottom = 720, 260, 46, 12, 12, 40
    counts = Counter((_bin(task.mean), task.task_id in kept) for task in tasks if task.mean is not None)
    most = max(counts[b, True] + counts[b, False] for b in range(BINS + 2))
    ticks_y = ticks(0.0, float(most))
    wide = (width - left - right) / (BINS + 2)

    def y(count: float) -> float:
        return height - bottom - count / max(1, most) * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks_y
        if tick == int(tick)
    ]
    for b in range(BINS + 2):
        x, low = left + b * wide, 0
        name = _bin_name(b)
        for is_kept, style in ((True, "bar"), (False, "bar out")):
            count = counts[b, is_kept]
            if count:
                parts.append(
                    f'<rect class="{style}" x="{x + 3:.1f}" y="{y(low + count):.1f}" width="{wide - 6:.1f}" '
                    f'height="{y(low) - y(low + count):.1f}"><title>{name}: {count} '
                    f"{'kept' if is_kept else 'left out'}</title></rect>"
                )
            low += count
        parts.append(
            f'<text class="tick" x="{x + wide / 2:.1f}" y="{height - bottom + 17}" text-anchor="middle">{name}</text>'
        )
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 5}" text-anchor="end">mean reward, %</text>')
    return svg(width, height, "Tasks by mean reward", parts)


def _bin(mean: float) -> int:
    """0 for 0, BINS + 1 for 1, else the bar between."""
    return 0 if mean <= 0 else BINS + 1 if mean >= 1 else 1 + min(BINS - 1, int(mean * BINS))


def _bin_name(number: int) -> str:
    if number in (0, BINS + 1):
        return "0" if number == 0 else "100"
    return f"{(number - 1) * 100 // BINS}–{number * 100 // BINS}"
