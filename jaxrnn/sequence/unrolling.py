"""`unroll`: run a cell over a sequence. The unrolled net is a loop, and the loop is an argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference, meshes, trees
from jaxrnn.combinators.masking import masked, resettable
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.types import Cell, Key, Params, Scan, SequenceLayer, State, Tree

OUTPUTS = ("all", "sum", "none")


def unroll(
    cell: Cell | SequenceLayer,
    params: Params,
    xs: Tree,
    state: State | None = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    key: Key | None = None,
    reverse: bool = False,
    outputs: str = "all",
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
    `outputs` says what becomes of the outputs:
        "all"   ys [T, *B, ...], one for each step
        "sum"   their sum over time, [*B, ...], added up in the loop: a streamed loss
        "none"  (): what only outputs need is neither computed nor kept, for a loss on the last state
    So `unroll(with_loss(net, loss), params, (inputs, targets), lengths=lengths, outputs="sum")` gives each
    sequence's loss, [*B], and neither logits nor losses of all steps ever exist; under `jaxrnn.scan` each
    segment is summed at once. Sums are made in 32 bits at least: 16-bit numbers in float32, small integers
    and booleans in int32. Padding adds nothing; resets restart the state, not the total.
    `key` is for cells that draw: one key for `cell.begin`, one per step, the same under every scan.
    Padding may hold anything, NaN included: it reaches no value and no gradient; nor does a NaN
    before a reset reach anything after it.
    A SequenceLayer stands where a cell does, but for `state` and `reverse`; its outputs are added up after they
    are all there.

    Cost: T steps. Memory for the backward pass is up to `scan`: T times what a step keeps under
    `jaxrnn.scan`, the default (or under `lax.scan`, more), less under `checkpointed`. lengths and
    resets keep nothing of the state's size.
    The step is traced a few times, however large T is (`python_loop`: T times).
    Raises: ValueError or TypeError, naming the leaf, for xs of unequal lengths, a state or step
    output of the wrong structure, shape or dtype, lengths outside 0..T (where their values are
    known), resets that are not boolean [T, *B], outputs that is none of these three, outputs to be
    added up that are no numbers (keys), or a cell or scan that is none.
    """
    checks.a_scan("unroll", "scan", scan)
    checks.one_of("unroll", "outputs", outputs, OUTPUTS)
    if isinstance(cell, SequenceLayer):
        _check_no_direction(state, reverse)
        last, ys = cell.apply(params, xs, lengths=lengths, resets=resets, key=key, scan=scan)
        return last, _kept(ys, outputs)
    loop = prepared(cell, params, xs, state, lengths=lengths, resets=resets, key=key, reverse=reverse)
    if outputs == "sum":
        return _summed(loop, scan, reverse)

    def body(state: State, x: Tree) -> tuple[State, Tree]:
        state, y = loop.step(loop.begun, state, x)
        return state, y if outputs == "all" else ()

    return scan(body, loop.state, loop.xs, length=loop.steps, reverse=reverse)


def _check_no_direction(state: State | None, reverse: bool) -> None:
    for name, is_given in (("state", state is not None), ("reverse", reverse)):
        if is_given:
            raise ValueError(
                f"unroll: {name} has no meaning for a SequenceLayer, which has the whole sequence before it; "
                f"leave {name} out, or unroll a cell"
            )


def _kept(ys: Tree, outputs: str) -> Tree:
    """Of outputs that are there for all steps, what was asked for."""
    if outputs == "sum":
        add = lambda path, y: jnp.sum(y, axis=0, dtype=_sum_dtype(path, y))
        return jax.tree_util.tree_map_with_path(add, ys)
    return ys if outputs == "all" else ()


