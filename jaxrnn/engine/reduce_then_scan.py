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


class Order(NamedTuple):
    """How many steps there are, and from which end they run."""

    steps: int
    reverse: bool
    over: str | None = None  # inside `jax.shard_map`: the axis whose devices have so many steps each, one after another

    @property
    def backwards(self) -> Order:
        return self._replace(reverse=not self.reverse)


class Semigroup(NamedTuple):
    """Steps of one form."""

    compose: Callable[[Elements, Elements], Elements]  # (first, then) -> one step that does both
    act: Callable[[Elements, Leaves], Leaves]  # (a step, the state before) -> the state after


def states(group: Semigroup, elements: Elements, first: Leaves, order: Order, deep: Any = None) -> Leaves:
    """The states after each of the steps, [T, ...]; `deep` is the semigroup for composed steps, if it is another."""
    if order.over is not None:
        elements, first = meshes.alike((elements, first))
        first = _state_before(deep or group, elements, first, order)
        order = order._replace(over=None)
    steps, reverse, _ = order
    if steps <= RADIX:
        return _in_order(group, elements, first, steps, reverse)
    groups = -(-steps // RADIX)
    rows = jax.tree.map(lambda a: _grouped(a, groups, reverse), elements)
    up, down = (_up_in_a_loop, _down_in_a_loop) if len(first) > 1 else (_up, _down)
    whole = jax.tree.map(lambda a: a if isinstance(a, int) else a[:, 0], up((deep or group).compose, rows, reverse))
    ends = states(deep or group, whole, first, Order(groups, reverse))
    before = [a[:, None] for a in shifted(first, ends, Order(groups, reverse))]
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


def shifted(first: Leaves, hs: Leaves, order: Order) -> Leaves:
    """The states before each step, from those after it."""
    reverse = order.reverse
    moved = [_moved(h, -1, 1) if reverse else _moved(h, 1, -1) for h in hs]
    place = lambda h: len(h) - 1 if reverse else 0
    early = [a.astype(h.dtype)[None] for a, h in zip(first, hs, strict=True)]
    if order.over is not None:
        lasts = [h[:1] if reverse else h[-1:] for h in hs]
        early = [if_first(order, a, _handed_on(x, order)) for a, x in zip(early, lasts, strict=True)]
    return [lax.dynamic_update_slice_in_dim(h, a, place(h), 0) for h, a in zip(moved, early, strict=True)]


def last(h: jax.Array, order: Order) -> jax.Array:
    """The state after the step that runs last."""
    end = h[0 if order.reverse else -1]
    if order.over is None:
        return end
    return meshes.common(end, order.over, of=0 if order.reverse else lax.axis_size(order.over) - 1)


# --- steps on several devices: each composes its own, all are told what the others made of theirs -----------------


def _state_before(group: Semigroup, elements: Elements, first: Leaves, order: Order) -> Leaves:
    """The state before the first step of this device: one exchange, of one composed step of each."""
    steps, reverse, over = order
    mine = _composed(group.compose, elements, steps, reverse)
    each = jax.tree.map(lambda a: a if isinstance(a, int) else lax.all_gather(a, over, tiled=True), mine)
    devices = Order(lax.axis_size(over), reverse)
    after = states(group, each, first, devices)
    return [lax.dynamic_index_in_dim(h, lax.axis_index(over), keepdims=False) for h in shifted(first, after, devices)]


def _composed(compose: Any, elements: Elements, steps: int, reverse: bool) -> Elements:
    """All steps as one, [1, ...]: groups of 8, then what is left over."""
    take = lambda start, stop: jax.tree.map(lambda a: a if _is_same(a) else a[start:stop], elements)
    groups, rest = divmod(steps, RADIX)
    cut = rest if reverse else steps - rest
    one_by_one = [take(t, t + 1) for t in (range(cut) if reverse else range(cut, steps))]
    found = one_by_one[::-1] if reverse else one_by_one
    if groups:
        full = take(cut, steps) if reverse else take(0, cut)
        rows = jax.tree.map(lambda a: _grouped(a, groups, reverse), full)
        whole = jax.tree.map(lambda a: a if isinstance(a, int) else a[:, 0], _up(compose, rows, reverse))
        found = [_composed(compose, whole, groups, reverse), *found]
    return functools.reduce(compose, found)


def _handed_on(x: Any, order: Order, back: bool = False) -> Any:
    """What the device has whose steps run just before (`back`: just after) this one's; zeros where there is none."""
    one = -1 if order.reverse != back else 1
    devices = range(lax.axis_size(order.over))
    return lax.ppermute(x, order.over, [(i, i + one) for i in devices if i + one in devices])


def if_first(order: Order, first: Any, other: Any) -> Any:
    """The one on the device whose steps run first, elsewhere the other."""
    if order.over is None:
        return first
    return jnp.where(
        lax.axis_index(order.over) == (lax.axis_size(order.over) - 1 if order.reverse else 0), first, other
    )


def one_later(a: Any, order: Order) -> Any:
    """What each step's successor has in the place of what it has; what would come after the last step is zero."""
    if a is None or _is_same(a):
        return a
    moved = _moved(a, 1, -1) if order.reverse else _moved(a, -1, 1)
    if order.over is None:
        return moved
    following = _handed_on(a[-1:] if order.reverse else a[:1], order, back=True)
    return lax.dynamic_update_slice_in_dim(moved, following, 0 if order.reverse else len(a) - 1, 0)
