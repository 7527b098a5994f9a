"""Cells whose recurrence is linear in the state, with gates that read the input alone: `min_gru`, `min_lstm`, `sru`.

Shapes, for every cell in this file: x [*B, D], state and output [*B, H], any number of batch
dimensions. The weights multiply from the right, all gates side by side in one matrix, in the order
that each docstring gives. s is the logistic sigmoid, * is elementwise. Parameters, state and output
have the given dtype; after casting the parameters to another dtype the cell computes in that one.

All matrix products are of inputs, so under `jaxrnn.scan` none is left in the loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, affine, blocks, feature_count, input_weights, per_feature, uniform
from jaxrnn.types import Cell, Key, Params, State

sigmoid = jax.nn.sigmoid


def _positive(a: jax.Array) -> jax.Array:
    """a + 1/2 where a >= 0, s(a) below: continuous, positive, and with a slope everywhere."""
    return jnp.where(a >= 0, a + jnp.asarray(0.5, a.dtype), sigmoid(a))


def min_gru(size: int, *, positive: bool = False, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The GRU without what made it sequential: no reset gate, and an update gate that reads the input alone.

        z, n = split(U x_t + b)
        h_t = (1 - s(z)) * h_tm1 + s(z) * n,    y_t = h_t

    `positive` puts n through g(a) = a + 1/2 where a >= 0, s(a) elsewhere, the candidate of the paper's
    form in log space (its appendix B); states that start at 0 or above stay there.
    Parameters U [D, 2H] (LeCun) and b [2H] (zero), order z, n, and initial_state [H] if it is learned.
    Cost: 4 H D FLOPs per step and example, all of it outside the recurrence; about 5H numbers kept per step by
    `lax.scan`, 2H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size, positive or dtype.
    Feng et al. 2024, "Were RNNs all we needed?".
    """
    size = checks.positive_int("min_gru", "size", size)
    checks.one_of("min_gru", "positive", positive, (False, True))
    return MinGRU(size, checks.float_dtype("min_gru", dtype), learn_initial_state, positive).cell


@dataclass(frozen=True)
class MinGRU(RecurrentCell):
    positive: bool
    name: ClassVar[str] = "min_gru"

    @property
    def columns(self) -> int:
        return 2 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        U = input_weights(key, x, self.columns, self.dtype, self.name)
        return {"U": U, "b": jnp.zeros((self.columns,), self.dtype)}

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        z, n = blocks(affine(x, params["U"], params["b"]), 2)
        n = _positive(n) if self.positive else n
        z = sigmoid(z)
        h = (1 - z) * h_tm1 + z * n
        return h, h


def min_lstm(size: int, *, positive: bool = False, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The LSTM without what made it sequential: gates that read the input alone and add up to one.

        f, i, n = split(U x_t + b)
        h_t = s(f) / (s(f) + s(i)) * h_tm1 + s(i) / (s(f) + s(i)) * n,    y_t = h_t

    The quotients are computed as s(log s(f) - log s(i)) and its complement, so that two closed gates
    give no 0 / 0. `positive` as in `min_gru`.
    Parameters U [D, 3H] (LeCun) and b [3H] (zero), order f, i, n, and initial_state [H] if it is learned.
    A larger b of the forget gate makes a longer memory from the start, as the paper advises.
    Cost: 6 H D FLOPs per step and example, all of it outside the recurrence; about 10H numbers kept per step by
    `lax.scan`, 4H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size, positive or dtype.
    Feng et al. 2024, "Were RNNs all we needed?".
    """
    size = checks.positive_int("min_lstm", "size", size)
    checks.one_of("min_lstm", "positive", positive, (False, True))
    return MinLSTM(size, checks.float_dtype("min_lstm", dtype), learn_initial_state, positive).cell


@dataclass(frozen=True)
class MinLSTM(MinGRU):
    name: ClassVar[str] = "min_lstm"

    @property
    def columns(self) -> int:
        return 3 * self.size

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        f, i, n = blocks(affine(x, params["U"], params["b"]), 3)
        n = _positive(n) if self.positive else n
        kept = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        h = sigmoid(kept) * h_tm1 + sigmoid(-kept) * n
        return h, h


def sru(
    size: int,
    *,
    peephole: bool = False,
    highway_bias: float = 0.0,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The simple recurrent unit: a light recurrence, and a highway from the input to the output.

        n, f, r = split(U x_t),    p = x_t if D = H, else P x_t
        f = s(f + v_f * c_tm1 + b_f),    r = s(r + v_r * c_tm1 + b_r)
        c_t = f * c_tm1 + (1 - f) * n
        y_t = r * c_t + (1 - r) * p * sqrt(1 + 2 exp(highway_bias))

    Without `peephole` (v = 0) the gates read the input alone and the recurrence is linear, as in the paper's
    first version (2017, which had a tanh around c_t in y_t); with it the cell is the one published in 2018.
    The root keeps the variance of the input from layer to layer; b_r starts at `highway_bias`.
    Parameters U [D, 3H] (uniform in +-sqrt(3 / D)), order n, f, r, b [2H], with peepholes v [2H] (uniform in
    +-sqrt(3 / H)), order f, r; P [D, H] where D is not H; and initial_state [H] if it is learned.
    Cost: 6 H D FLOPs per step and example (8 H D with P), all of it outside the recurrence; about 10H numbers
    kept per step by `lax.scan`, 3H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size, peephole, highway_bias or dtype.
    Lei et al. 2018, "Simple recurrent units for highly parallelizable recurrence".
    """
    size = checks.positive_int("sru", "size", size)
    checks.one_of("sru", "peephole", peephole, (False, True))
    highway_bias = checks.number(highway_bias)
    if not abs(highway_bias) <= 20:
        raise ValueError(f"sru: highway_bias must be a number from -20 to 20, e.g. -2.0, got {highway_bias!r}")
    return SRU(size, checks.float_dtype("sru", dtype), learn_initial_state, peephole, highway_bias).cell


@dataclass(frozen=True)
class SRU(RecurrentCell):
    peephole: bool
    highway_bias: float
    name: ClassVar[str] = "sru"

    @property
    def columns(self) -> int:
        return 3 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_peephole, k_highway = jax.random.split(key, 3)
        features, size, dtype = feature_count(self.name, x), self.size, self.dtype
        wide, narrow = math.sqrt(3 / features), math.sqrt(3 / size)
        params = {
            "U": uniform(k_input, (features, 3 * size), dtype, -wide, wide),
            "b": jnp.repeat(jnp.array([0.0, self.highway_bias], dtype), size),
        }
        if self.peephole:
            params["v"] = uniform(k_peephole, (2 * size,), dtype, -narrow, narrow)
        if features != size:
            params["P"] = uniform(k_highway, (features, size), dtype, -wide, wide)
        return params

    def equations(self, params: Params, c_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        x = x.astype(params["U"].dtype)
        n, f, r = blocks(jnp.dot(x, params["U"]), 3)
        b_f, b_r = (per_feature(b, c_tm1) for b in blocks(params["b"], 2))
        f, r = f + b_f, r + b_r
        if self.peephole:
            v_f, v_r = (per_feature(v, c_tm1) for v in blocks(params["v"], 2))
            f, r = f + v_f * c_tm1, r + v_r * c_tm1
        f, r = sigmoid(f), sigmoid(r)
        c = f * c_tm1 + (1 - f) * n
        highway = jnp.dot(x, params["P"]) if "P" in params else x
        y = r * c + (1 - r) * (highway * math.sqrt(1 + 2 * math.exp(self.highway_bias)))
        return c, y
