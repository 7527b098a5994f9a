"""Losses over sequences of unequal length, on top of optax's losses for single predictions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import checks, trees
from jaxrnn.sequence.layers import live


def counted_steps(where: str, shape: tuple[int, ...], lengths: Any, mask: Any) -> jax.Array:
    """[T, *B]: which steps count."""
    counted = jnp.ones(shape, jnp.bool_)
    if lengths is not None:
        lengths = checks.lengths(where, lengths, shape[0])
        if lengths.shape != shape[1:]:
            raise ValueError(f"{where}: lengths must be [*B] = {list(shape[1:])}, got {checks.describe(lengths)}")
        counted = live(shape[0], lengths)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_ or mask.shape != shape:
            raise ValueError(f"{where}: mask must be bool{list(shape)}, got {checks.describe(mask)}")
        counted = counted & mask
    return counted


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
    return _reduced(values, counted, None, reduction)


def _reduced(values: jax.Array, counted: jax.Array, weights: jax.Array | None, reduction: str) -> jax.Array:
    """`reduced`, where weights [T, *B] have been multiplied into the values, and the mean is a weighted one."""
    values = jnp.where(counted, values, jnp.zeros_like(values))
    if reduction == "none":
        return values
    total = jnp.sum(values, dtype=trees.wide(values.dtype))
    if reduction == "sum":
        return total
    if weights is None:
        return total / jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)
    weight = jnp.sum(jnp.where(counted, weights, jnp.zeros_like(weights))).astype(total.dtype)
    return total / jnp.where(weight > 0, weight, jnp.ones_like(weight))


def _predictions(
    where: str, logits: Any, targets: Any, lengths: Any, mask: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logits [T, *B, V] and targets [T, *B], zero where they do not count, and [T, *B] which do; checked."""
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"{where}: targets must be integer classes, got {checks.describe(targets)}")
    if logits.shape[:-1] != targets.shape or logits.ndim < 2:
        raise ValueError(
            f"{where}: logits must be [T, *B, V] and targets [T, *B], "
            f"got {checks.describe(logits)} and {checks.describe(targets)}"
        )
    counted = counted_steps(where, targets.shape, lengths, mask)
    remedy = "leave out what should not count, e.g. mask=targets >= 0"
    checks.classes(where, "targets", targets, counted, logits.shape[-1], remedy)
    # Choose before the loss too: a NaN logit under the mask must not meet a zero cotangent.
    logits = jnp.where(jnp.broadcast_to(counted[..., None], logits.shape), logits, jnp.zeros_like(logits))
    return logits, jnp.where(counted, targets, jnp.zeros_like(targets)), counted


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    lengths: Any = None,
    mask: Any = None,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> jax.Array:
    """The negative log-likelihood of a sequence, in nats.

        L = sum_t  -log softmax(logits_t)[targets_t]             reduction="sum", as in the equations of BPTT
        L / number of steps that count                           reduction="mean"
        the summands, 0 where a step does not count              reduction="none"

    With `class_weights` w [V] and `label_smoothing` e the target is spread over the V classes, and each
    class has its weight (Szegedy et al. 2016; the same as in PyTorch):

        L = sum_t  -sum_v w[v] q_t[v] log softmax(logits_t)[v],  q_t = (1 - e) onehot(targets_t) + e / V
        L / sum_t w[targets_t]                                   reduction="mean"

    Shapes: logits [T, *B, V], targets [T, *B] integers, lengths [*B], mask [T, *B] boolean. Padding
    may hold anything, NaN logits and classes out of range included; it reaches no gradient. A class
    out of range that counts is an error, or under jit, where values cannot be seen, a NaN loss.
    Computed and returned in float32 at least.
    Cost: one log-softmax, T B V numbers; smoothing writes the q_t too. To avoid holding all logits at once,
    make the loss part of the cell: `with_loss(cell, optax.softmax_cross_entropy_with_integer_labels)`,
    then `reduced`.
    Raises: ValueError or TypeError for shapes or dtypes that do not fit, a label_smoothing outside [0, 1),
    or an unknown reduction.

    >>> guess = jnp.zeros((3, 2, 4))  # three steps, two sequences, four classes: each as likely as the others
    >>> float(jnp.exp(cross_entropy(guess, jnp.ones((3, 2), int), lengths=[3, 1])).round(3))
    4.0
    """
    checks.one_of("cross_entropy", "reduction", reduction, ("sum", "mean", "none"))
    if not 0 <= checks.number(label_smoothing) < 1:
        raise ValueError(
            "cross_entropy: label_smoothing is the share that is spread over all classes, from 0 up to but not 1, "
            f"got {label_smoothing!r}"
        )
    logits, targets, counted = _predictions("cross_entropy", logits, targets, lengths, mask)
    classes = logits.shape[-1]
    logits = logits.astype(trees.wide(logits.dtype))
    weights = None if class_weights is None else _class_weights(class_weights, classes).astype(logits.dtype)
    of_steps = None if weights is None else weights[targets]
    if label_smoothing:
        spread = optax.smooth_labels(jax.nn.one_hot(targets, classes, dtype=logits.dtype), label_smoothing)
        spread = spread if weights is None else spread * jnp.broadcast_to(weights, spread.shape)
        losses = optax.softmax_cross_entropy(logits, spread)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        losses = losses if of_steps is None else losses * of_steps
    # Under jit nobody can look at the targets; a wrong one must not pass for the last class.
    losses = jnp.where((targets < 0) | (targets >= classes), jnp.full_like(losses, jnp.nan), losses)
    return _reduced(losses, counted, of_steps, reduction)


