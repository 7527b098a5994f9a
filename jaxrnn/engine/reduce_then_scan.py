"""Recurrences that are closed under composition, solved in O(log T) depth: reduce, then scan.

    up     the steps of each group of 8 are composed into one                  reads all, writes an eighth
    ends   the states at the groups' ends, by the same again                   a problem of an eighth of the length
    down   h_t from h_tm1 within all groups at once, step after step           reads all, writes all states

Work: for an affine recurrence about 5 operations per element of the state, where a loop does 2. Blelloch 1990, "Prefix
sums and their applications"; Martin and Cundy 2018, "Parallelizing linear recurrent neural nets over sequence length".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import meshes, trees
from jaxrnn.engine.loop import Leaves

RADIX = 8
Elements = Any  # a pytree of arrays [T, ...], or [1, ...] for what is the same at every step; whole numbers; None


class Semigroup(NamedTuple):
    """Steps of one form."""

    compose: Callable[[Elements, Elements], Elements]  # (first, then) -> one step that does both
    act: Callable[[Elements, Leaves], Leaves]  # (a step, the state before) -> the state after


def states(group: Semigroup, elements: Elements, first: Leaves, steps: int, reverse: bool, deep: Any = None) -> Leaves:
    """The states after each of the steps, [T, ...]; `deep` is the semigroup for composed steps, if it is another."""
    if steps <= RADIX:
        return _in_order(group, elements, first, steps, reverse)
    groups = -(-steps // RADIX)
    rows = jax.tree.map(lambda a: _grouped(a, groups, reverse), elements)
    up, down = (_up_in_a_loop, _down_in_a_loop) if len(first) > 1 else (_up, _down)
    whole = jax.tree.map(lambda a: a if isinstance(a, int) else a[:, 0], up((deep or group).compose, rows, reverse))
    ends = states(deep or group, whole, first, groups, reverse)
    before = [a[:, None] for a in shifted(first, ends, reverse)]
    found = down(group.act, rows, before, [a[:, None] for a in ends], reverse)
    return [_joined(a, steps, reverse) for a in found]


def _place(i: Any, reverse: bool) -> Any:
    """Of the step in a group that is the i-th to run."""
    return RADIX - 1 - i if reverse else i


def _at(rows: Elements, r: Any) -> Elements:
    """Each group's step at a place. The axis of the group stays, with size 1: nothing is then reshaped on the way."""
    return jax.tree.map(lambda a: a if _is_same(a) else lax.dynamic_slice_in_dim(a, r, 1, axis=1), rows)


def _up(compose: Any, rows: Elements, reverse: bool) -> Elements:
    return functools.reduce(compose, [_at(rows, _place(i, reverse)) for i in range(RADIX)])


def _down(act: Any, rows: Elements, h: Leaves, ends: Leaves, reverse: bool) -> Leaves:
    found = {_place(RADIX - 1, reverse): ends}
    for r in (_place(i, reverse) for i in range(RADIX - 1)):
        h = found[r] = act(_at(rows, r), h)
    return [jnp.concatenate([found[r][j] for r in range(RADIX)], axis=1) for j in range(len(h))]


# Several leaves that need each other: written out, a compiler that fuses the eight steps into one computes each of them
# again wherever it is read, twice as often with every step (XLA did on CPUs up to JAX 0.10). A loop it leaves as it is.


def _up_in_a_loop(compose: Any, rows: Elements, reverse: bool) -> Elements:
    further = lambda i, whole: compose(whole, _at(rows, _place(i, reverse)))
    whole = _at(rows, _place(0, reverse))
    for n in range(1, RADIX):
        before, whole = trees.struct(whole), further(n, whole)
        if trees.struct(whole) == before:  # from here on they are all of one kind
            return lax.fori_loop(n + 1, RADIX, further, whole)
    return whole


def _down_in_a_loop(act: Any, rows: Elements, h: Leaves, ends: Leaves, reverse: bool) -> Leaves:
    def one(i: Any, now: tuple[Leaves, Leaves]) -> tuple[Leaves, Leaves]:
        r = _place(i, reverse)
        h = act(_at(rows, r), now[0])
        return h, [lax.dynamic_update_slice_in_dim(found, x, r, axis=1) for found, x in zip(now[1], h, strict=True)]

    return lax.fori_loop(0, RADIX - 1, one, (h, [jnp.concatenate([a] * RADIX, axis=1) for a in ends]))[1]


def _is_same(a: Any) -> bool:
    """Whether it is the same at every step."""
    return isinstance(a, int) or a.shape[0] == 1


def _in_order(group: Semigroup, elements: Elements, first: Leaves, steps: int, reverse: bool) -> Leaves:
    h, found = [a[None] for a in first], {}
    for t in range(steps)[:: -1 if reverse else 1]:
        h = group.act(jax.tree.map(lambda a, t=t: a if _is_same(a) else a[t : t + 1], elements), h)
        found[t] = h
    return [jnp.concatenate([found[t][j] for t in range(steps)]) for j in range(len(first))]


