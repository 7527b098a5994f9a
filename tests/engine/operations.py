"""The kinds of operations that random steps are made of. Each takes where it stands and two vectors, and gives one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

N = 3  # features
SLOTS = 3  # of a ring buffer: fewer than there are steps, so that it goes round
KEYS = ("threefry2x32", "rbg", "unsafe_rbg")


class Here(NamedTuple):
    """What a step has besides the vectors."""

    w: jax.Array  # [4, N, N] weights
    n: jax.Array  # how many steps were before this one
    more: dict  # what an operation's `reads` asks for: leaves of the carry, keys of this step


class Carry(NamedTuple):
    """A leaf of the carry that is there for the operations that read it."""

    first: Callable  # dtype -> the leaf
    next: Callable  # (here, a) -> the leaf after this step


class Operation(NamedTuple):
    run: Callable  # (here, u, v) -> [N]
    reads: tuple = ()  # names of CARRIES and of KEYS
    forward: bool = True  # False: has no forward mode (a custom_vjp)
    narrow: bool = True  # False: not in 16 bits, or a small difference there makes a large one


def _complex(re, im=None):
    return lax.complex(re, jnp.zeros_like(re) if im is None else im)


def _pushed(here, a):
    """A ring buffer: the newest vector replaces the oldest."""
    return lax.dynamic_update_slice_in_dim(here.more["buffer"], a[None], here.n % SLOTS, axis=0)


CARRIES = {
    "buffer": Carry(lambda dtype: jnp.full((SLOTS, N), 0.3, dtype), _pushed),
    "turning": Carry(
        lambda dtype: jnp.full(N, 0.5 + 0.2j), lambda here, a: here.more["turning"] * (0.6 + 0.7j) + _complex(a)
    ),
    "places": Carry(
        lambda dtype: jnp.arange(N, dtype=jnp.int32), lambda here, a: (3 * here.more["places"] + here.n) % 4
    ),
    "carried key": Carry(
        lambda dtype: jax.random.key(11), lambda here, a: jax.random.split(here.more["carried key"])[0]
    ),
}


def bounded(a, smooth):
    """Values that no program of nine operations makes large."""
    return 3 * jnp.tanh(a / 3) if smooth else jnp.clip(a, -3, 3)


# --- rules of their own -------------------------------------------------------------------------


@jax.custom_vjp
def clipped(w):
    """Itself; its gradient is clipped, every step's for itself."""
    return w


clipped.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def normalised(w):
    """Itself; its gradient gets the norm of the weight."""
    return w


normalised.defvjp(
    lambda w: (w, jnp.sqrt(jnp.sum(w * w))), lambda norm, g: (g * norm / (0.1 + jnp.sqrt(jnp.sum(g * g))),)
)


@jax.custom_vjp
def bent(a):
    """tanh, with the derivative of something else."""
    return jnp.tanh(a)


bent.defvjp(lambda a: (jnp.tanh(a), a), lambda a, g: (g * jnp.cos(a),))


@jax.custom_vjp
def scaled(a, w):
    """A product with a rule of its own in both factors."""
    return a @ w


scaled.defvjp(lambda a, w: (a @ w, (a, w)), lambda kept, g: (2 * (g @ kept[1].T), jnp.tanh(jnp.outer(kept[0], g))))


@jax.custom_jvp
def steep(a):
    """sin, with twice its derivative: as an activation, or of a weight."""
    return jnp.sin(a)


steep.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), 2 * jnp.cos(primals[0]) * tangents[0]))


# --- others that need more than a line ----------------------------------------------------------


def _nested(w, u, v):
    """A loop within the step, with a weight and a value of the step closed over."""
    body = lambda c, _: (jnp.tanh(c @ w + v), c[0])
    c, firsts = lax.scan(body, u, None, length=2)
    return c + jnp.sum(firsts)


def _while(u, v):
    return lax.fori_loop(0, 2, lambda i, a: jnp.sin(a) + v * i.astype(v.dtype), u)


def _attended(here, u, v):
    """Softmax attention of u over the buffer, whose values pass a weight."""
    keys = here.more["buffer"]
    return jax.nn.softmax(keys @ u) @ (keys @ here.w[1]) + v


def _newest(here, u, v):
    return u * lax.dynamic_index_in_dim(here.more["buffer"], here.n % SLOTS, keepdims=False) + v


def _written(here, u, v):
    """A buffer that lives for one step only."""
    return lax.dynamic_update_slice_in_dim(here.more["buffer"], jnp.tanh(v)[None], 1, axis=0).sum(0) * u


def _complex_weight(here, u, v):
    return jnp.abs(_complex(u) @ _complex(here.w[0], here.w[2]) + _complex(v + 2))


def _convolved(here, u, v):
    """A circular convolution through the Fourier transform."""
    return jnp.fft.ifft(jnp.fft.fft(u) * jnp.fft.fft(v)).real


