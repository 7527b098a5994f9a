"""Cells that draw: `dropout` and `zoneout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, meshes
from jaxrnn.combinators.stacking import Around, split_key
from jaxrnn.types import Cell, Key, Params, State, Tree


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
    checks.a_cell("dropout", cell)
    rate = checks.rate("dropout", rate)
    on_output = checks.one_of("dropout", "on", on, ("output", "input")) == "output"
    per_sequence = checks.one_of("dropout", "mask", mask, ("step", "sequence")) == "sequence"
    around = Dropout(cell, rate, on_output, per_sequence)
    return Cell(cell.init, around.initial_state, around.step, around.begin)


@dataclass(frozen=True)
class Dropout(Around):
    rate: float
    on_output: bool
    per_sequence: bool

    def begin(self, params: Params, key: Key) -> Params:
        k_mask, k_cell = jax.random.split(key)
        params = self.inner.begin(params, k_cell)
        return Drawn(params, k_mask) if self.per_sequence else params

    def own(self, params: Params) -> tuple[Params, Key | None]:
        """The cell's parameters, and this dropout's key if `begin` drew one (a cell inside may have one too)."""
        return params if self.per_sequence and isinstance(params, Drawn) else (params, None)

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        return self.inner.initial_state(self.own(params)[0], batch_shape)

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        params, drawn = self.own(params)
        if key is None or self.rate == 0.0:
            return self.inner.step(params, state, x, key=key)
        k_mask, k_cell = jax.random.split(key)
        if self.per_sequence:
            if drawn is None:
                raise ValueError(
                    "dropout: mask='sequence' is drawn before the loop; "
                    "call params = cell.begin(params, key) first (unroll does it for you)"
                )
            k_mask = drawn
        x = x if self.on_output else self.thinned(x, k_mask)
        state_out, y = self.inner.step(params, state, x, key=k_cell)
        return state_out, self.thinned(y, k_mask) if self.on_output else y

    def thinned(self, tree: Tree, key: Key) -> Tree:
        leaves, structure = jax.tree.flatten(tree)
        kept = []
        for leaf, k in zip(leaves, split_key(key, len(leaves)), strict=True):
            keep = meshes.placed(jax.random.bernoulli(k, 1 - self.rate, leaf.shape), leaf)
            kept.append(jnp.where(keep, leaf / (1 - self.rate), jnp.zeros_like(leaf)))
        return jax.tree.unflatten(structure, kept)


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
    checks.a_cell("zoneout", cell)
    jax.tree.map(lambda r: checks.rate("zoneout", r), rate)
    return cell._replace(step=Zoneout(cell, rate).step)


@dataclass(frozen=True)
class Zoneout(Around):
    rate: float | State

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        k_mask, k_cell = split_key(key, 2)
        new, y = self.inner.step(params, state, x, key=k_cell)
        old_leaves, new_leaves = jax.tree.leaves(state), jax.tree.leaves(new)
        keys = split_key(k_mask, len(new_leaves))
        zoned = [_mixed(*each) for each in zip(self.rates(state), keys, old_leaves, new_leaves, strict=True)]
        # y is h itself in most cells: what the next layer sees must be what the next step sees.
        same = {id(before): after for before, after in zip(new_leaves, zoned, strict=True)}
        y = jax.tree.map(lambda leaf: same.get(id(leaf), leaf), y)
        return jax.tree.unflatten(jax.tree.structure(new), zoned), y

    def rates(self, state: State) -> list[float]:
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(self.rate)):
            return [checks.number(self.rate)] * len(jax.tree.leaves(state))
        given, wanted = (jax.tree_util.tree_structure(t) for t in (self.rate, state))
        if given != wanted:
            raise ValueError(f"zoneout: rate should be one number or have the state's structure {wanted}, got {given}")
        return [checks.number(r) for r in jax.tree.leaves(self.rate)]


def _mixed(rate: float, key: Key | None, old: jax.Array, new: jax.Array) -> jax.Array:
    if rate == 0.0 or not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    if key is None:
        return rate * old + (1 - rate) * new
    keep = meshes.placed(jax.random.bernoulli(key, rate, new.shape), new)
    return jnp.where(keep, meshes.placed(old, new), new)
