"""Linear recurrences with a fixed complex eigenvalue per unit: `lru`, `s5`.

Shapes, for both: x and output [*B, H], any number of batch dimensions; the state is a ComplexState, two leaves
[*B, N]. H features go in and come out, mixed by N oscillators that fade; what stands around such a layer
(normalisation, a gate, a residual connection) is for `stack` and `residual` to add.

Complex numbers are pairs of real ones throughout, since `jax.checkpoint` with a policy refuses others (JAX 0.10 and
0.12), and with it resets would. Parameters and output have the given dtype. The state is float32 also for 16-bit
dtypes (float64 for float64): eigenvalues near 1 need the digits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks, trees
from jaxrnn.cells.base import RecurrentCell, blocks, per_feature, same_width, uniform, widened
from jaxrnn.types import Cell, Key, Params, State, Tree

Pair = tuple[jax.Array, jax.Array | None]  # real and imaginary part; None for a real number


class ComplexState(NamedTuple):
    re: Any  # [*B, N]
    im: Any  # [*B, N]


def lru(
    size: int,
    *,
    states: int | None = None,
    ring: tuple[float, float] = (0.0, 1.0),
    max_phase: float = 2 * math.pi,
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The linear recurrent unit.

        a = exp(-exp(nu) + i exp(theta))
        h_t = a * h_tm1 + exp(gamma) * (B x_t)        complex, |a| < 1 whatever nu is
        y_t = Re(C h_t) + d * x_t

    Parameters nu, theta, gamma [N]; U [H, 2N], B's real parts, then its imaginary ones (normal, variance 1 / 2H
    each); C [2N, H] likewise (normal, variance 1 / N each); d [H] (normal); and initial_state if it is
    learned. N is `states`, or H. a starts uniform in area on the ring between the two radii, its phase
    uniform in 0..`max_phase`; exp(gamma) starts at sqrt(1 - |a|^2), which keeps the state's size that of the input.
    For long sequences choose a ring near 1 such as (0.9, 0.999), and a small `max_phase` such as pi / 10.
    Cost: 8 H N FLOPs per step and example in products, all of it outside the recurrence; about 6N numbers kept per
    step.
    Raises: ValueError or TypeError at construction for a bad size, states, ring, max_phase or dtype, and at init
    for an x with other than H features.
    Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences".
    """
    size = checks.positive_int("lru", "size", size)
    states = size if states is None else checks.positive_int("lru", "states", states)
    low, high = _interval("lru", "ring", ring)
    if not 0 <= low < high <= 1:
        raise ValueError(f"lru: ring must be two radii with 0 <= inner < outer <= 1, e.g. (0.9, 0.999), got {ring!r}")
    if not 0 < checks.number(max_phase) <= 2 * math.pi:
        raise ValueError(f"lru: max_phase must be an angle above 0, up to 2 pi, got {max_phase!r}")
    dtype = checks.float_dtype("lru", dtype)
    return LRU(size, dtype, learn_initial_state, states, (low, high), float(max_phase)).cell


