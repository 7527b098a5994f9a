"""Errors at the boundary. Each names the argument, the leaf, what was expected, what came, and what to do.

Everything here looks at shapes and dtypes only, so it costs nothing once a program is compiled.
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.types import Cell, SequenceLayer, Tree


def describe(leaf: Any) -> str:
    """`float32[3,4]`"""
    return f"{jnp.result_type(leaf)}[{','.join(map(str, jnp.shape(leaf)))}]"


def describe_tree(tree: Tree) -> str:
    """`float32[3,4]`, or `(float32[3,4], int32[3])`: the same for each leaf within a structure."""
    return str(jax.tree.map(describe, tree)).replace("'", "")


def leaf_name(what: str, path: Any) -> str:
    """`state['h']`, `xs[0]`; just `what` for a bare array."""
    return what + jax.tree_util.keystr(path)


def positive_int(where: str, name: str, value: Any, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{where}: {name} must be a whole number of at least {least}, got {value!r}")
    return number


_UNITS = {unit + b: base**n for base, b in ((1024, "ib"), (1000, "b")) for n, unit in enumerate(("", *"kmgt")) if n}


def byte_count(where: str, name: str, value: Any) -> int:
    """A positive number of bytes: 67108864, 64e6, "64MiB", "1.5 GB"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str):
        return positive_int(where, name, value)
    parts = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value.lower(), re.ASCII)
    count, unit = (float(parts[1]), parts[2]) if parts else (math.nan, "")
    scale = 1 if unit in ("", "b") else _UNITS.get(unit)
    if scale is None or not 1 <= count * scale < math.inf:
        raise ValueError(f"{where}: {name} must be a number of bytes such as 2**20 or '64MiB' or '2GB', got {value!r}")
    return int(count * scale)


def number(value: Any) -> float:
    """value as a float; NaN, which no range admits, if it is no single number."""
    try:
        return math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        return math.nan


def rate(where: str, value: Any) -> float:
    if not 0.0 <= number(value) < 1.0:
        raise ValueError(f"{where}: rate is the share that is dropped, from 0 up to but not 1, got {value!r}")
    return number(value)


def one_of(where: str, name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{where}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def a_cell(where: str, value: Any) -> Cell:
    if not isinstance(value, Cell):
        hint = "wrap a Flax module with layer(...) or recurrent(...), a function with lift(...)"
        if isinstance(value, SequenceLayer):
            hint = "a layer that needs the whole sequence is put beside others by chain(...), and run by unroll"
        raise TypeError(f"{where}: cell must be a Cell, got {type(value).__name__}; {hint}")
    return value


def a_scan(where: str, name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{where}: {name} must be a scan such as jax.lax.scan or checkpointed(), got {value!r}")
    if isinstance(value, type):
        raise TypeError(f"{where}: {name} is the class {value.__name__}; make a value of it: {value.__name__}(...)")
    return value


def float_dtype(where: str, dtype: Any) -> np.dtype:
    """The dtype itself, if JAX can compute in it as it is set up now."""
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{where}: dtype must be a dtype such as jnp.float32, got {dtype!r}") from None
    if not jnp.issubdtype(wanted, jnp.floating):
        raise ValueError(f"{where}: dtype must be a floating-point dtype, got {wanted}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"{where}: dtype {wanted} needs 64-bit mode; call jax.config.update('jax_enable_x64', True) first"
        )
    return wanted


def features(where: str, x: Any, size: int) -> None:
    """The last dimension of x must be the number of features that the parameters were made for."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"{where}: x must be one array of features, got {type(x).__name__}; "
            "a cell whose input is a tuple needs a step that takes it apart"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{where}: x must be floating-point features [..., {size}], got {describe(x)}; "
            "embed integers first, e.g. stack(layer(nn.Embed(...)), ...)"
        )
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(
            f"{where}: x must have {size} features in its last dimension, as in the parameters, "
            f"got {describe(x)}; initialise with an x of this shape, or fix the input"
        )


def steps(where: str, xs: Tree, length: int | None = None, name: str = "xs") -> int:
    """T, from the leading dimension that all leaves of xs share, or from length where there are none."""
    leaves = jax.tree_util.tree_leaves_with_path(xs)
    if not leaves:
        if length is None:
            raise ValueError(f"{where}: {name} has no arrays, so length must be given")
        return positive_int(where, "length", length, least=0)
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"{where}: {leaf_name(name, path)} is a scalar; every leaf of {name} needs a leading time dimension"
            )
    first_path, first = leaves[0]
    found = jnp.shape(first)[0]  # under `jax.export` perhaps a symbol
    for path, leaf in leaves[1:]:
        if jnp.shape(leaf)[0] != found:
            raise ValueError(
                f"{where}: {leaf_name(name, path)} has {jnp.shape(leaf)[0]} time steps but "
                f"{leaf_name(name, first_path)} has {found}; all leaves of {name} must be equally long, time first"
            )
    if length is not None and length != found:
        raise ValueError(f"{where}: length is {length} but xs has {found} time steps; leave length out")
    return found


def same_type(where: str, what: str, expected: Tree, got: Tree, remedy: str) -> None:
    """Structure, shape and dtype of two pytrees must agree, leaf by leaf."""
    expected_leaves, expected_tree = jax.tree_util.tree_flatten_with_path(expected)
    got_leaves, got_tree = jax.tree.flatten(got)
    if expected_tree != got_tree:
        raise ValueError(f"{where}: {what} should have the structure {expected_tree}, got {got_tree}; {remedy}")
    for (path, a), b in zip(expected_leaves, got_leaves, strict=True):
        if jnp.shape(a) != jnp.shape(b) or jnp.result_type(a) != jnp.result_type(b):
            raise ValueError(f"{where}: {leaf_name(what, path)} should be {describe(a)}, got {describe(b)}; {remedy}")


def is_known(tree: Tree) -> bool:
    """Whether values can be looked at. With numpy: under jit JAX traces operations even on known values."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def lengths(where: str, value: Any, steps: int) -> jax.Array:
    """Integers from 0 to T, as int32: in a narrower type the step's number would wrap round.

    Values are looked at only where they are known, that is outside jit.
    """
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{where}: lengths must be integers, got {describe(array)}; cast with .astype(int)")
    if is_known(value) and array.size:
        known = np.asarray(value)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"{where}: lengths must lie in 0..{steps} (xs has {steps} steps), got values from {low} to {high}"
            )
    return array.astype(jnp.int32)


def classes(where: str, name: str, values: Any, counted: Any, count: int, remedy: str) -> None:
    """Classes that count must lie in 0..count-1; looked at only where they are known, that is outside jit."""
    if not is_known((values, counted)):
        return
    array = np.asarray(values)
    wrong = np.asarray(counted) & ((array < 0) | (array >= count))
    if wrong.any():
        place = [int(n) for n in np.argwhere(wrong)[0]]
        raise ValueError(f"{where}: {name} must lie in 0..{count - 1}, got {int(array[wrong][0])} at {place}; {remedy}")


def resets(where: str, value: Any, steps: int) -> jax.Array:
    array = jnp.asarray(value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{where}: resets must be booleans, got {describe(array)}; compare, e.g. resets != 0")
    if array.ndim == 0 or array.shape[0] != steps:
        raise ValueError(f"{where}: resets must be [T, *B] with T = {steps}, got {describe(array)}")
    return array
