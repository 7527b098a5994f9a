"""Cells with gates: `lstm`, `gru`, `mgu`.

Shapes, for every cell in this file: x [*B, D], state and output [*B, H], any number of batch
dimensions. The weights multiply from the right, all gates side by side in one matrix, in the order
that each docstring gives. s is the logistic sigmoid, * is elementwise. Parameters, state and output
have the given dtype; after casting the parameters to another dtype the cell computes in that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, affine, blocks, input_weights, recurrent_weights
from jaxrnn.types import Cell, Key, Params, State

sigmoid = jax.nn.sigmoid


class LSTMState(NamedTuple):
    h: Any  # [*B, H], or [*B, P] with a projection: the output
    c: Any  # [*B, H]: the memory


def lstm(
    size: int,
    *,
    peephole: bool = False,
    projection: int | None = None,
    bias: bool = True,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """Long short-term memory.

        i, f, g, o = split(U x_t + W h_tm1 + b)
        c_t = s(f) * c_tm1 + s(i) * tanh(g)
        h_t = s(o) * tanh(c_t),    y_t = h_t

    `peephole` lets the gates see the memory: i and f gain p_i * c_tm1 and p_f * c_tm1, o gains
    p_o * c_t. `projection=P` makes the output smaller than the memory: h_t = (s(o) * tanh(c_t)) R.
    `bias=False` leaves out b.
    Parameters U [D, 4H], W [H, 4H] (orthogonal per gate), b [4H] (1 for the forget gate, Gers et
    al. 2000), with the options also p [3, H], R [H, P] (then W is [P, 4H]) and initial_state.
    Gate order i, f, g, o as in PyTorch and Flax (Haiku: i, g, f, o).
    Cost: 8 H (D + H) FLOPs per step and example; about 12H numbers kept per step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, projection, bias or dtype.
    Hochreiter and Schmidhuber 1997; Gers et al. 2002 (peepholes); Sak et al. 2014 (projection).

    >>> cell, x = lstm(4), jnp.ones((2, 3))  # 4 units; one step's input of 2 sequences, 3 features each
    >>> params = cell.init(jax.random.key(0), x)
    >>> {name: weight.shape for name, weight in sorted(params.items())}
    {'U': (3, 16), 'W': (4, 16), 'b': (16,)}
    >>> state, y = cell.step(params, cell.initial_state(params, (2,)), x)
    >>> state.c.shape, y.shape
    ((2, 4), (2, 4))
    """
    size = checks.positive_int("lstm", "size", size)
    dtype = checks.float_dtype("lstm", dtype)
    projection = None if projection is None else checks.positive_int("lstm", "projection", projection)
    checks.one_of("lstm", "bias", bias, (True, False))
    return LSTM(size, dtype, learn_initial_state, peephole, projection, bias).cell


@dataclass(frozen=True)
class LSTM(RecurrentCell):
    peephole: bool
    projection: int | None
    bias: bool = True
    name: ClassVar[str] = "lstm"

    @property
    def outputs(self) -> int:
        return self.projection or self.size

    @property
    def sizes(self) -> LSTMState:
        return LSTMState(h=self.outputs, c=self.size)

    @property
    def columns(self) -> int:
        return 4 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent, k_peephole, k_projection = jax.random.split(key, 4)
        params = {
            "U": input_weights(k_input, x, 4 * self.size, self.dtype, "lstm"),
            "W": recurrent_weights(k_recurrent, self.size, 4, self.dtype, rows=self.outputs),
        }
        if self.bias:
            params["b"] = (jnp.arange(4 * self.size) // self.size == 1).astype(self.dtype)
        if self.peephole:
            params["p"] = (0.1 * jax.random.normal(k_peephole, (3, self.size))).astype(self.dtype)
        if self.projection is not None:
            params["R"] = recurrent_weights(k_projection, self.outputs, 1, self.dtype, rows=self.size)
        return params

    def equations(self, params: Params, state: LSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        h_tm1, c_tm1 = state
        from_x = blocks(affine(x, params["U"], params["b"] if self.bias else None), 4)
        from_h = blocks(jnp.dot(h_tm1, params["W"]), 4)
        i, f, g, o = (a + b for a, b in zip(from_x, from_h, strict=True))
        if self.peephole:
            i, f = i + _peep(params, 0, c_tm1), f + _peep(params, 1, c_tm1)
        c = sigmoid(f) * c_tm1 + sigmoid(i) * jnp.tanh(g)
        if self.peephole:
            o = o + _peep(params, 2, c)
        h = sigmoid(o) * jnp.tanh(c)
        if self.projection is not None:
            h = jnp.dot(h, params["R"])
        return LSTMState(h, c), h


def _peep(params: Params, gate: int, c: jax.Array) -> jax.Array:
    return jnp.broadcast_to(params["p"][gate], c.shape) * c


def gru(
    size: int,
    *,
    reset: str = "after",
    bias: bool = True,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The gated recurrent unit.

        r, z = s(split(U x_t + W h_tm1 + b))
        n = tanh(U_n x_t + b_n + r * (W_n h_tm1 + c_n))      reset="after": after the product
        n = tanh(U_n x_t + b_n + W_n (r * h_tm1))            reset="before": before it
        h_t = (1 - z) * n + z * h_tm1,    y_t = h_t

    "after" is what cuDNN, PyTorch, Flax and Keras compute, in one product per step; "before" is the
    formula of the paper and of Haiku, in two.
    Parameters U [D, 3H] and b [3H] (gate order r, z, n); for "after" W [H, 3H] with W_n in its last
    block and c_n [H], for "before" W [H, 2H] and W_n [H, H] (orthogonal per gate); and initial_state
    [H] if it is learned. `bias=False` leaves out b and c_n.
    Cost: 6 H (D + H) FLOPs per step and example; about 7H numbers kept per step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, reset, bias or dtype.
    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder".
    """
    size = checks.positive_int("gru", "size", size)
    dtype = checks.float_dtype("gru", dtype)
    checks.one_of("gru", "reset", reset, ("after", "before"))
    checks.one_of("gru", "bias", bias, (True, False))
    return GRU(size, dtype, learn_initial_state, reset, bias).cell


