"""Panels as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxrnn.graphs.drawing.layout import BOX, Point
from jaxrnn.graphs.drawing.scene import Box, Panel, Wire, across

# A cell of the canvas knows in which of the directions north, east, south, west a line leaves it.
N, E, S, W = 1, 2, 4, 8
SINGLE = {N | S: "│", E | W: "─", N | E: "└", N | W: "┘", S | E: "┌", S | W: "┐", N | E | S: "├", N | S | W: "┤"}
SINGLE |= {E | S | W: "┬", N | E | W: "┴", N | E | S | W: "┼", N: "│", S: "│", E: "─", W: "─"}
DOUBLE = {N | S: "║", E | W: "═", N | E: "╚", N | W: "╝", S | E: "╔", S | W: "╗", N | E | S: "╠", N | S | W: "╣"}
DOUBLE |= {E | S | W: "╦", N | E | W: "╩", N | E | S | W: "╬", N: "║", S: "║", E: "═", W: "═"}


def lines(panel: Panel) -> list[str]:
    """The panel's lines, title first. No errors are drawn."""
    cells: dict[Point, str] = {}
    for point, meeting in _crossings(panel.wires).items():
        # Where two wires cross, the one from below goes over the other.
        over = max(meeting.values(), key=lambda line: line[0] & (N | S))
        cells[point] = (DOUBLE if over[1] else SINGLE)[over[0]]
    for box in panel.boxes:
        _put_box(cells, box)
    for wire in panel.wires:
        x, y = wire.points[-1]
        cells[(x, y) if wire.is_open else (x, y - 1)] = "►" if wire.is_open else "▲"
        if wire.is_cut:
            (x, y), (to, _) = across(wire)
            cells[x + (1 if to > x else -1), y] = "╳"
    for mark in panel.marks:
        cells[mark.x, mark.y] = mark.text[0]
    for left, width, caption in panel.captions:
        for n, character in enumerate(caption.center(width)):
            cells[left + n, -2] = character
    rows = range(panel.top, -3 if panel.captions else -1, -1)
    drawn = ["".join(cells.get((x, y), " ") for x in range(panel.left, panel.right + 1)) for y in rows]
    return [panel.title, "", *drawn]


def _crossings(wires: Sequence[Wire]) -> dict[Point, dict[tuple, tuple[int, bool]]]:
    """For each cell, and each value that passes through it, in which directions; and whether it is delayed."""
    lines: dict[Point, dict[tuple, tuple[int, bool]]] = {}

    def leave(point: Point, wire: Wire, direction: int) -> None:
        values = lines.setdefault(point, {})
        value = (wire.net, wire.source)
        values[value] = (values.get(value, (0, False))[0] | direction, wire.net.delay > 0)

    for wire in wires:
        for (x, y), (to_x, to_y) in pairwise(wire.points):
            dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
            ahead, back = {(1, 0): (E, W), (-1, 0): (W, E), (0, 1): (N, S), (0, -1): (S, N)}.get((dx, dy), (0, 0))
            while (x, y) != (to_x, to_y):
                leave((x, y), wire, ahead)
                x, y = x + dx, y + dy
                leave((x, y), wire, back)
    return lines


def _put_box(cells: dict[Point, str], box: Box) -> None:
    inside = box.width - 2
    for n in range(1, box.width - 1):
        for y in (box.bottom, box.bottom + BOX):
            leaves = cells.get((box.left + n, y), "")
            cells[box.left + n, y] = (
                ("╨" if leaves == "║" else "┴" if leaves == "│" else "─") if y > box.bottom else "─"
            )
    for n, character in enumerate(box.label.center(inside)):
        cells[box.left + 1 + n, box.bottom + 1] = character
    for x, corners in ((box.left, "└│┌"), (box.left + box.width - 1, "┘│┐")):
        for n, character in enumerate(corners):
            cells[x, box.bottom + n] = character
