"""Types on a mesh of devices: an array's sharding, and inside `jax.shard_map` the axes over which it varies.

A loop's carry must come out in the type in which it went in. Zeros that a cell makes for its first state
know nothing of the batch's devices, so they are given the type that the step returns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn.types import Tree


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names."""
    return () if entry is None else tuple(entry) if isinstance(entry, tuple) else (entry,)


class Shards(NamedTuple):
    """How examples are spread: over which axes of which mesh."""

    axes: tuple[str, ...]
    mesh: Any  # that of the arrays' types (explicit), or the one that is set (automatic)

    @property
    def parts(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def is_explicit(self) -> bool:
        return set(self.axes) <= set(self.mesh.explicit_axes)

    def first(self, rest: Iterable[Any]) -> NamedSharding:
        """The first axis spread over the devices, the others as said."""
        return NamedSharding(self.mesh, PartitionSpec(self.axes, *rest))

    def at(self, axis: int, spec: Sequence[Any]) -> NamedSharding | None:
        """A type's sharding with one axis spread over the devices; None where types do not say it."""
        spread = PartitionSpec(*spec[:axis], self.axes, *spec[axis + 1 :])
        return NamedSharding(self.mesh, spread) if self.is_explicit else None


_told: ContextVar[Shards | None] = ContextVar("_told", default=None)


@contextlib.contextmanager
def examples_spread(shards: Shards | None) -> Iterator[None]:
    """Inside, loops are traced for examples that lie so, where automatic partitioning has types say nothing."""
    token = _told.set(shards)
    try:
        yield
    finally:
        _told.reset(token)


def told() -> Shards | None:
    """How examples are spread, if one was told."""
    return _told.get()


def on_mesh(*trees: Tree) -> bool:
    """Whether anything runs on a mesh: under `jax.set_mesh` or `jax.shard_map`, or because an array lies on one."""
    return _here() or told() is not None or any(_lies_somewhere(jax.typeof(leaf)) for leaf in jax.tree.leaves(trees))


def placed(tree: Tree, like: Tree) -> Tree:
    """The arrays of a tree, sharded as those of another or their types, and varying over what they vary over."""
    return jax.tree.map(_placed, tree, like)


def alike(tree: Tree) -> Tree:
    """Arrays that all vary over the axes of `jax.shard_map` over which any of them does."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    every = frozenset().union(*(_varying(jax.typeof(leaf)) for leaf in arrays))
    more = lambda leaf: tuple(sorted(every - _varying(jax.typeof(leaf)))) if hasattr(leaf, "dtype") else ()
    return structure.unflatten([lax.pcast(x, more(x), to="varying") if more(x) else x for x in leaves])


def common(array: jax.Array, axis: str, of: int = 0) -> jax.Array:
    """What one device along an axis of `jax.shard_map` has, as an array that does not vary over it."""
    if axis not in _varying(jax.typeof(array)):
        return array
    return lax.psum(jnp.where(lax.axis_index(axis) == of, array, jnp.zeros_like(array)), axis)


def settled(step: Callable[..., tuple[Tree, Any]], carry: Tree, x: Tree) -> Tree:
    """The carry in the type in which step(carry, x) -> (carry, y) returns it, shapes and dtypes apart.

    Type goes from leaf to leaf, one look at a time: h may get the batch's sharding from x, and c then from h.
    """
    for _ in jax.tree.leaves(carry):
        after = placed(carry, jax.eval_shape(step, carry, x)[0])
        if jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, carry):
            break
        carry = after
    return carry


def _here() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def _varying(leaf: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` over which an array or type varies."""
    kind = leaf.manual_axis_type
    return frozenset() if kind is None else kind.varying


def _placed(leaf: Any, like: Any) -> Any:
    now, wanted = (a if isinstance(a, jax.ShapeDtypeStruct) else jax.typeof(a) for a in (leaf, like))
    more = _varying(wanted) - _varying(now)
    if more:
        leaf = lax.pcast(leaf, tuple(sorted(more)), to="varying")
    # Outside of jit JAX takes an array without devices as it comes, and cannot move it without a mesh being set.
    movable = _here() or isinstance(leaf, jax.core.Tracer)
    if movable and _lies_somewhere(wanted) and wanted.sharding != now.sharding:
        leaf = jax.reshard(leaf, wanted.sharding)
    return leaf


def _lies_somewhere(kind: Any) -> bool:
    return kind.sharding is not None and not kind.sharding.mesh.empty