@dataclass(frozen=True)
class GRU(RecurrentCell):
    reset: str
    bias: bool = True
    name: ClassVar[str] = "gru"

    @property
    def columns(self) -> int:
        return 3 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        size, dtype = self.size, self.dtype
        recurrent = recurrent_weights(k_recurrent, size, 3, dtype)
        params = {"U": input_weights(k_input, x, 3 * size, dtype, "gru")}
        if self.reset == "after":
            params |= {"W": recurrent}
        else:
            params |= {"W": recurrent[:, : 2 * size], "W_n": recurrent[:, 2 * size :]}
        if self.bias:
            params |= {"b": jnp.zeros((3 * size,), dtype)}
        if self.bias and self.reset == "after":
            params |= {"c_n": jnp.zeros((size,), dtype)}
        return params

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        after = self.reset == "after"
        r_x, z_x, n_x = blocks(affine(x, params["U"], params["b"] if self.bias else None), 3)
        r_h, z_h, *n_h = blocks(jnp.dot(h_tm1, params["W"]), 3 if after else 2)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        if after and self.bias:
            past = r * (n_h[0] + jnp.broadcast_to(params["c_n"], r.shape))
        elif after:
            past = r * n_h[0]
        else:
            past = jnp.dot(r * h_tm1, params["W_n"])
        n = jnp.tanh(n_x + past)
        h = (1 - z) * n + z * h_tm1
        return h, h


def mgu(size: int, *, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The minimal gated unit: a GRU whose two gates are one.

        f = s(U x_t + W h_tm1 + b)
        n = tanh(U_n x_t + b_n + W_n (f * h_tm1))
        h_t = (1 - f) * h_tm1 + f * n,    y_t = h_t

    Parameters U [D, 2H] and b [2H] (order f, n), W [H, H] and W_n [H, H] (orthogonal), and
    initial_state [H] if it is learned.
    Cost: 4 H (D + H) FLOPs per step and example; about 5H numbers kept per step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size or dtype.
    Zhou et al. 2016, "Minimal gated unit for recurrent neural networks".
    """
    size = checks.positive_int("mgu", "size", size)
    dtype = checks.float_dtype("mgu", dtype)
    return MGU(size, dtype, learn_initial_state).cell


@dataclass(frozen=True)
class MGU(RecurrentCell):
    name: ClassVar[str] = "mgu"

    @property
    def columns(self) -> int:
        return 2 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        recurrent = recurrent_weights(k_recurrent, self.size, 2, self.dtype)
        return {
            "U": input_weights(k_input, x, 2 * self.size, self.dtype, "mgu"),
            "W": recurrent[:, : self.size],
            "W_n": recurrent[:, self.size :],
            "b": jnp.zeros((2 * self.size,), self.dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        f_x, n_x = blocks(affine(x, params["U"], params["b"]), 2)
        f = sigmoid(f_x + jnp.dot(h_tm1, params["W"]))
        n = jnp.tanh(n_x + jnp.dot(f * h_tm1, params["W_n"]))
        h = (1 - f) * h_tm1 + f * n
        return h, h
