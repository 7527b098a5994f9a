"""How a graph is stated: vertices, their sources, delays; and the errors in what was stated.

Names, edges and orders only; what flows along the edges is the business of `graph` and `unrolled`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.layers import is_module, is_rnn_cell, layer, lift, recurrent
from jaxrnn.pickling import Picklable
from jaxrnn.types import Cell, SequenceLayer, Tree

START = "start"  # where a graph's parameters keep the delayed values before the first step; no vertex's name


@dataclass(frozen=True, eq=False)
class Prev:
    """A delayed source; made by `prev`."""

    name: str
    steps: int = 1
    start: Any = None  # None: zero; "learned"; or arrays of the value's feature shape

    def __str__(self) -> str:
        return f'prev("{self.name}"{"" if self.steps == 1 else f", steps={self.steps}"})'


Source = str | Prev
Names = str | tuple[str, ...] | Mapping[str, str]


def prev(name: str, steps: int = 1, *, start: Any = None) -> Prev:
    """The value that a vertex (or an input) of a graph had `steps` time steps earlier: a delayed source.

        prev("h")[t] = h[t - 1],    prev("h", steps=d)[t] = h[t - d],    start where t < d

    Before the first step the value is zero. `start="learned"` makes it a parameter,
    `params["start"][name]`, zero at first; any other start is the value itself, an array (or pytree)
    of the value's feature shape, without batch dimensions: `start=jnp.int32(1)` for a token. All
    delays of one vertex share one start and one line of values, as long as the longest delay.
    Raises: ValueError for steps below 1, TypeError for a name that is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"prev: name must be the name of a vertex or input, got {name!r}")
    try:
        checks.positive_int("prev", "steps", steps)
    except ValueError as error:
        remedy = f'for the value of the same step write the name alone, "{name}"'
        raise ValueError(f'{error} (the delay of "{name}"); {remedy}') from None
    if isinstance(start, str) and start != "learned":
        raise ValueError(f'prev: start must be None (zero), "learned" or arrays, got {start!r}')
    return Prev(name, int(steps), start)


class Vertex(NamedTuple):
    """A vertex as the graph uses it: y = cell(combine(*sources)); combine=None concatenates."""

    cell: Cell
    sources: tuple[Source, ...]
    combine: Callable[..., Tree] | None
    is_function: bool  # stated as a function: without parameters, state or randomness


def vertex(name: str, stated: Any) -> Vertex:
    """What the user wrote for a vertex, (what, sources) or (what, sources, combine), checked."""
    where = f'graph: vertex "{name}"'
    if isinstance(stated, Cell) or not isinstance(stated, (tuple, list)) or len(stated) not in (2, 3):
        raise TypeError(
            f"{where}: expected (cell, sources) or (cell, sources, combine), got {type(stated).__name__}; "
            f'name what it reads, e.g. "{name}": (cell, ["x", prev("{name}")])'
        )
    what, sources, combine = (*stated, None)[:3]
    sources = tuple(sources) if isinstance(sources, (list, tuple)) else (sources,)
    if not sources or not all(isinstance(s, (str, Prev)) for s in sources):
        raise TypeError(f"{where}: sources must be names and prev(...), at least one, got {sources!r}")
    if combine is not None and not callable(combine):
        raise TypeError(f"{where}: combine must be a function of the sources' values, got {combine!r}")
    if isinstance(what, Cell):
        return Vertex(what, sources, combine, False)
    if is_module(what):
        wrap = recurrent if is_rnn_cell(what) else layer
        return Vertex(wrap(what), sources, combine, False)
    if not callable(what) or isinstance(what, type):
        got = type(what).__name__ if isinstance(what, SequenceLayer) else repr(what)
        raise TypeError(f"{where}: expected a Cell, a Flax module or a function, got {got}")
    if combine is not None:
        return Vertex(lift(what), sources, combine, True)
    return Vertex(lift(_itself), sources, what, True)  # a function takes its sources one by one


def _itself(x: Tree) -> Tree:
    return x


