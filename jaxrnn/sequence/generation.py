"""`generate`: feed a cell its own outputs; and the ways to turn an output into the next input."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.sequence.feedback import checked, fed_back
from jaxrnn.types import Cell, Key, Params, State, Tree

Sampler = Callable[[Key | None, Tree], Tree]  # (key, y) -> the next step's x


def greedy() -> Sampler:
    """The most likely class: argmax over the last dimension of logits [*B, V] -> [*B] int32. Needs no key."""

    def sample(key: Key | None, logits: jax.Array) -> jax.Array:
        del key
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return sample


def _a_temperature(where: str, value: float) -> float:
    if not 0 < checks.number(value) < math.inf:
        raise ValueError(f"{where}: temperature must be a positive number, got {value!r}; use greedy() for none")
    return checks.number(value)


def _draw(where: str, key: Key | None, logits: jax.Array) -> jax.Array:
    if key is None:
        raise ValueError(f"{where}: drawing needs a key; pass generate(..., key=...), or sample with greedy()")
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def temperature(value: float = 1.0) -> Sampler:
    """A draw from softmax(logits / value), logits [*B, V] -> [*B] int32.

    Below 1 it is bolder, towards `greedy`; above 1 more even. Consumes the step's key.
    Raises: ValueError for a value that is not positive; at the step, for a missing key.
    """
    value = _a_temperature("temperature", value)
    return lambda key, logits: _draw("temperature", key, logits / value)


def top_k(k: int, value: float = 1.0) -> Sampler:
    """A draw from softmax(logits / value) among the k most likely classes, logits [*B, V] -> [*B] int32.

    Raises: ValueError for k below 1 or above V, a value that is not positive, or a missing key.
    Fan et al. 2018, "Hierarchical neural story generation".
    """
    k = checks.positive_int("top_k", "k", k)
    value = _a_temperature("top_k", value)

    def sample(key: Key | None, logits: jax.Array) -> jax.Array:
        if k > logits.shape[-1]:
            raise ValueError(f"top_k: k = {k} but there are only {logits.shape[-1]} classes")
        best, classes = lax.top_k(logits, k)
        chosen = _draw("top_k", key, best / value)
        return jnp.take_along_axis(classes, chosen[..., None], axis=-1)[..., 0].astype(jnp.int32)

    return sample


def generate(
    cell: Cell,
    params: Params,
    state: State,
    x: Tree,
    steps: int,
    sample: Sampler,
    key: Key | None = None,
) -> tuple[State, Tree]:
    """Lets a cell go on by itself, each output turned into the next input.

        for t in range(steps):
            state, y = cell.step(params, state, x)
            x = xs[t] = sample(key_t, y)
        return state, xs

    Shapes: x [*B, ...] the first input (a prompt's last element, after `unroll` over those before
    it), xs [steps, *B, ...]. The cell runs without randomness; `key` is split into one key per step
    for `sample`: `greedy()`, `temperature(0.8)`, `top_k(5)`, or any (key, y) -> x; for a series of
    numbers, `lambda key, y: y`. Sampled integers take x's type. Calling it again with the state and the last x goes on.
    Cost: `steps` steps, in one compiled loop. Raises: ValueError for a negative `steps`, a state that the
    cell cannot take, a sample whose type is not that of x, or a sampler's own complaint.
    """
    if not callable(sample):
        raise TypeError(f"generate: sample must be a sampler such as greedy() or temperature(0.8), got {sample!r}")
    state, x, steps, y = checked("generate", cell, params, state, x, steps)
    keys = None if key is None else jax.random.split(key, steps)
    as_x = lambda key, y: jax.tree.map(_as_token, x, sample(key, y))
    sampled = jax.eval_shape(as_x, trees.first_step(keys), y)
    checks.same_type("generate", "sample(y)", trees.struct(x), sampled, "each sample is the next step's x")

    def choose(key: Key | None, memory: Tree, state: State, y: Tree) -> tuple[tuple[Tree, State, Tree], Tree]:
        chosen = as_x(key, y)
        return (memory, state, chosen), chosen

    step = lambda state, x: cell.step(params, state, x)
    (_, state, _), xs = fed_back(step, choose, (), state, x, steps, keys, like=params)
    return state, xs


def _as_token(old: jax.Array, new: jax.Array) -> jax.Array:
    """Classes come in int32; tokens may be of any integer type."""
    both = jnp.issubdtype(old.dtype, jnp.integer) and jnp.issubdtype(new.dtype, jnp.integer)
    return new.astype(old.dtype) if both else new
