"""`copy_gradients`: the unrolled net has a copy of the weights at every step, and each copy has a gradient.

How: a slot of zeros per step, and between a value and its readers a function that does nothing, except
that its backward pass puts what somebody wants to know of the value's cotangent into the slot's own.
`jax.grad` by the slots then is that knowledge, stacked over time, from one ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.scans import checkpointed
from jaxrnn.sequence.unrolling import Prepared, prepared
from jaxrnn.trees import is_float
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree

Loss = Callable[[State, Tree], jax.Array]  # (last state, ys) -> one number, as `unroll` returns them
Measure = Callable[[Tree], Tree]  # one copy's gradient -> anything made of floating-point arrays


def copy_gradients(
    loss: Loss,
    cell: Cell,
    params: Params,
    xs: Tree,
    state: State | None = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    key: Key | None = None,
    reverse: bool = False,
    measure: Measure | None = None,
    scan: Scan | None = None,
) -> Tree:
    """The gradient of every copy of the weights.

        L = loss(*unroll with step t computing with a copy params[t] of its own)
        return [dL / d params[t] for t in range(T)]        stacked; or [measure(dL / d params[t]) ...]

    The sum over t is the gradient of backpropagation through time; the mean is the averaged update
    (`make_train_step(combine="mean")`). Arguments as in `unroll`; loss(state, ys) gives one number.
    Shapes: a pytree like params, leaves [T, ...] (float0 for leaves that are not floating-point), or
    `measure`'s result with a leading T: `measure=leaf_norms` gives T numbers per weight, and
    `measure=lambda g: g["W"]` picks one weight. The measure runs inside the backward pass.
    What the first state reads of the weights (a learned start) belongs to the copy that runs first,
    what a reset reads to the copy that runs after it. Of a batch the gradients are the sum, as ever;
    for each example by itself put `jax.vmap` around.

    Cost: one gradient under `scan`, which is `checkpointed()` unless another is given: c bytes of carry
    for each of S segments and r bytes for each of K steps, and the result. The gradients of all copies
    are T times the weights; measured they never exist together.
    Limits: no forward mode and no second derivatives. Under `truncated` the errors end where it cuts.
    Under `fissioned` copies that only input or output reads are made for all steps of a segment at once.
    Raises: ValueError or TypeError for a loss that is not one floating-point number, a measure that
    gives something else than floating-point arrays, and what `unroll` raises.
    Rumelhart, Hinton and Williams 1986 (the unrolled net); Werbos 1990.
    """
    loop = prepared(cell, params, xs, state, lengths=lengths, resets=resets, key=key, reverse=reverse)
    of_copy = _checked("copy_gradients", float_leaves if measure is None else measure, params)
    (copies, _), _ = observed("copy_gradients", loss, loop, params, of_copy=of_copy, scan=scan, reverse=reverse)
    return copies if measure is not None else _with_float0(params, copies, (loop.steps,))


def leaf_norms(tree: Tree) -> Tree:
    """The norm sqrt(sum a^2) of each leaf, a number each: the usual measure of a copy's gradient.

    Scaled by the largest element, so that squares of the tiny and the huge neither vanish nor overflow;
    in float32 at least. NaN or infinite where an element is. 0 for leaves that are not floating-point.
    """

    def norm(leaf: Any) -> jax.Array:
        if not is_float(leaf):
            return jnp.zeros((), jnp.float32)
        size = jnp.abs(leaf.astype(wide([leaf])))
        largest = jnp.max(size, initial=0)
        scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
        return scale * jnp.sqrt(jnp.sum(jnp.square(size / scale)))

    return jax.tree.map(norm, tree)


def float_leaves(tree: Tree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def wide(leaves: list[Any]) -> np.dtype:
    """The dtype to measure in: float64 where there is some, else float32."""
    return np.dtype(np.float64 if any(jnp.result_type(leaf) == np.float64 for leaf in leaves) else np.float32)


def _with_float0(tree: Tree, floats: list[Any], leading: tuple[int, ...] = ()) -> Tree:
    """The structure of a tree around what belongs to its floating-point leaves; as in JAX, float0 for the others."""
    remaining = iter(floats)
    zeros = lambda leaf: np.zeros((*leading, *jnp.shape(leaf)), jax.dtypes.float0)
    return jax.tree.map(lambda leaf: next(remaining) if is_float(leaf) else zeros(leaf), tree)


def _checked(where: str, measure: Measure, tree: Tree) -> Measure:
    """The measure, after a look at what it makes of a gradient."""
    if not callable(measure):
        raise TypeError(f"{where}: measure must be a function of one copy's gradient, got {measure!r}; try leaf_norms")
    for path, leaf in jax.tree_util.tree_leaves_with_path(_measured(measure, tree)):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: measure's result should be floating-point, "
                f"got {checks.leaf_name('measure(gradient)', path)} {checks.describe(leaf)}; cast it"
            )
    return measure


def _measured(measure: Measure, tree: Tree) -> Tree:
    """The struct of what a measure gives for the cotangent of this tree."""
    floats = jax.eval_shape(lambda: float_leaves(tree))
    return jax.eval_shape(lambda cotangents: measure(_with_float0(tree, cotangents)), floats)


def _slots(measure: Measure | None, tree: Tree, steps: int) -> Tree:
    """[T, ...] zeros for what the measure will give, or nothing. XLA never makes them: nobody reads them."""
    if measure is None:
        return ()
    return jax.tree.map(lambda a: jnp.zeros((steps, *a.shape), a.dtype), _measured(measure, tree))


def observed(
    where: str,
    loss: Loss,
    loop: Prepared,
    params: Params,
    *,
    of_copy: Measure | None = None,
    of_state: Measure | None = None,
    of_forward: Callable[[State, Tree], Tree] = lambda state, y: (),
    output: Callable[[Tree], Tree] = lambda y: y,
    scan: Scan | None,
    reverse: bool,
) -> tuple[tuple[Tree, Tree], Tree]:
    """What is asked for at every step, stacked over time, from one forward and one backward pass.

    ((of_copy(dL / d params[t]), of_state(dL / d state after step t)), of_forward(state after step t, y_t))

    `loss` sees output(y_t) for y_t.
    """

    def body(state: State, x_first_slots: Tree) -> tuple[State, Tree]:
        x, is_first, (copy_slot, state_slot) = x_first_slots
        copy = loop.begin(watched(params, copy_slot, of_copy)) if of_copy is not None else loop.begun
        state = jax.tree.map(partial(jnp.where, is_first), loop.start(copy), state)
        state, y = loop.step(copy, state, x)
        seen = of_forward(state, y)
        return (watched(state, state_slot, of_state) if of_state is not None else state), (output(y), seen)

    def total(slots: Tree) -> tuple[jax.Array, Tree]:
        is_first = jnp.arange(loop.steps) == (loop.steps - 1 if reverse else 0)
        xs = (loop.xs, is_first, slots)
        state, (ys, seen) = run(body, loop.state, xs, length=loop.steps, reverse=reverse)
        return _one_number(where, loss(state, ys)), seen

    run = checkpointed() if scan is None else checks.a_scan(where, "scan", scan)
    slots = _slots(of_copy, params, loop.steps), _slots(of_state, loop.state, loop.steps)
    return jax.grad(total, has_aux=True)(slots)


def _one_number(where: str, value: Any) -> jax.Array:
    if not isinstance(value, jax.Array) or value.shape != () or not is_float(value):
        got = checks.describe(value) if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"{where}: loss(state, ys) must return one floating-point number, got {got}; reduce it")
    return value


@jax.custom_batching.custom_vmap
def _apart(values: list[jax.Array], slot: Tree) -> list[jax.Array]:
    """The values. Under vmap each slot gets values of its own, as it must: or one cotangent would serve all."""
    del slot
    return values


@_apart.def_vmap
def _apart_batched(size: int, batched: Any, values: list[jax.Array], slot: Tree) -> tuple[Any, Any]:
    del slot
    own = [a if there else jnp.broadcast_to(a, (size, *a.shape)) for a, there in zip(values, batched[0], strict=True)]
    return own, [True] * len(own)


def watched(tree: Tree, slot: Tree, measure: Measure) -> Tree:
    """The tree itself; in the backward pass the cotangent of `slot` becomes measure(cotangent of tree)."""
    shapes_of = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)

    def forward(values: list[jax.Array], slot: Tree) -> tuple[list[jax.Array], None]:
        return _apart(values, slot), None

    def backward(_: None, cotangents: list[jax.Array]) -> tuple[list[jax.Array], Tree]:
        return cotangents, jax.tree.map(jnp.asarray, measure(_with_float0(shapes_of, cotangents)))

    same = jax.custom_vjp(_apart)
    same.defvjp(forward, backward)
    floats = float_leaves(tree)
    remaining = iter(same(floats, slot) if floats else floats)
    return jax.tree.map(lambda leaf: next(remaining) if is_float(leaf) else leaf, tree)
