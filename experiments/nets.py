"""Recurrent nets stated as people draw them, vertices and what they read: Elman's, the LSTM, the GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxrnn as rnn
from jaxrnn import graph, prev

Initializer = Callable[..., jax.Array]


def beside(recurrent: Initializer) -> Initializer:
    """Weights [D + H, H] of [x, h]: LeCun's for x, `recurrent` for h."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        k_input, k_recurrent = jax.random.split(key)
        rows, size = shape  # rows of x and of h; of x alone while `graph` is yet to find out how large h is
        of_x = nn.initializers.lecun_normal()(k_input, (max(rows - size, 1), size), dtype)
        return jnp.concatenate([of_x, recurrent(k_recurrent, (size, size), dtype)])[-rows:]

    return init


def identity(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


def affine(size: int, fn: Any, recurrent: Initializer = nn.initializers.orthogonal(), bias: float = 0.0) -> Any:  # noqa: B008
    """fn(W [x, h] + b), as a vertex's cell."""
    dense = nn.Dense(size, kernel_init=beside(recurrent), bias_init=nn.initializers.constant(bias))
    return rnn.stack(rnn.layer(dense), rnn.lift(fn))


def elman(size: int, outputs: int, fn: Any = jnp.tanh, **start: Any) -> rnn.Cell:
    return graph(
        {
            "h": (affine(size, fn, **start), ["x", prev("h")]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


def lstm(size: int, outputs: int) -> rnn.Cell:
    sigmoid, x_and_h = jax.nn.sigmoid, ["x", prev("h")]
    return graph(
        {
            "i": (affine(size, sigmoid), x_and_h),
            "f": (affine(size, sigmoid, bias=1.0), x_and_h),
            "g": (affine(size, jnp.tanh), x_and_h),
            "o": (affine(size, sigmoid), x_and_h),
            "c": (lambda i, f, g, c: f * c + i * g, ["i", "f", "g", prev("c")]),
            "h": (lambda o, c: o * jnp.tanh(c), ["o", "c"]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


def gru(size: int, outputs: int) -> rnn.Cell:
    sigmoid, x_and_h = jax.nn.sigmoid, ["x", prev("h")]
    return graph(
        {
            "r": (affine(size, sigmoid), x_and_h),
            "z": (affine(size, sigmoid), x_and_h),
            "kept": (lambda r, h: r * h, ["r", prev("h")]),
            "n": (affine(size, jnp.tanh), ["x", "kept"]),
            "h": (lambda z, n, h: (1 - z) * n + z * h, ["z", "n", prev("h")]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


DRAWN = {"elman": elman, "lstm": lstm, "gru": gru}
TRAINED = {
    "tanh": elman,
    "relu": lambda size, outputs: elman(size, outputs, jax.nn.relu, recurrent=identity),
    "lstm": lstm,
    "gru": gru,
}
