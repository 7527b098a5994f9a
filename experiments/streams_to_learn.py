"""Streams to learn from while they run: bits remembered, a task that drifts, the copy and adding tasks end to end.

Each is (xs, targets) for a cell that ends in its loss; what repeats is a `Stream`: its net, and a stretch of it by key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxrnn as rnn
from experiments.data import Text, shuffled, symbols
from experiments.tasks import SAID, SYMBOLS, copy

MOST = 64  # steps that a bit may have to be remembered
BYTES = 256
CELLS = 4  # memory cells of the adding problem's LSTM, as in Hochreiter and Schmidhuber 1997
HELD = 5.0  # its forget gates' bias: their cells had no such gates, so forgot nothing


class Stream(NamedTuple):
    """Something to learn that comes in stretches."""

    net: rnn.Cell  # ends in its loss
    some: Callable[[jax.Array, jax.Array], Any]  # (key, number of the stretch) -> xs [T, B, ...]
    stretches: int
    length: int = 1  # steps of a sequence, where there are such
    unit: float = 1.0  # what the loss is told in, of the net's own
    start: Callable[[Any], Any] = lambda params: params  # first parameters, of those that the net has


def bits_lost(logits: jax.Array, target: jax.Array) -> jax.Array:
    """0 for a target that is known, 1 for a guess."""
    return optax.sigmoid_binary_cross_entropy(logits[..., 0], target) / math.log(2.0)


def remembering(size: int, batch: int, steps: int, delays: tuple[int, ...]) -> Stream:
    """Random bits; the target is the bit of delays[n] steps ago in the n-th stretch."""
    net, late_by = rnn.stack(rnn.gru(size), rnn.layer(nn.Dense(1))), jnp.array(delays)

    def some(key: jax.Array, n: jax.Array) -> Any:
        bits = jax.random.bernoulli(key, 0.5, (MOST + len(delays) * steps, batch)).astype(jnp.float32)
        now, late = (jax.lax.dynamic_slice_in_dim(bits, MOST + n * steps - k, steps) for k in (0, late_by[n]))
        return 2 * now[..., None] - 1, late

    return Stream(rnn.with_loss(net, bits_lost), some, len(delays))


def _asked(error: Callable[[jax.Array, Any], jax.Array]) -> Callable[[jax.Array, Any], jax.Array]:
    """The loss of a step that counts with a weight; 1 for a sequence answered as without input."""
    return lambda y, target: target[1] * error(y, target[0])


def _end_to_end(sequence: Callable[[jax.Array], Any], key: jax.Array, n: jax.Array, sequences: int) -> Any:
    """Sequences of one length one after the other, each from a new state."""
    keys = jax.random.split(jax.random.fold_in(key, n), sequences)
    xs, targets = jax.vmap(sequence)(keys)
    begins = jnp.zeros(xs.shape[:3], bool).at[:, 0].set(True)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ((xs, begins), targets))


def _stretched(net: rnn.Cell, loss: Any, sequence: Any, count: int, length: int, start: Any = None) -> Stream:
    """Ten stretches of sequences, or as many as there are sequences."""
    stretches = min(10, count)
    stream = Stream(rnn.with_loss(net, loss), partial(_end_to_end, sequence, sequences=count // stretches), stretches)
    return stream._replace(length=length, start=start or stream.start)


def copying(size: int, batch: int, delay: int, sequences: int) -> Stream:
    """Delayed copy: three of four symbols, to be said again after `delay` steps (`tasks.copy`)."""
    net = rnn.resettable(rnn.stack(rnn.gru(size), rnn.layer(nn.Dense(SYMBOLS))))
    nats = optax.softmax_cross_entropy_with_integer_labels

    def sequence(key: jax.Array) -> Any:
        xs, symbols = copy(key, batch, delay)
        answer = jnp.zeros(xs.shape[:2], jnp.int32).at[-SAID:].set(symbols)
        weight = jnp.zeros(xs.shape[:2]).at[-SAID:].set(1 / SAID)
        return xs, (answer, weight)

    loss = _asked(lambda y, symbol: nats(y, symbol) / math.log(SYMBOLS))
    return _stretched(net, loss, sequence, sequences, delay + 2 * SAID)


def adding(batch: int, length: int, sequences: int) -> Stream:
    """The adding problem as Hochreiter and Schmidhuber 1997 set it, for a net of four memory cells.

    Numbers in -1..1, of which one among the first ten and one among the first half are marked; sequences of `length`
    to 1.1 `length` steps, whose ends are marked -1; at the end 0.5 plus a quarter of the sum is asked for.
    The error is in units of the target's variance, 1/24.
    """
    net, longest = rnn.resettable(rnn.stack(rnn.lstm(CELLS), rnn.layer(nn.Dense(1)))), length + length // 10

    def sequence(key: jax.Array) -> Any:
        k_numbers, k_length, k_first, k_second = jax.random.split(key, 4)
        t = jnp.arange(longest)[:, None]
        last = jax.random.randint(k_length, (1, batch), length, longest + 1) - 1
        first = jax.random.randint(k_first, (1, batch), 0, min(10, length // 2 - 1))
        second = jax.random.randint(k_second, (1, batch), 0, length // 2 - 2)
        marked = (t == first) | (t == jnp.where(second < first, second, second + 1))
        numbers = jax.random.uniform(k_numbers, (longest, batch), minval=-1, maxval=1)
        numbers = jnp.where(marked & (t == 0), 0.0, numbers)
        marks = jnp.where(marked, 1.0, jnp.where((t == 0) | (t == last), -1.0, 0.0))
        target = 0.5 + jnp.sum(jnp.where(marked, numbers, 0.0), axis=0) / 4
        xs = jnp.stack([numbers, marks], axis=-1)
        return xs, (jnp.broadcast_to(target, (longest, batch)), (t == last).astype(jnp.float32))

    def start(params: Any) -> Any:
        lstm, *rest = params
        return (lstm | {"b": lstm["b"].at[CELLS : 2 * CELLS].set(HELD)}, *rest)

    loss = _asked(lambda y, target: 24 * jnp.square(y[..., 0] - target))
    return _stretched(net, loss, sequence, sequences, longest, start)


def reading(recurrent: rnn.Cell, batch: int, text: Text, characters: int) -> Stream:
    """A text read once, side by side in eight stretches; bits per byte, each predicted before it is learned from.

    Bytes go into the cell as they are, without an embedding: its weights would reach every unit within a step, and be
    as dense to remember as those of a lower layer.
    """
    inputs, targets, _ = symbols(shuffled(text, 2048, seed=0))
    steps = characters // batch // 8
    whole = jax.tree.map(lambda a: jnp.asarray(a[: 8 * steps * batch].reshape(batch, -1).T), (inputs, targets))
    net = rnn.stack(rnn.lift(partial(jax.nn.one_hot, num_classes=BYTES)), recurrent, rnn.layer(nn.Dense(BYTES)))

    def some(key: jax.Array, n: jax.Array) -> Any:
        del key
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, n * steps, steps), whole)

    loss = optax.softmax_cross_entropy_with_integer_labels
    return Stream(rnn.with_loss(net, loss), some, 8, unit=1 / math.log(2))
