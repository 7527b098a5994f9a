"""The two cells of xLSTM, LSTMs with exponential gates: `slstm`, `mlstm`.

Shapes: x [*B, D], output [*B, H], any number of batch dimensions; the states are described with each. s is the
logistic sigmoid, * is elementwise. What stands around these cells in the paper's blocks (normalisation, up and
down projections, a short convolution) is for `stack`, `residual` and `sequence.convolution` to add.

Exponentials overflow, so all sums are kept divided by exp(m), where m is the largest exponent in them:

    m_t = max(log f_t + m_tm1, log i_t),    f' = exp(log f_t + m_tm1 - m_t),    i' = exp(log i_t - m_t)

and both f' and i' are at most 1. It changes no output: m cancels.

Parameters and output have the given dtype. What is summed under exponential gates, and m, is float32, also for
16-bit dtypes (float64 for float64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, affine, blocks, input_weights, recurrent_weights, widened
from jaxrnn.types import Cell, Key, Params, State, Tree

sigmoid, log_sigmoid = jax.nn.sigmoid, jax.nn.log_sigmoid
FORGET = ("sigmoid", "exp")
NOTHING = -1e30  # the m of an empty memory: exp(m) = 0, and m - m is no NaN


def _log_forget(kind: str, f: jax.Array) -> jax.Array:
    return log_sigmoid(f) if kind == "sigmoid" else f


def _stabilised(log_f: jax.Array, log_i: jax.Array, m_tm1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(m, f', i')"""
    m = jnp.maximum(log_f + m_tm1, log_i)
    return m, jnp.exp(log_f + m_tm1 - m), jnp.exp(log_i - m)


def _options(where: str, size: Any, heads: Any, forget: Any) -> tuple[int, int]:
    size = checks.positive_int(where, "size", size)
    heads = checks.positive_int(where, "heads", heads)
    if size % heads:
        raise ValueError(f"{where}: size must be a multiple of heads, got {size} units and {heads} heads")
    checks.one_of(where, "forget", forget, FORGET)
    return size, heads


class SLSTMState(NamedTuple):
    h: Any  # [*B, H]: the output
    c: Any  # [*B, H]: the memory, divided by exp(m)
    n: Any  # [*B, H]: the sum of its weights, divided by exp(m)
    m: Any  # [*B, H]: the largest exponent


