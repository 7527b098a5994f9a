"""A loop over segments whose gradient follows a table: the primitive under `revolve`.

JAX derives a backward pass by running the forward pass's operations in reverse, and cannot derive
one that follows a schedule. So this file has the one primitive of the library, `tangents_p`: the
tangents of the loop, linear in the tangents that go in, whose transpose is the schedule run by one
compiled loop. Its other rules keep every transformation: forward mode runs the loop on tangents,
`vmap` batches the segment itself (so that no weight gradient exists per example), and derivatives of
derivatives are those of an ordinary loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn.engine.binomial import Table, table
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.segments import grouped, joined
from jaxrnn.trees import all_steps, first_step, is_float, only, put, with_float0

Segment = Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]  # (consts, carry, xs [K, ...]) -> (carry, ys)


class Job(NamedTuple):
    """So many segments of K steps, to be run first to last, or last to first, with so many carries kept."""

    run: Segment
    segments: int
    length: int  # K
    start: int  # where along time the segments begin
    slots: int
    reverse: bool

    @property
    def table(self) -> Table:
        return table(self.segments, self.slots)

    def along_time(self, column: np.ndarray) -> jax.Array:
        """A column of the table, which counts segments in the order in which they run, in the order of time."""
        return jnp.asarray(column[::-1] if self.reverse else column)

    def inputs(self, xs: Leaves, n: Any) -> Leaves:
        """Those of the n-th segment along time, cut out of xs where they are needed: no copy of all is made."""
        return [lax.dynamic_slice_in_dim(a, self.start + n * self.length, self.length) for a in xs]

    def all_inputs(self, xs: Leaves) -> Leaves:
        """Those of every segment, [segments, K, ...]; a copy."""
        end = self.start + self.segments * self.length
        return grouped([a[self.start : end] for a in xs], self.length)

    def placed(self, found: Leaves, steps: int) -> Leaves:
        """What belongs to every segment, [segments, K, ...], in its place among all steps; zero elsewhere."""
        after = steps - self.start - self.segments * self.length
        return [jnp.pad(a, [(self.start, after)] + [(0, 0)] * (a.ndim - 1)) for a in joined(found)]


class Moving(NamedTuple):
    """Which leaves of what goes in have tangents."""

    consts: tuple[bool, ...]
    carry: tuple[bool, ...]
    xs: tuple[bool, ...]

    def primals(self, flat: Sequence[Any]) -> tuple[Leaves, Leaves, Leaves]:
        """The primitive's operands taken apart: (consts, slots, xs)."""
        return _cut(flat, map(len, self))

    def tangents(self, flat: Sequence[Any]) -> tuple[Leaves, Leaves, Leaves]:
        """And its linear ones: (d_consts, d_carry, d_xs), of the leaves that have any."""
        return _cut(flat[sum(map(len, self)) :], map(sum, self))


def _cut(flat: Sequence[Any], sizes: Any) -> Any:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(flat[start : start + size]))
        start += size
    return tuple(parts)


