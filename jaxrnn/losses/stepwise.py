"""Losses over sequences of unequal length, on top of optax's losses for single predictions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import checks


def counted_steps(where: str, shape: tuple[int, ...], lengths: Any, mask: Any) -> jax.Array:
    """[T, *B]: which steps count."""
    counted = jnp.ones(shape, jnp.bool_)
    if lengths is not None:
        lengths = checks.lengths(where, lengths, shape[0])
        if lengths.shape != shape[1:]:
            raise ValueError(f"{where}: lengths must be [*B] = {list(shape[1:])}, got {checks.describe(lengths)}")
        t = jnp.arange(shape[0], dtype=lengths.dtype).reshape(-1, *[1] * lengths.ndim)
        counted = jnp.broadcast_to(t, shape) < jnp.broadcast_to(lengths, shape)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_ or mask.shape != shape:
            raise ValueError(f"{where}: mask must be bool{list(shape)}, got {checks.describe(mask)}")
        counted = counted & mask
    return counted


def _wide(dtype: Any) -> Any:
    """At least float32: sums over a sequence soon pass what 16 bits can hold."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32


def reduced(values: jax.Array, *, lengths: Any = None, mask: Any = None, reduction: str = "mean") -> jax.Array:
    """Losses of single steps, values [T, *B], summed over the steps that count.

        "sum":   sum over t and b of values[t, b]      a scalar
        "mean":  that sum / number of steps that count (0 if none does)
        "none":  values, 0 where a step does not count  [T, *B]

    A step counts if t < lengths[b] and mask[t, b], as far as they are given. What does not count may
    be NaN. Sums are computed and returned in float32 at least.
    Raises: ValueError for lengths or mask of the wrong shape, or an unknown reduction.

    >>> values = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])  # two steps of two sequences, the second of length 1
    >>> float(reduced(values, lengths=[2, 1])), float(reduced(values, lengths=[2, 1], reduction="sum"))
    (2.0, 6.0)
    """
    checks.one_of("reduced", "reduction", reduction, ("sum", "mean", "none"))
    counted = counted_steps("reduced", values.shape, lengths, mask)
    values = jnp.where(counted, values, jnp.zeros_like(values))
    if reduction == "none":
        return values
    total = jnp.sum(values, dtype=_wide(values.dtype))
    if reduction == "sum":
        return total
    return total / jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    lengths: Any = None,
    mask: Any = None,
    reduction: str = "mean",
) -> jax.Array:
    """The negative log-likelihood of a sequence, in nats.

        L = sum_t  -log softmax(logits_t)[targets_t]             reduction="sum", as in the equations of BPTT
        L / number of steps that count                           reduction="mean"
        the summands, 0 where a step does not count              reduction="none"

    Shapes: logits [T, *B, V], targets [T, *B] integers, lengths [*B], mask [T, *B] boolean. Padding
    may hold anything, NaN logits and classes out of range included; it reaches no gradient. A class
    out of range that counts is an error, or under jit, where values cannot be seen, a NaN loss.
    Computed and returned in float32 at least.
    Cost: one log-softmax, T B V numbers. To avoid holding all logits at once, make the loss part of
    the cell: `with_loss(cell, optax.softmax_cross_entropy_with_integer_labels)`, then `reduced`.
    Raises: ValueError or TypeError for shapes or dtypes that do not fit, or an unknown reduction.

    >>> guess = jnp.zeros((3, 2, 4))  # three steps, two sequences, four classes: each as likely as the others
    >>> float(jnp.exp(cross_entropy(guess, jnp.ones((3, 2), int), lengths=[3, 1])).round(3))
    4.0
    """
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"cross_entropy: targets must be integer classes, got {checks.describe(targets)}")
    if logits.shape[:-1] != targets.shape or logits.ndim < 2:
        raise ValueError(
            f"cross_entropy: logits must be [T, *B, V] and targets [T, *B], "
            f"got {checks.describe(logits)} and {checks.describe(targets)}"
        )
    classes = logits.shape[-1]
    counted = counted_steps("cross_entropy", targets.shape, lengths, mask)
    if checks.is_known((logits, targets, counted)):
        wrong = np.asarray(counted) & ((np.asarray(targets) < 0) | (np.asarray(targets) >= classes))
        if wrong.any():
            raise ValueError(
                f"cross_entropy: targets must lie in 0..{classes - 1}, got {int(np.asarray(targets)[wrong][0])} at "
                f"{[int(n) for n in np.argwhere(wrong)[0]]}; leave out what should not count, e.g. mask=targets >= 0"
            )
    # Choose on both sides of the loss: a NaN logit under the mask must not meet a zero cotangent.
    logits = jnp.where(jnp.broadcast_to(counted[..., None], logits.shape), logits, jnp.zeros_like(logits))
    targets = jnp.where(counted, targets, jnp.zeros_like(targets))
    logits = logits.astype(_wide(logits.dtype))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    # Under jit nobody can look at the targets; a wrong one must not pass for the last class.
    losses = jnp.where((targets < 0) | (targets >= classes), jnp.full_like(losses, jnp.nan), losses)
    return reduced(losses, mask=counted, reduction=reduction)


def bits_per_character(nats: Any, characters: Any = 1) -> Any:
    """A negative log-likelihood in nats as bits per character: nats / (ln 2 * characters).

    For a mean loss per character leave `characters` out; for a sum, say how many there were (which
    differs from the number of steps where a character is more than one symbol, as in UTF-8 bytes).

    >>> round(bits_per_character(math.log(256)), 6)  # a guess among all bytes
    8.0
    """
    return nats / (math.log(2) * characters)