@dataclass(frozen=True, eq=False)
class Wiring(Picklable):
    """A graph as stated, checked and put in order."""

    vertices: dict[str, Vertex]
    output: Names
    inputs: Names
    order: tuple[str, ...]  # the vertices, each after those that it reads in the same step
    delays: dict[str, int]  # for each delayed name the longest delay
    starts: dict[str, Any]  # for each delayed name whose start is stated, that start

    @classmethod
    def of(cls, vertices: Mapping[str, Any], output: Any, inputs: Any, infer_delays: bool) -> Self:
        stated = {name: vertex(name, value) for name, value in vertices.items()}
        if not stated:
            raise ValueError("graph: needs at least one vertex")
        if infer_delays:
            stated = _with_inferred_delays(stated)
        output = output if isinstance(output, (str, Mapping)) else tuple(output)
        inputs = inputs if isinstance(inputs, str) else tuple(inputs)
        _check_names(stated, _listed(inputs), _listed(output))
        _check_reach(stated, _listed(output))
        return cls(stated, output, inputs, _topological(stated), _delays(stated), _starts(stated))

    def given(self, x: Tree) -> dict[str, Tree]:
        """The inputs by name, from x."""
        if isinstance(self.inputs, str):
            return {self.inputs: x}
        if not isinstance(x, (tuple, list)) or len(x) != len(self.inputs):
            got = checks.describe_tree(x)
            raise ValueError(f"graph: x must be a tuple ({', '.join(self.inputs)}), as stated by inputs, got {got}")
        return dict(zip(self.inputs, x, strict=True))

    def result(self, values: Mapping[str, Tree]) -> Tree:
        """y, from the values by name."""
        if isinstance(self.output, str):
            return values[self.output]
        if isinstance(self.output, Mapping):
            return {key: values[name] for key, name in self.output.items()}
        return tuple(values[name] for name in self.output)

    @property
    def input_names(self) -> tuple[str, ...]:
        return _listed(self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return _listed(self.output)

    def is_learned(self, name: str) -> bool:
        return isinstance(self.starts.get(name), str)

    def in_params(self, name: str) -> bool:
        """Whether the parameters say what a delayed value is before the first step, or at least of what shape."""
        return name not in self.starts or self.is_learned(name)


def combined(v: Vertex, read: list[Tree]) -> Tree:
    """One input from the values of all sources."""
    if v.combine is not None:
        return v.combine(*read)
    if len(read) == 1:
        return read[0]
    for value in read:
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
            raise TypeError(
                "only arrays can be concatenated; give a function of the sources: (cell, sources, function)"
            )
    return jnp.concatenate(read, axis=-1)


@contextlib.contextmanager
def blaming(name: str, v: Vertex, read: list[Tree]) -> Iterator[None]:
    """Errors in a vertex say in which, and what it read."""
    try:
        yield
    except Exception as error:
        types = zip(v.sources, map(checks.describe_tree, read), strict=True)
        reads = ", ".join(f"{source} of type {type_}" for source, type_ in types)
        raise ValueError(f'graph: vertex "{name}", reading {reads}: {error}') from error


def name_of(source: Source) -> str:
    return source.name if isinstance(source, Prev) else source


def delay_of(source: Source) -> int:
    return source.steps if isinstance(source, Prev) else 0


def _listed(names: Names) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    return tuple(names.values()) if isinstance(names, Mapping) else names


def _check_names(vertices: Mapping[str, Vertex], inputs: tuple[str, ...], outputs: Iterable[str]) -> None:
    """Every name that is read exists, once."""
    for name in (*vertices, *inputs):
        if not isinstance(name, str) or not name or name == START:
            raise ValueError(f'graph: names of vertices and inputs must be strings, not empty, not "{START}": {name!r}')
    for name in inputs:
        if name in vertices:
            raise ValueError(f'graph: "{name}" is both a vertex and an input; rename one, inputs=... names the inputs')
    known = (*vertices, *inputs)

    def check(where: str, name: Any) -> None:
        if name in known:
            return
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(known)}"
        raise ValueError(f'graph: {where} "{name}", which is neither a vertex nor an input; {hint}')

    for name, v in vertices.items():
        for source in v.sources:
            check(f'vertex "{name}" reads', name_of(source))
    for name in outputs:
        check("output is", name)


