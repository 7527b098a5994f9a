"""Where to draw a graph: boxes in rows, from the input upwards, and wires along tracks of their own between them.

One step of the graph is laid out once, as a frame; the unrolled graph is that frame again and again,
side by side. Everything lies on a grid of characters, x to the right and y upwards, so that text and
SVG draw the same picture. Between two rows of boxes lies a channel: each value that crosses it and is
not read straight above runs along a track of that channel. To the right of each frame lies a gutter,
where delayed values pass from one row to another. No two wires share a track, so none hides another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

Point = tuple[int, int]
Item = Union[str, "Net"]  # what takes room in a row: a box, or a value on its way through
Place = tuple[int, Item]  # row and item
BOX = 2  # from a box's bottom line to its top line
GAP = 2  # between boxes


class Net(NamedTuple):
    """A value on its way to all that read it with one delay."""

    source: str
    delay: int = 0
    is_state: bool = False  # a recurrent vertex's own state


class Frame(NamedTuple):
    """One step of a graph, laid out."""

    boxes: dict[str, tuple[int, int, int]]  # left, bottom, width
    now: dict[tuple[str, str], list[Point]]  # (source, target) -> the wire between them
    out: dict[Net, Point]  # for each delayed value, where it leaves its box
    outwards: dict[Net, list[int]]  # and the heights of its tracks, one for each step that it waits
    inwards: dict[tuple[Net, str], list[Point]]  # where it comes in, from its track's height to its reader
    gutter: dict[Net, int]  # where it changes height, to the right of a frame's left edge
    width: int  # of the boxes
    pitch: int  # from one frame to the next
    height: int


def frame(names: Sequence[str], labels: Mapping[str, int], reads: Iterable[tuple[Net, str]]) -> Frame:
    """Lays out one step: names in topological order, the length of each one's label, and who reads what."""
    nets: dict[Net, list[str]] = {}
    for net, target in reads:
        if target not in nets.setdefault(net, []):
            nets[net].append(target)
    widen = dict.fromkeys(names, 0)
    while True:
        rows = _Rows.of(names, labels, nets, widen)
        pins = _pins(rows, nets)
        if not isinstance(pins, str):
            return _wired(rows, nets, pins)
        widen[pins] += 2  # too narrow for all that it reads


class _Rows(NamedTuple):
    """What lies in which row, and where: boxes by name, and for a value that passes through a row its net."""

    rank: dict[str, int]
    items: list[list[Item]]
    center: dict[Place, int]
    width: dict[str, int]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        labels: Mapping[str, int],
        nets: Mapping[Net, list[str]],
        widen: Mapping[str, int],
    ) -> _Rows:
        now = {net.source: targets for net, targets in nets.items() if not net.delay}
        rank = _ranks(names, now, {target for targets in nets.values() for target in targets})
        items: list[list[Item]] = [[n for n in names if rank[n] == r] for r in range(max(rank.values()) + 1)]
        links: list[tuple[Place, Place]] = []
        for source, targets in now.items():
            at: Place = (rank[source], source)
            for r in range(rank[source] + 1, max(rank[t] for t in targets) + 1):
                links += [(at, (r, t)) for t in targets if rank[t] == r]
                if any(rank[t] > r for t in targets):
                    items[r].append(Net(source))
                    links.append((at, (r, Net(source))))
                    at = (r, Net(source))
        late = [net for net in nets if net.delay]
        width = {}
        for name in names:
            exits = (name in now) + sum(net.source == name for net in late)
            entries = sum(name in targets for targets in nets.values())
            width[name] = (
                max(labels[name] + 4, 2 * max(2 * exits, entries) + 3) + widen[name] | 1
            )  # odd: it has a center
        return cls(rank, *_placed(items, links, width), width)


def _ranks(names: Sequence[str], now: Mapping[str, list[str]], readers: set[str]) -> dict[str, int]:
    """The row of each box: inputs in row 0, a vertex above all that it reads, or else just below its own readers."""
    sources: dict[str, list[str]] = {name: [] for name in names}
    for source, targets in now.items():
        for target in targets:
            sources[target].append(source)
    rank: dict[str, int] = {}
    for name in names:
        rank[name] = 1 + max((rank[s] for s in sources[name]), default=0 if name in readers else -1)
    for name in reversed(names):
        if not sources[name] and name in now:
            rank[name] = min(rank[t] for t in now[name]) - 1
    return rank


