"""A minimum cut: what to keep so that everything needed later can be redone from it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

Node = TypeVar("Node", bound=Hashable)


def minimum_cut(
    cost: Mapping[Node, int], edges: Iterable[tuple[Node, Node]], sources: Iterable[Node], sinks: Iterable[Node]
) -> set[Node]:
    """The cheapest set of nodes that meets every path from a source to a sink.

    Sources and sinks may be in it. Of several that cost the same, the one nearest to the sinks.
    Augmenting paths (Edmonds and Karp 1972) through a graph in which each node is an edge as wide
    as its cost.
    """
    room: dict[Any, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    endless = sum(cost.values()) + 1
    for node, width in cost.items():
        room["in", node]["out", node] = width
    for a, b in edges:
        room["out", a]["in", b] = endless
    for node in sources:
        room["start"]["in", node] = endless
    for node in sinks:
        room["out", node]["end"] = endless

    def path() -> list[Any] | None:
        came_from: dict[Any, Any] = {"start": None}
        waiting = deque(["start"])
        while waiting:
            here: Any = waiting.popleft()
            if here == "end":
                steps = [here]
                while came_from[steps[-1]] is not None:
                    steps.append(came_from[steps[-1]])
                return steps[::-1]
            for there, left in room[here].items():
                if left > 0 and there not in came_from:
                    came_from[there] = here
                    waiting.append(there)
        return None

    while (found := path()) is not None:
        links = list(zip(found, found[1:], strict=False))
        flow = min(room[a][b] for a, b in links)
        for a, b in links:
            room[a][b] -= flow
            room[b][a] += flow

    # What can still reach the end is on its side; a node is cut where only its outgoing half is.
    backwards: dict[Any, list[Any]] = defaultdict(list)
    for a, onward in list(room.items()):
        for b, left in onward.items():
            if left > 0:
                backwards[b].append(a)
    end_side: set[Any] = {"end"}
    todo: list[Any] = ["end"]
    while todo:
        for before in backwards[todo.pop()]:
            if before not in end_side:
                end_side.add(before)
                todo.append(before)
    return {node for node in cost if ("out", node) in end_side and ("in", node) not in end_side}
