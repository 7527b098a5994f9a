"""Sequences of unequal length and sequences that start anew: `masked` and `resettable`.

Both choose with `where`, never by multiplying, on both sides of the step: what goes into it and what
comes out. A NaN that is not chosen then reaches neither the value nor, through 0 * NaN, the gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, guards, meshes, trees
from jaxrnn.combinators.stacking import OfPair
from jaxrnn.types import Cell, Key, Params, State, Tree


def _cheaper_to_redo(primitive: Any, *avals: Any, **params: Any) -> bool:
    """A checkpoint policy: keep everything for the backward pass but what choosing costs.

    A mask broadcast to a state's shape, and the chosen array itself, would otherwise be kept for
    every step. Whether `t < length` or `x != x` is redone in no time from what is kept anyway.
    """
    if params.get("name") in (guards.NAN_ENTERS, guards.GUARDED):
        return False
    integers = all(not jnp.issubdtype(getattr(a, "dtype", jnp.float32), jnp.inexact) for a in avals)
    is_choice = primitive.name in ("select_n", "broadcast_in_dim")
    return not (is_choice or (primitive.name in ("lt", "ge") and integers))


def _keeping_no_masks(fn: Callable[..., Any]) -> Callable[..., Any]:
    return jax.checkpoint(fn, prevent_cse=False, policy=_cheaper_to_redo)


def choose(where: str, what: str, mask: jax.Array, when_true: Tree, when_false: Tree, *, shared: bool = False) -> Tree:
    """Leaf by leaf, `mask ? when_true : when_false` with the mask over the leading dimensions.

    With `shared`, a leaf with fewer dimensions than the batch has is one that all sequences share: it is
    chosen if any of them is.
    """

    def chosen(path: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        if a is b:
            return a
        if shared and a.ndim < mask.ndim:
            return jnp.where(jnp.any(mask), a, b)
        if a.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"{where}: {checks.leaf_name(what, path)} should start with the batch dimensions "
                f"{mask.shape} of the mask, got {checks.describe(a)}"
            )
        widened = lax.broadcast_in_dim(mask, a.shape, tuple(range(mask.ndim)))
        return jnp.where(meshes.placed(widened, a), a, b)

    return jax.tree_util.tree_map_with_path(chosen, when_true, when_false)


def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


def _zeros_for_nans(tree: Tree) -> Tree:
    """Zeros for the leaves that can hold a NaN; integers stay, so that their embedding can leave the loop."""
    return jax.tree.map(lambda a: jnp.zeros_like(a) if trees.is_float(a) else a, tree)


def masked(cell: Cell, *, live: Callable[[Tree], jax.Array] | None = None) -> Cell:
    """A cell that stands still where a mask is false: x_t is a pair (input, mask), mask [*B] boolean.

        state_t, y_t = cell(state_tm1, input)    where mask
                       state_tm1, 0              elsewhere

    `live` computes the mask from what is given in its place (`unroll` passes the step's number t
    and `live=lambda t: t < lengths`). Input under a false mask, NaN included, has no effect on any
    value or gradient. Leaves must start with the batch dimensions; but a leaf of the state or the input
    with fewer dimensions than the batch has (a step counter, a schedule) is shared by all sequences, and
    goes on as long as any of them is live. Such an output is an error: it would tell of padding.
    Cost: one `where` per leaf; nothing of the state's size is kept for the backward pass on its account.
    Raises: TypeError if the mask is not boolean, ValueError for a leaf that starts with other dimensions.
    """
    around = Masked(cell, live)
    return cell._replace(init=around.init, step=around.step)


@dataclass(frozen=True)
class Masked(OfPair):
    live: Callable[[Tree], jax.Array] | None

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        return _keeping_no_masks(self.guarded)(params, state, x, key)

    def guarded(self, params: Params, state: State, x: Tree, key: Key | None) -> tuple[State, Tree]:
        inputs, mask = x
        if self.live is not None:
            mask = self.live(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"masked: mask must be boolean, got {checks.describe(mask)}")
        inputs = choose("masked", "x", mask, inputs, _zeros(inputs), shared=True)
        new, y = self.inner.step(params, state, inputs, key=key)
        new = choose("masked", "state", mask, new, state, shared=True)
        return new, choose("masked", "y", mask, y, _zeros(y))


def _has_nan(tree: Tree, batch_dims: int) -> jax.Array:
    """[*B]: whether any number that belongs to this example is NaN."""
    found = [
        jnp.any(jnp.isnan(leaf), axis=tuple(range(batch_dims, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if trees.is_float(leaf)
    ]
    return reduce(operator.or_, found) if found else jnp.zeros((), jnp.bool_)


def _poisoned(cell: Cell, params: Params, state: State, x: Tree, key: Key | None, batch_dims: int) -> Any:
    """Which examples a NaN that goes into the step makes NaN, [*B], and what comes out of the step for them.

    Without a NaN that is none of them, and then nothing is computed (except under vmap, where both
    branches of a `cond` are).
    """
    inputs = lax.stop_gradient((params, state, x))
    enters = guards.nan_enters(_has_nan(x, batch_dims)) | _has_nan(state, batch_dims)

    def by_the_step() -> Any:
        out = cell.step(*inputs, key=key)
        return enters & _has_nan(out, batch_dims), out

    poisoned, types = jax.eval_shape(by_the_step)

    def none() -> Any:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), types)
        return meshes.placed((jnp.zeros(poisoned.shape, poisoned.dtype), zeros), (poisoned, types))

    return lax.stop_gradient(lax.cond(jnp.any(enters), by_the_step, none))


def resettable(cell: Cell) -> Cell:
    """A cell that starts anew where told: x_t is a pair (input, reset), reset [*B] boolean.

        state_tm1 = initial_state  where reset
        state_t, y_t = cell(state_tm1, input)

    An example whose state or output becomes NaN because a NaN went into the step has that value, and
    no gradient through that step: so a NaN before a reset has no effect on any value or gradient
    after it. A cell that makes sense of NaN inputs (as missing, say) goes on doing so.
    Every leaf must start with the batch dimensions: what all sequences share cannot start anew for one.
    Cost: a `where` and a NaN test per leaf, and the step once more where there is a NaN (under `vmap`
    always); nothing of the state's size is kept for the backward pass on its account.
    Raises: TypeError if reset is not boolean, ValueError for a leaf without the batch dimensions.
    """
    around = Resettable(cell)
    return cell._replace(init=around.init, step=around.step)


class Resettable(OfPair):
    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        return _keeping_no_masks(self.guarded)(params, state, x, key)

    def guarded(self, params: Params, state: State, x: Tree, key: Key | None) -> tuple[State, Tree]:
        inputs, reset = x
        if reset.dtype != jnp.bool_:
            raise TypeError(f"resettable: reset must be boolean, got {checks.describe(reset)}")
        start = meshes.placed(self.inner.initial_state(params, reset.shape), state)
        state = choose("resettable", "state", reset, start, state)
        poisoned, (new_nan, y_nan) = _poisoned(self.inner, params, state, inputs, key, reset.ndim)
        poisoned = guards.guarded(jnp.broadcast_to(poisoned, reset.shape))
        # The step to differentiate never sees what made the NaN: 0 * NaN would be NaN in its gradient.
        state = choose("resettable", "state", poisoned, start, state)
        inputs = choose("resettable", "x", poisoned, _zeros_for_nans(inputs), inputs)
        new, y = self.inner.step(params, state, inputs, key=key)
        new = choose("resettable", "state", poisoned, new_nan, new)
        return new, choose("resettable", "y", poisoned, y_nan, y)
