"""States as orbax takes them: packed into one array where one device has all of them, array by array on a mesh."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks, trees
from jaxrnn.training.sharding import placed
from jaxrnn.types import Tree

Array = np.ndarray[Any, Any]
Inventory = dict[str, str]  # leaf path -> dtype and shape

_PACKED, _PARTS = "state", "parts"  # what orbax writes: one folder or the other
_BYTES = "bytes"  # the one array of a packed state


def inventory(state: Tree) -> Inventory:
    """What a state is made of, keys as their data."""
    types = ((jax.tree_util.keystr(p), _type(leaf)) for p, leaf in jax.tree_util.tree_leaves_with_path(state))
    return {path: checks.describe(kind) for path, kind in types}


def write(folder: Path, state: Tree) -> None:
    """Writes a state below the folder, in one process or, all together, in several, each what it alone has."""
    with _orbax() as (store, args):
        if _on_several_devices(state):
            store.save(folder / _PARTS, args=args.StandardSave(_arrays(state)))
        else:
            store.save(folder / _PACKED, args=args.StandardSave({_BYTES: _packed(_plain(state))}))


def read(folder: Path, template: Tree) -> Tree:
    """What `write` wrote, however it lay there, with the structure of a template, and where that lies."""
    with _orbax() as (store, args):
        if (folder / _PARTS).exists():
            wanted = {name: _wanted(leaf) for name, leaf in _arrays(template).items()}
            found = store.restore(folder / _PARTS, args=args.StandardRestore(wanted))
            return _like(template, _in_structure(template, found))
        plain = jax.tree.map(lambda leaf: np.empty(_type(leaf).shape, _type(leaf).dtype), template)
        empty = {_BYTES: np.empty_like(_packed(plain))}
        found = store.restore(folder / _PACKED, args=args.StandardRestore(empty))
        return _like(template, _unpacked(found[_BYTES], plain))


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """(what saves and restores, its arguments' module), imported where needed: that takes longer than all of jaxrnn."""
    import orbax.checkpoint as ocp

    # It logs errors, each odd file and each save beside what it raises; we say what matters in one sentence.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as store:
            yield store, ocp.args
    finally:
        logger.setLevel(level)


def _type(leaf: Any) -> Any:
    """Shape and dtype of what is saved of a leaf."""
    data = jax.eval_shape(jax.random.key_data, leaf) if trees.is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(jnp.shape(data), jnp.result_type(data))


def _like(template: Tree, found: Tree) -> Tree:
    """Arrays as the template's leaves, keys where it has keys, on the devices where those are."""

    def like(leaf: Any, data: Any) -> jax.Array:
        spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        if not spread:
            array = jnp.asarray(data)
        else:
            array = placed(data, jax.random.key_data(leaf).sharding if trees.is_key(leaf) else leaf.sharding)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if trees.is_key(leaf) else array

    return jax.tree.map(like, template, found)


# --- array by array


def _on_several_devices(state: Tree) -> bool:
    return any(isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(state))


def _arrays(state: Tree) -> dict[str, Any]:
    """The leaves by their number, those without elements left out."""
    leaves = [trees.without_key(leaf) for leaf in jax.tree.leaves(state)]
    return {str(n): leaf for n, leaf in enumerate(leaves) if np.size(leaf)}


def _wanted(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return np.empty(jnp.shape(leaf), jnp.result_type(leaf))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _in_structure(template: Tree, found: dict[str, Any]) -> Tree:
    leaves, structure = jax.tree.flatten(template)
    nothing = [np.zeros(_type(leaf).shape, _type(leaf).dtype) if not np.size(leaf) else None for leaf in leaves]
    return jax.tree.unflatten(structure, [found.get(str(n), empty) for n, empty in enumerate(nothing)])


# --- packed


def _plain(tree: Tree) -> Tree:
    """All leaves on the host, PRNG keys as their data."""
    return jax.tree.map(lambda leaf: np.asarray(trees.without_key(leaf), dtype=_type(leaf).dtype), tree)


def _packed(plain: Tree) -> Array:
    """All leaves' bytes, one leaf after the other [bytes].

    orbax writes and reads arrays all at once, and where several fail it raises what the first raises,
    while what the others raise goes to the terminal; so it is given one.
    """
    leaves = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(plain)]
    return np.concatenate([np.empty(0, np.uint8), *leaves])


def _unpacked(packed: Array, plain: Tree) -> Tree:
    """The inverse of `_packed`; `plain` gives the structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(plain)
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [packed[end - leaf.nbytes : end].copy() for leaf, end in zip(leaves, ends, strict=True)]
    shaped = [part.view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
