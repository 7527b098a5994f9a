"""Cells with one state vector and no gates: `elman`, `jordan`, `ind_rnn`.

Shapes, for every cell in this file: x [*B, D], state [*B, H] (`jordan`: [*B, O]), any number of
batch dimensions. The weights multiply from the right (x U for U x in the formulas), so U is [D, H].
Parameters, state and output have the given dtype; after casting the parameters to another dtype the
cell computes in that one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell, affine, input_weights, recurrent_weights
from jaxrnn.types import Cell, Key, Params, State

Activation = Callable[[jax.Array], jax.Array]


def _activation(where: str, name: str, fn: Any) -> Activation:
    if not callable(fn):
        raise TypeError(f"{where}: {name} must be a function such as jnp.tanh, got {fn!r}")
    return fn


def elman(
    size: int,
    *,
    activation: Activation = jnp.tanh,
    bias: bool = True,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The simple recurrent net.

        h_t = f(U x_t + W h_tm1 + b),    y_t = h_t

    Parameters U [D, H], W [H, H] (orthogonal), b [H] (not with `bias=False`), and initial_state [H] if it
    is learned.
    Cost: 2 H (D + H) FLOPs per step and example; the backward pass keeps h_t and the activation's
    derivative, 2H numbers per step.
    Raises: ValueError or TypeError at construction for a bad size, dtype, activation or bias.
    Elman 1990, "Finding structure in time".

    >>> cell = elman(1, activation=lambda a: a)
    >>> params = {"U": jnp.ones((1, 1)), "W": jnp.full((1, 1), 0.5), "b": jnp.zeros(1)}
    >>> jax.lax.scan(lambda h, x: cell.step(params, h, x), jnp.zeros(1), jnp.ones((3, 1)))[1].ravel().tolist()
    [1.0, 1.5, 1.75]
    """
    size = checks.positive_int("elman", "size", size)
    dtype = checks.float_dtype("elman", dtype)
    activation = _activation("elman", "activation", activation)
    checks.one_of("elman", "bias", bias, (True, False))
    return Elman(size, dtype, learn_initial_state, activation, bias).cell


@dataclass(frozen=True)
class Elman(RecurrentCell):
    activation: Activation
    bias: bool = True
    name: ClassVar[str] = "elman"

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        params = {
            "U": input_weights(k_input, x, self.size, self.dtype, "elman"),
            "W": recurrent_weights(k_recurrent, self.size, 1, self.dtype),
        }
        return params | {"b": jnp.zeros((self.size,), self.dtype)} if self.bias else params

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        from_x = affine(x, params["U"], params["b"] if self.bias else None)
        h = self.activation(from_x + jnp.dot(h_tm1, params["W"]))
        return h, h


def jordan(
    size: int,
    output_size: int,
    *,
    activation: Activation = jnp.tanh,
    output_activation: Activation = jnp.tanh,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The net that feeds back its output instead of its hidden units.

        h_t = f(U x_t + W y_tm1 + b),    y_t = g(V h_t + c)

    The state is y, [*B, O]. Parameters U [D, H], W [O, H], b [H], V [H, O], c [O], and
    initial_state [O] if it is learned. W has orthonormal rows or columns, whichever are fewer.
    Cost: 2 (D H + 2 H O) FLOPs per step and example; about 2 (H + O) numbers kept per step.
    Raises: ValueError or TypeError at construction for a bad size, dtype or activation.
    Jordan 1986, "Serial order: a parallel distributed processing approach".
    """
    size = checks.positive_int("jordan", "size", size)
    output_size = checks.positive_int("jordan", "output_size", output_size)
    dtype = checks.float_dtype("jordan", dtype)
    activation = _activation("jordan", "activation", activation)
    output_activation = _activation("jordan", "output_activation", output_activation)
    return Jordan(size, dtype, learn_initial_state, output_size, activation, output_activation).cell


@dataclass(frozen=True)
class Jordan(RecurrentCell):
    output_size: int
    activation: Activation
    output_activation: Activation
    name: ClassVar[str] = "jordan"

    @property
    def sizes(self) -> int:
        return self.output_size

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent, k_output = jax.random.split(key, 3)
        hidden = jax.ShapeDtypeStruct((self.size,), self.dtype)
        return {
            "U": input_weights(k_input, x, self.size, self.dtype, "jordan"),
            "W": recurrent_weights(k_recurrent, self.size, 1, self.dtype, rows=self.output_size),
            "b": jnp.zeros((self.size,), self.dtype),
            "V": input_weights(k_output, hidden, self.output_size, self.dtype, "jordan"),
            "c": jnp.zeros((self.output_size,), self.dtype),
        }

    def equations(self, params: Params, y_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        h = self.activation(affine(x, params["U"], params["b"]) + jnp.dot(y_tm1, params["W"]))
        y = self.output_activation(affine(h, params["V"], params["c"]))
        return y, y


def ind_rnn(
    size: int,
    *,
    activation: Activation = jax.nn.relu,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """Units that each see only their own past.

        h_t = f(U x_t + w * h_tm1 + b),    y_t = h_t        (* elementwise)

    Parameters U [D, H], w [H] (uniform in 0..1), b [H], and initial_state [H] if it is learned.
    A unit's gradient over n steps scales with w^n, so over T steps keep |w| <= 2^(1/T), e.g. by
    clipping the parameter after each update.
    Cost: 2 H D FLOPs per step and example, all of it outside the recurrence; 2H numbers kept per step.
    Raises: ValueError or TypeError at construction for a bad size, dtype or activation.
    Li et al. 2018, "Independently recurrent neural network".
    """
    size = checks.positive_int("ind_rnn", "size", size)
    dtype = checks.float_dtype("ind_rnn", dtype)
    activation = _activation("ind_rnn", "activation", activation)
    return IndRNN(size, dtype, learn_initial_state, activation).cell


@dataclass(frozen=True)
class IndRNN(RecurrentCell):
    activation: Activation
    name: ClassVar[str] = "ind_rnn"

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        return {
            "U": input_weights(k_input, x, self.size, self.dtype, "ind_rnn"),
            "w": jax.random.uniform(k_recurrent, (self.size,), self.dtype),
            "b": jnp.zeros((self.size,), self.dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        own_past = jnp.broadcast_to(params["w"], h_tm1.shape) * h_tm1
        h = self.activation(affine(x, params["U"], params["b"]) + own_past)
        return h, h
