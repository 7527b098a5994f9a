"""`graph`: a recurrent net stated as it is drawn, vertices and edges with cycles, as a Cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import trees
from jaxrnn.graphs.delays import Tracing, widened
from jaxrnn.graphs.statement import START, Prev, Source, Wiring, blaming, combined
from jaxrnn.types import Cell, Key, Params, State, Tree


class GraphState(NamedTuple):
    """The state of a graph: what its delayed edges read, and its recurrent vertices' own."""

    delayed: dict[str, tuple[Tree, ...]]  # by name, the values of the last steps, the latest first
    inner: dict[str, State]  # by vertex, its cell's own state; () where it has none


def graph(
    vertices: Mapping[str, Any],
    output: str | tuple[str, ...] | Mapping[str, str],
    *,
    inputs: str | tuple[str, ...] = "x",
    infer_delays: bool = False,
) -> Cell:
    """A recurrent net as it is drawn: vertices by name, each with the list of what it reads.

        for name, (cell, sources) in vertices.items():           after the vertices that it reads
            value[name]_t = cell(concatenate(value[source]_t for source in sources))
        y_t = value[output]_t,     prev("h", steps=d) as a source stands for value["h"]_{t-d}

    For example Elman's net, whose output reads the hidden units and the input:

        net = graph(
            {
                "h": (stack(layer(nn.Dense(64)), lift(jnp.tanh)), ["x", prev("h")]),
                "y": (nn.Dense(10), ["h", "x"]),
            },
            output="y",
        )

    A vertex is (what, sources) or (what, sources, combine). What it is: any Cell (memoryless or
    recurrent, also another graph), a Flax module, or a plain function. Cells and modules read their
    sources concatenated along the last axis, or as `combine(*values)` makes one input of them;
    a function gets its sources one by one. Sources: names of vertices and inputs, and `prev(...)`,
    a value of an earlier step, zero before the first unless `prev` says otherwise.
    `output` is one name, or a tuple or a dict of names: then y is a tuple or a dict. `inputs` names
    what each step is given: one name for all of x_t, or a tuple of names where x_t is a tuple.
    `infer_delays=True` delays by one step each edge that points backwards in the order of statement.

    Params: a dict by vertex, and under "start" one array of its feature shape for each delayed value
    whose start is not stated; only its shape and dtype count, and its gradient is zero, unless it is
    "learned". State: GraphState, exactly the delayed values (as many as the longest delay of each)
    and the states of recurrent vertices. The step's key is split into one per vertex.
    Cost: the sum of the vertices'; a delay of d steps carries d arrays from step to step. `init` traces
    each vertex a few times.
    Limits: a delayed value that holds integers, or that depends on nothing but itself, needs a stated
    start, as in `prev("token", start=jnp.int32(0))`.
    Raises: TypeError or ValueError at construction for names that do not exist, vertices that the
    output does not depend on, delays below 1, and a cycle without a delay, which it prints; at
    init and at the step, for a vertex that cannot take what it reads, with the types of it.

    >>> import jaxrnn as rnn
    >>> net = graph({"total": (lambda x, total: x + total, ["x", rnn.prev("total")])}, output="total")
    >>> rnn.unroll(net, net.init(jax.random.key(0), 1.0), jnp.arange(1.0, 5.0))[1].tolist()
    [1.0, 3.0, 6.0, 10.0]
    """
    return Graph.of(vertices, output, inputs, infer_delays).cell


def graph_of(where: str, net: Any) -> Graph:
    """The graph that a cell was made from. Raises TypeError for any other cell."""
    found = getattr(net.step, "__self__", None) if isinstance(net, Cell) else None
    if not isinstance(found, Graph):
        raise TypeError(
            f"{where}: net must be a cell made by graph(...), as it came, got {type(net).__name__}; "
            "combinators around it hide the graph, so wrap its vertices instead"
        )
    return found


class Graph(Wiring):
    """A wiring that runs: its methods are the functions of the Cell."""

    @property
    def cell(self) -> Cell:
        return Cell(self.init, self.initial_state, self.step, self.begin)

    def init(self, key: Key, x: Tree) -> Params:
        reads, start = Tracing(self, self.cell, key, trees.struct(x), {}).types()
        keys = self.keys(key)
        params = {name: self.vertices[name].cell.init(keys[name], reads[name]) for name in self.vertices}
        zeros = {name: trees.zeros_of(start[name]) for name in self.delays if self.in_params(name)}
        return params | {START: zeros} if zeros else params

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> GraphState:
        self.check_params(params)
        delayed = {name: (self.start(params, name, batch_shape),) * d for name, d in self.delays.items()}
        inner = {name: v.cell.initial_state(params[name], batch_shape) for name, v in self.vertices.items()}
        return GraphState(delayed, inner)

    def step(self, params: Params, state: GraphState, x: Tree, *, key: Key | None = None) -> tuple[GraphState, Tree]:
        self.check_params(params)
        values, keys = self.given(x), self.keys(key)
        inner: dict[str, State] = {}
        for name in self.order:
            read = [_read(source, values, state.delayed) for source in self.vertices[name].sources]
            with blaming(name, self.vertices[name], read):
                x_v = combined(self.vertices[name], read)
                inner[name], values[name] = self.vertices[name].cell.step(
                    params[name], state.inner[name], x_v, key=keys[name]
                )
        delayed = {name: (values[name], *line[:-1]) for name, line in state.delayed.items()}
        return GraphState(delayed, inner), self.result(values)

    def begin(self, params: Params, key: Key) -> Params:
        self.check_params(params)
        keys = self.keys(key)
        return params | {name: v.cell.begin(params[name], keys[name]) for name, v in self.vertices.items()}

    def keys(self, key: Key | None) -> dict[str, Any]:
        keys = [None] * len(self.vertices) if key is None else jax.random.split(key, len(self.vertices))
        return dict(zip(self.vertices, keys, strict=True))

    def start(self, params: Params, name: str, batch_shape: tuple[int, ...]) -> Tree:
        """The value before the first step."""
        if not self.in_params(name):
            return widened(self.starts[name], batch_shape)
        value = params[START][name]
        return widened(value if self.is_learned(name) else jax.tree.map(jnp.zeros_like, value), batch_shape)

    def check_params(self, params: Params) -> None:
        needed = [*self.vertices] + [START] * any(map(self.in_params, self.delays))
        missing = [name for name in needed if not isinstance(params, Mapping) or name not in params]
        if missing:
            raise ValueError(
                f"graph: params should be a dict with an entry for each of {', '.join(needed)}; "
                f"{', '.join(missing)} missing; use parameters made by this graph's own init"
            )


def _read(source: Source, values: Mapping[str, Tree], delayed: Mapping[str, tuple[Tree, ...]]) -> Tree:
    return delayed[source.name][source.steps - 1] if isinstance(source, Prev) else values[source]
