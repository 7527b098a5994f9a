"""Linear recurrences whose decay the input decides, a number per feature: `rg_lru`, `selective_ssm`.

Shapes, for both: x and output [*B, H], any number of batch dimensions; the state is [*B, H] or [*B, H, N]. s is
the logistic sigmoid, * is elementwise. H features go in and come out; the linear maps, short convolutions and
gates that stand around such a layer in its paper are for `stack`, `residual` and `sequence.convolution` to add.

Parameters and output have the given dtype. The state and the decay are float32, also for 16-bit dtypes
(float64 for float64): in bfloat16 a decay of 0.999 is 1, and what should fade never would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import checks, trees
from jaxrnn.cells.base import RecurrentCell, affine, blocks, input_weights, per_feature, same_width, uniform, widened
from jaxrnn.types import Cell, Key, Params, State, Tree

sigmoid, softplus = jax.nn.sigmoid, jax.nn.softplus
STEEPEST = 1000.0  # the largest slope of the square root that a gradient sees


@jax.custom_jvp
def bounded_sqrt(a: jax.Array) -> jax.Array:
    """sqrt(a) with a slope of min(1 / (2 sqrt(a)), 1000): at 0 it is steep, not infinite."""
    return jnp.sqrt(a)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (a,), (da,) = primals, tangents
    return bounded_sqrt(a), da / (2 * jnp.sqrt(jnp.maximum(a, 1 / (2 * STEEPEST) ** 2)))


def rg_lru(size: int, *, dtype: Any = jnp.float32, learn_initial_state: bool = False) -> Cell:
    """The real-gated linear recurrent unit, which Griffin and RecurrentGemma are made of.

        r, i = s(split(U x_t + b))
        a = exp(-8 softplus(l) * r)
        h_t = a * h_tm1 + sqrt(1 - a^2) * (i * x_t),    y_t = h_t

    The root keeps the size of the state, whatever the decay. 1 - a^2 is computed as -expm1(2 log a), which has
    all its digits near a = 1, and the slope of the root is held below 1000, so that a gradient passes a closed
    gate. (RecurrentGemma leaves the root out at a sequence's first step.)
    Parameters U [H, 2H] (LeCun), order r, i, b [2H] (zero), l [H], drawn so that a is uniform in 0.9..0.999
    where r = 1; and initial_state [H] if it is learned. Griffin's U is block-diagonal where a model is spread
    over devices; this one is dense.
    Cost: 4 H^2 FLOPs per step and example, all of it outside the recurrence; about 10H numbers kept per step by
    `lax.scan`, 5H by `jaxrnn.scan`.
    Raises: ValueError or TypeError at construction for a bad size or dtype, and at init for an x with other than
    H features.
    De et al. 2024, "Griffin: mixing gated linear recurrences with local attention".
    """
    size = checks.positive_int("rg_lru", "size", size)
    return RGLRU(size, checks.float_dtype("rg_lru", dtype), learn_initial_state).cell


@dataclass(frozen=True)
class RGLRU(RecurrentCell):
    name: ClassVar[str] = "rg_lru"

    @property
    def columns(self) -> int:
        return 2 * self.size

    def as_state(self, start: Tree) -> State:
        return widened(start)

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        same_width(self.name, x, self.size)
        k_input, k_decay = jax.random.split(key)
        decay = uniform(k_decay, (self.size,), trees.wide(self.dtype), 0.9, 0.999)
        return {
            "U": input_weights(k_input, x, self.columns, self.dtype, self.name),
            "b": jnp.zeros((self.columns,), self.dtype),
            "l": jnp.log(jnp.expm1(-jnp.log(decay) / 8)).astype(self.dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        x = x.astype(params["U"].dtype)
        r, i = (sigmoid(widened(gate)) for gate in blocks(affine(x, params["U"], params["b"]), 2))
        log_a = per_feature(-8 * softplus(widened(params["l"])), r) * r
        h = jnp.exp(log_a) * h_tm1 + bounded_sqrt(-jnp.expm1(2 * log_a)) * (i * widened(x))
        return h, h.astype(x.dtype)


def selective_ssm(
    size: int,
    *,
    states: int = 16,
    rank: int | None = None,
    steps: tuple[float, float] = (0.001, 0.1),
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The selective state space, the core of Mamba: the input decides what each feature's N states take in.

        r, k, q = split(U x_t)
        delta = softplus(V r + b)                                       one step size per feature
        h_t = exp(-delta exp(a)) * h_tm1 + (delta * x_t) k^T            [H, N]
        y_t = h_t q + d * x_t

    Parameters U [H, R + 2N] (LeCun), order r, k, q; V [R, H] (uniform in +-1 / sqrt(R)); b [H], such that
    softplus(b) is log-uniform in `steps`; a [H, N] = log(1..N); d [H] = 1; and initial_state [H, N] if it is
    learned. R is `rank`, or H / 16 rounded up.
    Cost: 4 H (R + N) FLOPs in products and about 10 H N others per step and example, of which 2 H N in the
    recurrence; about 3 H N numbers kept per step by `lax.scan`, 2 H N by `jaxrnn.scan`: over long sequences keep
    less, by `checkpointed`, say.
    Raises: ValueError or TypeError at construction for a bad size, states, rank, steps or dtype, and at init for
    an x with other than H features.
    Gu and Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces".
    """
    size = checks.positive_int("selective_ssm", "size", size)
    states = checks.positive_int("selective_ssm", "states", states)
    rank = -(-size // 16) if rank is None else checks.positive_int("selective_ssm", "rank", rank)
    low, high = map(checks.number, steps) if isinstance(steps, (tuple, list)) and len(steps) == 2 else (1.0, 0.0)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"selective_ssm: steps must be two step sizes with 0 < least <= largest, got {steps!r}")
    dtype = checks.float_dtype("selective_ssm", dtype)
    return SelectiveSSM(size, dtype, learn_initial_state, states, rank, (low, high)).cell


@dataclass(frozen=True)
class SelectiveSSM(RecurrentCell):
    states: int
    rank: int
    steps: tuple[float, float]
    name: ClassVar[str] = "selective_ssm"

    @property
    def columns(self) -> int:
        return self.rank + 2 * self.states

    def zeros(self, dtype: Any) -> jax.Array:
        return jnp.zeros((self.size, self.states), dtype)

    def as_state(self, start: Tree) -> State:
        return widened(start)

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        same_width(self.name, x, self.size)
        k_input, k_rank, k_step = jax.random.split(key, 3)
        size, dtype = self.size, self.dtype
        low, high = map(math.log, self.steps)
        first = jnp.exp(uniform(k_step, (size,), trees.wide(dtype), low, high))
        rates = jnp.broadcast_to(jnp.log(jnp.arange(1.0, self.states + 1, dtype=first.dtype)), (size, self.states))
        return {
            "U": input_weights(k_input, x, self.columns, dtype, self.name),
            "V": uniform(k_rank, (self.rank, size), dtype, -(self.rank**-0.5), self.rank**-0.5),
            "b": jnp.log(jnp.expm1(first)).astype(dtype),
            "a": rates.astype(dtype),
            "d": jnp.ones((size,), dtype),
        }

    def equations(self, params: Params, h_tm1: jax.Array, x: jax.Array) -> tuple[State, jax.Array]:
        x = x.astype(params["U"].dtype)
        R, N = self.rank, self.states
        r, k, q = jnp.split(jnp.dot(x, params["U"]), (R, R + N), axis=-1)
        delta = softplus(widened(affine(r, params["V"], params["b"])))[..., None]
        decay = jnp.exp(per_feature(-jnp.exp(widened(params["a"])), h_tm1) * delta)
        h = decay * h_tm1 + (delta * widened(x)[..., None]) * widened(k)[..., None, :]
        y = jnp.sum(h * widened(q)[..., None, :], axis=-1).astype(x.dtype)
        return h, y + per_feature(params["d"], x) * x