def _with_inferred_delays(vertices: Mapping[str, Vertex]) -> dict[str, Vertex]:
    """Every edge from a vertex to itself or to one stated earlier, delayed by one step."""
    place = {name: i for i, name in enumerate(vertices)}

    def delayed(source: Source, reader: str) -> Source:
        points_back = isinstance(source, str) and place.get(source, -1) >= place[reader]
        return prev(source) if points_back and isinstance(source, str) else source

    return {
        name: v._replace(sources=tuple(delayed(source, name) for source in v.sources)) for name, v in vertices.items()
    }


def _check_reach(vertices: Mapping[str, Vertex], outputs: Iterable[str]) -> None:
    """Every vertex leads to the output, now or in a later step."""
    reached: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name in vertices and name not in reached:
            reached.add(name)
            pending += map(name_of, vertices[name].sources)
    lost = [name for name in vertices if name not in reached]
    if lost:
        raise ValueError(
            f"graph: the output does not depend on {', '.join(map(repr, lost))}; "
            "leave such vertices out, or add them to output"
        )


def _topological(vertices: Mapping[str, Vertex]) -> tuple[str, ...]:
    """The vertices, each after those that it reads in the same step; of those that may come next, the first stated."""
    order: list[str] = []
    waiting = {name: {s for s in v.sources if isinstance(s, str) and s in vertices} for name, v in vertices.items()}
    while waiting:
        ready = next((name for name, needs in waiting.items() if needs <= set(order)), None)
        if ready is None:
            raise ValueError(_cycle_drawn(_a_cycle(waiting, set(order)), list(vertices)))
        order.append(ready)
        del waiting[ready]
    return tuple(order)


def _a_cycle(waiting: Mapping[str, set[str]], done: set[str]) -> list[str]:
    """A cycle among vertices that wait for each other, in the direction in which values flow."""
    path = [next(iter(waiting))]
    while path.count(path[-1]) == 1:
        path.append(next(n for n in waiting if n in waiting[path[-1]] - done))
    cycle = path[path.index(path[-1]) + 1 :]
    return cycle[::-1]


def _cycle_drawn(cycle: list[str], stated: list[str]) -> str:
    start = cycle.index(min(cycle, key=stated.index))
    names = cycle[start:] + cycle[:start]  # beginning with the vertex that was stated first
    # The edge that points back is the one that a reader takes for the delayed one: to the vertex stated first.
    line = " -> ".join(names)
    if len(names) == 1:
        drawn = [f"{line} -> {line}"]
    else:
        ahead, back = len(names[0]) // 2, len(line) - len(names[-1]) // 2 - 1
        under = back - ahead - 1
        drawn = [line, " " * ahead + "^" + " " * under + "|", " " * ahead + "+" + "-" * under + "+"]
    return (
        "graph: a cycle without a delay, so that no vertex on it can be computed first:\n\n"
        + "\n".join("    " + each for each in drawn)
        + f'\n\nDelay one of its edges: in the sources of "{names[0]}" write prev("{names[-1]}") for "{names[-1]}", '
        "or pass infer_delays=True to delay every edge that points backwards in the order given."
    )


def _delays(vertices: Mapping[str, Vertex]) -> dict[str, int]:
    """For each name that is read with a delay, the longest delay."""
    longest: dict[str, int] = {}
    for v in vertices.values():
        for source in v.sources:
            if isinstance(source, Prev):
                longest[source.name] = max(source.steps, longest.get(source.name, 0))
    return longest


def _starts(vertices: Mapping[str, Vertex]) -> dict[str, Any]:
    """For each name whose start is stated ("learned", or a value), that start."""
    stated: dict[str, Any] = {}
    for v in vertices.values():
        for source in v.sources:
            if not isinstance(source, Prev) or source.start is None:
                continue
            first = stated.setdefault(source.name, source.start)
            if first is not source.start and not (isinstance(first, str) and isinstance(source.start, str)):
                raise ValueError(
                    f'graph: two different starts for "{source.name}"; all delays of a vertex share one '
                    "line of values, so state its start once"
                )
    return stated
