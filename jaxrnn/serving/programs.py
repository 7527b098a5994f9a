"""A function of trees as a program of `jax.export`, and a program as a function of trees with any batch dimensions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from jaxrnn import checks
from jaxrnn.serving import weights
from jaxrnn.serving.layouts import Layout, LeafType
from jaxrnn.types import Tree

Arrays = list[jax.Array]
Sizes = dict[str, tuple[int, ...]]  # what each letter stands for in a call: the batch's for any number of dimensions


@dataclass(frozen=True)
class Signature:
    """What a program takes and gives: trees, by name."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]


# A program knows only dicts of arrays. Those of the weights are as their file has them, others as they are.


def packed(name: str, layout: Layout, tree: Tree) -> Any:
    return weights.stored(layout, tree) if name == "params" else layout.by_name(tree)


def _unpacked(name: str, layout: Layout, arrays: Any) -> Tree:
    return weights.from_stored(layout, arrays) if name == "params" else layout.tree(arrays)


def _types(name: str, layout: Layout) -> list[LeafType]:
    """In the order in which a program has its arrays."""
    named = {leaf.name: leaf for leaf in layout.leaves} if name == "params" else layout.types_by_name
    return jax.tree.leaves(named)


def exported(
    fn: Callable[..., Sequence[Tree]],
    signature: Signature,
    types: Mapping[str, Tree],
    layouts: Mapping[str, Layout],
    platforms: Sequence[str],
) -> export.Exported:
    """fn(*trees) -> trees as a program of what is `packed`; a program that gives one tree gives it alone."""

    def program(*arguments: Any) -> Any:
        given = fn(*(_unpacked(n, layouts[n], a) for n, a in zip(signature.takes, arguments, strict=True)))
        out = tuple(packed(n, layouts[n], tree) for n, tree in zip(signature.gives, given, strict=True))
        return out if len(out) > 1 else out[0]

    arguments = [jax.eval_shape(partial(packed, name, layouts[name]), types[name]) for name in signature.takes]
    with _without_places():
        return export.export(jax.jit(program, keep_unused=True), platforms=platforms)(*arguments)


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Programs without the names of the source files that their operations came from: the same for the same cell."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


class Program:
    """A program called on trees: checked, packed, its batch dimensions merged into the one that it has.

    `batch` is what it was exported for. If that is one letter any batch dimensions will do. Under `vmap` the mapped
    axis is merged too, or where it is not the batch's (other weights for each) the program runs in a loop over it. One
    that was exported with its derivatives is as `jax.export` has it, which knows no `vmap`.
    """

    def __init__(
        self,
        where: str,
        raw: export.Exported,
        signature: Signature,
        layouts: Mapping[str, Layout],
        batch: Sequence[int | str],
    ) -> None:
        self._where, self._layouts, self._batch = where, layouts, batch
        self._letter = batch[0] if len(batch) == 1 and isinstance(batch[0], str) else None
        self.raw, self.signature = raw, signature
        axes = [
            [self._axis(t) for n in names for t in _types(n, layouts[n])]
            for names in (signature.takes, signature.gives)
        ]
        self._in_axes, self._out_axes = axes
        if [len(raw.in_avals), len(raw.out_avals)] != list(map(len, axes)):
            raise ValueError(f"{where}: the program takes {raw.in_tree} and gives {raw.out_tree}, other than it should")
        flat = lambda *arrays: jax.tree.leaves(self._call(arrays))
        self._run = flat if raw.has_vjp() else over_batches(flat, self._in_axes, self._out_axes)

    def _axis(self, leaf: LeafType) -> int | None:
        return leaf.shape.index(self._letter) if self._letter in leaf.shape else None

    def _call(self, arrays: Sequence[Any]) -> Any:
        args, options = jax.tree.unflatten(self.raw.in_tree, arrays)
        return self.raw.call(*args, **options)

    def __call__(self, *trees: Tree) -> tuple[Tree, ...]:
        names = self.signature.takes
        trees = tuple(jax.tree.map(jnp.asarray, trees))
        sizes = self._sizes(zip(names, trees, strict=True))
        batch = sizes.get(self._letter or "", ())
        arrays = jax.tree.leaves([packed(n, self._layouts[n], tree) for n, tree in zip(names, trees, strict=True)])
        merged = [_merged(a, axis, len(batch)) for a, axis in zip(arrays, self._in_axes, strict=True)]
        outs = [_split(a, axis, batch) for a, axis in zip(self._run(*merged), self._out_axes, strict=True)]
        given = jax.tree.unflatten(self.raw.out_tree, outs)
        given = given if len(self.signature.gives) > 1 else (given,)
        return tuple(_unpacked(n, self._layouts[n], a) for n, a in zip(self.signature.gives, given, strict=True))

    def batch_of(self, name: str, tree: Tree) -> tuple[int, ...]:
        """The batch dimensions of one of its trees."""
        sizes = self._sizes([(name, jax.tree.map(jnp.asarray, tree))])
        return tuple(n for size in self._batch for n in (sizes[size] if isinstance(size, str) else (size,)))

    def _sizes(self, trees: Iterable[tuple[str, Tree]]) -> Sizes:
        """What the letters stand for. Raises: ValueError for a tree that the program cannot take."""
        sizes: Sizes = {}
        for name, tree in trees:
            check(self._where, name, tree, self._layouts[name], self._letter, sizes)
        return sizes