def _floats(leaves: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(map(is_float, leaves))


def _pick(stacked: Leaves, k: Any) -> Leaves:
    return [lax.dynamic_index_in_dim(a, k, keepdims=False) for a in stacked]


def _store(slots: Leaves, into: Any, carry: Leaves) -> Leaves:
    return [lax.dynamic_update_index_in_dim(a, b, into, 0) for a, b in zip(slots, carry, strict=True)]


def scheduled(job: Job, consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
    """Runs all segments on xs [T, ...]: (carry, ys [segments, K, ...]). Without a gradient it is a plain loop."""

    @jax.custom_jvp
    def run(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        body = lambda carry, n: job.run(consts, carry, job.inputs(xs, n))
        return lax.scan(body, init, jnp.arange(job.segments), job.segments, job.reverse)

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> Any:
        moving = Moving(
            *(
                tuple(f and not isinstance(d, SymbolicZero) for f, d in zip(_floats(side), ds, strict=True))
                for side, ds in zip(primals, tangents, strict=True)
            )
        )
        consts, _, xs = primals
        carry, ys, slots = _first_pass(job, *primals)
        given = [d for which, side in zip(moving, tangents, strict=True) for d in only(which, side)]
        found = tangents_p.bind(*consts, *slots, *xs, *given, job=job, moving=moving)
        d_carry, d_ys = _cut(found, [sum(_floats(carry)), sum(_floats(ys))])
        return (carry, ys), (with_float0(d_carry, carry), with_float0(d_ys, ys))

    return run(consts, init, xs)


def _first_pass(job: Job, consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, Leaves, Leaves]:
    """(carry, ys, slots) of running all segments once."""

    def body(state: tuple[Leaves, Leaves], at_k: Any) -> Any:
        (carry, slots), (n, into) = state, at_k
        slots = _store(slots, into, carry)
        carry, y = job.run(consts, carry, job.inputs(xs, n))
        return (carry, slots), y

    # Copies of the first carry rather than zeros: also right for keys, and nothing is read before it is written.
    slots = [jnp.broadcast_to(a[None], (job.slots + 1, *a.shape)) for a in init]
    each = (jnp.arange(job.segments), job.along_time(job.table.first))
    (carry, slots), ys = lax.scan(body, (init, slots), each, reverse=job.reverse)
    return carry, ys, slots


def _of_moving(job: Job, moving: Moving, consts: Leaves, carry: Leaves, x: Leaves) -> tuple[Any, tuple[Any, ...]]:
    """A segment as a function of what has tangents (all floating leaves of a carry inside the loop), and these."""
    floats = _floats(carry)

    def run(consts_: Leaves, carry_: Leaves, x_: Leaves) -> Any:
        inputs = put(moving.consts, consts_, consts), put(floats, carry_, carry), put(moving.xs, x_, x)
        carry_out, y = job.run(*inputs)
        return (only(floats, carry_out), only(_floats(y), y)), carry_out

    return run, (only(moving.consts, consts), only(floats, carry), only(moving.xs, x))


def _tangents(job: Job, moving: Moving, *flat: Any) -> Leaves:
    """(d_carry, d_ys) by forward mode: the meaning of the primitive, and where its own derivatives come from."""
    consts, slots, xs = moving.primals(flat)
    d_consts, d_given, d_xs = moving.tangents(flat)
    init = [a[0] for a in slots]
    fresh = put(
        moving.carry, d_given, [jnp.zeros_like(a) if has else None for a, has in zip(init, _floats(init), strict=True)]
    )

    def body(state: tuple[Leaves, Leaves], at_k: tuple[Leaves, Leaves]) -> Any:
        (carry, d_carry), (x, d_x) = state, at_k
        run, primals = _of_moving(job, moving, consts, carry, x)
        _, (d_carry, d_y), carry = jax.jvp(run, primals, (d_consts, d_carry, d_x), has_aux=True)
        return (carry, d_carry), d_y

    first = (init, only(_floats(init), fresh))
    each = job.all_inputs(xs), job.all_inputs(d_xs)
    (_, d_carry), d_ys = lax.scan(body, first, each, job.segments, job.reverse)
    return [*d_carry, *d_ys]


def _cotangents(job: Job, moving: Moving, flat: Sequence[Any], cts: Sequence[Any]) -> Leaves:
    """(d_consts, d_init, d_xs) from the cotangents of (carry, ys): the schedule, run by one loop."""
    consts, slots, xs = moving.primals(flat)
    floats = _floats(slots)
    ct_end, ct_ys = list(cts[: sum(floats)]), list(cts[sum(floats) :])
    again = [
        jnp.asarray(job.segments - 1 - job.table.run if job.reverse else job.table.run),
        jnp.asarray(job.table.store),
    ]

    def body(state: Any, at_k: Any) -> Any:
        (slots, ct_carry, totals), (n, restore, begin, end, ct_y) = state, at_k

        def advance(n: Any, state: tuple[Leaves, Leaves]) -> tuple[Leaves, Leaves]:
            (carry, slots), (k, into) = state, _pick(again, n)
            slots = _store(slots, into, carry)
            return job.run(consts, carry, job.inputs(xs, k))[0], slots

        carry = _pick(slots, restore)
        if job.table.advances:
            carry, slots = lax.fori_loop(begin, end, advance, (carry, slots))
        run, primals = _of_moving(job, moving, consts, carry, job.inputs(xs, n))
        _, back, _ = jax.vjp(run, *primals, has_aux=True)
        d_consts, ct_carry, d_x = back((ct_carry, ct_y))
        return (slots, ct_carry, [a + b for a, b in zip(totals, d_consts, strict=True)]), d_x

    totals = [jnp.zeros_like(a) for a in only(moving.consts, consts)]
    columns = [job.along_time(column) for column in (job.table.restore, job.table.begin, job.table.end)]
    each = (jnp.arange(job.segments), *columns, ct_ys)
    state, d_xs = lax.scan(body, (slots, ct_end, totals), each, job.segments, not job.reverse)
    _, d_init, d_consts = state
    d_all = job.placed(d_xs, xs[0].shape[0]) if d_xs else []
    return [*d_consts, *only(only(floats, moving.carry), d_init), *d_all]


def _differentiable(job: Job, moving: Moving) -> Callable[[Leaves, Leaves], Leaves]:
    """`_cotangents` with a derivative. Its loops have none in reverse; it equals a plain transpose, which has."""

    @jax.custom_jvp
    def run(primals: Leaves, cts: Leaves) -> Leaves:
        return _cotangents(job, moving, primals, cts)

    def plainly(primals: Leaves, cts: Leaves) -> Leaves:
        consts, slots, xs = moving.primals(primals)
        sides = zip(moving, (consts, [a[0] for a in slots], xs), strict=True)
        like = [jax.typeof(a) for which, side in sides for a in only(which, side)]
        return list(jax.linear_transpose(functools.partial(_tangents, job, moving, *primals), *like)(cts))

    @run.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        return run(*primals), jax.jvp(plainly, primals, tangents)[1]

    return run


tangents_p = Primitive("scheduled_tangents")
tangents_p.multiple_results = True


@tangents_p.def_impl
def _run(*flat: Any, job: Job, moving: Moving) -> Leaves:
    return jax.jit(functools.partial(_tangents, job, moving))(*flat)


@tangents_p.def_abstract_eval
def _types(*flat: Any, job: Job, moving: Moving) -> Any:
    """The tangents' types are the values': the segment is traced, not differentiated."""
    consts, slots, xs = moving.primals(flat)
    init = first_step(slots)
    each = jax.eval_shape(functools.partial(job.inputs, n=0), xs)
    carry, y = jax.eval_shape(job.run, consts, init, each)
    ys = all_steps(y, job.segments)
    return [jax.typeof(a) for side in (carry, ys) for a in only(_floats(side), side)]


def _lowered(*flat: Any, job: Job, moving: Moving) -> Leaves:
    return _tangents(job, moving, *flat)


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, job: Job, moving: Moving) -> Any:
    given = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(functools.partial(_tangents, job, moving), tuple(primals), given)


def _transposed(cts: Sequence[Any], *flat: Any, job: Job, moving: Moving) -> Leaves:
    given = sum(map(len, moving))
    back = _differentiable(job, moving)(list(flat[:given]), [ad.instantiate_zeros(ct) for ct in cts])
    return [None] * given + back


def _batched(flat: Sequence[Any], dims: Sequence[Any], *, job: Job, moving: Moving) -> Any:
    """The same job of a batched segment. What is not batched, such as weights, stays so, and so does its gradient."""
    size = next(a.shape[d] for a, d in zip(flat, dims, strict=True) if d is not None)
    primals, p_dims = moving.primals(flat), moving.primals(dims)
    tangents, t_dims = moving.tangents(flat), moving.tangents(dims)
    place = (0, 1, 1)  # of the batch dimension: in consts first, in slots after the slot, in xs after time

    def placed(a: Any, dim: int | None, to: int) -> Any:
        if dim is not None:
            return jnp.moveaxis(a, dim, to)
        return jnp.broadcast_to(jnp.expand_dims(a, to), (*a.shape[:to], size, *a.shape[to:]))

    axes: list[list[bool]] = []
    out: Leaves = []
    for side, (which, to) in enumerate(zip(moving, place, strict=True)):
        d_dims = put(which, t_dims[side], [None] * len(which))
        is_batched = [side == 1 or p is not None or d is not None for p, d in zip(p_dims[side], d_dims, strict=True)]
        axes.append(is_batched)
        out += [placed(a, d, to) if b else a for a, d, b in zip(primals[side], p_dims[side], is_batched, strict=True)]
    for side, (which, to) in enumerate(zip(moving, (0, 0, 1), strict=True)):
        batched = only(which, axes[side])
        out += [placed(a, d, to) if b else a for a, d, b in zip(tangents[side], t_dims[side], batched, strict=True)]
    axis = lambda side, at: [at if b else None for b in axes[side]]
    run = jax.vmap(job.run, (axis(0, 0), 0, axis(2, 1)), (0, 1))
    found = tangents_p.bind(*out, job=job._replace(run=run), moving=moving)
    carries = sum(_floats(primals[1]))
    return found, [0] * carries + [2] * (len(found) - carries)


mlir.register_lowering(tangents_p, mlir.lower_fun(_lowered, multiple_results=True))
ad.primitive_jvps[tangents_p] = _differentiated
ad.primitive_transposes[tangents_p] = _transposed
batching.primitive_batchers[tangents_p] = _batched
