"""Pickling what pickle refuses by itself: JAX's functions and Flax's modules.

JAX's functions are objects around a function of the same name, and Flax's modules hold initialisers that were
made inside a function. So a function is written as the name under which it is imported, and a module as its
class and those of its options that are not the default.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from types import FunctionType
from typing import Any

import flax.linen as nn


class Picklable:
    """A frozen dataclass whose fields may hold functions and Flax modules.

    A lambda, or a function made inside another, has no name to import it by: pickle says which it is.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(_portable(getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]


class _Rebuilt:
    """Is written as a call, and read as its result."""

    def __init__(self, make: Callable[..., Any], *args: Any):
        self.call = make, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _portable(value: Any) -> Any:
    """The value, with calls in place of what pickle refuses."""
    if isinstance(value, nn.Module):
        return _Rebuilt(_module, type(value), _options(value))
    if isinstance(value, dict):
        return {name: _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, tuple):
        parts = [_portable(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if callable(value):
        place = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        return _Rebuilt(_imported, *place) if _imported(*place) is value else value
    return value


class _ByName(pickle.Pickler):
    """Writes functions as the names under which they are imported, however deep within other objects they are."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (type, FunctionType)) or not callable(value):
            return NotImplemented  # pickle manages by itself
        portable = _portable(value)
        return portable.__reduce__() if isinstance(portable, _Rebuilt) else NotImplemented


def packed(value: Any) -> Any:
    """In place of an object that is not of our making, with such functions somewhere in it."""
    buffer = io.BytesIO()
    _ByName(buffer).dump(value)
    return _Rebuilt(pickle.loads, buffer.getvalue())


def _options(module: nn.Module) -> dict[str, Any]:
    values = {field.name: (getattr(module, field.name), field.default) for field in fields(module)}
    return {
        name: _portable(value) for name, (value, usual) in values.items() if value is not usual and name != "parent"
    }


def _module(kind: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    return kind(**options)


def _imported(module: Any, name: Any) -> Any:
    """What is found under a name, or None."""
    try:
        return functools.reduce(getattr, name.split("."), import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None
