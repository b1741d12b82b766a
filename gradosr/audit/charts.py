"""Charts as inline SVG built here: shapes with classes that the page's style sheet colours; every text is escaped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from gradosr.audit.text import percent

Scale = Callable[[float], float]
"""A function from a value to its position in the chart."""

WIDTH, HEIGHT = 420, 230
MAP, _EDGE = 600, 10
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 26


def shares(counts: Sequence[float]) -> list[float]:
    """Return each count as a share of the sum of all counts."""
    total = sum(counts) or 1
    return [count / total for count in counts]


def histogram(
    edges: Sequence[float], bars: Sequence[float], line: Sequence[float] | None, flat: float | None, title: str
) -> Markup:
    """Draw shares per bin: `bars` as filled bars, `line` as a stepped outline, `flat` as one horizontal line."""
    top = _ceiling(max([*bars, *(line or ()), flat or 0.0, 1e-9]))
    low, high = edges[0], edges[-1]
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return _LEFT + (value - low) / span * (WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return HEIGHT - _BOTTOM - share / top * (HEIGHT - _TOP - _BOTTOM)

    parts = [_y_axis(top, y), *_x_axis(low, high, x)]
    for i, share in enumerate(bars):
        if share:
            width = max(0.5, x(edges[i + 1]) - x(edges[i]) - 0.75)
            parts.append(
                Markup('<rect class="bar" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
                    x(edges[i]), y(share), width, HEIGHT - _BOTTOM - y(share)
                )
            )
    if line is not None:
        steps = [f"M{x(low):.2f},{y(0):.2f}"]
        for i, share in enumerate(line):
            steps.append(f"V{y(share):.2f}H{x(edges[i + 1]):.2f}")
        parts.append(Markup('<path class="line" d="{}"/>').format("".join([*steps, f"V{y(0):.2f}"])))
    if flat is not None:
        parts.append(_level("level", x(low), x(high), y(flat)))
    return _svg(parts, title)


def over_time(rates: Sequence[dict[str, Any]], overall: float, title: str) -> Markup:
    """Draw a dot and an interval for each rate, equally spaced, and the rate of the whole archive as a level line."""
    top = _ceiling(max([*(rate["high"] for rate in rates), overall, 1e-9]))
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(rates))

    def y(share: float) -> float:
        return HEIGHT - _BOTTOM - min(share, top) / top * (HEIGHT - _TOP - _BOTTOM)

    parts = [_y_axis(top, y), _level("level", _LEFT, WIDTH - _RIGHT, y(overall))]
    for i, rate in enumerate(rates):
        x = _LEFT + (i + 0.5) * step
        parts.append(
            Markup(
                '<line class="whisker" x1="{0:.2f}" x2="{0:.2f}" y1="{1:.2f}" y2="{2:.2f}"/>'
                '<circle class="dot" cx="{0:.2f}" cy="{3:.2f}" r="{4:.2f}"/>'
            ).format(x, y(rate["low"]), y(rate["high"]), y(rate["rate"]), min(3.5, max(1.5, step / 3)))
        )
    ends = [(_LEFT, "start", rates[0]), (WIDTH - _RIGHT, "end", rates[-1])] if rates else []
    for x, anchor, rate in ends[: 1 if len(rates) == 1 else 2]:
        parts.append(_label(x, HEIGHT - 8, anchor, str(rate["name"])[:10]))
    return _svg(parts, title)


def points(x: Sequence[float], y: Sequence[float], ids: Sequence[str], colours: Sequence[Any], title: str) -> Markup:
    """Draw a point per image, coloured by cluster; x and y are on one scale, y upwards."""
    width, height = (max(one) - min(one) or 1.0 for one in (x, y))
    factor = (MAP - 2 * _EDGE) / max(width, height)
    tall = height * factor + 2 * _EDGE
    parts = [
        Markup('<circle class="point c{}" data-id="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(
            colour, name, _EDGE + (one - min(x)) * factor, tall - _EDGE - (two - min(y)) * factor
        )
        for one, two, name, colour in zip(x, y, ids, colours, strict=True)
    ]
    wide = width * factor + 2 * _EDGE
    head = Markup('<svg id="map-chart" class="map" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
        wide, tall, title
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def span(rate: float, low: float, high: float, top: float, overall: float | None = None) -> Markup:
    """Draw a rate and its interval for one table row, on a scale from 0 to `top`; hidden from screen readers."""

    def x(value: float) -> float:
        return 2 + 96 * min(max(value, 0.0), top) / (top or 1.0)

    level = Markup("")
    if overall is not None:
        level = Markup('<line class="level" x1="{0:.2f}" x2="{0:.2f}" y1="0" y2="12"/>').format(x(overall))
    return Markup(
        '<svg class="span" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '{}<line class="whisker" x1="{:.2f}" x2="{:.2f}" y1="6" y2="6"/>'
        '<rect class="dot" x="{:.2f}" y="2.5" width="1.6" height="7"/></svg>'
    ).format(level, x(low), max(x(high), x(low) + 0.4), x(rate) - 0.8)


def bar(share: float, *, loud: bool) -> Markup:
    """Draw one bar from the middle, to the right for shares up to 1, to the left for those down to -1."""
    width = 48 * min(1.0, abs(share))
    return Markup(
        '<svg class="bar-line" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '<line class="grid" x1="50" x2="50" y1="0" y2="8"/>'
        '<rect class="{}" x="{:.2f}" y="1" width="{:.2f}" height="6"/></svg>'
    ).format("dot" if loud else "bar", 50 - width if share < 0 else 50, width)


def scale(rates: Sequence[dict[str, Any]]) -> float:
    """Return the upper end of a scale on which every interval fits."""
    return _ceiling(max([*(rate["high"] for rate in rates), 1e-9]))


def _svg(parts: Sequence[Markup], title: str) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _y_axis(top: float, y: Scale) -> Markup:
    parts = []
    for share in (0.0, top / 2, top):
        parts.append(_level("grid", _LEFT, WIDTH - _RIGHT, y(share)))
        parts.append(_label(_LEFT - 6, y(share) + 4, "end", percent(share)))
    return Markup("").join(parts)


def _x_axis(low: float, high: float, x: Scale) -> list[Markup]:
    """Return labels at round numbers along the x axis."""
    step = _nice((high - low) / 6 or 1.0)
    digits = max(0, -math.floor(math.log10(step)))
    marks = [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

    def place(mark: float) -> float:
        return min(max(x(mark), _LEFT + 8), WIDTH - _RIGHT - 8)

    texts = [f"{mark + 0.0:.{digits}f}".replace("-", "\u2212") for mark in marks]
    return [_label(place(mark), HEIGHT - 8, "middle", text) for mark, text in zip(marks, texts, strict=True)]


def _level(kind: str, left: float, right: float, y: float) -> Markup:
    return Markup('<line class="{0}" x1="{1:.2f}" x2="{2:.2f}" y1="{3:.2f}" y2="{3:.2f}"/>').format(
        kind, left, right, y
    )


def _label(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text class="tick" x="{:.2f}" y="{:.2f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _nice(step: float) -> float:
    """Return the smallest of 1, 2 or 5 times a power of ten that is at least `step`."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _ceiling(value: float) -> float:
    """Return a round upper end for a scale of shares, at most 1."""
    return min(1.0, max(value, _nice(value / 4) * math.ceil(value / _nice(value / 4) - 1e-9)))
