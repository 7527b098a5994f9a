"""`pooled`: what is left of a sequence when time is taken out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.combinators.masking import choose
from jaxrnn.sequence.layers import live
from jaxrnn.types import Tree


def pooled(ys: Tree, how: str = "mean", *, lengths: Any = None) -> Tree:
    """One value per sequence of its outputs at all steps, ys [T, *B, ...] -> [*B, ...], n the sequence's own length.

        "mean":  sum over t < n of y_t / n
        "max":   max over t < n of y_t, elementwise
        "last":  y_{n-1}

    0 for a sequence of length 0. Padding may hold anything, NaN included; it reaches no value and no gradient.
    Shapes: lengths [*B], by default T for all. Cost: one pass over ys; "max" keeps which step it was, "last" nothing.
    Raises: ValueError for an unknown `how`, for T = 0, or lengths outside 0..T.

    >>> ys = jnp.array([[1.0, 5.0], [3.0, jnp.nan]])
    >>> [pooled(ys, how, lengths=[2, 1]).tolist() for how in ("mean", "max", "last")]
    [[2.0, 5.0], [3.0, 5.0], [3.0, 5.0]]
    """
    checks.one_of("pooled", "how", how, tuple(_WAYS))
    steps = checks.steps("pooled", ys, name="ys")
    if steps == 0:
        raise ValueError("pooled: ys has no steps, so there is nothing to pool; give at least one")
    if lengths is None:
        return jax.tree.map(lambda y: _WAYS[how](y, None, steps), ys)
    lengths = checks.lengths("pooled", lengths, steps)
    for path, leaf in jax.tree_util.tree_leaves_with_path(ys):
        if jnp.shape(leaf)[1 : 1 + lengths.ndim] != lengths.shape:
            raise ValueError(
                f"pooled: {checks.leaf_name('ys', path)} should be [T, *B, ...] with *B = {lengths.shape} as in "
                f"lengths, got {checks.describe(leaf)}"
            )

    counts = live(steps, lengths)

    def one(leaf: jax.Array) -> jax.Array:
        n = lengths.reshape(lengths.shape + (1,) * (leaf.ndim - 1 - lengths.ndim))
        padding = jnp.full_like(leaf, _least(leaf.dtype) if how == "max" else 0)
        return _WAYS[how](choose("pooled", "ys", counts, leaf, padding), n, steps)

    return jax.tree.map(one, jax.tree.map(jnp.asarray, ys))


def _mean(y: jax.Array, n: jax.Array | None, steps: int) -> jax.Array:
    total = jnp.sum(y, axis=0)
    return total / (steps if n is None else jnp.maximum(n, 1).astype(total.dtype))


def _max(y: jax.Array, n: jax.Array | None, steps: int) -> jax.Array:
    largest = jnp.max(y, axis=0)
    return largest if n is None else jnp.where(n > 0, largest, jnp.zeros_like(largest))


def _least(dtype: Any) -> Any:
    """What nothing of this type lies below."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -jnp.inf
    return False if dtype == jnp.bool_ else jnp.iinfo(dtype).min


def _last(y: jax.Array, n: jax.Array | None, steps: int) -> jax.Array:
    if n is None:
        return y[-1]
    at = jnp.broadcast_to(jnp.maximum(n - 1, 0), y.shape[1:])
    return jnp.take_along_axis(y, at[None], axis=0)[0]  # what lies before the first step is 0, as padding is


_WAYS: dict[str, Callable[[jax.Array, jax.Array | None, int], jax.Array]] = {"mean": _mean, "max": _max, "last": _last}