def _summed(loop: Prepared, scan: Scan, reverse: bool) -> tuple[State, Tree]:
    """The last state, and the sum of the outputs: a leaf of the carry that nothing reads but its own addition."""

    def body(state_and_total: Tree, x: Tree) -> tuple[Tree, tuple[()]]:
        state, total = state_and_total
        state, y = loop.step(loop.begun, state, x)
        return (state, jax.tree.map(lambda a, b: a + jnp.asarray(b).astype(a.dtype), total, y)), ()

    zero = lambda path, y: jnp.zeros(y.shape, _sum_dtype(path, y))
    start = (loop.state, jax.tree_util.tree_map_with_path(zero, loop.y))
    if loop.on_mesh:
        start = meshes.settled(body, start, trees.first_step(loop.xs))
    (state, total), _ = scan(body, start, loop.xs, length=loop.steps, reverse=reverse)
    return state, total


def _sum_dtype(path: Any, y: Any) -> Any:
    """A type that holds a sum of this leaf: at least float32 or int32."""
    if not jnp.issubdtype(y.dtype, jnp.number) and y.dtype != jnp.bool_:
        name = checks.leaf_name("y", path)
        raise TypeError(f"unroll: {name} must be numbers to be added up, got {y.dtype}; leave it out of y")
    if jnp.dtype(y.dtype).itemsize >= 4:
        return y.dtype
    return jnp.float32 if jnp.issubdtype(y.dtype, jnp.floating) else jnp.int32


class Prepared(NamedTuple):
    """The loop of `unroll`, checked and ready for a scan, with the parameters of its step still open."""

    begin: Callable[[Params], Params]  # params -> params with what is drawn for the whole sequence
    begun: Params  # the given ones, begun
    step: Callable[[Params, State, Tree], tuple[State, Tree]]  # (begun params, state, x) -> (state, y)
    start: Callable[[Params], State]  # begun params -> the first state, or the one that was given
    state: State  # that of the given params
    xs: Tree  # [T, ...]: the inputs, and what else a step reads
    steps: int
    y: Tree  # the types of one step's output
    on_mesh: bool


def prepared(
    cell: Cell,
    params: Params,
    xs: Tree,
    state: State | None,
    *,
    lengths: Any,
    resets: Any,
    key: Key | None,
    reverse: bool,
) -> Prepared:
    """What `unroll` does before its loop."""
    checks.a_cell("unroll", cell)
    if not jax.tree.leaves(xs):
        raise ValueError("unroll: xs has no arrays; a cell needs an input at every step, [T, *B, ...]")
    steps = checks.steps("unroll", xs)
    xs = jax.tree.map(jnp.asarray, xs)
    lengths = None if lengths is None else checks.lengths("unroll", lengths, steps)
    resets = None if resets is None else checks.resets("unroll", resets, steps)
    k_begin, key_t = (None, None) if key is None else _keys(key, steps)

    def begin(params: Params) -> Params:
        return params if k_begin is None else cell.begin(params, k_begin)

    begun = begin(params)
    given = None if state is None else jax.tree.map(jnp.asarray, state)
    batch, look = _first_look(cell, begun, given, trees.first_step((xs, key_t)), _stated_batch(lengths, resets))
    remedy = "the step must return the state in the type in which it came; cast inside the step, "
    checks.same_type("unroll", "state", look.state, look.state_out, remedy + "or start from a state of that type")
    if lengths is not None and reverse:
        _check_nothing_is_shared(look.state, lengths)

    on_mesh = meshes.on_mesh(params, xs, given, lengths, resets)
    first = given if given is not None else cell.initial_state(begun, batch)
    step, guarded_xs = _guarded(cell, (xs, key_t), lengths, resets, steps)
    if on_mesh:
        bare = lambda state, x: cell.step(begun, state, x[0], key=x[1])
        first = meshes.settled(bare, first, trees.first_step((xs, key_t)))
        # Lengths and resets choose between states, which must be of one type already.
        first = meshes.settled(partial(step, begun), first, trees.first_step(guarded_xs))

    def start(begun: Params) -> State:
        if given is not None:
            return first
        fresh = cell.initial_state(begun, batch)
        return meshes.placed(fresh, first) if on_mesh else fresh

    return Prepared(begin, begun, step, start, first, guarded_xs, steps, look.y, on_mesh)


