"""`unroll`: run a cell over a sequence. The unrolled net is a loop, and the loop is an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference, trees
from jaxrnn.combinators.masking import masked, resettable
from jaxrnn.scans import scan as fissioned_scan
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
    outputs: bool = True,
    scan: Scan = fissioned_scan,
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
    With `outputs=False` the last state is all that is wanted: ys is (), and what only outputs need is
    neither computed nor kept.
    `key` is for cells that draw: one key for `cell.begin`, one per step, the same under every scan.
    Padding may hold anything, NaN included: it reaches no value and no gradient; nor does a NaN
    before a reset reach anything after it.

    Cost: T steps. Memory for the backward pass is up to `scan`: T times what a step keeps under
    `jaxrnn.scan`, the default (or under `lax.scan`, more), less under `checkpointed`. lengths and
    resets keep nothing of the state's size.
    The step is traced a few times, however large T is (`python_loop`: T times).
    Raises: ValueError or TypeError, naming the leaf, for xs of unequal lengths, a state or step
    output of the wrong structure, shape or dtype, lengths outside 0..T (where their values are
    known), resets that are not boolean [T, *B], outputs that is neither True nor False, or a cell or
    scan that is none.
    """
    checks.a_scan("unroll", "scan", scan)
    checks.one_of("unroll", "outputs", outputs, (True, False))
    loop = prepared(cell, params, xs, state, lengths=lengths, resets=resets, key=key)

    def body(state: State, x: Tree) -> tuple[State, Tree]:
        state, y = loop.step(loop.begun, state, x)
        return state, y if outputs else ()

    return scan(body, loop.state, loop.xs, length=loop.steps, reverse=reverse)


class Prepared(NamedTuple):
    """The loop of `unroll`, checked and ready for a scan, with the parameters of its step still open."""

    begin: Callable[[Params], Params]  # params -> params with what is drawn for the whole sequence
    begun: Params  # the given ones, begun
    step: Callable[[Params, State, Tree], tuple[State, Tree]]  # (begun params, state, x) -> (state, y)
    start: Callable[[Params], State]  # begun params -> the first state, or the one that was given
    state: State  # that of the given params
    xs: Tree  # [T, ...]: the inputs, and what else a step reads
    steps: int


def prepared(
    cell: Cell, params: Params, xs: Tree, state: State | None, *, lengths: Any, resets: Any, key: Key | None
) -> Prepared:
    """What `unroll` does before its loop."""
    checks.a_cell("unroll", cell)
    if not jax.tree.leaves(xs):
        raise ValueError("unroll: xs has no arrays; a cell needs an input at every step, [T, *B, ...]")
    steps = checks.steps("unroll", xs)
    xs = jax.tree.map(jnp.asarray, xs)
    if lengths is not None:
        lengths = checks.lengths("unroll", lengths, steps)
    if resets is not None:
        resets = checks.resets("unroll", resets, steps)
    x = trees.first_step(xs)
    batch = _batch_shape(cell, params, x, lengths, resets, state is not None)

    key_t = None
    if key is not None:
        k_begin, k_steps = jax.random.split(key)
        key_t = jax.vmap(lambda t: jax.random.fold_in(k_steps, t))(jnp.arange(steps, dtype=jnp.uint32))

    def begin(params: Params) -> Params:
        return params if key is None else cell.begin(params, k_begin)

    def start(begun: Params) -> State:
        return first if batch is None or state is not None else cell.initial_state(begun, batch)

    begun = begin(params)
    first = _first_state(cell, begun, x, trees.first_step(key_t), state, batch)
    guarded = cell
    if resets is not None:
        guarded, xs = resettable(guarded), (xs, resets)
    if lengths is not None:
        # The mask is made from t inside the loop: nothing of size T * B exists on its account.
        guarded, xs = masked(guarded, live=lambda t: t < lengths), (xs, jnp.arange(steps, dtype=jnp.int32))

    def step(begun: Params, state: State, x_and_key: tuple[Tree, Key | None]) -> tuple[State, Tree]:
        x, key = x_and_key
        return guarded.step(begun, state, x, key=key)

    return Prepared(begin, begun, step, start, first, (xs, key_t), steps)


def _batch_shape(
    cell: Cell, params: Params, x: Tree, lengths: Any, resets: Any, has_state: bool
) -> tuple[int, ...] | None:
    """What lengths or resets say *B is, if the cell agrees; or what the cell says. None if the state will say."""
    given = {"lengths": lengths.shape} if lengths is not None else {}
    if resets is not None:
        given["resets"] = resets.shape[1:]
    if len(set(given.values())) > 1:
        raise ValueError(
            f"unroll: lengths [*B] and resets [T, *B] must have the same batch dimensions, "
            f"got {lengths.shape} and {resets.shape[1:]}"
        )
    for name, batch in given.items():
        if not inference.fits(cell, params, x, batch):
            own = inference.batch_shape("unroll", cell, params, x)
            raise ValueError(
                f"unroll: {name} should be {'[*B]' if name == 'lengths' else '[T, *B]'} with the batch dimensions "
                f"{own} of xs, got {batch}; give one entry per sequence, e.g. with jnp.broadcast_to"
            )
        return batch
    return None if has_state else inference.batch_shape("unroll", cell, params, x)


def _first_state(
    cell: Cell, params: Params, x: Tree, key: Any, state: State | None, batch: tuple[int, ...] | None
) -> State:
    """The given state or the cell's own, and the check that a step keeps its type."""

    def out_of(state: State) -> Any:
        return jax.eval_shape(lambda s, x, k: cell.step(params, s, x, key=k), state, x, key)

    start = "start from cell.initial_state(params, batch_shape)"
    if state is None:
        assert batch is not None, "only a given state leaves the batch shape open"
        state = cell.initial_state(params, batch)
    else:
        state = jax.tree.map(jnp.asarray, state)
        if batch is None:
            try:
                fine = trees.same_shapes(out_of(state)[0], state)
            except Exception:  # noqa: BLE001  the step's complaint is about its insides; say what state it wants
                fine = False
            batch = None if fine else inference.batch_shape("unroll", cell, params, x)
        if batch is not None:
            checks.same_type("unroll", "state", cell.initial_state(params, batch), state, start)
    out = out_of(state)
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(f"unroll: the step must return (state, y), got {type(out).__name__}")
    remedy = "the step must return the state in the type in which it came; cast inside the step, "
    checks.same_type("unroll", "state", trees.struct(state), out[0], remedy + "or start from a state of that type")
    return state
