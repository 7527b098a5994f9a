"""Weights that someone else's module came with, as a value: `Held`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrnn import trees
from jaxrnn.cells.base import Definition
from jaxrnn.types import Key, Params, Tree


@dataclass(frozen=True, eq=False)
class Held:
    """A pytree, equal to another of the same structure whose arrays hold the same bytes.

    Arrays have no truth value to compare by, and no hash; a cell needs both.
    """

    tree: Tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and (self.tree is other.tree or _alike(self.tree, other.tree))

    def __hash__(self) -> int:
        leaves, structure = jax.tree.flatten(self.tree)
        return hash((structure, tuple(map(_kind, leaves))))


def _alike(a: Tree, b: Tree) -> bool:
    return trees.same_structure(a, b) and all(map(_same, jax.tree.leaves(a), jax.tree.leaves(b)))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array))


def _kind(leaf: Any) -> Any:
    return (str(leaf.dtype), leaf.shape) if _is_array(leaf) else leaf


def _same(a: Any, b: Any) -> bool:
    if _kind(a) != _kind(b):
        return False
    return not _is_array(a) or np.asarray(a).tobytes() == np.asarray(b).tobytes()


@dataclass(frozen=True)
class FromModule(Definition):
    """A cell that was a module with weights in it: those are its first parameters, whatever the key."""

    def init(self, key: Key, x: Any) -> Params:
        del key, x
        return self.first

    @property
    def first(self) -> Params:
        raise NotImplementedError


def for_each(dimensions: int, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one example as a function of a batch with so many dimensions."""
    for _ in range(dimensions):
        fn = jax.vmap(fn)
    return fn