def _placed(
    items: list[list[Item]], links: list[tuple[Place, Place]], width: Mapping[str, int]
) -> tuple[list[list[Item]], dict[Place, int]]:
    """The items of each row from left to right, near to what they are linked to, and where their centers are."""
    linked: dict[Place, list[Place]] = {(r, item): [] for r, row in enumerate(items) for item in row}
    for a, b in links:
        linked[a].append(b)
        linked[b].append(a)
    _order(items, linked)
    place = {(r, item): x for r, row in enumerate(items) for item, x in zip(row, _spread(row, width, {}), strict=True)}
    for _ in range(12):
        for r, row in enumerate(items):
            near = {item: [place[other] for other in linked[r, item]] or [place[r, item]] for item in row}
            wishes = {item: sum(xs) / len(xs) for item, xs in near.items()}
            place |= {(r, item): x for item, x in zip(row, _spread(row, width, wishes), strict=True)}
    center: dict[Place, int] = {}
    for r, row in enumerate(items):
        nearest = {item: float(round(place[r, item])) for item in row}
        center |= {(r, item): int(x) for item, x in zip(row, _pushed(row, width, nearest), strict=True)}
    left = min(x - _width(item, width) // 2 for (_, item), x in center.items())
    return items, {at: x - left for at, x in center.items()}


def _order(items: list[list[Item]], linked: Mapping[Place, list[Place]]) -> None:
    """Sorts each row by where the linked items of the next row are (barycenters), upwards and downwards in turn."""
    place = {(r, item): float(n) for r, row in enumerate(items) for n, item in enumerate(row)}

    def wish(at: Place, below: bool) -> float:
        near = [place[other] for other in linked[at] if (other[0] < at[0]) == below]
        return sum(near) / len(near) if near else place[at]

    for sweep in range(8):
        upwards = sweep % 2 == 0
        for r in range(len(items)) if upwards else range(len(items) - 1, -1, -1):
            wishes = {item: wish((r, item), upwards) for item in items[r]}
            items[r].sort(key=wishes.__getitem__)
            place |= {(r, item): float(n) for n, item in enumerate(items[r])}


def _width(item: Item, width: Mapping[str, int]) -> int:
    return width[item] if isinstance(item, str) else 1


def _pushed(row: Sequence[Item], width: Mapping[str, int], wishes: Mapping[Item, float]) -> list[float]:
    """Centers from left to right, each where it wishes or as far right of that as its left neighbour makes it."""
    centers: list[float] = []
    for n, item in enumerate(row):
        wish = wishes.get(item, -math.inf)
        apart = (_width(item, width) + _width(row[n - 1], width)) // 2 + GAP
        centers.append(max(wish, centers[-1] + apart) if n else max(wish, 0.0) if not wishes else wish)
    return centers


def _spread(row: Sequence[Item], width: Mapping[str, int], wishes: Mapping[Item, float]) -> list[float]:
    """Centers as wished as far as there is room: halfway between pushing all to the right and all to the left."""
    right = _pushed(row, width, wishes)
    if not wishes:
        return right
    mirrored = _pushed(row[::-1], width, {item: -x for item, x in wishes.items()})
    return [(a - b) / 2 for a, b in zip(right, reversed(mirrored), strict=True)]


class _Pins(NamedTuple):
    """At which x wires leave boxes, pass through rows, and enter boxes."""

    exits: dict[Net, int]
    hops: dict[Place, int]
    entries: dict[tuple[Net, str], int]

    def at(self, net: Net, row: int, rows: _Rows) -> int:
        """Where a value comes out of a row: of its own box, or passing through."""
        return self.exits[net] if rows.rank[net.source] == row else self.hops[row, net]


def _pins(rows: _Rows, nets: Mapping[Net, list[str]]) -> _Pins | str:
    """Pins such that wires of different values never stand over one another; or the box that is too narrow for that."""
    pins = _Pins({}, {}, {})
    below: dict[int, Net] = {}  # what comes out of the row below
    for r, row in enumerate(rows.items):
        above: dict[int, Net] = {}
        for item in row:
            center = rows.center[r, item]
            if isinstance(item, Net):
                free = [x for x in (center, center - 1, center + 1) if below.get(x, item) == item]
                wish = pins.at(item, r - 1, rows)
                pins.hops[r, item] = min(free or [center], key=lambda x: abs(x - wish))
                above[pins.hops[r, item]] = item
                continue
            left = center - rows.width[item] // 2
            cells = range(left + 1, left + rows.width[item] - 1)
            wishes = {
                net: left - 1 if net.delay else pins.at(net, r - 1, rows)
                for net, targets in nets.items()
                if item in targets
            }
            entries = _entries(cells, wishes, below)
            if entries is None:
                return item
            pins.entries.update({(net, item): x for net, x in entries.items()})
            leaving = sorted((net for net in nets if net.source == item), key=lambda net: net.delay)
            for n, net in enumerate(leaving):
                pins.exits[net] = cells[-2 * (len(leaving) - n) + 1] if net.delay else center
                above[pins.exits[net]] = net
        below = above
    return pins


def _entries(cells: range, wishes: Mapping[Net, int], below: Mapping[int, Net]) -> dict[Net, int] | None:
    """A cell for each value that enters a box: straight above where it comes from if it can be."""
    found: dict[Net, int] = {net: x for net, x in wishes.items() if x in cells and below.get(x) == net}
    for apart in (2, 1):
        for net in sorted(wishes, key=lambda net: wishes[net]):
            taken = {x + n for x in found.values() for n in range(1 - apart, apart)}
            free = [x for x in cells if below.get(x, net) == net and x not in taken]
            if net not in found and free:
                found[net] = min((abs(x - wishes[net]), x) for x in free)[1]
    return found if len(found) == len(wishes) else None


_Tracks = dict[tuple[int, Net, str], int]  # channel, value, and "now", "in" or "out" (its first track) -> height


def _stacked(rows: _Rows, nets: Mapping[Net, list[str]], pins: _Pins) -> tuple[_Tracks, list[int]]:
    """The heights of all tracks in the channels under the rows, and those of the rows' bottoms; the last is the top."""
    tracks: _Tracks = {}
    bottoms, y = [0], 0
    for channel in range(1, len(rows.items) + 1):
        y += BOX + 1
        first = y
        for net in _leaving(channel, rows, nets, pins):
            tracks[channel, net, "out"], y = y, y + net.delay
        ends: list[int] = []  # of what is on each track already
        for net, low, high in _crossing(channel, rows, nets, pins):
            n = next((n for n, end in enumerate(ends) if end < low - 1), len(ends))
            ends[n : n + 1] = [high]
            tracks[channel, net, "now"] = y + n
        y += len(ends)
        for net in _coming(channel, rows, nets, pins):
            tracks[channel, net, "in"], y = y, y + 1
        y = max(y + 1, first + 2) if channel < len(rows.items) else max(y, first)
        bottoms.append(y)
    return tracks, bottoms


def _wired(rows: _Rows, nets: Mapping[Net, list[str]], pins: _Pins) -> Frame:
    tracks, bottoms = _stacked(rows, nets, pins)
    late = [net for net in nets if net.delay]
    width = (
        max(rows.center[r, item] + _width(item, rows.width) // 2 for r, row in enumerate(rows.items) for item in row)
        + 1
    )
    bottom = {name: bottoms[rows.rank[name]] for name in rows.rank}
    boxes = {
        name: (rows.center[rows.rank[name], name] - rows.width[name] // 2, bottom[name], rows.width[name])
        for name in rows.rank
    }
    reads = [(net, target) for net, targets in nets.items() for target in targets]

    def risen(net: Net, target: str) -> list[Point]:
        x = pins.exits[net]
        points = [(x, bottom[net.source] + BOX)]
        for channel in range(rows.rank[net.source] + 1, rows.rank[target] + 1):
            there = pins.entries[net, target] if channel == rows.rank[target] else pins.hops[channel, net]
            if there != x:
                points += [(x, tracks[channel, net, "now"]), (there, tracks[channel, net, "now"])]
            x = there
        return [*points, (x, bottom[target])]

    def arrival(net: Net, target: str) -> list[Point]:
        x = pins.entries[net, target]
        return [(x, tracks[rows.rank[target], net, "in"]), (x, bottom[target])]

    return Frame(
        boxes=boxes,
        now={(net.source, target): risen(net, target) for net, target in reads if not net.delay},
        out={net: (pins.exits[net], bottom[net.source] + BOX) for net in late},
        outwards={net: [tracks[rows.rank[net.source] + 1, net, "out"] + n for n in range(net.delay)] for net in late},
        inwards={(net, target): arrival(net, target) for net, target in reads if net.delay},
        gutter={net: width + 1 + 2 * n for n, net in enumerate(late)},
        width=width,
        pitch=width + 2 * len(late) + 3,
        height=bottoms[-1] - 1,
    )


def _leaving(channel: int, rows: _Rows, nets: Mapping[Net, list[str]], pins: _Pins) -> list[Net]:
    """Delayed values from the row below, the rightmost lowest: so they don't cross as they go right."""
    found = [net for net in nets if net.delay and rows.rank[net.source] == channel - 1]
    return sorted(found, key=lambda net: -pins.exits[net])


def _coming(channel: int, rows: _Rows, nets: Mapping[Net, list[str]], pins: _Pins) -> list[Net]:
    """Delayed values to the row above, the one that goes farthest right lowest."""
    reach = {
        net: max((pins.entries[net, t] for t in targets if rows.rank[t] == channel), default=-1)
        for net, targets in nets.items()
        if net.delay
    }
    return sorted((net for net in reach if reach[net] >= 0), key=lambda net: -reach[net])


def _crossing(channel: int, rows: _Rows, nets: Mapping[Net, list[str]], pins: _Pins) -> list[tuple[Net, int, int]]:
    """Undelayed values that change their x in a channel, and from where to where they reach, by their left ends."""
    found = []
    for net, targets in nets.items():
        highest = max(rows.rank[t] for t in targets)
        if net.delay or not rows.rank[net.source] < channel <= highest:
            continue
        xs = [pins.at(net, channel - 1, rows)]
        xs += [pins.entries[net, t] for t in targets if rows.rank[t] == channel]
        xs += [pins.hops[channel, net]] if channel < highest else []
        if len(set(xs)) > 1:
            found.append((net, min(xs), max(xs)))
    return sorted(found, key=lambda each: each[1])
