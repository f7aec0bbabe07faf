"""A picture of a frontier: figures where training saw the classes against those where it did not, a point for each α."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

WIDTH, HEIGHT, EDGE = 560, 420, 64
Point = tuple[float | None, float | None, float | None]
"""α, and the figures of the two axes; one that is not defined has no point."""


def draw(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """An SVG with a line through the points in the order of α, the first and the last of which are named."""
    known = [(a, x, y) for a, x, y in points if a is not None and x is not None and y is not None]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    parts.append(f'<path d="M{EDGE} 20V{HEIGHT - EDGE}H{WIDTH - 20}" stroke="black" fill="none"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    if known:
        across, up = _axis([x for _, x, _ in known]), _axis([y for _, _, y in known])
        parts += _points([(a, _x(x, across), _y(y, up)) for a, x, y in known])
        parts += [f'<text x="{_x(v, across):.1f}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{v:.2f}</text>' for v in across]
        parts += [f'<text x="{EDGE - 8}" y="{_y(v, up) + 4:.1f}" text-anchor="end">{v:.2f}</text>' for v in up]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _points(places: Sequence[tuple[float, float, float]]) -> Iterator[str]:
    """The line, its points, and the names of its ends."""
    yield f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for _, x, y in places)}" fill="none" stroke="#2b6cb0"/>'
    for a, x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2b6cb0"><title>α {a:g}</title></circle>'
    for a, x, y in (places[0], places[-1]):
        yield f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">α {a:g}</text>'


def _x(value: float, axis: tuple[float, float]) -> float:
    return EDGE + _share(value, axis) * (WIDTH - EDGE - 40)


def _y(value: float, axis: tuple[float, float]) -> float:
    return HEIGHT - EDGE - _share(value, axis) * (HEIGHT - EDGE - 40)


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest, apart."""
    low, high = min(values), max(values)
    return (low - 0.01, high + 0.01) if high - low < 1e-6 else (low, high)


def _share(value: float, axis: tuple[float, float]) -> float:
    return (value - axis[0]) / (axis[1] - axis[0])