def _class_weights(value: Any, classes: int) -> jax.Array:
    weights = jnp.asarray(value)
    if weights.shape != (classes,):
        raise ValueError(
            f"cross_entropy: class_weights must be one number per class, [{classes}], got {checks.describe(weights)}"
        )
    if checks.is_known(value) and not (np.asarray(value) >= 0).all():
        raise ValueError(f"cross_entropy: class_weights must be numbers of at least 0, got {np.asarray(value)}")
    return weights


def token_accuracy(
    logits: jax.Array, targets: jax.Array, *, lengths: Any = None, mask: Any = None, reduction: str = "mean"
) -> jax.Array:
    """The share of steps whose most likely class is the target.

        correct_t = (argmax_v logits_t[v] == targets_t)
        sum_t correct_t / number of steps that count             reduction="mean" (0 if none does)

    Shapes, lengths, mask, reduction and errors as in `cross_entropy`; in float32. Of several classes that
    are as likely as each other the first is taken; a step with a NaN among its logits is not correct.

    >>> logits = jnp.array([[0.0, 1.0], [3.0, 2.0], [0.0, 9.0]])  # three steps of one sequence
    >>> float(token_accuracy(logits, jnp.array([1, 1, 0]), lengths=2))
    0.5
    """
    checks.one_of("token_accuracy", "reduction", reduction, ("sum", "mean", "none"))
    logits, targets, counted = _predictions("token_accuracy", logits, targets, lengths, mask)
    correct = (jnp.argmax(logits, axis=-1) == targets) & ~jnp.any(jnp.isnan(logits), axis=-1)
    return _reduced(correct.astype(jnp.float32), counted, None, reduction)


def bits_per_character(nats: Any, characters: Any = 1) -> Any:
    """A negative log-likelihood in nats as bits per character: nats / (ln 2 * characters).

    For a mean loss per character leave `characters` out; for a sum, say how many there were (which
    differs from the number of steps where a character is more than one symbol, as in UTF-8 bytes).

    >>> round(bits_per_character(math.log(256)), 6)  # a guess among all bytes
    8.0
    """
    return nats / (math.log(2) * characters)
