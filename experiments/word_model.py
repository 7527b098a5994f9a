"""A whole net as one cell, and the same net batched by hand: embedding, two LSTM layers, readout, loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from jax import lax

import jaxrnn as rnn

WORDS = 10_000


class Model(NamedTuple):
    cell: rnn.Cell  # (word, next word) -> loss, written for one time step
    by_hand: Callable[[Any, Any], jax.Array]  # (parameters, words of all steps) -> losses of all steps
    params: Any  # of both
    xs: tuple[jax.Array, jax.Array]  # words and next words, [T, B]


def word_model(steps: int, batch: int, features: int, units: int) -> Model:
    """As one cell; and by hand: all words embedded, a scan per layer, all logits, the loss."""
    lstm, readout = rnn.lstm(units), rnn.layer(nn.Dense(WORDS))
    loss = optax.softmax_cross_entropy_with_integer_labels
    cell = rnn.with_loss(rnn.stack(rnn.layer(nn.Embed(WORDS, features)), lstm, lstm, readout), loss)
    words = jax.random.randint(jax.random.key(0), (steps + 1, batch), 0, WORDS)

    def by_hand(params: Any, xs: Any) -> jax.Array:
        embedding, first, second, out = params
        ys = embedding["embedding"][xs[0]]
        for layer in (first, second):
            ys = lax.scan(partial(lstm.step, layer), lstm.initial_state(layer, (batch,)), ys)[1]
        return loss(readout.step(out, (), ys)[1], xs[1])

    return Model(cell, by_hand, cell.init(jax.random.key(1), (words[0], words[1])), (words[:-1], words[1:]))
