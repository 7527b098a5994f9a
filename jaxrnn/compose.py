"""Combinators: cells in, a cell out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, shapes
from jaxrnn.types import Cell, Key, Params, State, Tree


def _a_cell(where: str, value: Any) -> Cell:
    if not isinstance(value, Cell):
        hint = "wrap a Flax module with layer(...) or recurrent(...), a function with lift(...)"
        raise TypeError(f"{where}: expected a Cell, got {type(value).__name__}; {hint}")
    return value


def _split(key: Key | None, n: int) -> list[Any]:
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
        _a_cell("stack", cell)

    def init(key: Key, x: Tree) -> Params:
        params = []
        for cell, k in zip(cells, jax.random.split(key, len(cells)), strict=True):
            params.append(cell.init(k, x))
            x = shapes.output("stack", cell, params[-1], x)
        return tuple(params)

    def initial_state(params: Params, batch_shape: tuple[int, ...]) -> State:
        return tuple(cell.initial_state(p, batch_shape) for cell, p in zip(cells, params, strict=True))

    def step(params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        states = []
        for cell, p, s, k in zip(cells, params, state, _split(key, len(cells)), strict=True):
            s_out, x = cell.step(p, s, x, key=k)
            states.append(s_out)
        return tuple(states), x

    def begin(params: Params, key: Key) -> Params:
        keys = _split(key, len(cells))
        return tuple(cell.begin(p, k) for cell, p, k in zip(cells, params, keys, strict=True))

    return Cell(init, initial_state, step, begin)


def residual(cell: Cell) -> Cell:
    """A shortcut around a cell: y_t = x_t + cell(x_t), for a cell whose output has its input's shape.

    Cost: one addition per output. Raises: TypeError for anything but a cell, ValueError at the step
    where shapes or dtypes differ. He et al. 2016; Kim et al. 2017 for recurrent nets.
    """
    _a_cell("residual", cell)

    def step(params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        state_out, y = cell.step(params, state, x, key=key)
        checks.same_type("residual", "y", x, y, "the output must have the input's type; add a layer to match them")
        return state_out, jax.tree.map(jnp.add, x, y)

    return cell._replace(step=step)


def with_loss(cell: Cell, loss: Callable[[Tree, Tree], jax.Array]) -> Cell:
    """A net and its loss as one cell: x_t is a pair (input, target), y_t = loss(cell(input), target).

    `loss` takes one step's prediction and target, e.g. optax's
    `softmax_cross_entropy_with_integer_labels`, and gives one number per example, [*B]; so the
    predictions of all steps never exist at once. Parameters and state are the cell's own, hence
    what is trained through `with_loss(cell, ...)` is used through `cell`.
    """
    _a_cell("with_loss", cell)

    def init(key: Key, x: Tree) -> Params:
        return cell.init(key, x[0])

    def step(params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        inputs, target = x
        state_out, prediction = cell.step(params, state, inputs, key=key)
        return state_out, loss(prediction, target)

    return cell._replace(init=init, step=step)


class Drawn(NamedTuple):
    """Parameters together with the key of what was drawn for the whole sequence."""

    params: Params
    key: Key


def dropout(cell: Cell, rate: float, *, on: str = "output", mask: str = "step") -> Cell:
    """Drops each feature of the cell's output (or input) with probability `rate`, and scales up the rest.

        y_t = m_t * cell(x_t) / (1 - rate),    m_t ~ Bernoulli(1 - rate), one draw per feature and example

    `mask="step"` draws a new m_t each step; `mask="sequence"` draws one m for all steps of an
    `unroll` (Gal and Ghahramani 2016), from a key fixed in `begin`. Without a key nothing is dropped.
    The step's key is split in two, one half for the mask and one for the cell.
    Cost: one draw per feature and step; for "sequence" the same draw each step, which the compiler
    may take out of the loop. Raises: ValueError for a rate outside [0, 1) or an unknown option, and
    at the step for mask="sequence" with a key but without `begin`.
    """
    _a_cell("dropout", cell)
    rate = checks.rate("dropout", rate)
    on_output = checks.one_of("dropout", "on", on, ("output", "input")) == "output"
    per_sequence = checks.one_of("dropout", "mask", mask, ("step", "sequence")) == "sequence"

    def thinned(tree: Tree, key: Key) -> Tree:
        leaves, structure = jax.tree.flatten(tree)
        kept = []
        for leaf, k in zip(leaves, _split(key, len(leaves)), strict=True):
            keep = jax.random.bernoulli(k, 1 - rate, leaf.shape)
            kept.append(jnp.where(keep, leaf / (1 - rate), jnp.zeros_like(leaf)))
        return jax.tree.unflatten(structure, kept)

    def initial_state(params: Params, batch_shape: tuple[int, ...]) -> State:
        return cell.initial_state(own(params)[0], batch_shape)

    def own(params: Params) -> tuple[Params, Key | None]:
        """The cell's parameters, and this dropout's key if `begin` drew one (a cell inside may have one too)."""
        return params if per_sequence and isinstance(params, Drawn) else (params, None)

    def step(params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        params, drawn = own(params)
        if key is None or rate == 0.0:
            return cell.step(params, state, x, key=key)
        k_mask, k_cell = jax.random.split(key)
        if per_sequence:
            if drawn is None:
                raise ValueError(
                    "dropout: mask='sequence' is drawn before the loop; "
                    "call params = cell.begin(params, key) first (unroll does it for you)"
                )
            k_mask = drawn
        state_out, y = cell.step(params, state, x if on_output else thinned(x, k_mask), key=k_cell)
        return state_out, thinned(y, k_mask) if on_output else y

    def begin(params: Params, key: Key) -> Params:
        k_mask, k_cell = jax.random.split(key)
        params = cell.begin(params, k_cell)
        return Drawn(params, k_mask) if per_sequence else params

    return Cell(cell.init, initial_state, step, begin)


def zoneout(cell: Cell, rate: float | State) -> Cell:
    """Each unit of the state keeps its previous value with probability `rate`.

        s_t = m_t * s_tm1 + (1 - m_t) * cell(s_tm1, x_t),    m_t ~ Bernoulli(rate)

    Without a key m_t is its mean, `rate`. One number serves the whole state; a state in which each
    leaf is a number sets them apart, as in `zoneout(lstm(64), LSTMState(h=0.05, c=0.5))`. An output
    that is the new state itself (the same array, as in our cells) follows it; a cell whose step is
    jitted by itself, or that keeps such an output within (a stack's lower layers), hides that, so wrap
    the single cells: `stack(zoneout(gru(64), 0.1), zoneout(gru(64), 0.1))`.
    The step's key is split in two, one half for the masks and one for the cell. Integer leaves of the
    state are left alone. Cost: one draw per unit and step.
    Raises: ValueError for a rate outside [0, 1), or rates that do not match the state.
    Krueger et al. 2017.
    """
    _a_cell("zoneout", cell)
    jax.tree.map(lambda r: checks.rate("zoneout", r), rate)

    def rates(state: State) -> list[float]:
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(rate)):
            return [checks.number(rate)] * len(jax.tree.leaves(state))
        given, wanted = (jax.tree_util.tree_structure(t) for t in (rate, state))
        if given != wanted:
            raise ValueError(f"zoneout: rate should be one number or have the state's structure {wanted}, got {given}")
        return [checks.number(r) for r in jax.tree.leaves(rate)]

    def mixed(r: float, key: Key | None, old: jax.Array, new: jax.Array) -> jax.Array:
        if r == 0.0 or not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        if key is None:
            return r * old + (1 - r) * new
        return jnp.where(jax.random.bernoulli(key, r, new.shape), old, new)

    def step(params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        k_mask, k_cell = _split(key, 2)
        new, y = cell.step(params, state, x, key=k_cell)
        old_leaves, new_leaves = jax.tree.leaves(state), jax.tree.leaves(new)
        keys = _split(k_mask, len(new_leaves))
        zoned = [mixed(*each) for each in zip(rates(state), keys, old_leaves, new_leaves, strict=True)]
        # y is h itself in most cells: what the next layer sees must be what the next step sees.
        same = {id(before): after for before, after in zip(new_leaves, zoned, strict=True)}
        y = jax.tree.map(lambda leaf: same.get(id(leaf), leaf), y)
        return jax.tree.unflatten(jax.tree.structure(new), zoned), y

    return cell._replace(step=step)