def _keys(key: Key, steps: int) -> tuple[Key, Key]:
    """The key of what is drawn once, and those of the steps, [T]."""
    k_begin, k_steps = jax.random.split(key)
    return k_begin, jax.vmap(lambda t: jax.random.fold_in(k_steps, t))(jnp.arange(steps, dtype=jnp.uint32))


def _guarded(
    cell: Cell, xs: Tree, lengths: jax.Array | None, resets: jax.Array | None, steps: int
) -> tuple[Callable[[Params, State, Tree], tuple[State, Tree]], Tree]:
    """The step with what lengths and resets do to it, of (inputs, key), and all that it reads, [T, ...]."""
    inputs, keys = xs
    if resets is not None:
        cell, inputs = resettable(cell), (inputs, resets)
    if lengths is not None:
        # The mask is made from t inside the loop: nothing of size T * B exists on its account.
        cell, inputs = masked(cell, live=lambda t: t < lengths), (inputs, jnp.arange(steps, dtype=jnp.int32))

    def step(begun: Params, state: State, x_and_key: tuple[Tree, Key | None]) -> tuple[State, Tree]:
        x, key = x_and_key
        return cell.step(begun, state, x, key=key)

    return step, (inputs, keys)


def _stated_batch(lengths: jax.Array | None, resets: jax.Array | None) -> dict[str, inference.Batch]:
    """What lengths and resets say that *B is, by name."""
    stated = {} if lengths is None else {"lengths": lengths.shape}
    if resets is not None:
        stated["resets"] = resets.shape[1:]
    if len(set(stated.values())) > 1:
        raise ValueError(
            "unroll: lengths [*B] and resets [T, *B] must have the same batch dimensions, "
            f"got {stated['lengths']} and {stated['resets']}"
        )
    return stated


def _first_look(
    cell: Cell, begun: Params, state: State | None, x_and_key: Tree, stated: dict[str, inference.Batch]
) -> tuple[inference.Batch, inference.Look]:
    """*B, and the types that go into and come out of the first step, from the given state or the cell's own.

    Where a state is given the cell is not asked for one of its own, and *B is () unless it is stated.
    """
    x, key = x_and_key
    own = lambda batch: inference.first_step(cell, begun, x, key, batch)
    name, batch = next(iter(stated.items()), ("", ()))
    if state is not None:
        look = inference.step_from_given("unroll", cell, begun, state, x, key)
        if not _begin_with(batch, (x, look.state, look.y)):
            raise ValueError(_wrong_batch(name, "of xs and state", batch))
        return batch, look
    if not stated:
        return inference.searched("unroll", x, own)
    found = inference.keeps_shapes(lambda: own(batch))
    if found is None:
        right, _ = inference.searched("unroll", x, own)
        raise ValueError(_wrong_batch(name, f"{right} of xs", batch))
    return batch, found


def _begin_with(batch: inference.Batch, tree: Tree) -> bool:
    """Whether all arrays begin with the batch dimensions, but for those that have too few: all sequences share them."""
    return all(a.shape[: len(batch)] == batch or a.ndim < len(batch) for a in jax.tree.leaves(tree))


def _wrong_batch(name: str, right: str, got: inference.Batch) -> str:
    shape = "[*B]" if name == "lengths" else "[T, *B]"
    return (
        f"unroll: {name} should be {shape} with the batch dimensions {right}, got {got}; "
        "give one entry per sequence, e.g. with jnp.broadcast_to"
    )


def _check_nothing_is_shared(state: State, lengths: jax.Array) -> None:
    """In reverse each sequence starts at its own last element, so there is no first step that all could share."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim < lengths.ndim:
            raise ValueError(
                f"unroll: {checks.leaf_name('state', path)} should start with the batch dimensions {lengths.shape}, "
                f"got {checks.describe(leaf)}; in reverse sequences of unequal lengths have no step in common"
            )
