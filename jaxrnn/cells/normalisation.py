"""The LSTM with layer normalisation: `layer_norm_lstm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.cells.base import RecurrentCell, blocks, input_weights, per_feature, recurrent_weights
from jaxrnn.cells.gated import LSTMState
from jaxrnn.types import Cell, Key, Params, State

sigmoid = jax.nn.sigmoid
EPSILON = 1e-5


def normalised(a: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last dimension, as far as EPSILON lets it; in 32 bits at least."""
    wide = a.astype(trees.wide(a.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + EPSILON)).astype(a.dtype)


def layer_norm_lstm(size: int, *, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The LSTM whose sums are brought to mean 0 and variance 1 before they meet an activation.

        i, f, g, o = split(g_x * norm(U x_t) + g_h * norm(W h_tm1) + b)
        c_t = s(f) * c_tm1 + s(i) * tanh(g)
        h_t = s(o) * tanh(g_c * norm(c_t) + b_c),    y_t = h_t

    norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5) over all 4H sums at once, and over the H memories; * is
    elementwise, s the logistic sigmoid. The paper's two shifts of the first line and b add up: they are one here.
    The memory itself is not normalised, so it remembers as an LSTM's does.
    Shapes: x [*B, D], state and output [*B, H]. Parameters U [D, 4H] (LeCun), W [H, 4H] (orthogonal per gate),
    order i, f, g, o; gains g_x, g_h [4H] and g_c [H] (one), b [4H] (1 for the forget gate, else 0), b_c [H] (zero),
    and initial_state if it is learned.
    Parameters, state and output have the given dtype; after casting the parameters the cell computes in theirs.
    Cost: 8 H (D + H) FLOPs per step and example in products, about 70 H others; about 30H numbers kept per step by
    `lax.scan`, 11H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size or dtype.
    Ba et al. 2016, "Layer normalization".
    """
    size = checks.positive_int("layer_norm_lstm", "size", size)
    return LayerNormLSTM(size, checks.float_dtype("layer_norm_lstm", dtype), learn_initial_state).cell


@dataclass(frozen=True)
class LayerNormLSTM(RecurrentCell):
    name: ClassVar[str] = "layer_norm_lstm"

    @property
    def sizes(self) -> LSTMState:
        return LSTMState(h=self.size, c=self.size)

    @property
    def columns(self) -> int:
        return 4 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        ones = lambda n: jnp.ones((n,), self.dtype)
        return {
            "U": input_weights(k_input, x, self.columns, self.dtype, self.name),
            "W": recurrent_weights(k_recurrent, self.size, 4, self.dtype),
            "g_x": ones(self.columns),
            "g_h": ones(self.columns),
            "g_c": ones(self.size),
            "b": (jnp.arange(self.columns) // self.size == 1).astype(self.dtype),
            "b_c": jnp.zeros((self.size,), self.dtype),
        }

    def equations(self, params: Params, state: LSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        h_tm1, c_tm1 = state
        sums_x = normalised(jnp.dot(x.astype(params["U"].dtype), params["U"]))
        sums_h = normalised(jnp.dot(h_tm1, params["W"]))
        g_x, g_h, b = (per_feature(params[name], sums_x) for name in ("g_x", "g_h", "b"))
        from_x, from_h = blocks(g_x * sums_x + b, 4), blocks(g_h * sums_h, 4)
        i, f, g, o = (a + b for a, b in zip(from_x, from_h, strict=True))
        c = sigmoid(f) * c_tm1 + sigmoid(i) * jnp.tanh(g)
        g_c, b_c = (per_feature(params[name], c) for name in ("g_c", "b_c"))
        h = sigmoid(o) * jnp.tanh(g_c * normalised(c) + b_c)
        return LSTMState(h, c), h
