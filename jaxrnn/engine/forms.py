"""Closed forms: what a value of a step can be as a function of the carry and still be solved for all steps at once.

    Affine         x -> a_1 x_1 + ... + a_m x_m + b           one or several leaves x_k, element by element
    Clipped        x -> min(max(a x + b, low), high)          one leaf
    Logarithmic    x -> log(exp(x + c) + exp(d))              one leaf

Each is closed under composition: two steps of the form are one step of the form. A coefficient is None (zero; for a
bound or d: none), a Python whole number, or an array of the value's rank whose sizes are the value's or 1, or of rank
0: so the scalar gate of a matrix stays [B, 1, 1]. What leaves the forms is an `Obstacle`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Coefficient = Any


class Obstacle(Exception):
    """What keeps a value from having a closed form: `dot_general of the carry`."""


class Affine(NamedTuple):
    a: tuple[Coefficient, ...]  # one for each leaf
    b: Coefficient = None
    chooses: bool = False  # whether arrays among the slopes are a choice between zero and one


class Clipped(NamedTuple):
    a: Coefficient
    b: Coefficient
    low: Coefficient
    high: Coefficient


class Logarithmic(NamedTuple):
    c: Coefficient  # never None
    d: Coefficient


Form = Affine | Clipped | Logarithmic


def _slopes(f: Affine) -> list[Any]:
    return [a for a in f.a if a is not None]


def constant(value: Coefficient, leaves: int) -> Affine:
    """What does not depend on the carry."""
    return Affine((None,) * leaves, value)


def _number(x: Coefficient) -> bool:
    return isinstance(x, int)


def _alike(*values: Any) -> list[Any]:
    """Arrays in one dtype, the widest; numbers stay."""
    dtypes = [v.dtype for v in values if not _number(v)]
    wide = functools.reduce(wider, dtypes)
    return [v if _number(v) else jnp.asarray(v, wide) for v in values]


def wider(a: Any, b: Any) -> Any:
    """The dtype that holds both, whatever promotions the program itself allows."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def product(x: Coefficient, y: Coefficient) -> Coefficient:
    if x is None or y is None:
        return None
    if _number(x) and _number(y):
        return x * y
    if _number(x) or _number(y):
        number, array = (x, y) if _number(x) else (y, x)
        return array if number == 1 else -array if number == -1 else number * array
    x, y = _alike(x, y)
    return x * y


def total(x: Coefficient, y: Coefficient) -> Coefficient:
    if x is None or y is None:
        return y if x is None else x
    if _number(x) and _number(y):
        return x + y or None
    x, y = _alike(x, y)
    return x + y


def _of_both(fn: Callable[[Any, Any], Any], x: Coefficient, y: Coefficient) -> Coefficient:
    """fn of both, or the one that there is."""
    return y if x is None else x if y is None else fn(*_alike(x, y))


def mapped(f: Form, fn: Callable[[Any], Any]) -> Form:
    """The form with fn applied to each array in it."""
    on = lambda x: x if x is None or _number(x) else fn(x)
    if isinstance(f, Affine):
        return Affine(tuple(map(on, f.a)), on(f.b), f.chooses)
    return type(f)(*map(on, f))


def added(f: Form, g: Form) -> Form:
    """f + g, of which at most one is not affine, and then the other is constant."""
    if not isinstance(f, Affine):
        f, g = g, f
    if isinstance(g, Affine) and isinstance(f, Affine):
        alone = not _slopes(f) or not _slopes(g)
        return Affine(tuple(map(total, f.a, g.a)), total(f.b, g.b), alone and (f.chooses or g.chooses))
    if not isinstance(f, Affine) or any(a is not None for a in f.a):
        raise Obstacle("a sum of values that were clipped, or logarithms")
    if isinstance(g, Logarithmic):
        return Logarithmic(total(g.c, f.b) or 0, None if g.d is None else total(g.d, f.b))
    assert isinstance(g, Clipped)
    shifted = lambda bound: None if bound is None else total(bound, f.b)
    return Clipped(g.a, total(g.b, f.b), shifted(g.low), shifted(g.high))


def scaled(f: Form, k: Coefficient) -> Form:
    """k f, for a k that does not depend on the carry."""
    if isinstance(f, Affine):
        return Affine(tuple(product(a, k) for a in f.a), product(f.b, k))
    if isinstance(f, Logarithmic):
        raise Obstacle("a multiple of a logarithm")
    if k is None:
        return Clipped(None, None, None, None)
    low, high = product(f.low, k), product(f.high, k)
    if _number(k):
        low, high = (high, low) if k < 0 else (low, high)
    else:
        low, high = _bounds_scaled_by(k, low, high)
    return Clipped(product(f.a, k), product(f.b, k), low, high)