def _merged(array: Any, axis: int | None, count: int) -> Any:
    """`count` dimensions from axis on as one."""
    if axis is None or count == 1:
        return array
    size = math.prod(array.shape[axis : axis + count])
    return array.reshape(*array.shape[:axis], size, *array.shape[axis + count :])


def _split(array: Any, axis: int | None, batch: tuple[int, ...]) -> Any:
    """The inverse of `_merged`."""
    if axis is None or len(batch) == 1:
        return array
    return array.reshape(*array.shape[:axis], *batch, *array.shape[axis + 1 :])


def over_batches(
    fn: Callable[..., Arrays], in_axes: Sequence[int | None], out_axes: Sequence[int | None]
) -> Callable[..., Arrays]:
    """fn(*arrays) -> arrays with a rule for `vmap`: the mapped axis goes in front of the batch's, into one with it."""

    @jax.custom_batching.custom_vmap
    def run(*arrays: Any) -> Arrays:
        return fn(*arrays)

    @run.def_vmap
    def rule(size: int, is_mapped: Sequence[bool], *arrays: Any) -> tuple[Arrays, list[bool]]:
        if any(mapped and axis is None for mapped, axis in zip(is_mapped, in_axes, strict=True)):
            return _one_by_one(run, is_mapped, arrays), [True] * len(out_axes)
        full = [_merged_with(size, *each) for each in zip(arrays, is_mapped, in_axes, strict=True)]
        outs = run(*full)
        return [_split_off(size, *each) for each in zip(outs, out_axes, strict=True)], [a is not None for a in out_axes]

    return run


def _one_by_one(run: Callable[..., Arrays], is_mapped: Sequence[bool], arrays: Sequence[Any]) -> Arrays:
    def one(some: Sequence[Any]) -> Arrays:
        each = iter(some)
        return run(*(next(each) if mapped else a for a, mapped in zip(arrays, is_mapped, strict=True)))

    found: Arrays = lax.map(one, [a for a, mapped in zip(arrays, is_mapped, strict=True) if mapped])
    return found


def _merged_with(size: int, array: Any, mapped: bool, axis: int | None) -> Any:
    if axis is None:
        return array
    array = array if mapped else jnp.broadcast_to(array, (size, *array.shape))
    return _merged(jnp.moveaxis(array, 0, axis), axis, 2)


def _split_off(size: int, array: Any, axis: int | None) -> Any:
    return array if axis is None else jnp.moveaxis(_split(array, axis, (size, array.shape[axis] // size)), axis, 0)


# --- what is wrong with what a program is given ---------------------------------------------------------------------


def check(where: str, name: str, tree: Tree, layout: Layout, letter: str | None, sizes: Sizes) -> None:
    """Raises: ValueError naming the leaf that a program cannot take. Letters that it meets are added to sizes."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    if structure != layout.structure:
        raise ValueError(f"{where}: {name} should have the structure {layout.structure}, got {structure}")
    for (path, array), leaf in zip(found, layout.leaves, strict=True):
        if str(array.dtype) != leaf.dtype or not _fits(array.shape, leaf.shape, letter, sizes):
            known = "".join(f", {each} = {sizes[each]}" for each in leaf.shape if each in sizes)
            raise ValueError(
                f"{where}: {checks.leaf_name(name, path)} should be {leaf}{known}, got {checks.describe(array)}; "
                "give it as the model was exported for"
            )


def _fits(shape: tuple[int, ...], wanted: Sequence[int | str], letter: str | None, sizes: Sizes) -> bool:
    axis = wanted.index(letter) if letter in wanted else None
    more = len(shape) - len(wanted) + 1
    if axis is not None and letter is not None:
        if more < 0 or sizes.setdefault(letter, shape[axis : axis + more]) != shape[axis : axis + more]:
            return False
        shape, wanted = shape[:axis] + shape[axis + more :], [n for n in wanted if n != letter]
    return len(shape) == len(wanted) and all(
        n == w if isinstance(w, int) else sizes.setdefault(w, (n,)) == (n,) for n, w in zip(shape, wanted, strict=True)
    )
