"""Kinds of steps that are closed under composition, and the states of loops that are made of them.

affine         h_j = sum over k of A[j][k] h_k + b[j]     and, differentiable, as a linear system
clipped        h = min(max(a h + b, low), high)
logarithmic    h = log(exp(h + c) + exp(d))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import meshes, trees
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.reduce_then_scan import Elements, Order, Semigroup, if_first, one_later, shifted, states

# --- affine: h_j = sum over k of A[j][k] h_k + b[j]; elements are (A, b) ------------------------------------------


def _times(a: Any, x: Any) -> Any:
    if a is None or x is None:
        return None
    if isinstance(a, int) or isinstance(x, int):
        return x if isinstance(a, int) else a
    return a * x


def _times_bounded(a: Any, x: Any) -> Any:
    """A state of zero stays zero where composed steps overflow, though none of them does by itself."""
    if a is None or x is None or isinstance(a, int) or isinstance(x, int):
        return _times(a, x)
    return jnp.where(x == 0, jnp.zeros((), jnp.result_type(a, x)), a * x)


def _times_cutting(a: Any, x: Any) -> Any:
    """Zero times anything is zero: what a reset cuts off may be NaN."""
    if a is None or x is None or isinstance(a, int) or isinstance(x, int):
        return _times(a, x)
    return jnp.where((a == 0) | (x == 0), jnp.zeros((), jnp.result_type(a, x)), a * x)


def _sum(*terms: Any) -> Any:
    present = [t for t in terms if t is not None]
    return functools.reduce(lambda x, y: x + y, present) if present else None


def affine(times: Callable[[Any, Any], Any]) -> Semigroup:
    """Steps (A, b), with their products by `times`."""

    def compose(first: Elements, then: Elements) -> Elements:
        (A1, b1), (A2, b2) = first, then
        every = range(len(b1))
        steps = _times if times is _times_bounded else times
        A = [[_sum(*(steps(A2[j][i], A1[i][k]) for i in every)) for k in every] for j in every]
        return A, [_sum(*(times(A2[j][i], b1[i]) for i in every), b2[j]) for j in every]

    def act(step: Elements, h: Leaves) -> Leaves:
        A, b = step
        every = range(len(b))
        after = [_sum(*(times(A[j][k], h[k]) for k in every), b[j]) for j in every]
        shape = lambda x, like: jnp.zeros_like(like) if x is None else jnp.broadcast_to(x, _joint(x, like))
        return [shape(x, like) for x, like in zip(after, h, strict=True)]

    return Semigroup(compose, act)


def _joint(x: Any, like: Any) -> tuple[int, ...]:
    return jnp.broadcast_shapes(x.shape, like.shape)


def _sums_in(dtype: Any) -> Any:
    """The dtype to add up in: whole numbers keep theirs, and wrap round as in a loop."""
    return trees.wide(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def affine_states(A: Elements, b: list[Any], first: Leaves, order: Order, cuts: bool) -> Leaves:
    """h_t = A_t h_tm1 + b_t for some leaves, A [leaves][leaves]; not to be differentiated through.

    Sums in 16 bits are made in 32.
    """
    dtypes = [h.dtype for h in first]
    wide = lambda x, to: x if x is None or isinstance(x, int) else x.astype(_sums_in(to))
    if len(b) > 1:  # several of them would be added up
        A = [[jnp.ones((1,) * (1 + first[0].ndim), dtypes[0]) if isinstance(a, int) else a for a in row] for row in A]
    A = [[wide(a, to) for a in row] for row, to in zip(A, dtypes, strict=True)]
    b = [wide(x, to) for x, to in zip(b, dtypes, strict=True)]
    first = [wide(h, to) for h, to in zip(first, dtypes, strict=True)]
    group, deep = (affine(_times_cutting),) * 2 if cuts else (affine(_times), affine(_times_bounded))
    found = states(group, (A, b), first, order, deep)
    return [h.astype(to) for h, to in zip(found, dtypes, strict=True)]


def linear_states(A: Elements, b: Leaves, first: Leaves, order: Order, cuts: bool) -> Leaves:
    """The same, differentiable any number of times forward and backward; b [T, ...] full arrays of one shape.

    As a linear system, h_t - A_t h_tm1 = b_t, which JAX can transpose and differentiate:
        dh_t = A_t dh_tm1 + (db_t + dA_t h_tm1),      l_t = A_tp1^T l_tp1 + g_t.
    """
    every = range(len(b))
    # JAX would see to it only when the system is traced already.
    A, b, first, nothing = meshes.alike((A, b, first, [jnp.zeros_like(x) for x in first]))
    # One array: JAX cannot differentiate a system of which only some of the right-hand sides have a tangent.
    pack = lambda leaves: jnp.stack(leaves) if len(leaves) > 1 else leaves[0]
    leaves = lambda packed: list(packed) if len(b) > 1 else [packed]

    def matvec(packed: jax.Array) -> jax.Array:
        h = leaves(packed)
        taken = _applied(A, shifted(nothing, h, order))
        return pack([x if t is None else x - t.astype(x.dtype) for x, t in zip(h, taken, strict=True)])

    def solve(_: Any, packed: jax.Array) -> jax.Array:
        return pack(affine_states(A, leaves(packed), nothing, order, cuts))

    def transposed(_: Any, packed: jax.Array) -> jax.Array:
        later = [[one_later(A[j][k], order) for j in every] for k in every]
        return pack(affine_states(later, leaves(packed), nothing, order.backwards, cuts))

    begun = pack(
        [_with_first(x, t, order) for x, t in zip(b, _applied(_at_first(A, order.reverse), first), strict=True)]
    )
    return leaves(lax.custom_linear_solve(matvec, begun, solve, transposed))


def _applied(A: Elements, h: Leaves) -> Leaves:
    return [_sum(*(_times(a, x) for a, x in zip(row, h, strict=True))) for row in A]


def _at_first(A: Elements, reverse: bool) -> Elements:
    """The coefficients of the step that runs first."""
    return [[a if a is None or isinstance(a, int) else a[-1 if reverse else 0] for a in row] for row in A]


def _with_first(b: jax.Array, term: Any, order: Order) -> jax.Array:
    """b, to which the step that runs first adds what it makes of the first state."""
    if term is None:
        return b
    place, term = len(b) - 1 if order.reverse else 0, term.astype(b.dtype)
    begun = (b[place] + if_first(order, term, jnp.zeros_like(term)))[None]
    return lax.dynamic_update_slice_in_dim(b, begun, place, 0)


# --- clipped: h = min(max(a h + b, low), high); elements are (a, b, low, high) -------------------------------------


def _compose_clipped(first: Elements, then: Elements) -> Elements:
    (a1, b1, low1, high1), (a2, b2, low2, high2) = first, then
    # The bounds of the first step, seen through the second; a slope of zero sees nothing.
    ends = [jnp.where(a2 == 0, b2, a2 * bound + b2) for bound in (low1, high1)]
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    b = _times_cutting(a2, b1) + b2
    return _times_cutting(a2, a1), b, _between(low, low2, high2), _between(high, low2, high2)


def _between(x: Any, low: Any, high: Any) -> Any:
    return jnp.minimum(jnp.maximum(x, low), high)


def _act_clipped(step: Elements, h: Leaves) -> Leaves:
    a, b, low, high = step
    return [_between(_times_cutting(a, h[0]) + b, low, high)]


CLIPPED = Semigroup(_compose_clipped, _act_clipped)


def clipped_states(step: Elements, first: jax.Array, order: Order) -> jax.Array:
    """h_t = min(max(a_t h_tm1 + b_t, low_t), high_t) for one leaf; what is None has no effect."""
    to = trees.wide(first.dtype)
    nothing = (0.0, 0.0, -jnp.inf, jnp.inf)
    step = tuple(_whole(x, none, first, to) for x, none in zip(step, nothing, strict=True))
    return states(CLIPPED, step, [first.astype(to)], order)[0].astype(first.dtype)


def _whole(x: Any, nothing: float, like: jax.Array, to: Any) -> jax.Array:
    """A coefficient as an array [T, ...] or [1, ...]."""
    if x is None or isinstance(x, int):
        return jnp.full((1,) * (1 + like.ndim), nothing if x is None else x, to)
    return x.astype(to)


# --- logarithmic: h = log(exp(h + c) + exp(d)); elements are (c, d) -----------------------------------------------


def _compose_logarithmic(first: Elements, then: Elements) -> Elements:
    (c1, d1), (c2, d2) = first, then
    return c1 + c2, d2 if d1 is None else _log_sum(d1 + c2, d2)


def _log_sum(x: Any, y: Any) -> Any:
    return x if y is None else jnp.logaddexp(x, y)


def _act_logarithmic(step: Elements, h: Leaves) -> Leaves:
    c, d = step
    # What is cut off, c = -inf, may be NaN.
    kept = jnp.where(c == -jnp.inf, c, h[0] + c)
    return [jnp.broadcast_to(_log_sum(kept, d), h[0].shape)]


LOGARITHMIC = Semigroup(_compose_logarithmic, _act_logarithmic)


def logarithmic_states(step: Elements, first: jax.Array, order: Order) -> jax.Array:
    """h_t = log(exp(h_tm1 + c_t) + exp(d_t)) for one leaf."""
    to = trees.wide(first.dtype)
    step = tuple(x if x is None else x.astype(to) for x in step)
    return states(LOGARITHMIC, step, [first.astype(to)], order)[0].astype(first.dtype)
