"""Cells upon, around and beside each other: `stack`, `residual`, `alongside`, `with_loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference
from jaxrnn.cells.base import Definition
from jaxrnn.pickling import Picklable
from jaxrnn.types import Cell, Key, Params, State, Tree


def split_key(key: Key | None, n: int) -> list[Any]:
    """n independent keys, or n times None."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def stack(*cells: Cell) -> Cell:
    """Cells one upon another: y_t of each is x_t of the next.

        for n, cell in enumerate(cells):
            state[n], x = cell.step(params[n], state[n], x)
        y = x

    Parameters and state are tuples with one entry per cell. The step's key is split into one per cell.
    Cost: the sum of the cells'. Raises: TypeError for anything but cells, ValueError for none.
    """
    if not cells:
        raise ValueError("stack: needs at least one cell")
    for cell in cells:
        checks.a_cell("stack", cell)
    return Stack(cells).cell


@dataclass(frozen=True)
class Stack(Definition):
    cells: tuple[Cell, ...]

    def init(self, key: Key, x: Tree) -> Params:
        params = []
        for cell, k in zip(self.cells, jax.random.split(key, len(self.cells)), strict=True):
            params.append(cell.init(k, x))
            x = inference.output("stack", cell, params[-1], x)
        return tuple(params)

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        return tuple(cell.initial_state(p, batch_shape) for cell, p in zip(self.cells, params, strict=True))

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        states = []
        for cell, p, s, k in zip(self.cells, params, state, split_key(key, len(self.cells)), strict=True):
            s_out, x = cell.step(p, s, x, key=k)
            states.append(s_out)
        return tuple(states), x

    def begin(self, params: Params, key: Key) -> Params:
        keys = split_key(key, len(self.cells))
        return tuple(cell.begin(p, k) for cell, p, k in zip(self.cells, params, keys, strict=True))


@dataclass(frozen=True)
class Around(Picklable):
    """What is put around a cell: some of its functions changed, as methods here; the others stay the cell's own."""

    inner: Cell


class OfPair(Around):
    """What is put around a cell whose x_t then is a pair, its own and something else."""

    def init(self, key: Key, x: Tree) -> Params:
        return self.inner.init(key, x[0])


def residual(cell: Cell) -> Cell:
    """A shortcut around a cell: y_t = x_t + cell(x_t), for a cell whose output has its input's shape.

    Cost: one addition per output. Raises: TypeError for anything but a cell, ValueError at the step
    where shapes or dtypes differ. He et al. 2016; Kim et al. 2017 for recurrent nets.
    """
    checks.a_cell("residual", cell)
    return cell._replace(step=Residual(cell).step)


class Residual(Around):
    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        state_out, y = self.inner.step(params, state, x, key=key)
        checks.same_type("residual", "y", x, y, "the output must have the input's type; add a layer to match them")
        return state_out, jax.tree.map(jnp.add, x, y)


def alongside(cell: Cell) -> Cell:
    """A cell past which something is handed on: x_t is a pair (input, other), y_t = (cell(input), other).

    For what is put upon a net and reads more than the net's output: `stack(alongside(net), crf(5))` over
    (inputs, tags). Parameters and state are the cell's own. Raises: TypeError for anything but a cell.
    """
    checks.a_cell("alongside", cell)
    around = Alongside(cell)
    return cell._replace(init=around.init, step=around.step)


class Alongside(OfPair):
    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        inputs, other = x
        state_out, y = self.inner.step(params, state, inputs, key=key)
        return state_out, (y, other)


def with_loss(cell: Cell, loss: Callable[[Tree, Tree], jax.Array]) -> Cell:
    """A net and its loss as one cell: x_t is a pair (input, target), y_t = loss(cell(input), target).

    `loss` takes one step's prediction and target, e.g. optax's
    `softmax_cross_entropy_with_integer_labels`, and gives one number per example, [*B]; so the
    predictions of all steps never exist at once. Parameters and state are the cell's own, hence
    what is trained through `with_loss(cell, ...)` is used through `cell`.
    """
    checks.a_cell("with_loss", cell)
    around = WithLoss(cell, loss)
    return cell._replace(init=around.init, step=around.step)


@dataclass(frozen=True)
class WithLoss(OfPair):
    loss: Callable[[Tree, Tree], jax.Array]

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        inputs, target = x
        state_out, prediction = self.inner.step(params, state, inputs, key=key)
        return state_out, self.loss(prediction, target)
