"""The states in which packed sequences end, without keeping those of all steps."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxrnn import checks, trees
from jaxrnn.combinators.masking import choose, resettable
from jaxrnn.combinators.stacking import Around
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.directions import begins_backwards
from jaxrnn.sequence.packing import Packed
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree


def states_at_ends(
    cell: Cell,
    params: Params,
    packed: Packed,
    *,
    key: Key | None = None,
    reverse: bool = False,
    scan: Scan = fissioned_scan,
) -> State:
    """The state in which each packed sequence ends, [N, ...]: what `unroll` over it alone returns.

        states[i] = the state after the last step of sequence i      after its first step if reverse
                    the cell's first state for a sequence of length 0

    It is written into its place on the way, so memory is that of N states beside what `scan` keeps; the states of
    all steps, [T, R, ...], never exist. Raises: TypeError for anything but a cell and a Packed; what `unroll` raises.
    """
    checks.a_cell("states_at_ends", cell)
    if not isinstance(packed, Packed):
        raise TypeError(f"states_at_ends: packed must be what pack() returns, got {type(packed).__name__}")
    count = len(packed.lengths)
    begins = packed.resets & packed.live
    resets = begins_backwards(jnp.asarray(packed.resets)) if reverse else packed.resets
    slots = jnp.where(begins if reverse else packed.ends, packed.number, count)  # a place that does not exist
    into = Collecting(resettable(cell), count)
    collecting = cell._replace(initial_state=into.initial_state, step=into.step)
    xs = ((packed.xs, resets), slots)
    (_, states), _ = unroll(collecting, params, xs, key=key, reverse=reverse, outputs="none", scan=scan)

    first = cell.initial_state(params, (count,))
    return choose("states_at_ends", "state", jnp.asarray(packed.lengths == 0), first, states)


@dataclass(frozen=True)
class Collecting(Around):
    """A cell whose x_t is a pair (its own x_t, slot [R]), and that writes its state into places 0..count-1."""

    count: int

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        state = self.inner.initial_state(params, batch_shape)
        place = lambda leaf: jnp.zeros((self.count, *leaf.shape[len(batch_shape) :]), leaf.dtype)
        return state, jax.tree.map(place, state)

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        (state_tm1, places), (inputs, slot) = state, x
        state_t, y = self.inner.step(params, state_tm1, inputs, key=key)
        return (state_t, jax.tree.map(lambda place, leaf: _written(place, slot, leaf), places, state_t)), y


def _written(place: jax.Array, slot: jax.Array, leaf: jax.Array) -> jax.Array:
    """Every place is written once, so adding is the same as setting, and its derivative reads nothing."""
    at = place.at[slot]
    return at.add(leaf, mode="drop") if trees.is_float(leaf) else at.set(leaf, mode="drop")
