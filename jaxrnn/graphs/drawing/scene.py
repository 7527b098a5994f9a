"""The two pictures of a graph, cyclic and unrolled, as boxes, wires and marks on the grid of `layout`."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from jaxrnn.graphs.copies import Copy, Unrolled
from jaxrnn.graphs.drawing import layout
from jaxrnn.graphs.drawing.layout import Frame, Net, Point

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Box(NamedTuple):
    name: str  # of the vertex or input: what shares its weights has the same
    label: str
    left: int
    bottom: int
    width: int


class Wire(NamedTuple):
    points: list[Point]  # corners, from where it comes from to where it goes
    net: Net
    source: Copy  # wires of one source and net may share a part of their way
    reads: str  # what it says, in words
    has_error: bool = False  # whether an error comes back along it
    is_cut: bool = False
    is_open: bool = False  # leads out of the picture, to the step after the last


class Mark(NamedTuple):
    x: int
    y: int
    text: str


class Panel(NamedTuple):
    title: str
    boxes: list[Box]
    wires: list[Wire]
    marks: list[Mark]  # delays, and values before the first step
    captions: list[tuple[int, int, str]]  # below each frame: its left edge, its width, its step
    cuts: list[int]  # at which x a new segment begins
    left: int
    right: int
    top: int


def across(wire: Wire) -> tuple[Point, Point]:
    """The last level part of a wire."""
    return next((a, b) for a, b in reversed(list(pairwise(wire.points))) if a[1] == b[1] and a != b)


def both(net: Unrolled) -> tuple[Panel, Panel]:
    """The graph with its cycles, and unrolled over its steps."""
    read = {edge.source[0] for edge in net.edges}
    names = [name for name in net.graph.input_names if name in read] + list(net.graph.order)
    labels = {name: len(name) + len(str(net.steps - 1)) for name in names}
    reads = [(Net(e.source[0], e.delay, e.is_state), e.target[0]) for e in net.edges if e.target[1] == 0]
    frame = layout.frame(names, labels, reads)
    return _cyclic(frame), _copies(net, frame)


def _cyclic(frame: Frame) -> Panel:
    boxes = [Box(name, name, *place) for name, place in frame.boxes.items()]
    wires = [Wire(way, Net(a), (a, 0), f"{b} reads {a}") for (a, b), way in frame.now.items()]
    marks = []
    levels = {ys[0] for ys in frame.outwards.values()} | {way[0][1] for way in frame.inwards.values()}
    for (net, target), way in frame.inwards.items():
        x, y_out = frame.gutter[net], frame.outwards[net][0]
        around = [frame.out[net], (frame.out[net][0], y_out), (x, y_out), (x, way[0][1]), *way]
        wires.append(Wire(around, net, (net.source, 0), f"{target} reads {_earlier(net)}"))
        marks.append(Mark(x, _between(y_out, way[0][1], levels), str(net.delay)))
    marks = list({mark[0]: mark for mark in marks}.values())  # one on each gutter's wire
    right = max([frame.width, *(x + 1 for x in frame.gutter.values())])
    return Panel("as stated", boxes, wires, marks, [], [], 0, right, frame.height)


def _between(a: int, b: int, levels: set[int]) -> int:
    """The height nearest to the middle at which no other wire crosses, if there is one."""
    heights = range(min(a, b) + 1, max(a, b)) or range(a, a + 1)
    return min(heights, key=lambda y: (y in levels, abs(2 * y - a - b)))


def _earlier(net: Net) -> str:
    if net.is_state:
        return "its own state, one step earlier"
    return f"{net.source}, {net.delay} step{'s' * (net.delay > 1)} earlier"


def _copies(net: Unrolled, frame: Frame) -> Panel:
    boxes, wires, marks = [], [], []
    end = (net.steps - 1) * frame.pitch + max([frame.width, *(x + 2 for x in frame.gutter.values())])
    for t in range(net.steps):
        boxes += [
            Box(name, name + str(t).translate(SUBSCRIPTS), left + t * frame.pitch, bottom, width)
            for name, (left, bottom, width) in frame.boxes.items()
        ]
    for edge in net.edges:
        (source, s), (target, t) = edge.source, edge.target
        value = Net(source, edge.delay, edge.is_state)
        is_cut = edge.is_cut and (s >= 0 or net.graph.is_learned(source))
        words = f"{target} at step {t} reads {_words(value, s)}" + ", no error comes back" * is_cut
        has_error = source in net.graph.vertices and s >= 0 and not is_cut
        if not edge.delay:
            way = _moved(frame.now[source, target], t * frame.pitch)
        else:
            way = _moved(frame.inwards[value, target], t * frame.pitch)
            x = (t - 1) * frame.pitch + frame.gutter[value]
            way.insert(0, (x, way[0][1]))
            if s < 0:
                marks.append(Mark(*way[0], start_mark(net, source, edge.is_state)))
            else:
                way = [*_leaving(frame, value, s, x), *way]
        wires.append(Wire(way, value, (source, s), words, has_error, is_cut))
    for value in frame.gutter:
        for s in range(max(0, net.steps - value.delay), net.steps):
            words = f"{_words(value, s)}, is handed to step {s + value.delay}"
            wires.append(Wire(_leaving(frame, value, s, end), value, (value.source, s), words, is_open=True))
    captions = [(t * frame.pitch, frame.width, f"t = {t}") for t in range(net.steps)]
    cuts = [t * frame.pitch for t in range(1, net.steps) if net.cuts(t - 1, t)]
    start = min([0, *(mark.x for mark in marks)]) - 1
    title = f"unrolled over {net.steps} step{'s' * (net.steps > 1)}, depth {net.depth}"
    return Panel(title, boxes, wires, marks, captions, cuts, start, end, frame.height)


def start_mark(net: Unrolled, name: str, is_state: bool) -> str:
    """0 for a zero start, s for a learned or stated one and for the state that a cell starts from."""
    return "s" if is_state or name in net.graph.starts else "0"


def _words(value: Net, step: int) -> str:
    what = f"the state of {value.source}" if value.is_state else value.source
    return f"{what} of step {step}" if step >= 0 else f"{what} from before the first step"


def _moved(points: list[Point], dx: int) -> list[Point]:
    return [(x + dx, y) for x, y in points]


def _leaving(frame: Frame, value: Net, step: int, until: int) -> list[Point]:
    """From the box of a step along the value's track to the right. Values of successive steps have tracks in turn."""
    x, y = frame.out[value]
    track = frame.outwards[value][step % value.delay]
    return [(x + step * frame.pitch, y), (x + step * frame.pitch, track), (until, track)]