def _bounds_scaled_by(k: Any, low: Coefficient, high: Coefficient) -> tuple[Any, Any]:
    """Bounds that were multiplied by k trade places where k < 0; where k = 0 the value is b without them."""
    at = lambda x, none: jnp.asarray(none, k.dtype) if x is None else jnp.asarray(x, k.dtype)
    lower = jnp.where(k < 0, at(high, -jnp.inf), at(low, -jnp.inf))
    upper = jnp.where(k < 0, at(low, jnp.inf), at(high, jnp.inf))
    return jnp.where(k == 0, at(None, -jnp.inf), lower), jnp.where(k == 0, at(None, jnp.inf), upper)


def clipped(f: Form, low: Coefficient, high: Coefficient) -> Clipped:
    """min(max(f, low), high); None: no bound."""
    f = as_clipped(f)
    lower = _of_both(jnp.maximum, f.low, low)
    upper = f.high if low is None or f.high is None else _of_both(jnp.maximum, f.high, low)
    if high is not None:
        lower = None if lower is None else _of_both(jnp.minimum, lower, high)
        upper = _of_both(jnp.minimum, upper, high)
    return Clipped(f.a, f.b, lower, upper)


def as_clipped(f: Form) -> Clipped:
    if isinstance(f, Clipped):
        return f
    if isinstance(f, Logarithmic) or len(f.a) > 1:
        raise Obstacle("a bound on several leaves of the carry, or on a logarithm")
    return Clipped(f.a[0], f.b, None, None)


def as_logarithmic(f: Form) -> Logarithmic:
    if isinstance(f, Logarithmic):
        return f
    if isinstance(f, Clipped) or len(f.a) > 1 or not _is_choice(f):
        raise Obstacle("a logarithm of scaled, clipped or several values")
    shift = 0 if f.b is None else f.b
    if f.a[0] is not None and not _number(f.a[0]):
        cut, none = f.a[0] == 0, _nothing(f.a[0])
        shift = jnp.asarray(shift, f.a[0].dtype)
        return Logarithmic(jnp.where(cut, none, shift), jnp.where(cut, shift, none))
    return Logarithmic(shift, None) if f.a[0] is not None else Logarithmic(_nothing(shift), shift)


def _is_choice(f: Affine) -> bool:
    """Whether all slopes are zero or one."""
    return all(a == 1 if _number(a) else f.chooses for a in _slopes(f))


def _nothing(like: Any) -> Any:
    return jnp.asarray(-jnp.inf, getattr(like, "dtype", jnp.float32))


def log_sum(f: Form, g: Form) -> Logarithmic:
    """log(exp(f) + exp(g))"""
    f, g = as_logarithmic(f), as_logarithmic(g)
    real = lambda x: jnp.asarray(x, jnp.float32) if _number(x) else x
    both = lambda x, y: jnp.logaddexp(*_alike(real(x), real(y)))
    return Logarithmic(both(f.c, g.c), f.d if g.d is None else g.d if f.d is None else both(f.d, g.d))


def chosen(which: Any, f: Form, g: Form, dtype: Any) -> Form:
    """g where `which`, else f."""

    def pick(x: Coefficient, y: Coefficient, nothing: float) -> Coefficient:
        if (x is None and y is None) or (_number(x) and _number(y) and x == y):
            return x
        x, y = (jnp.asarray(nothing if v is None else v, dtype) if v is None or _number(v) else v for v in (x, y))
        x, y = _alike(x, y)
        return jnp.where(which, y, x)

    if isinstance(f, Logarithmic) or isinstance(g, Logarithmic):
        f, g = as_logarithmic(f), as_logarithmic(g)
        return Logarithmic(pick(f.c, g.c, 0.0), pick(f.d, g.d, -jnp.inf))
    if isinstance(f, Clipped) or isinstance(g, Clipped):
        f, g = as_clipped(f), as_clipped(g)
        low, high = pick(f.low, g.low, -jnp.inf), pick(f.high, g.high, jnp.inf)
        return Clipped(pick(f.a, g.a, 0), pick(f.b, g.b, 0), low, high)
    a = tuple(pick(x, y, 0) for x, y in zip(f.a, g.a, strict=True))
    return Affine(a, pick(f.b, g.b, 0), _is_choice(f) and _is_choice(g))
