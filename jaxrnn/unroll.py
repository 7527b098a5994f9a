"""`unroll`: run a cell over a sequence. The unrolled net is a loop, and the loop is an argument."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, shapes
from jaxrnn.guards import masked, resettable
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree


def unroll(
    cell: Cell,
    params: Params,
    xs: Tree,
    state: State | None = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    key: Key | None = None,
    reverse: bool = False,
    scan: Scan = lax.scan,
) -> tuple[State, Tree]:
    """Runs a cell over a sequence.

        state = cell.initial_state(params, B)                        unless one is given
        for t in range(T):                                           from the last to the first if reverse
            state = cell.initial_state(params, B)  where resets[t]
            new, y = cell.step(params, state, xs[t], key=key_t)
            state, ys[t] = (new, y)  where t < lengths,  else (state, 0)
        return state, ys

    Shapes: xs [T, *B, ...] (any pytree), state and ys as the cell makes them, ys [T, *B, ...];
    lengths [*B] integers in 0..T; resets [T, *B] booleans. Without state, lengths or resets to tell
    what *B is, it is found by tracing the step.
    In reverse a padded sequence starts at its own last element, and a reset replaces the state
    before the step at which it stands.
    `key` is for cells that draw: one key for `cell.begin`, one per step, the same under every scan.
    Padding may hold anything, NaN included: it reaches no value and no gradient; nor does a NaN
    before a reset reach anything after it.

    Cost: T steps. Memory for the backward pass is up to `scan`: T times what a step keeps under
    `lax.scan`, less under `checkpointed`. lengths and resets keep nothing of the state's size.
    The step is traced a few times, however large T is (`python_loop`: T times).
    Raises: ValueError or TypeError, naming the leaf, for xs of unequal lengths, a state or step
    output of the wrong structure, shape or dtype, lengths outside 0..T (where their values are
    known), resets that are not boolean [T, *B], or a cell or scan that is none.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"unroll: cell must be a Cell, got {type(cell).__name__}; see layer, recurrent and lift")
    checks.a_scan("unroll", "scan", scan)
    steps = checks.steps("unroll", xs)
    xs = jax.tree.map(jnp.asarray, xs)
    if lengths is not None:
        lengths = checks.lengths("unroll", lengths, steps)
    if resets is not None:
        resets = checks.resets("unroll", resets, steps)
    state = _first_state(cell, params, xs, state, lengths, resets)

    key_t = None
    if key is not None:
        k_begin, k_steps = jax.random.split(key)
        params = cell.begin(params, k_begin)
        key_t = jax.vmap(lambda t: jax.random.fold_in(k_steps, t))(jnp.arange(steps, dtype=jnp.uint32))
    if resets is not None:
        cell, xs = resettable(cell), (xs, resets)
    if lengths is not None:
        # The mask is made from t inside the loop: nothing of size T * B exists on its account.
        t = jnp.arange(steps, dtype=lengths.dtype)
        cell, xs = masked(cell, live=lambda t: t < lengths), (xs, t)

    def body(state: State, x_and_key: tuple[Tree, Key | None]) -> tuple[State, Tree]:
        x, key = x_and_key
        return cell.step(params, state, x, key=key)

    _check_step(body, state, shapes.first_step((xs, key_t)))
    return scan(body, state, (xs, key_t), length=steps, reverse=reverse)


def _first_state(cell: Cell, params: Params, xs: Tree, state: State | None, lengths: Any, resets: Any) -> State:
    """The given state, checked against the cell's own; or the cell's own."""
    if lengths is not None and resets is not None and lengths.shape != resets.shape[1:]:
        raise ValueError(
            f"unroll: lengths [*B] and resets [T, *B] must have the same batch dimensions, "
            f"got {lengths.shape} and {resets.shape[1:]}"
        )
    if lengths is not None or resets is not None:
        batch = lengths.shape if lengths is not None else resets.shape[1:]
        _check_batch(xs, batch)
    elif state is None:
        batch = shapes.batch_shape("unroll", cell, params, shapes.first_step(xs))
    else:
        state = jax.tree.map(jnp.asarray, state)
        _check_state(jax.eval_shape(lambda p: cell.initial_state(p, ()), params), state)
        return state
    own = cell.initial_state(params, batch)
    if state is None:
        return own
    state = jax.tree.map(jnp.asarray, state)
    checks.same_type("unroll", "state", own, state, "start from cell.initial_state(params, batch_shape)")
    return state


def _check_state(unbatched: State, state: State) -> None:
    """A given state whose batch dimensions only the caller knows must still fit the cell behind them."""
    if not jax.tree.leaves(unbatched):
        return
    behind = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), unbatched)
    if jax.tree_util.tree_structure(behind) == jax.tree_util.tree_structure(state):
        behind = jax.tree.map(
            lambda own, a: jax.ShapeDtypeStruct(a.shape[: a.ndim - own.ndim] + own.shape, own.dtype), behind, state
        )
    checks.same_type("unroll", "state", behind, state, "start from cell.initial_state(params, batch_shape)")


def _check_batch(xs: Tree, batch: tuple[int, ...]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(xs):
        if leaf.shape[1 : 1 + len(batch)] != batch:
            raise ValueError(
                f"unroll: {checks.leaf_name('xs', path)} should be [T, *B, ...] with the batch dimensions {batch} "
                f"of lengths or resets, got {checks.describe(leaf)}"
            )


def _check_step(body: Any, state: State, x: Tree) -> None:
    """The state must leave the step as it came in; said here by leaf, before any loop is built."""
    out = jax.eval_shape(body, state, x)
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(f"unroll: the step must return (state, y), got {type(out).__name__}")
    checks.same_type(
        "unroll",
        "state",
        jax.eval_shape(lambda: state),
        out[0],
        "the step must return the state in the type in which it came; cast inside the step, "
        "or start from a state of that type",
    )