def _interval(where: str, name: str, value: Any) -> tuple[float, float]:
    """Two numbers; NaN, which no range admits, for anything else."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{where}: {name} must be a pair of numbers, got {value!r}")
    return checks.number(value[0]), checks.number(value[1])


@dataclass(frozen=True)
class Diagonal(RecurrentCell):
    """h_t = a * h_tm1 + scale * (B x_t), y_t = outputs * Re(C h_t) + d * x_t; a and scale from the parameters."""

    states: int
    outputs: ClassVar[float]

    @property
    def columns(self) -> int:
        return 2 * self.states

    @property
    def sizes(self) -> ComplexState:
        return ComplexState(re=self.states, im=self.states)

    @abstractmethod
    def coefficients(self, params: Params) -> tuple[Pair, Pair]:
        """a and scale, [N]."""

    def as_state(self, start: Tree) -> State:
        return jax.tree.map(widened, start)

    def equations(self, params: Params, h_tm1: ComplexState, x: jax.Array) -> tuple[State, jax.Array]:
        dtype = params["U"].dtype
        x = x.astype(dtype)
        a, scale = self.coefficients(params)
        u_re, u_im = blocks(jnp.dot(x, params["U"], preferred_element_type=trees.wide(dtype)), 2)
        kept, new = _product(a, *h_tm1), _product(scale, u_re, u_im)
        h = ComplexState(kept[0] + new[0], kept[1] + new[1])
        # Re(C h) = Re(C) Re(h) - Im(C) Im(h), as one real product.
        parts = jnp.concatenate([h.re, -h.im], axis=-1).astype(dtype)
        return h, self.outputs * jnp.dot(parts, params["C"]) + per_feature(params["d"], x) * x


def _product(factor: Pair, re: jax.Array, im: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p + i q) (re + i im), p and q per feature."""
    p = per_feature(factor[0], re)
    if factor[1] is None:
        return p * re, p * im
    q = per_feature(factor[1], re)
    return p * re - q * im, p * im + q * re


def _normal(key: Key, shape: tuple[int, ...], variance: float, dtype: Any) -> jax.Array:
    return (math.sqrt(variance) * jax.random.normal(key, shape, trees.wide(dtype))).astype(dtype)


@dataclass(frozen=True)
class LRU(Diagonal):
    ring: tuple[float, float]
    max_phase: float
    name: ClassVar[str] = "lru"
    outputs: ClassVar[float] = 1.0

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        same_width(self.name, x, self.size)
        k_radius, k_phase, k_input, k_output, k_skip = jax.random.split(key, 5)
        (low, high), size, states = self.ring, self.size, self.states
        wide = trees.wide(self.dtype)
        tiny = 1e-6  # neither a radius of 0 or 1 nor a phase of 0 has a logarithm
        squared = uniform(k_radius, (states,), wide, max(low**2, tiny), min(high**2, 1 - tiny))
        nu = jnp.log(-0.5 * jnp.log(squared))
        phase = uniform(k_phase, (states,), wide, tiny * self.max_phase, self.max_phase)
        small = {"nu": nu, "theta": jnp.log(phase), "gamma": 0.5 * jnp.log1p(-squared)}
        return {name: value.astype(self.dtype) for name, value in small.items()} | {
            "U": _normal(k_input, (size, 2 * states), 1 / (2 * size), self.dtype),
            "C": _normal(k_output, (2 * states, size), 1 / states, self.dtype),
            "d": _normal(k_skip, (size,), 1.0, self.dtype),
        }

    def coefficients(self, params: Params) -> tuple[Pair, Pair]:
        nu, theta, gamma = (widened(params[name]) for name in ("nu", "theta", "gamma"))
        radius, phase = jnp.exp(-jnp.exp(nu)), jnp.exp(theta)
        return (radius * jnp.cos(phase), radius * jnp.sin(phase)), (jnp.exp(gamma), None)


def s5(
    size: int,
    *,
    states: int | None = None,
    steps: tuple[float, float] = (0.001, 0.1),
    dtype: Any = jnp.float32,
    learn_initial_state: bool = False,
) -> Cell:
    """The diagonal state space of S5: a continuous system, discretised by a step that is learned.

        a = exp(lambda * delta),    delta = exp(log_step)
        h_t = a * h_tm1 + (a - 1) / lambda * (B x_t)        zero-order hold, complex
        y_t = 2 Re(C h_t) + d * x_t

    lambda starts at those N of the 2N eigenvalues of the normal part of HiPPO-LegS, all of real part -1/2, that
    have a positive imaginary part: of a conjugate pair one is kept, hence the 2. In use its real part is held
    below -1e-4, so that no state grows.
    Parameters lambda [2, N] (real, imaginary parts); log_step [N], log-uniform in `steps`; U [H, 2N] and
    C [2N, H], real parts, then imaginary ones (LeCun, in the basis of the eigenvectors); d [H] (normal); and
    initial_state if it is learned. N is `states`, or H.
    Cost: 8 H N FLOPs per step and example in products, all of it outside the recurrence; about 6N numbers kept per
    step.
    Raises: ValueError or TypeError at construction for a bad size, states, steps or dtype, and at init for an x
    with other than H features.
    Smith et al. 2023, "Simplified state space layers for sequence modeling".
    """
    size = checks.positive_int("s5", "size", size)
    states = size if states is None else checks.positive_int("s5", "states", states)
    low, high = _interval("s5", "steps", steps)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"s5: steps must be two step sizes with 0 < least <= largest, got {steps!r}")
    return S5(size, checks.float_dtype("s5", dtype), learn_initial_state, states, (low, high)).cell


