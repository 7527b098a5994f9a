"""What a pytree is made of and of which type each leaf is, as JSON: so that both can be had back without pickle.

A program that runs without jaxrnn takes and gives no classes of ours. There a tree is a dict of its arrays by name,
{"1/h": ..., "1/c": ...}, and a bare array is itself; PRNG keys are the numbers that they are made of.
"""

from __future__ import annotations

import functools
import itertools
import keyword
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey

from jaxrnn import trees
from jaxrnn.types import Tree

Json = Any
_LEAF: Any = jax.tree.structure(0)


@dataclass(frozen=True)
class LeafType:
    """An array's type; a size that is free is a letter. `key` is the implementation, of an array of PRNG keys."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def as_json(self) -> Json:
        about = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return about if self.key is None else {**about, "key": self.key}


@dataclass(frozen=True)
class Layout:
    """A pytree's structure, its leaves' types, and both as JSON."""

    structure: Any
    leaves: tuple[LeafType, ...]
    as_json: Json

    @property
    def bare(self) -> bool:
        """Whether the tree is one array and nothing around it."""
        return bool(self.structure == _LEAF)

    def by_name(self, tree: Tree) -> Any:
        """The arrays by name, keys as their data; a bare array as itself."""
        plain = list(map(trees.without_key, jax.tree.leaves(tree)))
        return plain[0] if self.bare else dict(zip(self.names, plain, strict=True))

    def tree(self, named: Any) -> Tree:
        """The inverse of `by_name`."""
        arrays = [named] if self.bare else [named[name] for name in self.names]
        keyed = [with_key(array, leaf.key) for array, leaf in zip(arrays, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, keyed)

    @property
    def types_by_name(self) -> Any:
        """The leaves' types in the form in which `by_name` has the arrays."""
        return self.leaves[0] if self.bare else dict(zip(self.names, self.leaves, strict=True))

    @property
    def names(self) -> list[str]:
        return [leaf.name for leaf in self.leaves]


def with_key(array: Any, key: str | None) -> Any:
    """An array, or keys of the numbers that they are made of."""
    return array if key is None else jax.random.wrap_key_data(jnp.asarray(array), impl=key)


# --- a tree into JSON -----------------------------------------------------------------------------------------------


def layout(tree: Tree, bare: str = "value") -> Layout:
    """Of a tree of arrays or types; `bare` is the name of an array that is all of it.

    Raises: ValueError for a dict whose keys are neither texts nor whole numbers.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = _distinct([jax.tree_util.keystr(path, simple=True, separator="/") or bare for path in paths])
    leaves = tuple(map(_leaf_type, names, jax.tree.leaves(tree)))
    return Layout(jax.tree.structure(tree), leaves, _described(tree, iter(leaves)))


def _distinct(names: Sequence[str]) -> list[str]:
    """{"a/b": x, "a": {"b": y}} has two leaves of one name: the later ones get a number."""
    found: dict[str, None] = {}
    for name in names:
        again = itertools.count(2)
        other = name
        while other in found:
            other = f"{name}#{next(again)}"
        found[other] = None
    return list(found)


def _leaf_type(name: str, leaf: Any) -> LeafType:
    shape = tuple(n if isinstance(n, int) else str(n) for n in jnp.shape(leaf))
    dtype = jnp.result_type(leaf)
    if not trees.is_key(leaf):
        return LeafType(name, shape, str(dtype))
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), leaf)
    return LeafType(name, shape, str(dtype), found[0])


def _described(tree: Tree, leaves: Any) -> Json:
    if _LEAF == jax.tree.structure(tree):
        return next(leaves).as_json
    if tree is None:
        return {"kind": "none"}
    paths, children = _one_level(tree)
    parts = [_described(child, leaves) for child in children]
    if isinstance(tree, list) or (isinstance(tree, tuple) and not hasattr(tree, "_fields")):
        return {"kind": "list" if isinstance(tree, list) else "tuple", "parts": parts}
    if paths and all(isinstance(path, GetAttrKey) for path in paths):  # NamedTuples, dataclasses
        place = f"{type(tree).__module__}.{type(tree).__qualname__}"
        return {"kind": "fields", "class": place, "names": [path.name for path in paths], "parts": parts}
    if all(isinstance(path, DictKey) for path in paths) and isinstance(tree, Mapping):
        keys = [_dict_key(path.key) for path in paths]
        return {"kind": "ordered" if isinstance(tree, OrderedDict) else "dict", "names": keys, "parts": parts}
    return {"kind": "tuple", "parts": parts}


def _one_level(tree: Tree) -> tuple[list[Any], list[Tree]]:
    """The paths of a node's children, one key each, and the children."""
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return [path[0] for path, _ in children], [child for _, child in children]


def _dict_key(key: Any) -> str | int:
    if not isinstance(key, (str, int)):
        raise ValueError(f"export: a dict's keys must be texts or whole numbers to be written down, got {key!r}")
    return key


# --- and back -------------------------------------------------------------------------------------------------------


def layout_from(described: Json, classes: Sequence[type] = ()) -> Layout:
    """The layout that was written down.

    A NamedTuple is made of the class that `classes` has under its name, or jaxrnn, and otherwise of a new one with
    its name and fields; nothing else is imported. Dataclasses become NamedTuples.
    Raises: ValueError, LookupError, TypeError where the JSON is not what `layout` wrote.
    """
    known = {f"{c.__module__}.{c.__qualname__}": c for c in classes}
    tree = _rebuilt(described, lambda place, names: known.get(place) or _ours(place, names) or _new(place, names))
    leaves, structure = jax.tree.flatten(tree)
    return Layout(structure, tuple(leaves), described)


def _rebuilt(described: Json, class_of: Callable[[str, tuple[str, ...]], Callable[..., Any]]) -> Tree:
    kind = described.get("kind")
    if kind is None:
        shape = tuple(n if isinstance(n, str) else int(n) for n in described["shape"])
        return LeafType(str(described["name"]), shape, str(described["dtype"]), described.get("key"))
    if kind == "none":
        return None
    parts = [_rebuilt(part, class_of) for part in described["parts"]]
    if kind in ("list", "tuple"):
        return parts if kind == "list" else tuple(parts)
    names = described["names"]
    if kind in ("dict", "ordered"):
        return (dict if kind == "dict" else OrderedDict)(zip(names, parts, strict=True))
    if kind != "fields":
        raise ValueError(f"no kind of tree is called {kind!r}")
    return class_of(str(described["class"]), tuple(map(str, names)))(*parts)


def _ours(place: str, names: tuple[str, ...]) -> type | None:
    """A NamedTuple of jaxrnn with these fields."""
    module, _, name = place.rpartition(".")
    if module != "jaxrnn" and not module.startswith("jaxrnn."):
        return None
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) and getattr(found, "_fields", None) == names else None


@functools.cache
def _new(place: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """One class for each name and fields, so that trees of two loaded models agree."""
    name = place.rpartition(".")[2]
    is_name = name.isidentifier() and not keyword.iskeyword(name)
    return namedtuple(name if is_name else "Fields", names, rename=True)
