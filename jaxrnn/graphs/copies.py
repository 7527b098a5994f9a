"""The unrolled graph as a value: one copy of every vertex per step, the edges between them, no cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, inference
from jaxrnn.graphs.assembly import Graph, GraphState, graph_of
from jaxrnn.graphs.statement import Vertex, combined, delay_of, name_of
from jaxrnn.trees import first_step, is_float
from jaxrnn.types import Cell, Key, Params, State, Tree

Copy = tuple[str, int]  # (name of a vertex or input, step); a step below 0 is a start


class Edge(NamedTuple):
    """What a copy of a vertex reads."""

    source: Copy
    target: Copy
    is_state: bool  # the vertex's own state, from its copy one step earlier
    is_cut: bool  # no gradient flows back

    @property
    def delay(self) -> int:
        return self.target[1] - self.source[1]


def unrolled(net: Cell, steps: int) -> Unrolled:
    """A graph unrolled over so many steps: the deep feed-forward net that a recurrent net is.

        vertices  (name, t) for t in range(steps)
        edges     (source, t) -> (name, t)            for each source of each vertex
                  (source, t - d) -> (name, t)        for prev(source, steps=d); where t < d, from a start
                  (name, t - 1) -> (name, t)          for each vertex with a state of its own

    All copies of a vertex share its weights. `evaluate` computes copy after copy in plain Python, and
    equals `unroll(net, ...)`, values and gradients; `truncated(segment)` marks the edges over which
    `jaxrnn.truncated(segment)` lets no gradient pass, and evaluates accordingly; `draw` draws it.
    Cost: steps times the vertices and edges. Raises: TypeError if net was not made by `graph`,
    ValueError for steps below 1.

    >>> import jaxrnn as rnn
    >>> net = rnn.graph({"h": (lambda x, h: x - h, ["x", rnn.prev("h")])}, output="h")
    >>> deep = unrolled(net, steps=3)
    >>> deep.depth, len(deep.edges), deep.critical_path
    (3, 6, (('h', 0), ('h', 1), ('h', 2)))
    """
    graph_of("unrolled", net)
    return Unrolled(net, checks.positive_int("unrolled", "steps", steps))


@dataclass(frozen=True, eq=False)
class Unrolled:
    """An acyclic graph of copies; made by `unrolled`."""

    net: Cell
    steps: int
    segment: int | None = None  # the gradient does not cross the beginnings of segments of so many steps

    def truncated(self, segment: int) -> Unrolled:
        """The same graph with the edges cut that reach from one segment into the next."""
        return replace(self, segment=checks.positive_int("truncated", "segment", segment))

    @cached_property
    def graph(self) -> Graph:
        return graph_of("unrolled", self.net)

    @cached_property
    def vertices(self) -> tuple[Copy, ...]:
        """All copies, each after those that it reads: a topological order."""
        return tuple((name, t) for t in range(self.steps) for name in self.graph.order)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of their targets; those of one target in the order of its sources."""
        stateful = {name for name, v in self.graph.vertices.items() if _has_state(v)}
        found = []
        for name, t in self.vertices:
            sources = [(name_of(s), t - delay_of(s)) for s in self.graph.vertices[name].sources]
            found += [Edge(source, (name, t), False, self.cuts(source[1], t)) for source in sources]
            if name in stateful:
                found.append(Edge((name, t - 1), (name, t), True, self.cuts(t - 1, t)))
        return tuple(found)

    def cuts(self, earlier: int, t: int) -> bool:
        """Whether a segment begins after the earlier step, and not after t. The first segment begins nothing."""
        return self.segment is not None and max(earlier, 0) // self.segment < t // self.segment

    @cached_property
    def critical_path(self) -> tuple[Copy, ...]:
        """The longest chain of copies that have to be computed one after another; of several, one."""
        length = dict.fromkeys(self.vertices, 1)
        before: dict[Copy, Copy] = {}
        for edge in self.edges:  # by targets in topological order: a source's length is final
            if length.get(edge.source, 0) >= length[edge.target]:
                length[edge.target], before[edge.target] = length[edge.source] + 1, edge.source
        path = [max(self.vertices, key=lambda copy: length[copy])]
        while path[-1] in before:
            path.append(before[path[-1]])
        return tuple(reversed(path))

    @property
    def depth(self) -> int:
        """How many copies the critical path has: the number of layers of the feed-forward net."""
        return len(self.critical_path)

    def weights(self, params: Params) -> dict[Copy, Params]:
        """The parameters of each copy. All copies of a vertex hold the same objects."""
        return {(name, t): params[name] for name, t in self.vertices}

    def evaluate(
        self,
        params: Params,
        xs: Tree,
        state: GraphState | None = None,
        *,
        key: Key | None = None,
        copies: Mapping[Copy, Params] | None = None,
    ) -> tuple[GraphState, Tree]:
        """Computes copy after copy: what `unroll(net, params, xs, state, key=key)` computes in a loop.

            for name, t in vertices:
                value[name, t] = cell(weights[name, t], combine(value[edge.source] for edge to (name, t)))

        Shapes as in `unroll`, xs with as many steps as the graph has. `copies` gives weights of its own
        to each copy, in the form of `weights(params)`; their gradients are then the copies'.
        Cost: traces steps times all vertices; for looking and testing, not for long sequences.
        Raises: ValueError for an xs of another length, and what the vertices raise.
        """
        if checks.steps("evaluate", xs) != self.steps:
            raise ValueError(
                f"evaluate: xs should have the {self.steps} steps of the unrolled graph, "
                f"got {checks.steps('evaluate', xs)}; unroll the graph over as many"
            )
        k_begin, k_steps = (None, None) if key is None else tuple(jax.random.split(key))
        keys = [self.graph.keys(None if k_steps is None else jax.random.fold_in(k_steps, t)) for t in range(self.steps)]
        weights = self.begun(self.weights(params) if copies is None else copies, k_begin)
        if state is None:
            begun = params if k_begin is None else self.net.begin(params, k_begin)
            state = self.net.initial_state(begun, inference.batch_shape("evaluate", self.net, params, first_step(xs)))
        values = {(name, -1 - n): value for name, line in state.delayed.items() for n, value in enumerate(line)}
        inner = {(name, -1): own for name, own in state.inner.items()}
        ys = []
        for t in range(self.steps):
            x = jax.tree.map(lambda a, t=t: a[t], xs)
            values |= {(name, t): value for name, value in self.graph.given(x).items()}
            for name in self.graph.order:
                read, own = self.arriving(name, t, values, inner)
                x_v = combined(self.graph.vertices[name], read)
                cell = self.graph.vertices[name].cell
                inner[name, t], values[name, t] = cell.step(weights[name, t], own, x_v, key=keys[t][name])
            ys.append(
                self.graph.result({name: values[name, t] for name in (*self.graph.input_names, *self.graph.order)})
            )
        return self.last_state(values, inner), jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

    def begun(self, weights: Mapping[Copy, Params], key: Key | None) -> dict[Copy, Params]:
        """Each copy's weights with what is drawn once per sequence: the same for all copies of a vertex."""
        if key is None:
            return dict(weights)
        keys = self.graph.keys(key)
        return {(name, t): self.graph.vertices[name].cell.begin(own, keys[name]) for (name, t), own in weights.items()}

    def arriving(self, name: str, t: int, values: dict[Copy, Tree], inner: dict[Copy, State]) -> tuple[list, State]:
        """What a copy reads, and its own state; constants where an edge is cut."""
        times = [(name_of(s), t - delay_of(s)) for s in self.graph.vertices[name].sources]
        read = [_constant(values[source]) if self.cuts(source[1], t) else values[source] for source in times]
        own = inner[name, t - 1]
        return read, _constant(own) if self.cuts(t - 1, t) else own

    def last_state(self, values: dict[Copy, Tree], inner: dict[Copy, State]) -> GraphState:
        """What the loop would hand on; values from before the last cut are constants there too."""
        last = self.steps - 1
        at = lambda name, t: _constant(values[name, t]) if self.cuts(t, last) else values[name, t]
        delayed = {name: tuple(at(name, last - n) for n in range(d)) for name, d in self.graph.delays.items()}
        return GraphState(delayed, {name: inner[name, last] for name in self.graph.vertices})


def _constant(tree: Tree) -> Tree:
    """The same values, without gradient."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if is_float(leaf) else leaf, tree)


def _has_state(v: Vertex) -> bool:
    """Whether a vertex has a state of its own.

    Only its cell can tell: layers and functions whatever their parameters, other cells from theirs,
    which they make from an input. So it is asked with features and with a token; a cell that takes
    neither is taken for one with a state.
    """
    inputs = (jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    of = lambda key, x: v.cell.initial_state(() if x is None else v.cell.init(key, x), ())
    for x in (None, *inputs):
        try:
            return bool(jax.tree.leaves(jax.eval_shape(lambda key, x=x: of(key, x), jax.random.key(0))))
        except Exception:  # noqa: BLE001  whatever a cell raises for what it was not made for
            continue
    return True