def _phase(here, u, v):
    return jnp.real(jnp.exp(_complex(jnp.zeros_like(u), u))) * v


def _turned(here, u, v):
    turning = here.more["turning"]
    return jnp.imag(turning * _complex(u)) + jnp.abs(turning @ _complex(here.w[3], here.w[0])) * v


def _noise(impl):
    return lambda here, u, v: u + jax.random.uniform(here.more[impl], u.shape, u.dtype) * v


def _dropped(here, u, v):
    keep = jax.random.bernoulli(jax.random.fold_in(here.more["rbg"], here.n), 0.6, u.shape)
    return jnp.where(keep, u @ here.w[1], v)


def _drawn_from_a_carried_key(here, u, v):
    return u * jax.random.uniform(here.more["carried key"], u.shape, u.dtype) + v


def _rounded(here, u, v):
    """A detour through integers, over which no gradient comes."""
    return jnp.round(2 * u).astype(jnp.int32).astype(v.dtype) * v


OPERATIONS = {
    "row @ weight": Operation(lambda here, u, v: u @ here.w[0]),
    "weight @ column": Operation(lambda here, u, v: here.w[1] @ u),
    "affine": Operation(lambda here, u, v: u @ here.w[2] + v),
    "product of weights": Operation(lambda here, u, v: v - u @ (here.w[0] * here.w[1])),
    "sum": Operation(lambda here, u, v: u + v),
    "product": Operation(lambda here, u, v: u * v),
    "scaled by a row": Operation(lambda here, u, v: u * here.w[3, 0]),
    "plus a row": Operation(lambda here, u, v: u + here.w[3, 1]),
    "tanh": Operation(lambda here, u, v: jnp.tanh(u)),
    "relu, softplus": Operation(lambda here, u, v: jax.nn.relu(u) + jax.nn.softplus(v), narrow=False),
    "where": Operation(lambda here, u, v: jnp.where(u > v, u, 0.5 * v), narrow=False),
    "parts": Operation(lambda here, u, v: jnp.concatenate([u[:1], v[1:]])),
    "softmax": Operation(lambda here, u, v: jax.nn.softmax(u) * jnp.sum(v)),
    "outer product": Operation(lambda here, u, v: jnp.outer(u, v) @ u),
    "backwards": Operation(lambda here, u, v: jnp.stack([u, v])[:, ::-1].sum(0)),
    "a row by the counter": Operation(lambda here, u, v: here.w[here.n % 4, 0] + u),
    "from the second step": Operation(lambda here, u, v: jnp.where(here.n > 1, u, v)),
    "cond": Operation(lambda here, u, v: lax.cond(jnp.sum(u) > 0, lambda a: a @ here.w[1], jnp.sin, v), narrow=False),
    "stop_gradient": Operation(lambda here, u, v: lax.stop_gradient(u) * v),
    "checkpoint": Operation(lambda here, u, v: jax.checkpoint(lambda a: jnp.sin(a @ here.w[2]))(u)),
    "jit": Operation(lambda here, u, v: jax.jit(lambda a, b: jnp.cos(a) - b)(u, v)),
    "scan": Operation(lambda here, u, v: _nested(here.w[0], u, v)),
    "fori_loop": Operation(lambda here, u, v: _while(u, v)),
    "integers": Operation(_rounded, narrow=False),
    "attention over a buffer": Operation(_attended, reads=("buffer",)),
    "a row of a buffer": Operation(_newest, reads=("buffer",)),
    "written into a buffer": Operation(_written, reads=("buffer",)),
    "custom_vjp of a weight, clipped": Operation(lambda here, u, v: u @ clipped(here.w[0]) + v, forward=False),
    "custom_vjp of a weight, normalised": Operation(lambda here, u, v: v - u @ normalised(here.w[1]), forward=False),
    "custom_vjp of a vector": Operation(lambda here, u, v: bent(u @ here.w[2] + v), forward=False),
    "custom_vjp of a product": Operation(lambda here, u, v: scaled(u, here.w[3]), forward=False),
    "custom_jvp of a weight": Operation(lambda here, u, v: u @ steep(here.w[0]) + v),
    "custom_jvp of a vector": Operation(lambda here, u, v: steep(u) * v),
    "complex weight": Operation(_complex_weight, narrow=False),
    "Fourier transform": Operation(_convolved, narrow=False),
    "complex phase": Operation(_phase, narrow=False),
    "complex carry": Operation(_turned, reads=("turning",), narrow=False),
    "integers in the carry": Operation(
        lambda here, u, v: u[here.more["places"] % N] + here.w[here.more["places"][0], 1], reads=("places",)
    ),
    **{f"noise, {impl}": Operation(_noise(impl), reads=(impl,)) for impl in KEYS},
    "dropout by the counter": Operation(_dropped, reads=("rbg",)),
    "a carried key": Operation(_drawn_from_a_carried_key, reads=("carried key",)),
}
