"""Panels as SVG."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from jaxrnn.graphs.drawing.layout import BOX, Point
from jaxrnn.graphs.drawing.scene import Panel, Wire, across

# A cell of the grid is so many pixels wide and high.
WIDE, HIGH = 8, 14
FORWARD, DELAYED, ERROR, PLAIN, GREY = "#333333", "#1f5fa8", "#d62728", "#ffffff", "#e6e6e6"


def colours(names: Sequence[str]) -> dict[str, str]:
    """A light six-digit colour for each name, neighbours far apart, none of them the errors' red."""

    def colour(n: int) -> str:
        hue = 0.1 + 0.8 * (n * 0.618 % 1)
        channels = colorsys.hls_to_rgb(hue, 0.8 - 0.1 * (n % 2), 0.75)
        return "#" + "".join(f"{round(255 * c):02x}" for c in channels)

    return {name: colour(n) for n, name in enumerate(names)}


def side_by_side(panels: Sequence[Panel], fills: Mapping[str, str], thick: Sequence[str]) -> str:
    """The panels side by side; `fills` colours the boxes by name, those named in `thick` have a thick frame."""
    parts, x = [], 3 * WIDE
    height = (max(panel.top for panel in panels) + 8) * HIGH
    for panel in panels:
        origin = x - panel.left * WIDE, height - 5 * HIGH
        parts += _panel(panel, origin, fills, thick)
        x += (max(panel.right - panel.left, len(panel.title)) + 6) * WIDE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="{height}" viewBox="0 0 {x} {height}" '
        f'font-family="DejaVu Sans Mono, monospace" font-size="12" text-anchor="middle">\n'
        f'<rect width="{x}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join([*parts, _legend(height, any(panel.cuts for panel in panels))])
        + "\n</svg>\n"
    )


def _legend(height: int, has_cuts: bool) -> str:
    says = {"same step": FORWARD, "delayed": DELAYED, "error, flowing back": ERROR}
    says |= {"cross: no error comes back": ERROR} if has_cuts else {}
    says |= {"one colour: shared weights": FORWARD}
    words = "  ·  ".join(f'<tspan fill="{colour}">{words}</tspan>' for words, colour in says.items())
    place = f'x="{3 * WIDE}" y="{height - HIGH}" font-size="11" text-anchor="start"'
    return f'<text {place} xml:space="preserve">{words}</text>'


def _panel(panel: Panel, origin: tuple[float, float], fills: Mapping[str, str], thick: Sequence[str]) -> list[str]:
    def at(point: Point) -> tuple[float, float]:
        return origin[0] + (point[0] + 0.5) * WIDE, origin[1] - point[1] * HIGH

    parts = []
    for left, width, caption in panel.captions:
        x, y = at((left, panel.top))
        size = f'width="{(width + 1) * WIDE}" height="{(panel.top + 2) * HIGH}"'
        parts.append(f'<rect x="{x - WIDE:g}" y="{y - HIGH / 2:g}" {size} rx="6" fill="#f4f4f4"/>')
        parts.append(_words(x + width * WIDE / 2 - WIDE / 2, at((0, -2))[1] + 4, caption))
    x, _ = at((panel.left, 0))
    title = f'<text x="{x:g}" y="{origin[1] - (panel.top + 1.6) * HIGH:g}" text-anchor="start" font-weight="bold">'
    parts.append(f"{title}{escape(panel.title)}</text>")
    for cut in panel.cuts:
        (x, y), (_, top) = at((cut, -1)), at((cut, panel.top))
        parts.append(f'<path d="M{x - 1.5 * WIDE:g} {y:g}V{top:g}" stroke="{ERROR}" stroke-dasharray="1 4"/>')
    drawn: dict[tuple, set[Point]] = {}
    for wire in panel.wires:
        points = _branch(wire.points, drawn.setdefault((wire.net, wire.source), set()))
        parts += _wire(wire, [at(point) for point in points], points[0] != wire.points[0])
        if wire.is_cut:
            (x, y), (to, _) = across(wire)
            parts.append(_cross(*at((x + (1 if to > x else -1), y))))
    for box in panel.boxes:
        x, y = at((box.left, box.bottom + BOX))
        width = (box.width - 1) * WIDE
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{BOX * HIGH}" rx="4" fill="{fills[box.name]}" '
            f'stroke="{FORWARD}" stroke-width="{2.5 if box.name in thick else 1}"/>'
        )
        parts.append(_words(x + width / 2, y + BOX * HIGH / 2 + 4, box.label))
    for mark in panel.marks:
        x, y = at((mark.x, mark.y))
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="7" fill="#ffffff" stroke="{DELAYED}"/>')
        parts.append(_words(x, y + 3.5, mark.text, DELAYED, 10))
    return parts


