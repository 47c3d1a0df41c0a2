"""Charts as inline SVG: axes, lines, bands, dots. Colours are CSS classes: the page decides light or dark.

A chart is drawn in a box of 380 units, so that its type is still readable on a phone 390 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

WIDTH = 380
MOST_POINTS = 300
"""A longer series is drawn in as many bins: more cannot be seen at this width."""

LEAST_SPAN = 0.02
"""Of an axis of shares that are all but equal: a difference below it is not made to look like one."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Axis:
    """A linear scale from ``low`` to ``high`` with its ticks, how they are written, and what it measures."""

    low: float
    high: float
    ticks: tuple[float, ...]
    tell: Callable[[float], str]
    title: str = ""

    @classmethod
    def over(
        cls, values: Sequence[float], title: str, tell: Callable[[float], str] | None = None,
        *, low: float | None = None, high: float | None = None, count: int = 5,
    ) -> Axis:  # fmt: skip
        """An axis with round ticks that takes in ``values``; ``low`` and ``high`` fix an end."""
        finite = [float(value) for value in values if math.isfinite(value)] or [0.0, 1.0]
        start = min(finite) if low is None else low
        end = max(finite) if high is None else high
        if end <= start:
            start, end = (start - 0.5, start + 0.5) if low is None else (start, start + 1.0)
        step = _round_step((end - start) / count)
        first = start if low is not None else math.floor(start / step + 1e-9) * step
        last = end if high is not None else math.ceil(end / step - 1e-9) * step
        ticks = np.arange(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1) * step
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return cls(
            first, last, tuple(float(tick) for tick in ticks), tell or (lambda x: f"{x:,.{digits}f}"), title
        )

    def share(self, value: float) -> float:
        """Where ``value`` stands between the ends, 0 to 1; what lies beyond is put on the edge."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


class Chart:
    """An SVG picture built mark by mark; ``title`` is what a screen reader says of it."""

    def __init__(self, title: str, x: Axis, y: Axis, *, height: int = 250, name: str = "") -> None:
        self.title, self.x, self.y, self.height, self.name = title, x, y, height, name
        self._marks: list[str] = []

    def px(self, value: float) -> float:
        """The horizontal place of a value, in the picture's units."""
        return _LEFT + self.x.share(value) * (WIDTH - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        """The vertical place of a value, in the picture's units."""
        return self.height - _BOTTOM - self.y.share(value) * (self.height - _TOP - _BOTTOM)

    def line(self, points: Points, kind: str) -> Chart:
        """A line through ``points``, broken where a value is not finite."""
        self._marks.append(f'<path class="line {kind}" d="{self._path(points)}"/>')
        return self

    def band(self, low: Points, high: Points, kind: str) -> Chart:
        """The area between two series."""
        there, back = self._path(low), self._path(list(reversed(high)))
        self._marks.append(f'<path class="band {kind}" d="{there}L{back[1:]}Z"/>')
        return self

    def dots(self, points: Points, kind: str, radius: float = 3.5, title: Sequence[str] = ()) -> Chart:
        """A dot at each point, each with its title for a pointer that rests on it."""
        for i, (x, y) in enumerate(points):
            inner = f"<title>{escape(title[i])}</title>" if i < len(title) else ""
            self._marks.append(
                f'<circle class="dot {kind}" cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius:.1f}">'
                f"{inner}</circle>"
            )
        return self

    def error_bars(self, points: Sequence[tuple[float, float, float]], kind: str) -> Chart:
        """A vertical line from low to high at each ``(x, low, high)``."""
        for x, low, high in points:
            self._marks.append(
                f'<path class="line {kind}" d="M{self.px(x):.1f} {self.py(low):.1f}V{self.py(high):.1f}"/>'
            )
        return self

    def columns(self, columns: Sequence[tuple[float, float, float]], kind: str) -> Chart:
        """A bar from the x axis for each ``(from, to, value)``."""
        floor = self.height - _BOTTOM
        for start, end, value in columns:
            left, right, top = self.px(start), self.px(end), self.py(value)
            self._marks.append(
                f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.5):.1f}" '
                f'height="{max(floor - top, 0):.1f}"/>'
            )
        return self

    def level(self, value: float, kind: str, says: str = "") -> Chart:
        """A line across the whole picture at a height, with a word on it."""
        y = self.py(value)
        self._marks.append(f'<path class="line {kind}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        if says:
            below = y < _TOP + 14
            self._marks.append(
                f'<text class="note" x="{_LEFT + 4}" '
                f'y="{y + 13 if below else y - 5:.1f}">{escape(says)}</text>'
            )
        return self

    def upright(self, value: float, kind: str, says: str = "") -> Chart:
        """A vertical line over the whole height, with a word at its foot."""
        x = self.px(value)
        self._marks.append(f'<path class="line {kind}" d="M{x:.1f} {_TOP}V{self.height - _BOTTOM}"/>')
        if says:
            late = x > WIDTH * 0.7
            self._marks.append(
                f'<text class="note" text-anchor="{"end" if late else "start"}" '
                f'x="{x - 4 if late else x + 4:.1f}" y="{self.height - _BOTTOM - 6}">{escape(says)}</text>'
            )
        return self

    def svg(self) -> Markup:
        """The finished picture."""
        name = f' data-chart="{escape(self.name)}"' if self.name else ""
        scale = (
            f' data-x="{self.x.low:g} {self.x.high:g}" data-y="{self.y.low:g} {self.y.high:g}"'
            f' data-box="{_LEFT} {WIDTH - _RIGHT} {_TOP} {self.height - _BOTTOM}"'
            if self.name
            else ""
        )
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}"{name}{scale}>{self._axes()}{"".join(self._marks)}</svg>'
        )

    def _axes(self) -> str:
        right, floor = WIDTH - _RIGHT, self.height - _BOTTOM
        grid = "".join(f"M{_LEFT} {self.py(tick):.1f}H{right}" for tick in self.y.ticks)
        marks = [f'<path class="grid" d="{grid}"/>', f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>']
        for tick in self.y.ticks:
            marks.append(
                f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{self.py(tick) + 3.5:.1f}">'
                f"{escape(self.y.tell(tick))}</text>"
            )
        for tick in self.x.ticks:
            marks.append(
                f'<text class="tick" text-anchor="middle" x="{self.px(tick):.1f}" y="{floor + 18}">'
                f"{escape(self.x.tell(tick))}</text>"
            )
        middle = (_LEFT + right) / 2
        marks.append(
            f'<text class="axis-title" text-anchor="middle" x="{middle:.0f}" y="{self.height - 4}">'
            f"{escape(self.x.title)}</text>"
        )
        return "".join(marks)

    def _path(self, points: Points) -> str:
        steps, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            steps.append(f"{pen}{self.px(x):.1f} {self.py(y):.1f}")
            pen = "L"
        return "".join(steps)


def binned(points: Points, by: Callable[[Sequence[float]], float], most: int = MOST_POINTS) -> Points:
    """``points``, or one for each of ``most`` bins of them: its last x, and ``by`` of its values."""
    if len(points) <= most:
        return points
    edges = np.linspace(0, len(points), most + 1).astype(int)
    return [(points[end - 1][0], by([y for _, y in points[start:end]])) for start, end in pairwise(edges)]


def rolling_mean(points: Points, window: int) -> Points:
    """Each value as the mean of the last ``window`` ones; at first, of as many as there are."""
    if not points:
        return []
    values = np.array([y for _, y in points], np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def percent_axis(title: str, values: Sequence[float] = (), *, low: float | None = 0.0) -> Axis:
    """An axis of shares up to 100 %; ``low=None`` begins below the smallest of ``values``."""
    return Axis.over(list(values) or [0.0, 1.0], title, lambda x: f"{100 * x:.0f} %", low=low, high=1.0)


def near_percent_axis(values: Sequence[float]) -> Axis:
    """An axis of shares about ``values``, however close together they are, that never leaves 0 to 100 %."""
    low, high = max(0.0, min(values)), min(1.0, max(values))
    if high - low < LEAST_SPAN:
        low, high = max(0.0, high - LEAST_SPAN), min(1.0, low + LEAST_SPAN)
    axis = Axis.over([low, high], "", lambda y: f"{100 * y:.4g} %")
    inside = tuple(tick for tick in axis.ticks if -1e-9 <= tick <= 1 + 1e-9)
    return replace(axis, low=max(0.0, axis.low), high=min(1.0, axis.high), ticks=inside)


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten at or above ``raw``."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= raw * (1 - 1e-9))
