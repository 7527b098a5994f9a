"""Cells with a rhythm of their own: `co_rnn`, oscillators driven by the input; `clockwork`, units that tick slowly.

Shapes: x [*B, D], output [*B, H], any number of batch dimensions. * is elementwise. Parameters, state and output
have the given dtype; after casting the parameters to another dtype the cell computes in that one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.cells.base import (
    RecurrentCell,
    affine,
    feature_count,
    input_weights,
    per_feature,
    recurrent_weights,
    uniform,
)
from jaxrnn.types import Cell, Key, Params, State, Tree


class CoRNNState(NamedTuple):
    y: Any  # [*B, H]: where each oscillator is; the output
    z: Any  # [*B, H]: how fast it moves


def co_rnn(
    size: int,
    *,
    step: float = 0.042,
    stiffness: float = 2.7,
    damping: float = 4.7,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """A net of coupled oscillators, forced and damped.

        z_t = z_tm1 + step * (tanh(U x_t + W y_tm1 + V z_tm1 + b) - stiffness * y_tm1 - damping * z_tm1)
        y_t = y_tm1 + step * z_t

    That is y'' = tanh(U x + W y + V y' + b) - stiffness y - damping y', taken in steps of `step`: the smaller it
    is, the longer the memory and the nearer the gradient of a step to the identity. For stability keep
    step * damping below 1 and step^2 * stiffness well below 1. The defaults are the paper's for pixels in a row
    (784 steps); what fits another task is to be searched for.
    Parameters U [D, H], W and V [H, H], b [H], uniform in +-1 / sqrt(D + 2H), as in the authors' code; and
    initial_state if it is learned.
    Cost: 2 H (D + 2H) FLOPs per step and example; about 4H numbers kept per step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, step, stiffness, damping or dtype.
    Rusch and Mishra 2021, "Coupled oscillatory recurrent neural network (coRNN)".
    """
    size = checks.positive_int("co_rnn", "size", size)
    constants = {"step": step, "stiffness": stiffness, "damping": damping}
    for name, value in constants.items():
        if not 0 < checks.number(value) < math.inf:
            raise ValueError(f"co_rnn: {name} must be a number above 0, got {value!r}")
    dtype = checks.float_dtype("co_rnn", dtype)
    return CoRNN(size, dtype, learn_initial_state, *map(float, constants.values())).cell


@dataclass(frozen=True)
class CoRNN(RecurrentCell):
    time_step: float
    stiffness: float
    damping: float
    name: ClassVar[str] = "co_rnn"

    @property
    def sizes(self) -> CoRNNState:
        return CoRNNState(y=self.size, z=self.size)

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        size, features = self.size, feature_count(self.name, x)
        keys, most = jax.random.split(key, 4), 1 / math.sqrt(features + 2 * size)
        shapes = {"U": (features, size), "W": (size, size), "V": (size, size), "b": (size,)}
        draw = lambda key, shape: uniform(key, shape, self.dtype, -most, most)
        return {name: draw(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def equations(self, params: Params, state: CoRNNState, x: jax.Array) -> tuple[State, jax.Array]:
        y_tm1, z_tm1 = state
        sums = affine(x, params["U"], params["b"]) + jnp.dot(y_tm1, params["W"]) + jnp.dot(z_tm1, params["V"])
        force = jnp.tanh(sums) - self.stiffness * y_tm1 - self.damping * z_tm1
        z = z_tm1 + self.time_step * force
        y = y_tm1 + self.time_step * z
        return CoRNNState(y, z), y


class ClockworkState(NamedTuple):
    h: Any  # [*B, H]: the units, fastest first; the output
    t: Any  # [*B] int32: how many steps there have been


def clockwork(
    size: int,
    *,
    periods: tuple[int, ...] = (1, 2, 4, 8),
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """A simple recurrent net in parts, each of which ticks at its own period and stands still in between.

        h_t = tanh(U x_t + W h_tm1 + b)    for units whose period divides t, counted from 0
        h_t = h_tm1                        for the others
        y_t = h_t

    The units are H / len(periods) per period, in the order of the periods, the fastest first. A part reads itself
    and the slower ones, so W is block lower triangular here, where weights multiply from the right; the rest
    of it is not read and stays 0. The step's number is part of the state: an integer, which counts from 0 again
    after a reset, and all units tick at a first step.
    Parameters U [D, H] (LeCun), W [H, H] (orthogonal, then cut to its blocks), b [H] (zero), and initial_state [H]
    if it is learned.
    Cost: 2 H (D + H) FLOPs per step and example: all units are computed, those that stand still for nothing;
    about 3H numbers kept per step by `lax.scan`.
    Raises: ValueError or TypeError at construction for a bad size, periods or dtype.
    Koutnik et al. 2014, "A clockwork RNN".
    """
    size = checks.positive_int("clockwork", "size", size)
    if not isinstance(periods, (tuple, list)) or not periods:
        raise ValueError(f"clockwork: periods must be whole numbers such as (1, 2, 4, 8), got {periods!r}")
    periods = tuple(checks.positive_int("clockwork", "periods", n) for n in periods)
    if list(periods) != sorted(set(periods)):
        raise ValueError(f"clockwork: periods must rise, the fastest part first, got {periods}")
    if size % len(periods):
        raise ValueError(f"clockwork: size must be a multiple of the number of periods, got {size} and {len(periods)}")
    return Clockwork(size, checks.float_dtype("clockwork", dtype), learn_initial_state, periods).cell


@dataclass(frozen=True)
class Clockwork(RecurrentCell):
    periods: tuple[int, ...]
    name: ClassVar[str] = "clockwork"

    @property
    def period(self) -> np.ndarray:
        """Of each unit, [H]."""
        return np.repeat(np.asarray(self.periods, np.int32), self.size // len(self.periods))

    def as_state(self, start: Tree) -> ClockworkState:
        return ClockworkState(start, jnp.zeros((), jnp.int32))

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        k_input, k_recurrent = jax.random.split(key)
        return {
            "U": input_weights(k_input, x, self.size, self.dtype, self.name),
            "W": self._read(recurrent_weights(k_recurrent, self.size, 1, self.dtype)),
            "b": jnp.zeros((self.size,), self.dtype),
        }

    def _read(self, weights: jax.Array) -> jax.Array:
        """W where a unit reads one of its own period or a slower one, else 0."""
        return jnp.where(self.period[:, None] >= self.period[None, :], weights, jnp.zeros_like(weights))

    def equations(self, params: Params, state: ClockworkState, x: jax.Array) -> tuple[State, jax.Array]:
        h_tm1, t = state
        h = jnp.tanh(affine(x, params["U"], params["b"]) + jnp.dot(h_tm1, self._read(params["W"])))
        ticks = per_feature(jnp.asarray(self.period), h)
        h = jnp.where(t[..., None] % ticks == 0, h, h_tm1)
        return ClockworkState(h, t + 1), h