def _words(x: float, y: float, words: str, colour: str = FORWARD, size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _branch(points: list[Point], drawn: set[Point]) -> list[Point]:
    """A wire from where it leaves those of the same value that are drawn already; now it is drawn as well."""
    way = [points[0]]
    corners = [0]
    for (x, y), (to_x, to_y) in pairwise(points):
        dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
        way += [(x + n * dx, y + n * dy) for n in range(1, abs(to_x - x) + abs(to_y - y) + 1)]
        corners.append(len(way) - 1)
    leaves = max(next((n for n, cell in enumerate(way) if cell not in drawn), 0) - 1, 0)
    drawn.update(way)
    return [way[leaves], *(way[n] for n in corners if n > leaves)]


def _wire(wire: Wire, points: list[tuple[float, float]], is_branch: bool) -> list[str]:
    colour = DELAYED if wire.net.delay else FORWARD
    shape = f'<path d="{_rounded(points)}" fill="none" stroke="{colour}" stroke-width="1.3">'
    parts = [f"{shape}<title>{escape(wire.reads)}</title></path>"]
    tip = [(0, 0), (-7, -3.5), (-7, 3.5)] if wire.is_open else [(0, 0), (-3.5, 7), (3.5, 7)]
    parts.append(_triangle(*points[-1], tip, colour))
    if is_branch:  # a dot, as in circuits: wires without one only cross
        parts.append(f'<circle cx="{points[0][0]:g}" cy="{points[0][1]:g}" r="2.5" fill="{colour}"/>')
    if wire.has_error:
        inside = range(0 if is_branch else 1, len(points) - 1)
        back = [(x + 4, y + (4 if n in inside else 0)) for n, (x, y) in enumerate(points)]
        parts.append(f'<path d="{_rounded(back)}" fill="none" stroke="{ERROR}" stroke-dasharray="3 2"/>')
        if not is_branch:
            parts.append(_triangle(*back[0], [(0, 0), (-3, -6), (3, -6)], ERROR))
    return parts


def _cross(x: float, y: float) -> str:
    return f'<path d="M{x - 4:g} {y - 4:g}l8 8M{x - 4:g} {y + 4:g}l8 -8" stroke="{ERROR}" stroke-width="2"/>'


def _triangle(x: float, y: float, tip: Sequence[tuple[float, float]], colour: str) -> str:
    corners = " ".join(f"{x + dx:g},{y + dy:g}" for dx, dy in tip)
    return f'<polygon points="{corners}" fill="{colour}"/>'


def _rounded(points: Sequence[tuple[float, float]], radius: float = 4) -> str:
    """A path along the points, its corners rounded."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x, y), (x1, y1) in zip(points, points[1:], points[2:], strict=False):
        before, after = abs(x - x0) + abs(y - y0), abs(x1 - x) + abs(y1 - y)
        r = min(radius, before / 2, after / 2)
        if r == 0:
            continue
        a = x + (x0 - x) / before * r, y + (y0 - y) / before * r
        b = x + (x1 - x) / after * r, y + (y1 - y) / after * r
        path += f"L{a[0]:g} {a[1]:g}Q{x:g} {y:g} {b[0]:g} {b[1]:g}"
    return path + f"L{points[-1][0]:g} {points[-1][1]:g}"
