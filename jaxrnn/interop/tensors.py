"""Tensors by name, from whichever library: each asked for with the shape that it must have, none left over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.types import Tree

Array = np.ndarray[Any, Any]

_LONGEST = 100
COMPUTABLE = ("float16", "bfloat16", "float32", "float64")


class Tensors:
    """A mapping of names to tensors, of which each is taken once.

    `where` is the function that the user called, `prefix` what the names in question begin with: the others are none
    of its business. All tensors taken must be of one floating-point dtype, unless the `dtype` to cast to is given.
    `remedy` ends the complaints about a tensor that is missing or of another shape.
    """

    def __init__(self, where: str, tensors: Mapping[str, Any], remedy: str, prefix: str = "", dtype: Any = None):
        self.where, self.remedy, self.prefix = where, remedy, prefix
        self.dtype = None if dtype is None else checks.float_dtype(where, dtype)
        self.rest = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        self.first: tuple[str, str] | None = None  # the name of the tensor that was taken first, and its dtype

    def __contains__(self, name: str) -> bool:
        return name in self.rest

    def shape(self, name: str, letters: str) -> tuple[int, ...]:
        """The shape of a tensor with as many dimensions as letters, "[4H, D]"."""
        array = self._array(name, letters, None)
        if array.ndim != letters.count(",") + 1 or 0 in array.shape:
            raise self._misshapen(name, letters, None, array)
        return array.shape

    def take(self, name: str, letters: str, shape: tuple[int, ...]) -> Array:
        """The tensor of this name, which must be of this shape; `letters` say what its sizes are, "[4H, D]"."""
        array = self._array(name, letters, shape)
        if array.shape != shape:
            raise self._misshapen(name, letters, shape, array)
        del self.rest[name]
        return array if self.dtype is None else array.astype(self.dtype)

    def finish(self, what: str) -> None:
        """Nothing may be left over: what a net has no use for is a sign that it is another net."""
        if self.rest:
            name, tensor = next(iter(self.rest.items()))
            raise ValueError(
                f"{self.where}: {self._name(name)}, {described(tensor)}, is no tensor of {what}; leave it out if it "
                "belongs to something else"
            )

    def _array(self, name: str, letters: str, shape: tuple[int, ...] | None) -> Array:
        if name not in self.rest:
            raise ValueError(f"{self.where}: {self._name(name)}, {_sizes(letters, shape)}, is missing; {self.remedy}")
        array = as_numpy(self.where, self._name(name), self.rest[name])
        self._check_dtype(name, array)
        return array

    def _check_dtype(self, name: str, array: Array) -> None:
        got = array.dtype.name
        if got not in COMPUTABLE:
            raise ValueError(
                f"{self.where}: {self._name(name)} should hold floating-point numbers ({', '.join(COMPUTABLE)}), got "
                f"{described(array)}; convert the weights first"
            )
        if self.dtype is not None:
            return
        self.first = self.first or (name, got)
        if got != self.first[1]:
            raise ValueError(
                f"{self.where}: {self._name(name)} should be {self.first[1]} as {self._name(self.first[0])} is, got "
                f"{described(array)}; pass the dtype to cast all of them to, such as dtype=jnp.float32"
            )
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{self.where}: {self._name(name)} is {got}, for which JAX needs 64-bit mode; pass dtype=jnp.float32, "
                "or call jax.config.update('jax_enable_x64', True) first"
            )

    def _misshapen(self, name: str, letters: str, shape: tuple[int, ...] | None, array: Array) -> ValueError:
        return ValueError(
            f"{self.where}: {self._name(name)} should be {_sizes(letters, shape)}, got {described(array)}; "
            f"{self.remedy}"
        )

    def _name(self, name: str) -> str:
        return f"tensor {shown(self.prefix + name)}"


def _sizes(letters: str, shape: tuple[int, ...] | None) -> str:
    return letters if shape is None else f"{letters} = {list(shape)}"


def shown(name: str) -> str:
    """A name as it is quoted; a stranger's file may have names of any length."""
    return repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")


def described(tensor: Any) -> str:
    """`float32[3,4]`, or the type of what is no tensor."""
    shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
    if shape is None or dtype is None:
        return f"a {type(tensor).__name__}"
    return f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}]"


def as_numpy(where: str, name: str, tensor: Any) -> Array:
    """A tensor of NumPy, JAX or PyTorch, or whatever says that it is an array, in NumPy."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _from_torch(torch, where, name, tensor)
    if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype"):
        hint = "; give what is in it by itself" if isinstance(tensor, Mapping) else ""
        raise ValueError(f"{where}: {name} should be an array, got {described(tensor)}{hint or '; leave it out'}")
    return np.asarray(tensor)


def _from_torch(torch: Any, where: str, name: str, tensor: Any) -> Array:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else "without values" if tensor.is_meta else f"in {tensor.layout}"
        raise ValueError(f"{where}: {name} should be a plain dense tensor, got one {kind}; convert it in PyTorch first")
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:  # which NumPy does not know by itself
        return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def flattened(where: str, params: Any) -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} is {"a/b": 1}."""
    if not isinstance(params, Mapping):
        raise TypeError(f"{where}: params should be a dict of arrays by name, got a {type(params).__name__}")
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in flattened(where, value).items()}
        else:
            flat[str(name)] = value
    return flat


def to_jax(params: Tree) -> Tree:
    """Parameters put together in NumPy, as JAX's arrays."""
    return jax.tree.map(jnp.asarray, params)


def added(a: Array, b: Array) -> Array:
    """The sum of two biases, rounded once."""
    wide = np.promote_types(a.dtype, np.float32) if a.dtype.name != "bfloat16" else np.dtype(np.float32)
    return (a.astype(wide) + b.astype(wide)).astype(a.dtype)


def reordered(array: Array, have: str, want: str) -> Array:
    """Blocks side by side in the last dimension, one per gate, in another order; a gate twice is there twice."""
    gates = dict(zip(have, np.split(array, len(have), axis=-1), strict=True))
    return np.concatenate([gates[name] for name in want], axis=-1)