def slstm(
    size: int,
    *,
    heads: int = 1,
    forget: str = "sigmoid",
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The scalar LSTM: exponential gates, and a memory that is a weighted mean of what came in.

        i, f, z, o = split(U x_t + W h_tm1 + b)
        c_t = f' * c_tm1 + i' * tanh(z),    n_t = f' * n_tm1 + i'
        h_t = s(o) * c_t / n_t,    y_t = h_t

    where i = exp(i) and f = s(f) (`forget="sigmoid"`) or exp(f) ("exp"), stabilised as at the top of this file:
    m, c and n are part of the state. It starts empty, m so low that the first input takes all the weight.
    Parameters U [D, 4H] (LeCun); W [heads, H / heads, 4 H / heads] (orthogonal per gate), so that units mix within
    their head; b [4H], for the forget gate evenly spaced from 3 to 6 over a head's units, else 0. With
    `learn_initial_state` also h and c [H], and the memory starts with weight n = 1, m = 0.
    Cost: 8 H (D + H / heads) FLOPs per step and example; about 17H numbers kept per step by `lax.scan`,
    10H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size, heads, forget or dtype.
    Beck et al. 2024, "xLSTM: extended long short-term memory".
    """
    size, heads = _options("slstm", size, heads, forget)
    return SLSTM(size, checks.float_dtype("slstm", dtype), learn_initial_state, heads, forget).cell


@dataclass(frozen=True)
class SLSTM(RecurrentCell):
    heads: int
    forget: str
    name: ClassVar[str] = "slstm"

    @property
    def columns(self) -> int:
        return 4 * self.size

    def zeros(self, dtype: Any) -> dict[str, jax.Array]:
        return {"h": jnp.zeros((self.size,), dtype), "c": jnp.zeros((self.size,), dtype)}

    def as_state(self, start: Tree) -> SLSTMState:
        c, known = widened(start["c"]), self.learn_initial_state
        return SLSTMState(start["h"], c, jnp.full_like(c, known), jnp.full_like(c, 0 if known else NOTHING))

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        per_head = self.size // self.heads
        keys = jax.random.split(k_recurrent, self.heads)
        none = jnp.zeros((self.size,), self.dtype)
        forget = jnp.tile(jnp.linspace(3.0, 6.0, per_head, dtype=jnp.float32), self.heads).astype(self.dtype)
        return {
            "U": input_weights(k_input, x, self.columns, self.dtype, self.name),
            "W": jnp.stack([recurrent_weights(k, per_head, 4, self.dtype) for k in keys]),
            "b": jnp.concatenate([none, forget, none, none]),
        }

    def equations(self, params: Params, state: SLSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        from_x = blocks(affine(x, params["U"], params["b"]), 4)
        from_h = blocks(self._mixed(state.h, params["W"]), 4)
        i, f, z, o = (widened(a + b.reshape(a.shape)) for a, b in zip(from_x, from_h, strict=True))
        m, f, i = _stabilised(_log_forget(self.forget, f), i, state.m)
        c = f * state.c + i * jnp.tanh(z)
        n = f * state.n + i
        h = (sigmoid(o) * c / n).astype(state.h.dtype)
        return SLSTMState(h, c, n, m), h

    def _mixed(self, h: jax.Array, weights: jax.Array) -> jax.Array:
        """[*B, heads, 4 H / heads]: each head's units times its own weights."""
        by_head = h.reshape(*h.shape[:-1], self.heads, -1)
        return jnp.einsum("...ni,nij->...nj", by_head, weights)


class MLSTMState(NamedTuple):
    c: Any  # [*B, heads, N, N]: keys times values, divided by exp(m)
    n: Any  # [*B, heads, N]: the sum of the keys, divided by exp(m)
    m: Any  # [*B, heads]: the largest exponent


def mlstm(
    size: int,
    *,
    heads: int = 1,
    forget: str = "sigmoid",
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The matrix LSTM: a memory of values under keys, with exponential gates that read the input alone.

        q, k, v, o, i, f = split(U x_t + b),    k = k / sqrt(N)        N = H / heads, and for each head:
        C_t = f' C_tm1 + i' k v^T,    n_t = f' n_tm1 + i' k
        h_t = C_t^T q / max(|n_t . q|, exp(-m_t)),    y_t = s(o) * h_t

    where i = exp(i) and f = s(f) (`forget="sigmoid"`) or exp(f) ("exp"), one number per head, stabilised as at the
    top of this file: without m the denominator is max(|n . q|, 1). The recurrence is linear in C and n.
    Parameters U [D, 4H + 2 heads] (LeCun; zero for i and f, as in the authors' code) and b [4H + 2 heads]: for i
    normal with deviation 0.1, for f evenly spaced from 3 to 6 over the heads, else 0. With `learn_initial_state`
    also C [heads, N, N] and n [heads, N].
    Cost: 8 H D FLOPs per step and example outside the recurrence, about 6 H N in it and after it; about 2 H N
    numbers kept per step by `lax.scan`, H N by `jaxrnn.scan`: over long sequences keep less, by `checkpointed`, say.
    Raises: ValueError or TypeError at construction for a bad size, heads, forget or dtype.
    Beck et al. 2024, "xLSTM: extended long short-term memory".
    """
    size, heads = _options("mlstm", size, heads, forget)
    return MLSTM(size, checks.float_dtype("mlstm", dtype), learn_initial_state, heads, forget).cell


@dataclass(frozen=True)
class MLSTM(RecurrentCell):
    heads: int
    forget: str
    name: ClassVar[str] = "mlstm"

    @property
    def columns(self) -> int:
        return 4 * self.size + 2 * self.heads

    @property
    def per_head(self) -> int:
        return self.size // self.heads

    def zeros(self, dtype: Any) -> dict[str, jax.Array]:
        shape = (self.heads, self.per_head, self.per_head)
        return {"c": jnp.zeros(shape, dtype), "n": jnp.zeros(shape[:-1], dtype)}

    def as_state(self, start: Tree) -> MLSTMState:
        c, n = widened(start["c"]), widened(start["n"])
        return MLSTMState(c, n, jnp.zeros((self.heads,), n.dtype))

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_gate = jax.random.split(key)
        H, heads = self.size, self.heads
        U = input_weights(k_input, x, 4 * H, self.dtype, self.name)
        i = 0.1 * jax.random.normal(k_gate, (heads,), jnp.float32)
        gates = jnp.concatenate([i, jnp.linspace(3.0, 6.0, heads, dtype=jnp.float32)]).astype(self.dtype)
        return {
            "U": jnp.concatenate([U, jnp.zeros((U.shape[0], 2 * heads), self.dtype)], axis=-1),
            "b": jnp.concatenate([jnp.zeros((4 * H,), self.dtype), gates]),
        }

    def equations(self, params: Params, state: MLSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        H, heads, N = self.size, self.heads, self.per_head
        columns = affine(x, params["U"], params["b"])
        *qkv, o, i, f = jnp.split(columns, (H, 2 * H, 3 * H, 4 * H, 4 * H + heads), axis=-1)
        q, k, v = (widened(a).reshape(*a.shape[:-1], heads, N) for a in qkv)
        k = k / math.sqrt(N)
        m, f, i = _stabilised(_log_forget(self.forget, widened(f)), widened(i), state.m)
        c = f[..., None, None] * state.c + (i[..., None] * k)[..., :, None] * v[..., None, :]
        n = f[..., None] * state.n + i[..., None] * k
        weight = jnp.maximum(jnp.abs(jnp.sum(n * q, axis=-1)), jnp.exp(-m))
        h = jnp.einsum("...k,...kv->...v", q, c) / weight[..., None]
        y = sigmoid(o) * h.reshape(o.shape).astype(o.dtype)
        return MLSTMState(c, n, m), y
