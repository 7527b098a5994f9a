"""What needs the whole sequence: a cell over time, layers one after another, and what both have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference, trees
from jaxrnn.combinators.masking import choose
from jaxrnn.combinators.stacking import split_key, stack
from jaxrnn.pickling import Picklable
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan, SequenceLayer, State, Tree, as_long


def a_part(where: str, value: Any) -> Cell | SequenceLayer:
    """A cell or a sequence layer; anything else is an error."""
    if not isinstance(value, (Cell, SequenceLayer)):
        raise TypeError(
            f"{where}: a part must be a Cell or a SequenceLayer, got {type(value).__name__}; "
            "wrap a Flax module with layer(...), a function with lift(...)"
        )
    return value


def output(where: str, part: Cell | SequenceLayer, params: Params, x: Tree) -> Tree:
    """The type of one step of what a part returns for one step's input x: a sequence of one step shows it."""
    if isinstance(part, Cell):
        return inference.output(where, part, params, x)
    one = trees.all_steps(trees.struct(x), 1)
    return trees.first_step(jax.eval_shape(lambda params, xs: part.apply(params, xs)[1], params, one))


def live(steps: int, lengths: jax.Array) -> jax.Array:
    """[T, *B]: whether a step belongs to its sequence."""
    t = jnp.arange(steps, dtype=lengths.dtype).reshape(-1, *[1] * lengths.ndim)
    return jnp.broadcast_to(t, (steps, *lengths.shape)) < jnp.broadcast_to(lengths, (steps, *lengths.shape))


def zero_where_not(counts: jax.Array, tree: Tree) -> Tree:
    """Leaves [T, *B, ...] with zeros where a step does not count, [T, *B]."""
    return choose("unroll", "ys", counts, tree, jax.tree.map(jnp.zeros_like, tree))


class Given(NamedTuple):
    """What `unroll` hands to a layer beside its parameters and inputs."""

    lengths: Any = None
    resets: Any = None
    key: Key | None = None
    scan: Scan = fissioned_scan

    def split(self, n: int) -> list[Given]:
        """The same for each of n parts, with a key of its own."""
        return [self._replace(key=k) for k in split_key(self.key, n)]


class LayerDefinition(Picklable, ABC):
    """A layer as it is written here: a frozen dataclass, the options its fields, the layer's functions its methods."""

    @property
    def layer(self) -> SequenceLayer:
        return SequenceLayer(self.init, self.apply, self.shortened)

    @abstractmethod
    def init(self, key: Key, x: Tree) -> Params: ...

    @abstractmethod
    def run(self, params: Params, xs: Tree, given: Given) -> tuple[State, Tree]: ...

    def apply(self, params: Params, xs: Tree, **given: Any) -> tuple[State, Tree]:
        return self.run(params, xs, Given(**given))

    def shortened(self, lengths: jax.Array) -> jax.Array:
        return as_long(lengths)


def over_time(cell: Cell) -> SequenceLayer:
    """A cell as a layer of whole sequences: state, ys = unroll(cell, params, xs).

    What `unroll` says of shapes, lengths, resets, cost and errors holds. Raises: TypeError for anything but a cell.
    """
    checks.a_cell("over_time", cell)
    return OverTime(cell).layer


@dataclass(frozen=True)
class OverTime(LayerDefinition):
    cell: Cell

    def init(self, key: Key, x: Tree) -> Params:
        return self.cell.init(key, x)

    def run(self, params: Params, xs: Tree, given: Given) -> tuple[State, Tree]:
        return unroll(self.cell, params, xs, **given._asdict())


def chain(*parts: Cell | SequenceLayer) -> SequenceLayer:
    """Cells and sequence layers one after another, each over the whole of what the one before returns.

        for n, part in enumerate(parts):
            state[n], xs = part over xs
        ys = xs

    Neighbouring cells run as one cell, `stack(...)`, in one loop, so that what needs no state leaves it. Parameters
    and state are tuples with one entry per part. Where a part shortens sequences, as `every` does, those after
    it are given the shorter lengths.
    Cost: the sum of the parts'; what lies between two loops exists for all steps, T times its size.
    Raises: ValueError for no parts, TypeError for anything but cells and sequence layers; what the parts raise.

    >>> import jaxrnn as rnn
    >>> net = chain(rnn.gru(4), rnn.bidirectional(rnn.gru(3), rnn.gru(3)), rnn.lift(jnp.tanh))
    >>> params = net.init(jax.random.key(0), jnp.zeros((2, 5)))
    >>> state, ys = unroll(net, params, jnp.ones((7, 2, 5)), lengths=[7, 4])
    >>> ys.shape, len(state)
    ((7, 2, 6), 3)
    """
    if not parts:
        raise ValueError("chain: needs at least one cell or sequence layer")
    return Chain(tuple(a_part("chain", part) for part in parts)).layer


@dataclass(frozen=True)
class Chain(LayerDefinition):
    parts: tuple[Cell | SequenceLayer, ...]

    def init(self, key: Key, x: Tree) -> Params:
        params = []
        for part, k in zip(self.parts, jax.random.split(key, len(self.parts)), strict=True):
            params.append(part.init(k, x))
            x = output("chain", part, params[-1], x)
        return tuple(params)

    def run(self, params: Params, xs: Tree, given: Given) -> tuple[State, Tree]:
        states: list[State] = []
        lengths = given.lengths
        groups = self.groups
        for parts, own in zip(groups, given.split(len(groups)), strict=True):
            p = params[len(states) : len(states) + len(parts)]
            options = own._replace(lengths=lengths)._asdict()
            if isinstance(parts[0], Cell):
                state, xs = unroll(stack(*parts), p, xs, **options)
                states.extend(state)
            else:
                layer = parts[0]
                state, xs = unroll(layer, p[0], xs, **options)
                states.append(state)
                lengths = None if lengths is None else layer.shortened(lengths)
        return tuple(states), xs

    def shortened(self, lengths: jax.Array) -> jax.Array:
        for part in self.parts:
            lengths = part.shortened(lengths) if isinstance(part, SequenceLayer) else lengths
        return lengths

    @property
    def groups(self) -> list[list[Any]]:
        """The parts, with cells that stand next to each other in one group, and every layer in one of its own."""
        numbered = enumerate(self.parts)
        alone = groupby(numbered, lambda part: -1 if isinstance(part[1], Cell) else part[0])
        return [[part for _, part in group] for _, group in alone]
