"""GRU and LSTM whose units see only their own past: `elementwise_gru`, `elementwise_lstm`.

The recurrent weights are vectors, so the derivative of a step by its state is one number per unit (GRU) or a
2 x 2 block (LSTM), and Newton's method can solve all steps at once, each iteration a linear recurrence. All
matrix products are of inputs; under `jaxrnn.scan` none is left in the loop.

Shapes: x [*B, D], state and output [*B, H], any number of batch dimensions. s is the logistic sigmoid, * is
elementwise. Parameters, state and output have the given dtype; after casting the parameters to another dtype
the cell computes in that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, affine, blocks, input_weights, per_feature, uniform
from jaxrnn.cells.gated import LSTMState
from jaxrnn.types import Cell, Key, Params, State

sigmoid = jax.nn.sigmoid


def elementwise_gru(size: int, *, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The GRU with vectors in place of recurrent matrices.

        r, z = s(split(U x_t + b + w * [h_tm1, h_tm1]))
        n = tanh(U_n x_t + b_n + w_n * r * h_tm1)
        h_t = (1 - z) * n + z * h_tm1,    y_t = h_t

    It is `gru(size, reset="before")` with diagonal W and W_n.
    Parameters U [D, 3H] (LeCun), w [3H] (uniform in -1..1) and b [3H] (zero), order r, z, n, and initial_state [H]
    if it is learned.
    Cost: 6 H D FLOPs per step and example, all of it outside the recurrence; about 9H numbers kept per step by
    `lax.scan`, 4H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size or dtype.
    Danieli et al. 2025, "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models" (ParaGRU).
    """
    size = checks.positive_int("elementwise_gru", "size", size)
    return ElementwiseGRU(size, checks.float_dtype("elementwise_gru", dtype), learn_initial_state).cell


@dataclass(frozen=True)
class ElementwiseGRU(RecurrentCell):
    name: ClassVar[str] = "elementwise_gru"

    @property
    def columns(self) -> int:
        return 3 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        return {
            "U": input_weights(k_input, x, self.columns, self.dtype, self.name),
            "w": uniform(k_recurrent, (self.columns,), self.dtype, -1.0, 1.0),
            "b": jnp.zeros((self.columns,), self.dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        r, z, n = blocks(affine(x, params["U"], params["b"]), 3)
        w_r, w_z, w_n = (per_feature(w, h_tm1) for w in blocks(params["w"], 3))
        r, z = sigmoid(r + w_r * h_tm1), sigmoid(z + w_z * h_tm1)
        n = jnp.tanh(n + w_n * (r * h_tm1))
        h = (1 - z) * n + z * h_tm1
        return h, h


def elementwise_lstm(
    size: int,
    *,
    peephole: bool = False,
    coupled: bool = False,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The LSTM with vectors in place of recurrent matrices.

        i, f, g, o = split(U x_t + b) + w * h_tm1        each gate with its own w
        c_t = s(f) * c_tm1 + s(i) * tanh(g)
        h_t = s(o) * tanh(c_t),    y_t = h_t

    `peephole` lets the gates see the memory as in `lstm`: i and f gain p_i * c_tm1 and p_f * c_tm1, o gains
    p_o * c_t. `coupled` takes 1 - s(f) for s(i) (Greff et al. 2017), and there is no i among the gates. The
    published ParaLSTM has both.
    Parameters U [D, 4H] (LeCun), w [4H] (uniform in -1..1) and b [4H] (1 for the forget gate, else 0), order
    i, f, g, o, with peepholes p [3H] (normal, deviation 0.1), order i, f, o (coupled: 3H and 2H, without i);
    and initial_state if it is learned.
    Cost: 8 H D FLOPs per step and example, all of it outside the recurrence; about 12H numbers kept per step by
    `lax.scan`, 7H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size, peephole, coupled or dtype.
    Danieli et al. 2025, "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models" (ParaLSTM).
    """
    size = checks.positive_int("elementwise_lstm", "size", size)
    checks.one_of("elementwise_lstm", "peephole", peephole, (False, True))
    checks.one_of("elementwise_lstm", "coupled", coupled, (False, True))
    dtype = checks.float_dtype("elementwise_lstm", dtype)
    return ElementwiseLSTM(size, dtype, learn_initial_state, peephole, coupled).cell


@dataclass(frozen=True)
class ElementwiseLSTM(RecurrentCell):
    peephole: bool
    coupled: bool
    name: ClassVar[str] = "elementwise_lstm"

    @property
    def sizes(self) -> LSTMState:
        return LSTMState(h=self.size, c=self.size)

    @property
    def gates(self) -> str:
        return "fgo" if self.coupled else "ifgo"

    @property
    def columns(self) -> int:
        return len(self.gates) * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent, k_peephole = jax.random.split(key, 3)
        forget = jnp.arange(self.columns) // self.size == self.gates.index("f")
        params = {
            "U": input_weights(k_input, x, self.columns, self.dtype, self.name),
            "w": uniform(k_recurrent, (self.columns,), self.dtype, -1.0, 1.0),
            "b": forget.astype(self.dtype),
        }
        if self.peephole:
            params["p"] = (0.1 * jax.random.normal(k_peephole, (self.columns - self.size,))).astype(self.dtype)
        return params

    def equations(self, params: Params, state: LSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        h_tm1, c_tm1 = state
        from_x = blocks(affine(x, params["U"], params["b"]), len(self.gates))
        own = [per_feature(w, h_tm1) * h_tm1 for w in blocks(params["w"], len(self.gates))]
        gates = {name: a + b for name, a, b in zip(self.gates, from_x, own, strict=True)}
        seen = self._peepholes(params, c_tm1)
        f = sigmoid(gates["f"] + seen["f"] * c_tm1 if seen else gates["f"])
        i = 1 - f if self.coupled else sigmoid(gates["i"] + seen["i"] * c_tm1 if seen else gates["i"])
        c = f * c_tm1 + i * jnp.tanh(gates["g"])
        h = sigmoid(gates["o"] + seen["o"] * c if seen else gates["o"]) * jnp.tanh(c)
        return LSTMState(h, c), h

    def _peepholes(self, params: Params, c: jax.Array) -> dict[str, jax.Array]:
        """By gate; empty without them."""
        if not self.peephole:
            return {}
        names = self.gates.replace("g", "")
        return {name: per_feature(p, c) for name, p in zip(names, blocks(params["p"], len(names)), strict=True)}
