"""Charts as inline SVG; colours and fonts are the page's, through classes, so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from nbagent.report.gather import Scored, Series
from nbagent.score_table import interval
from nbagent.stats import Estimate
from nbagent.terminal import plain

_POINTS = 240


def learning_curve(series: Series) -> Markup:
    """Raw values as faint dots, their running mean as a line; every dot names its values on hover."""
    width, height, left, right, top, bottom = 480, 250, 46, 12, 12, 34
    steps, values = _thinned(series.steps), _thinned(series.values)
    low, high = series.bounds or (min(0.0, min(values)), max(0.0, max(values)))
    if high <= low:
        high = low + 1.0
    ticks_x, ticks_y = ticks(steps[0], steps[-1]), ticks(low, high)
    high = max(high, ticks_y[-1])

    def x(step: float) -> float:
        return left + (step - steps[0]) / (steps[-1] - steps[0] or 1.0) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number_label(tick)}</text>'
        for tick in ticks_y
    ]
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
        f"{number_label(tick)}</text>"
        for tick in ticks_x
    ]
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 2}" text-anchor="end">step</text>')
    parts += [
        f'<circle class="raw" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.2">'
        f"<title>step {number_label(s)}: {v:.4g}</title></circle>"
        for s, v in zip(steps, values, strict=True)
    ]
    path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, _running_mean(values), strict=True))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    return svg(width, height, series.title, parts)


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot plot."""

    label: str
    estimate: Estimate | None
    """Between 0 and 1; None: only the label and the words are shown."""
    value: str
    """What stands at the row's end."""
    hollow: bool = False
    """Marks it as another kind than the filled ones."""


def interval_plot(scores: Sequence[Scored]) -> Markup:
    """pass@1 of every score as a dot with its interval; filled: sampled, hollow: greedy."""
    dots = []
    for scored in scores:
        estimate = scored.score.overall.pass_1
        dots.append(Dot(scored.label, estimate, f"{interval(estimate)} %", scored.mode == "greedy"))
    return dot_plot(dots, "pass@1 of every score with its interval")


def dot_plot(dots: Sequence[Dot], title: str, left: int = 170) -> Markup:
    """Shares as dots with their intervals, one row each.

    Args:
        dots: the rows.
        title: what a screen reader says.
        left: room for the labels.
    """
    width, row, right, top = 960, 34, 190, 8
    height = top + row * len(dots) + 30
    base = top + row * len(dots)

    def x(share: float) -> float:
        return left + share * (width - left - right)

    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{base}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{base + 18}" text-anchor="middle">{100 * t:.0f} %</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    for number, dot in enumerate(dots):
        y = top + row * (number + 0.5)
        label, value = escape(plain(dot.label)), escape(plain(dot.value))
        parts.append(f'<text class="name" x="{left - 14}" y="{y + 4.5:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<text class="value" x="{width - right + 18}" y="{y + 4.5:.1f}">{value}</text>')
        if dot.estimate is None:
            continue
        low, high, at = x(dot.estimate.low), x(dot.estimate.high), x(dot.estimate.value)
        hollow = " hollow" if dot.hollow else ""
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<circle class="mark{hollow}" cx="{at:.1f}" cy="{y:.1f}" r="6"><title>{label}: {value}</title></circle>'
        )
    return svg(width, height, title, parts)


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> Markup:
    """An inline picture of parts in which everything foreign is escaped already."""
    inner = "".join(parts)
    # Everything in `parts` is a number of ours or was escaped above.
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{inner}</svg>')


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between the two."""
    span = high - low
    if span <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(span))
    step = next(size * m for m in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if span / (size * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number_label(value: float) -> str:
    """A number on an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thinned(values: Sequence[float]) -> list[float]:
    """At most `_POINTS` values: means of neighbours."""
    size = math.ceil(len(values) / _POINTS)
    return [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]


def _running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over about a twelfth of the values."""
    half = max(1, len(values) // 24)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
