"""Minimum cuts: what to keep so that everything needed later can be redone from it, and what to do where."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

Node = TypeVar("Node", bound=Hashable)


class Network:
    """Nodes with room between them for so much flow; START and END are two of the nodes."""

    START, END = "start", "end"

    def __init__(self) -> None:
        self._room: dict[Any, dict[Any, float]] = defaultdict(lambda: defaultdict(float))

    def link(self, a: Hashable, b: Hashable, room: float) -> None:
        self._room[a][b] += room

    def end_side(self) -> set[Any]:
        """The nodes that a cheapest cut leaves with END: of several such cuts, the one with the fewest.

        Augmenting paths (Edmonds and Karp 1972); then whatever can still reach END is on its side.
        """
        while (found := self._path()) is not None:
            links = list(zip(found, found[1:], strict=False))
            flow = min(self._room[a][b] for a, b in links)
            for a, b in links:
                self._room[a][b] -= flow
                self._room[b][a] += flow
        backwards: dict[Any, list[Any]] = defaultdict(list)
        for a, onward in list(self._room.items()):
            for b, left in onward.items():
                if left > 0:
                    backwards[b].append(a)
        side: set[Any] = {self.END}
        todo: list[Any] = [self.END]
        while todo:
            for before in backwards[todo.pop()]:
                if before not in side:
                    side.add(before)
                    todo.append(before)
        return side

    def _path(self) -> list[Any] | None:
        """From START to END by the fewest links that have room left."""
        came_from: dict[Any, Any] = {self.START: None}
        waiting = deque([self.START])
        while waiting:
            here: Any = waiting.popleft()
            if here == self.END:
                steps = [here]
                while came_from[steps[-1]] is not None:
                    steps.append(came_from[steps[-1]])
                return steps[::-1]
            for there, left in self._room[here].items():
                if left > 0 and there not in came_from:
                    came_from[there] = here
                    waiting.append(there)
        return None


def vertex_cut(
    cost: Mapping[Node, int], edges: Iterable[tuple[Node, Node]], sources: Iterable[Node], sinks: Iterable[Node]
) -> set[Node]:
    """The cheapest set of nodes that meets every path from a source to a sink.

    Sources and sinks may be in it. Of several that cost the same, the one nearest to the sinks. Each
    node is a link as wide as its cost.
    """
    network, endless = Network(), sum(cost.values()) + 1
    for node, width in cost.items():
        network.link(("in", node), ("out", node), width)
    for a, b in edges:
        network.link(("out", a), ("in", b), endless)
    for node in sources:
        network.link(network.START, ("in", node), endless)
    for node in sinks:
        network.link(("out", node), network.END, endless)
    side = network.end_side()
    return {node for node in cost if ("out", node) in side and ("in", node) not in side}