@dataclass(frozen=True)
class S5(Diagonal):
    steps: tuple[float, float]
    name: ClassVar[str] = "s5"
    outputs: ClassVar[float] = 2.0

    def weights(self, key: Key, x: Any) -> dict[str, Any]:
        same_width(self.name, x, self.size)
        k_step, k_input, k_output, k_skip = jax.random.split(key, 4)
        size, states, wide = self.size, self.states, trees.wide(self.dtype)
        values, vectors = hippo_eigenvalues(states)
        # B and C are drawn for the system before it was made diagonal: V^-1 B and C V are complex.
        B = _normal(k_input, (2 * states, size), 1 / size, wide)
        C = _normal(k_output, (2, size, 2 * states), 1 / (2 * states), wide)
        V = [jnp.asarray(part, wide) for part in (vectors.real, vectors.imag)]
        C_re, C_im = C[0] @ V[0] - C[1] @ V[1], C[0] @ V[1] + C[1] @ V[0]
        low, high = map(math.log, self.steps)
        drawn = {
            "lambda": jnp.asarray(np.stack([values.real, values.imag]), wide),
            "log_step": uniform(k_step, (states,), wide, low, high),
            "U": jnp.concatenate([(V[0].T @ B).T, -(V[1].T @ B).T], axis=-1),
            "C": jnp.concatenate([C_re, C_im], axis=-1).T,
            "d": _normal(k_skip, (size,), 1.0, wide),
        }
        return {name: value.astype(self.dtype) for name, value in drawn.items()}

    def coefficients(self, params: Params) -> tuple[Pair, Pair]:
        real, imaginary = widened(params["lambda"])
        real, delta = jnp.minimum(real, -1e-4), jnp.exp(widened(params["log_step"]))
        fade, turn = real * delta, imaginary * delta
        a_imaginary = jnp.exp(fade) * jnp.sin(turn)
        less_one = (
            jnp.expm1(fade) * jnp.cos(turn) - 2 * jnp.sin(turn / 2) ** 2
        )  # the real part of a - 1, all its digits
        squared = real * real + imaginary * imaginary
        scale = (less_one * real + a_imaginary * imaginary, a_imaginary * real - less_one * imaginary)
        return (1 + less_one, a_imaginary), (scale[0] / squared, scale[1] / squared)


def hippo_eigenvalues(states: int) -> tuple[np.ndarray, np.ndarray]:
    """[N] eigenvalues of positive imaginary part, and [2N, N] unit eigenvectors, of the normal part of HiPPO-LegS.

    S_nk = -+sqrt((n + 1/2) (k + 1/2)) for n > k, n < k,    -1/2 on the diagonal
    """
    root = np.sqrt(np.arange(2 * states) + 0.5)
    skew = np.triu(np.outer(root, root), 1)
    # i (S + 1/2) is Hermitian; its eigenvalues are those of S + 1/2, turned by 90 degrees.
    turned, vectors = np.linalg.eigh(1j * (skew - skew.T))
    positive = np.argsort(turned)[:states]  # those that turn back to a positive imaginary part
    return -0.5 - 1j * turned[positive], vectors[:, positive]
