"""Gated cells whose products are convolutions, for pictures and volumes over time: `conv_lstm`, `conv_gru`.

Shapes: x [*B, *space, D], state and output [*B, *space, H], any number of batch dimensions and one to three
spatial ones, which the cell is told, since its first state has them. Convolutions have stride 1 and zeros around
the edge ("SAME"), so nothing changes size. conv(U, x) is written U x. s is the logistic sigmoid, * is elementwise.
Parameters, state and output have the given dtype; after casting the parameters to another dtype the cell computes
in that one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, blocks, per_feature, recurrent_weights
from jaxrnn.cells.gated import LSTMState
from jaxrnn.types import Cell, Key, Params, State

sigmoid = jax.nn.sigmoid
_lecun = jax.nn.initializers.lecun_normal()
_LAYOUT = {1: ("NXC", "XIO", "NXC"), 2: ("NYXC", "YXIO", "NYXC"), 3: ("NZYXC", "ZYXIO", "NZYXC")}


def convolution(x: jax.Array, weights: jax.Array) -> jax.Array:
    """[*B, *space, I] and [*window, I, O] -> [*B, *space, O]."""
    spatial = weights.ndim - 2
    batch, frame = x.shape[: x.ndim - spatial - 1], x.shape[x.ndim - spatial - 1 :]
    one_batch = x if len(batch) == 1 else x.reshape(math.prod(batch), *frame)
    y = lax.conv_general_dilated(one_batch, weights, (1,) * spatial, "SAME", dimension_numbers=_LAYOUT[spatial])
    return y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])


def _frame(where: str, space: Any) -> tuple[int, ...]:
    if not isinstance(space, (tuple, list)) or not 1 <= len(space) <= 3:
        raise ValueError(f"{where}: space must be one to three sizes such as (height, width), got {space!r}")
    return tuple(checks.positive_int(where, "space", n) for n in space)


def _window(where: str, window: Any, space: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(window, (tuple, list)):
        return (checks.positive_int(where, "window", window),) * len(space)
    if len(window) != len(space):
        raise ValueError(f"{where}: window must be one size or {len(space)}, as many as space has, got {window!r}")
    return tuple(checks.positive_int(where, "window", n) for n in window)


@dataclass(frozen=True)
class Convolutional(RecurrentCell):
    space: tuple[int, ...]
    window: tuple[int, ...]

    def zeros(self, dtype: Any) -> Any:
        return jax.tree.map(lambda n: jnp.zeros((*self.space, n), dtype), self.sizes)

    def check(self, params: Params, x: Any) -> None:
        if params["U"].shape[:-2] != self.window or params["U"].shape[-1] != self.columns:
            raise ValueError(
                f"{self.name}: params['U'] should be [{', '.join(map(str, self.window))}, D, {self.columns}], "
                f"got {checks.describe(params['U'])}; use parameters made by this cell's own init"
            )
        self.check_frame(x, params["U"].shape[-2])

    def check_frame(self, x: Any, features: int | None = None) -> None:
        frame = tuple(getattr(x, "shape", ()))[-len(self.space) - 1 :]
        if len(frame) != len(self.space) + 1 or frame[:-1] != self.space:
            raise ValueError(
                f"{self.name}: x must be [*B, {', '.join(map(str, self.space))}, D], got {checks.describe(x)}; "
                "fix the input, or make the cell with the space that it has"
            )
        checks.features(self.name, x, frame[-1] if features is None else features)

    def affine(self, params: Params, x: jax.Array, gates: int) -> list[jax.Array]:
        """U x + b, by gate."""
        y = convolution(x.astype(params["U"].dtype), params["U"])
        return blocks(y + per_feature(params["b"], y), gates)

    def from_input(self, key: Key, x: Any, columns: int) -> jax.Array:
        """U: variance 1 / (D times the window's size)."""
        self.check_frame(x)
        return _lecun(key, (*self.window, x.shape[-1], columns), self.dtype)

    def from_state(self, key: Key, gates: int) -> jax.Array:
        """W: one matrix of orthonormal columns per gate, over all that a window sees."""
        rows = math.prod(self.window) * self.size
        return recurrent_weights(key, self.size, gates, self.dtype, rows=rows).reshape(*self.window, self.size, -1)


def conv_lstm(
    size: int,
    space: tuple[int, ...],
    *,
    window: int | tuple[int, ...] = 3,
    peephole: bool = False,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The LSTM with convolutions in place of matrix products.

        i, f, g, o = split(U x_t + W h_tm1 + b)
        c_t = s(f) * c_tm1 + s(i) * tanh(g)
        h_t = s(o) * tanh(c_t),    y_t = h_t

    `peephole`, as in the paper: i and f gain p_i * c_tm1 and p_f * c_tm1, o gains p_o * c_t, with a weight for
    each place. Parameters U [*window, D, 4H] (LeCun), W [*window, H, 4H] (orthonormal per gate), b [4H] (1 for the
    forget gate, else 0), order i, f, g, o; with peepholes p [3, *space, H] (zero); and initial_state if it is learned.
    Cost: 8 H (D + H) FLOPs per place, place of the window, step and example; about 12H numbers per place kept per
    step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, space, window, peephole or dtype, and at init
    and in a step for an x of another space.
    Shi et al. 2015, "Convolutional LSTM network: a machine learning approach for precipitation nowcasting".

    >>> cell, x = conv_lstm(4, (8, 6)), jnp.ones((2, 8, 6, 1))  # 4 units at each place; 2 grey pictures of 8 x 6
    >>> params = cell.init(jax.random.key(0), x)
    >>> cell.step(params, cell.initial_state(params, (2,)), x)[1].shape
    (2, 8, 6, 4)
    """
    size, space = checks.positive_int("conv_lstm", "size", size), _frame("conv_lstm", space)
    window = _window("conv_lstm", window, space)
    checks.one_of("conv_lstm", "peephole", peephole, (False, True))
    dtype = checks.float_dtype("conv_lstm", dtype)
    return ConvLSTM(size, dtype, learn_initial_state, space, window, peephole).cell


@dataclass(frozen=True)
class ConvLSTM(Convolutional):
    peephole: bool
    name: ClassVar[str] = "conv_lstm"

    @property
    def sizes(self) -> LSTMState:
        return LSTMState(h=self.size, c=self.size)

    @property
    def columns(self) -> int:
        return 4 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        params = {
            "U": self.from_input(k_input, x, self.columns),
            "W": self.from_state(k_recurrent, 4),
            "b": (jnp.arange(self.columns) // self.size == 1).astype(self.dtype),
        }
        if self.peephole:
            params["p"] = jnp.zeros((3, *self.space, self.size), self.dtype)
        return params

    def equations(self, params: Params, state: LSTMState, x: jax.Array) -> tuple[State, jax.Array]:
        h_tm1, c_tm1 = state
        from_x, from_h = self.affine(params, x, 4), blocks(convolution(h_tm1, params["W"]), 4)
        i, f, g, o = (a + b for a, b in zip(from_x, from_h, strict=True))
        if self.peephole:
            p_i, p_f, p_o = (per_feature(p, c_tm1) for p in params["p"])
            i, f = i + p_i * c_tm1, f + p_f * c_tm1
        c = sigmoid(f) * c_tm1 + sigmoid(i) * jnp.tanh(g)
        o = o + p_o * c if self.peephole else o
        h = sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), h


def conv_gru(
    size: int,
    space: tuple[int, ...],
    *,
    window: int | tuple[int, ...] = 3,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The GRU with convolutions in place of matrix products.

        r, z = s(split(U x_t + W h_tm1 + b))
        n = tanh(U_n x_t + b_n + W_n (r * h_tm1))
        h_t = (1 - z) * n + z * h_tm1,    y_t = h_t

    Parameters U [*window, D, 3H] (LeCun) and b [3H] (zero), order r, z, n; W [*window, H, 2H] and
    W_n [*window, H, H] (orthonormal per gate); and initial_state if it is learned.
    Cost: 6 H (D + H) FLOPs per place, place of the window, step and example; about 9H numbers per place kept per
    step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, space, window or dtype, and at init and in a
    step for an x of another space.
    Ballas et al. 2016, "Delving deeper into convolutional networks for learning video representations".
    """
    size, space = checks.positive_int("conv_gru", "size", size), _frame("conv_gru", space)
    window = _window("conv_gru", window, space)
    return ConvGRU(size, checks.float_dtype("conv_gru", dtype), learn_initial_state, space, window).cell


@dataclass(frozen=True)
class ConvGRU(Convolutional):
    name: ClassVar[str] = "conv_gru"

    @property
    def columns(self) -> int:
        return 3 * self.size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent, k_candidate = jax.random.split(key, 3)
        return {
            "U": self.from_input(k_input, x, self.columns),
            "W": self.from_state(k_recurrent, 2),
            "W_n": self.from_state(k_candidate, 1),
            "b": jnp.zeros((self.columns,), self.dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        r, z, n = self.affine(params, x, 3)
        r_h, z_h = blocks(convolution(h_tm1, params["W"]), 2)
        r, z = sigmoid(r + r_h), sigmoid(z + z_h)
        n = jnp.tanh(n + convolution(r * h_tm1, params["W_n"]))
        h = (1 - z) * n + z * h_tm1
        return h, h
