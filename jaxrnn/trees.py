"""Pytrees of arrays and of their types: types of one step and of all, bytes, and leaves picked out and put back.

A type here is what `jax.eval_shape` or `jax.typeof` gives: shape, dtype, weak type, and on a mesh also
the sharding and over which axes it varies. Types are made by JAX itself, never put together from a
shape and a dtype, so that none of this gets lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.types import Tree

Leaf = TypeVar("Leaf")


def struct(tree: Tree) -> Tree:
    """The types of a pytree of arrays or of types."""
    return jax.eval_shape(lambda tree: tree, tree)


def placed_nowhere(tree: Tree) -> Tree:
    """The types of a pytree as on one device, without a word of where it lies."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), struct(tree))


def zeros_of(tree: Tree) -> Tree:
    """Zeros of the given types, for initialisers that want an array."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), struct(tree))


def first_step(xs: Tree) -> Tree:
    """The types of one step of xs: the leading (time) dimension removed, as `lax.scan` does it."""
    if not jax.tree.leaves(xs):
        return xs
    found: list[Tree] = []

    def body(carry: Tree, x: Tree) -> tuple[Tree, None]:
        found.append(struct(x))
        return carry, None

    jax.eval_shape(lambda xs: lax.scan(body, (), xs), xs)
    return found[-1]


def all_steps(x: Tree, steps: int) -> Tree:
    """The types of all steps of x: a leading (time) dimension added."""
    return jax.eval_shape(lambda x: jax.tree.map(lambda a: lax.broadcast(a, (steps,)), x), x)


def of_type(leaf: Any, wanted: Any) -> jax.Array:
    """The leaf as an array in the dtype of a type; a weak type stays weak where that is wanted."""
    array = jnp.asarray(leaf)
    is_weak, may_be = (getattr(a, "weak_type", False) for a in (array, wanted))  # keys have no such thing
    if array.dtype == wanted.dtype and (may_be or not is_weak):
        return array
    return lax.convert_element_type(array, wanted.dtype)


def same_structure(a: Tree, b: Tree) -> bool:
    """Whether two pytrees agree in all but their leaves."""
    return bool(jax.tree_util.tree_structure(a) == jax.tree_util.tree_structure(b))


def same_shapes(a: Tree, b: Tree) -> bool:
    """Whether two pytrees agree in structure and in every leaf's shape."""
    return bool(jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b))


def nbytes(tree: Tree) -> int:
    """Bytes of all arrays (or types of arrays) in a pytree."""
    return sum(map(leaf_bytes, jax.tree.leaves(tree)))


def leaf_bytes(leaf: Any) -> int:
    """Bytes of one array or type; a key counts as the numbers that it is made of, a symbolic size as 1."""
    known = [n if isinstance(n, int) else 1 for n in jnp.shape(leaf)]
    return math.prod(known) * int(getattr(_dtype(leaf), "itemsize", 4))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_float(leaf: Any) -> bool:
    """Whether it has a tangent of its own type: not an integer, a boolean or a key."""
    return bool(jnp.issubdtype(_dtype(leaf), jnp.inexact))


def is_key(leaf: Any) -> bool:
    """Whether it is an array of PRNG keys."""
    return bool(jnp.issubdtype(_dtype(leaf), jax.dtypes.prng_key))


def without_key(leaf: Any) -> Any:
    """The array, or the numbers that an array of keys is made of."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def wide(dtype: Any) -> Any:
    """The dtype, or float32 for one of 16 bits: sums over a sequence soon pass what those can hold."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32


def only(which: Iterable[bool], leaves: Iterable[Leaf]) -> list[Leaf]:
    """The marked leaves."""
    return [leaf for chosen, leaf in zip(which, leaves, strict=True) if chosen]


def put(which: Sequence[bool], chosen: Iterable[Leaf], others: Iterable[Leaf]) -> list[Leaf]:
    """others, with the chosen leaves in the marked places."""
    fresh = iter(chosen)
    return [next(fresh) if has else other for has, other in zip(which, others, strict=True)]


def with_float0(tangents: Iterable[Any], values: Sequence[Any]) -> list[Any]:
    """The tangents of the floating leaves, and in between those that integers and keys have."""
    zeros = [None if is_float(v) else np.zeros(jnp.shape(v), jax.dtypes.float0) for v in values]
    return put([is_float(v) for v in values], tangents, zeros)
