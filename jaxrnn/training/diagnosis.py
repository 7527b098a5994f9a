"""Why a step's loss or gradient is not finite: which leaves broke, and whether the batch or the parameters did it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.training.step import Gradient, TrainState
from jaxrnn.types import Tree

_NAMED = 3  # leaves that a message names; it counts the others
DIVERGING = "lower the learning rate, or clip more"

# (state, batch) -> (the loss, the largest absolute value in each leaf of its gradient)
Look = Callable[[TrainState, Tree], tuple[jax.Array, Tree]]


class NotFinite(FloatingPointError):
    """A step of `fit` whose loss or gradient is not finite; the message names the leaves that broke.

    `state` is the state before that step (nothing of it was taken over), `batch` what the step was
    given: what `jaxrnn.analysis.gradient_flow` needs to say at which time step it broke.
    """

    def __init__(self, message: str = "", state: TrainState | None = None, batch: Tree = None) -> None:
        super().__init__(message)
        self.state = state
        self.batch = batch


def why_not_finite(gradient: Gradient, state: TrainState, batch: Tree) -> str:
    """`what is broken; what to do`, of a step whose loss or gradient is not finite.

    What was broken before the step is blamed before what broke in it. Whole numbers in the batch are
    tried out: where the loss is finite with smaller ones in their place, they index past an array's
    end, which JAX answers with NaN.
    Cost: another compilation and one gradient; for each leaf of whole numbers of the batch log2 of
    its largest number more. It is spent on a step that has failed, and on no other.
    """

    @jax.jit
    def look(state: TrainState, batch: Tree) -> tuple[jax.Array, Tree]:
        found = gradient(state, batch)
        return found.loss, jax.tree.map(lambda g: jnp.max(jnp.abs(g), initial=0), found.grads)

    before = {"params": state.params, "opt_state": state.opt_state, "carry": state.carry}
    if broken := [name for what, tree in before.items() for name in _not_finite(what, tree)]:
        return f"{_some(broken)} had NaN or Inf before it; {DIVERGING}, and go on from an earlier checkpoint"
    loss, sizes = look(state, batch)
    gradients = _which_gradients(loss, sizes)
    if broken := _not_finite("batch", batch):
        return f"{_some(broken)} has NaN or Inf in it{gradients}; mend the data"
    if index := _past_the_end(look, state, batch):
        return f"{index}{gradients}; mend the data, or enlarge the array"
    return (
        f"parameters, carry and batch were finite{gradients}; {DIVERGING}, "
        "or look for a division, logarithm or root of zero in the loss"
    )


def _not_finite(what: str, tree: Tree) -> list[str]:
    """The names of the leaves that have a NaN or Inf in them."""
    return [
        f"{checks.leaf_name(what, path)} ({checks.describe(leaf)})"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not jnp.all(jnp.isfinite(leaf))
    ]


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _which_gradients(loss: jax.Array, sizes: Tree) -> str:
    """The leaves of the gradient that are not finite, or else the largest, whose square is not."""
    by_name = {checks.leaf_name("params", p): float(n) for p, n in jax.tree_util.tree_leaves_with_path(sizes)}
    broken = [name for name, size in by_name.items() if not np.isfinite(size)]
    if broken:
        return f", the gradient is not finite in {_some(broken)}"
    if np.isfinite(loss) and by_name:
        largest = max(by_name, key=by_name.__getitem__)
        return f", every gradient is finite but so large that their norm is not (in {largest} {by_name[largest]:.3g})"
    return ", and so is every gradient"


def _past_the_end(look: Look, state: TrainState, batch: Tree) -> str | None:
    """The first leaf of whole numbers with which the loss breaks, and without whose largest it does not."""
    leaves, structure = jax.tree.flatten(batch)
    for place, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(batch)):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.integer) or not jnp.size(leaf):
            continue
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue  # no process sees all of its numbers
        numbers = np.asarray(leaf)

        def finite_up_to(bound: int, place: int = place, numbers: Any = numbers) -> bool:
            tried = [*leaves[:place], np.clip(numbers, 0, bound), *leaves[place + 1 :]]
            return bool(np.isfinite(look(state, jax.tree.unflatten(structure, tried))[0]))

        if not finite_up_to(0):
            continue
        name, low, high = checks.leaf_name("batch", path), int(numbers.min()), int(numbers.max())
        what = f"{name} ({checks.describe(leaf)}) holds numbers from {low} to {high} and the loss is finite "
        if finite_up_to(high):
            return what + "without the negative ones: they index before an array's beginning"
        good = _last(finite_up_to, 0, high)
        return what + f"up to {good}: larger ones index past the end of an array of {good + 1}{_such(state, good + 1)}"
    return None


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from low up to below high for which it holds, by bisection; at low it holds, at high not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _such(state: TrainState, size: int) -> str:
    """The parameters that are tables of so many rows."""
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    tables = [path for path, leaf in leaves if jnp.ndim(leaf) > 1 and jnp.shape(leaf)[0] == size]
    names = [checks.leaf_name("params", path) for path in tables]
    return f", such as {_some(names)}" if names else ""