def _grouped(a: Any, groups: int, reverse: bool) -> Any:
    """[T, ...] as [S, 8, ...]; what is filled up with zeros comes where the run ends."""
    if _is_same(a):
        return a if isinstance(a, int) else a[:, None]
    missing = groups * RADIX - a.shape[0]
    a = _moved(a, missing, 0) if reverse else _moved(a, 0, missing)
    return a.reshape(groups, RADIX, *a.shape[1:])


def _joined(whole: Any, steps: int, reverse: bool) -> Any:
    """[S, 8, ...] as [T, ...]."""
    whole = whole.reshape(whole.shape[0] * RADIX, *whole.shape[2:])
    return whole[len(whole) - steps :] if reverse else whole[:steps]


def _moved(a: Any, before: int, after: int) -> Any:
    """So many steps of zeros more at the beginning and at the end, or fewer steps.

    Not by concatenation: of what lies on several devices in parts, that would send all of it.
    """
    if not before and not after:
        return a
    return lax.pad(a, jnp.zeros((), a.dtype), [(before, after, 0), *((0, 0, 0) for _ in a.shape[1:])])


def shifted(first: Leaves, hs: Leaves, reverse: bool) -> Leaves:
    """The states before each step, from those after it."""
    moved = [_moved(h, -1, 1) if reverse else _moved(h, 1, -1) for h in hs]
    place = lambda h: len(h) - 1 if reverse else 0
    early = [a.astype(h.dtype)[None] for a, h in zip(first, hs, strict=True)]
    return [lax.dynamic_update_slice_in_dim(h, a, place(h), 0) for a, h in zip(early, moved, strict=True)]


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


def affine_states(A: Elements, b: list[Any], first: Leaves, steps: int, reverse: bool, cuts: bool) -> Leaves:
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
    found = states(group, (A, b), first, steps, reverse, deep)
    return [h.astype(to) for h, to in zip(found, dtypes, strict=True)]


def linear_states(A: Elements, b: Leaves, first: Leaves, steps: int, reverse: bool, cuts: bool) -> Leaves:
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
        taken = _applied(A, shifted(nothing, h, reverse))
        return pack([x if t is None else x - t.astype(x.dtype) for x, t in zip(h, taken, strict=True)])

    def solve(_: Any, packed: jax.Array) -> jax.Array:
        return pack(affine_states(A, leaves(packed), nothing, steps, reverse, cuts))

    def transposed(_: Any, packed: jax.Array) -> jax.Array:
        later = [[_one_later(A[j][k], reverse) for j in every] for k in every]
        return pack(affine_states(later, leaves(packed), nothing, steps, not reverse, cuts))

    begun = pack([_with_first(x, t, reverse) for x, t in zip(b, _applied(_at_first(A, reverse), first), strict=True)])
    return leaves(lax.custom_linear_solve(matvec, begun, solve, transposed))


def _applied(A: Elements, h: Leaves) -> Leaves:
    return [_sum(*(_times(a, x) for a, x in zip(row, h, strict=True))) for row in A]


def _at_first(A: Elements, reverse: bool) -> Elements:
    """The coefficients of the step that runs first."""
    return [[a if a is None or isinstance(a, int) else a[-1 if reverse else 0] for a in row] for row in A]


def _with_first(b: jax.Array, term: Any, reverse: bool) -> jax.Array:
    """b, to which the step that runs first adds what it makes of the first state."""
    if term is None:
        return b
    place = len(b) - 1 if reverse else 0
    return lax.dynamic_update_slice_in_dim(b, (b[place] + term.astype(b.dtype))[None], place, 0)


def _one_later(a: Any, reverse: bool) -> Any:
    """A_tp1 in the place of A_t; what would come after the last step meets a state of zero."""
    if a is None or _is_same(a):
        return a
    return _moved(a, 1, -1) if reverse else _moved(a, -1, 1)


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


def clipped_states(step: Elements, first: jax.Array, steps: int, reverse: bool) -> jax.Array:
    """h_t = min(max(a_t h_tm1 + b_t, low_t), high_t) for one leaf; what is None has no effect."""
    to = trees.wide(first.dtype)
    nothing = (0.0, 0.0, -jnp.inf, jnp.inf)
    step = tuple(_whole(x, none, first, to) for x, none in zip(step, nothing, strict=True))
    return states(CLIPPED, step, [first.astype(to)], steps, reverse)[0].astype(first.dtype)


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


def logarithmic_states(step: Elements, first: jax.Array, steps: int, reverse: bool) -> jax.Array:
    """h_t = log(exp(h_tm1 + c_t) + exp(d_t)) for one leaf."""
    to = trees.wide(first.dtype)
    step = tuple(x if x is None else x.astype(to) for x in step)
    return states(LOGARITHMIC, step, [first.astype(to)], steps, reverse)[0].astype(first.dtype)
