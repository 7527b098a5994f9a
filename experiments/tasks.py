"""Made-up sequences that ask how long a net remembers: the adding problem and delayed copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

SHOWN = 10  # steps in which the adding problem shows what counts
SYMBOLS = 4  # that delayed copy may have to say
SAID = 3  # of them in a row
LEARNED = 0.1  # of the error of a net without input: below it a problem counts as learned


class Task(NamedTuple):
    """A problem whose answer was shown `delay` steps before it is asked for."""

    batch: Callable[
        [jax.Array, int, int], tuple[jax.Array, jax.Array]
    ]  # (key, batch, delay) -> (xs [T, B, D], targets)
    error: Callable[[jax.Array, jax.Array], jax.Array]  # (ys [T, B, O], targets) -> 1 for what a net without input does
    outputs: int


def adding(key: jax.Array, batch: int, delay: int) -> tuple[jax.Array, jax.Array]:
    """Numbers in 0..1, two of the first ten marked; their sum is asked for `delay` steps after those.

    Hochreiter and Schmidhuber 1997, with both marks at the beginning, so that the delay is the same for all.
    """
    k_numbers, k_marks = jax.random.split(key)
    numbers = jax.random.uniform(k_numbers, (SHOWN + delay, batch))
    order = jnp.argsort(jax.random.uniform(k_marks, (SHOWN, batch)), axis=0)
    marks = jnp.pad((order < 2).astype(numbers.dtype), ((0, delay), (0, 0)))
    return jnp.stack([numbers, marks], axis=-1), jnp.sum(numbers * marks, axis=0)


def adding_error(ys: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean square error at the last step, by the sum's variance, 1/6."""
    return 6 * jnp.mean(jnp.square(ys[-1, :, 0] - targets))


def copy(key: jax.Array, batch: int, delay: int) -> tuple[jax.Array, jax.Array]:
    """Three of four symbols, then `delay` blanks, then as many signs to repeat the symbols.

    Hochreiter and Schmidhuber 1997; in this form Arjovsky et al. 2016.
    """
    symbols = jax.random.randint(key, (SAID, batch), 0, SYMBOLS)
    waiting = jnp.full((delay, batch), SYMBOLS)
    asked = jnp.full((SAID, batch), SYMBOLS + 1)
    return jax.nn.one_hot(jnp.concatenate([symbols, waiting, asked]), SYMBOLS + 2), symbols


def copy_error(ys: jax.Array, targets: jax.Array) -> jax.Array:
    """The cross-entropy of the last steps, by that of a guess."""
    nats = optax.softmax_cross_entropy_with_integer_labels(ys[-SAID:], targets)
    return jnp.mean(nats) / math.log(SYMBOLS)


TASKS = {"adding": Task(adding, adding_error, 1), "copy": Task(copy, copy_error, SYMBOLS)}
