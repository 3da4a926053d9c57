"""Lines over a scale of shares as inline SVG: curves over k, and performance profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from nbagent.report.charts import number_label, svg
from nbagent.terminal import plain

STYLES = 4
"""Lines that the style sheet tells apart by colour and dashes; more begin again."""
_NEAREST = 15.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line with the label at its right end."""

    label: str
    points: tuple[tuple[float, float], ...]
    """(x, share between 0 and 1), x rising."""
    band: tuple[tuple[float, float], ...] = ()
    """Ends of the interval at each point; empty: none is drawn."""


def line_plot(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    x_ticks: Sequence[float],
    *,
    place: Callable[[float], float] = float,
    steps: bool = False,
) -> Markup:
    """Shares over x.

    Args:
        lines: what to draw; none may be empty.
        title: what a screen reader says.
        x_label: the name of x.
        x_ticks: where x is labelled; the axis goes from the first to the last.
        place: the scale of x, e.g. `math.log`.
        steps: draw steps that hold until the next point, with no dots.
    """
    width, height, left, right, top, bottom = 640, 300, 52, 172, 12, 40
    first, last = place(x_ticks[0]), place(x_ticks[-1])

    def x(value: float) -> float:
        return left + (place(value) - first) / (last - first or 1.0) * (width - left - right)

    def y(share: float) -> float:
        return height - bottom - share * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
        f"{number_label(tick)}</text>"
        for tick in x_ticks
    ]
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>')
    heights = _spread([y(line.points[-1][1]) for line in lines], top, height - bottom)
    for number, (line, label_y) in enumerate(zip(lines, heights, strict=True)):
        style, label = f"line{number % STYLES + 1}", escape(plain(line.label, 26))
        if line.band:
            upper = [f"{x(at):.1f},{y(high):.1f}" for (at, _), (_, high) in zip(line.points, line.band, strict=True)]
            lower = [f"{x(at):.1f},{y(low):.1f}" for (at, _), (low, _) in zip(line.points, line.band, strict=True)]
            parts.append(f'<polygon class="band {style}" points="{" ".join(upper + lower[::-1])}"/>')
        parts.append(f'<polyline class="line {style}" points="{_path(line, x, y, steps)}"/>')
        if not steps:
            parts += [
                f'<circle class="dot {style}" cx="{x(at):.1f}" cy="{y(share):.1f}" r="3.5">'
                f"<title>{label}, {escape(x_label)} {number_label(at)}: {100 * share:.1f} %</title></circle>"
                for at, share in line.points
            ]
        parts.append(f'<text class="label {style}" x="{width - right + 10}" y="{label_y + 4:.1f}">{label}</text>')
    return svg(width, height, title, parts)


def _path(line: Line, x: Callable[[float], float], y: Callable[[float], float], steps: bool) -> str:
    path = []
    for number, (at, share) in enumerate(line.points):
        if steps and number:
            path.append(f"{x(at):.1f},{y(line.points[number - 1][1]):.1f}")
        path.append(f"{x(at):.1f},{y(share):.1f}")
    return " ".join(path)


def _spread(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights moved apart, so that labels do not cover each other; their order stays."""
    placed = dict[int, float]()
    at = top - _NEAREST
    for place in sorted(range(len(heights)), key=lambda place: heights[place]):
        at = max(heights[place], at + _NEAREST)
        placed[place] = at
    limit = bottom
    for place in sorted(placed, key=lambda place: placed[place], reverse=True):
        placed[place] = min(placed[place], limit)
        limit = placed[place] - _NEAREST
    return [placed[place] for place in range(len(heights))]
