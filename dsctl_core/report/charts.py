"""Draw curves as SVG, without scripts and with colours from the style of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 560, 254
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 12, 48
MOST_POINTS = 600  # maximum number of points drawn for a curve: about one per pixel
MOST_SPOTS = 80  # maximum number of points of a curve with a tooltip
SMOOTHING = 0.05  # window of the moving average, relative to the number of points of the curve


@dataclass(frozen=True)
class Curve:
    """A curve and the index of its colour; a `smooth` one is drawn faintly, with its moving average on top."""

    name: str
    points: Points
    colour: int = 0
    smooth: bool = False


def chart(title: str, curves: Sequence[Curve], *, from_zero: bool = False) -> Markup:
    """Return an HTML figure with `curves` over the steps, or empty markup if no curve has points.

    With `from_zero` the vertical axis begins at zero, for amounts of which the ratio counts. Where it begins above
    zero, it is marked as cut, and the caption says where it begins.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return Markup()
    scale = Scale.around([point for curve in drawn for point in curve.points], from_zero=from_zero)
    cut = scale.low_y > 0
    inside = [_axes(scale), *([CUT] if cut else [])]
    for curve in drawn:
        main = curve.points
        if curve.smooth and len(main) > 2:
            inside.append(_line(scale, main, curve.colour, "raw"))
            main = averaged(main)
        inside.append(_line(scale, main, curve.colour, "main"))
        inside.append(_spots(scale, curve, main))
    label = f"{title}: " + ", ".join(f"{curve.name} ends at {text(curve.points[-1][1])}" for curve in drawn)
    note = Markup("<small> (axis cut: it begins at {})</small>").format(text(scale.low_y)) if cut else ""
    return Markup(
        '<figure class="chart"><figcaption>{}{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, note, WIDTH, HEIGHT, label, Markup().join(inside))


# Two strokes across the lower end of the vertical axis: it does not begin at zero.
CUT = Markup('<path class="cut" d="M{x} {y} l12 -6 M{x} {lower} l12 -6"/>').format(
    x=LEFT - 6, y=HEIGHT - BOTTOM - 4, lower=HEIGHT - BOTTOM + 2
)


@dataclass(frozen=True)
class Scale:
    """The mapping from values to coordinates of a chart."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float

    @classmethod
    def around(cls, points: Points, *, from_zero: bool = False) -> Scale:
        """Return a scale that contains all points, with a margin above and below; or that begins at zero."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        if low == high and low >= 0:  # a constant is easier to read on an axis that begins at zero
            return cls(min(xs), max(max(xs), min(xs) + 1), 0.0, high * 1.25 or 1.0)
        if from_zero and low >= 0:
            low = 0.0
        space = (high - low) * 0.06 or abs(high) * 0.1
        # The axis of a curve without negative values does not extend below zero.
        bottom = max(low - space, 0.0) if low >= 0 else low - space
        return cls(min(xs), max(max(xs), min(xs) + 1), bottom, high + space)

    def x(self, value: float) -> float:
        """Return the horizontal coordinate of `value`, from the left."""
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical coordinate of `value`, from the top."""
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)


def averaged(points: Points) -> list[tuple[float, float]]:
    """Return the exponential moving average of a curve, with bias correction at the start."""
    keep = 1 - 1 / max(SMOOTHING * len(points), 2)
    total = weight = 0.0
    found = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        found.append((x, total / weight))
    return found


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """Return at most about `most` points with the shape of the curve: the minimum and maximum of each section."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    found: list[tuple[float, float]] = []
    for first in range(0, len(points), size):
        stretch = points[first : first + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        found += sorted(ends)
    if found[-1] != points[-1]:
        found.append(points[-1])
    return found


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return about `about` round numbers between `low` and `high`."""
    rough = (high - low) / about
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def text(value: float) -> str:
    """Return a number formatted for display: "0.0123", "1500", "2.5e-05"."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 100_000:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _axes(scale: Scale) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    label = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = []
    for value in ticks(scale.low_y, scale.high_y):
        y = scale.y(value)
        parts.append(line.format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(label.format(LEFT - 8, f"{y + 4:.1f}", "end", text(value)))
    for value in ticks(scale.low_x, scale.high_x, 6):
        if value == int(value):
            parts.append(label.format(f"{scale.x(value):.1f}", HEIGHT - BOTTOM + 20, "middle", text(value)))
    parts.append(label.format((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 6, "middle", "step"))
    return Markup().join(parts)


def _line(scale: Scale, points: Points, colour: int, kind: str) -> Markup:
    shown = thinned(points, MOST_POINTS)
    if len(shown) == 1:
        (x, y) = shown[0]
        spot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="var(--c{})"/>')
        return spot.format(scale.x(x), scale.y(y), colour)
    places = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in shown)
    return Markup('<polyline class="{}" stroke="var(--c{})" points="{}"/>').format(kind, colour, places)


def _spots(scale: Scale, curve: Curve, points: Points) -> Markup:
    every = math.ceil(len(points) / MOST_SPOTS)
    spot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" fill="transparent"><title>{}, step {}: {}</title></circle>')
    shown = [*points[::every], points[-1]]
    return Markup().join(spot.format(scale.x(x), scale.y(y), curve.name, text(x), text(y)) for x, y in shown)
