"""A loop whose weight gradients are deferred: one product over all steps instead of one sum per step.

The derivative is a `custom_jvp`, so every transformation follows from one definition: (1) the loop
runs and keeps what the tangents need, (2) the taps are computed for all steps at once, (3) a linear
loop carries the carry's tangents. JAX transposes (3) into the backward loop and (2) into the large
products. (A `custom_vjp` would have no forward mode, and under `vmap` it would make a copy of every
weight gradient per example.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn.engine.ir import (
    Env,
    Override,
    is_float,
    is_plain_product,
    product,
    read,
    run,
    run_at_once,
)
from jaxrnn.engine.linearize import Body, Derivative, added, differentiate
from jaxrnn.trees import with_float0


class How(NamedTuple):
    """How a loop is run."""

    scan: Any
    steps: int
    reverse: bool

    def __call__(self, body: Any, carry: Any, xs: Any) -> Any:
        return self.scan(body, carry, xs, length=self.steps, reverse=self.reverse)


def transposable(body: Body) -> list[int]:
    """Which invariant values are matrices that the carry is multiplied with, in the loop."""
    found = {e.invars[1] for e in body.equations if is_plain_product(e) and e.invars[1] in body.invariant}
    return [n for n, v in enumerate(body.invariant) if v in found]


def deferred_loop(
    body: Body, how: How, free: Sequence[bool], invariant: list[Any], mirrors: dict[int, Any], carry: list[Any],
    stacked: list[Any],
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Runs a body over time: (carry, emitted values stacked over time).

    `mirrors` has the transpose of some invariant matrices, made once outside: the backward loop
    multiplies with W^T, which it would otherwise do against the grain of memory at every step.
    """

    @jax.custom_jvp
    def loop(invariant: list[Any], mirrors: dict[int, Any], carry: list[Any], stacked: list[Any]) -> Any:
        del mirrors
        return how(body.at(invariant), carry, stacked)

    @functools.partial(loop.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> Any:
        return _tangents(body, how, free, primals, tangents)

    return loop(invariant, mirrors, carry, stacked)


def _tangents(body: Body, how: How, free: Sequence[bool], primals: Any, tangents: Any) -> Any:
    invariant, mirrors, carry, stacked = primals
    d_invariant, _, d_carry, d_stacked = tangents
    moved = [[not isinstance(d, SymbolicZero) for d in side] for side in (d_invariant, d_stacked)]
    found = differentiate(body, moved[0], moved[1], free)
    end, out = deferred_loop(found.forward, how, free, invariant, mirrors, carry, stacked)

    d_carry = [
        jnp.zeros(d.shape, d.dtype) if isinstance(d, SymbolicZero) else d
        for d, v in zip(d_carry, body.carry, strict=True)
        if is_float(v)
    ]
    d_invariant = [d for d, moves in zip(d_invariant, moved[0], strict=True) if moves]
    d_stacked = [d for d, moves in zip(d_stacked, moved[1], strict=True) if moves]

    # Redone in the backward pass as a whole, or JAX would keep for every step what is computed on the way.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(primals: Any, out: list[Any], d_invariant: list[Any], d_carry: list[Any], d_stacked: list[Any]) -> Any:
        invariant, mirrors, carry, stacked = primals
        kept = [stacked[n] for n in found.kept_stacked] + [out[n] for n in found.kept_emitted]
        kept += [_a_step_earlier(carry[n], out[later], how.reverse) for n, later in found.kept_shifted]
        given = found.forward.held | dict(zip(found.forward.invariant, invariant, strict=True))
        return _linear_loop(found, how, given, mirrors, kept, d_invariant, d_carry, d_stacked)

    d_end, d_emitted = linear(primals, out, d_invariant, d_carry, d_stacked)
    emitted = out[: len(body.emitted)]
    return (end, emitted), (with_float0(d_end, end), with_float0(d_emitted, emitted))


def _a_step_earlier(first: Any, values: Any, reverse: bool) -> Any:
    """What a carry was before each step, from what it was after each."""
    parts = [values[1:], first[None]] if reverse else [first[None], values[:-1]]
    return jnp.concatenate(parts)


def _linear_loop(
    found: Derivative, how: How, given: Env, mirrors: dict[int, Any], kept: list[Any],
    d_invariant: list[Any], d_carry: list[Any], d_stacked: list[Any],
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Tangents in, tangents out: the taps for all steps at once, then a loop for what runs through the carry."""
    entered = [each for each in found.sums if each.from_outside]

    stacked = {*found.kept, *found.d_stacked}
    env = given | dict(zip([*found.kept, *found.d_stacked], [*kept, *d_stacked], strict=True))
    env |= dict(zip(found.d_invariant, d_invariant, strict=True))
    env = run_at_once([*found.redo, *found.outer], env, stacked, how.steps)
    over_time = lambda v: env[v] if v in stacked else jnp.broadcast_to(env[v], (how.steps, *env[v].shape))
    taps = [each.tap(over_time, how.steps) for each in entered] + [over_time(v) for v in found.direct]
    constant = [env[v] for v in found.constant]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(ds: list[Any], at_t: Any) -> tuple[list[Any], list[Any]]:
        kept_t, taps_t = at_t
        env = run(found.redo, given | dict(zip(found.kept, kept_t, strict=True)))
        env |= dict(zip(found.d_carry, ds, strict=True)) | dict(zip(found.constant, constant, strict=True))
        env |= dict(zip(found.direct, taps_t[len(entered) :], strict=True))
        tap_of = dict(zip((id(each.equation) for each in entered), taps_t, strict=False))
        env = run(found.inner, env, _stand_ins(found, tap_of, mirrors))
        return [read(env, a) for a in found.d_carry_out], [read(env, a) for a in found.d_emitted]

    return how(body, d_carry, (kept, taps))


def _stand_ins(found: Derivative, tap_of: dict[int, Any], mirrors: dict[int, Any]) -> dict[int, Override]:
    """Sums that a tap enters, and products of tangents with a matrix whose transpose is at hand."""
    chosen: dict[int, Override] = {}
    for each in found.sums:

        def total(env: Env, each: Any = each) -> list[Any]:
            tap = [tap_of[id(each.equation)]] if id(each.equation) in tap_of else []
            return [added([env[v] for v in each.inner] + tap)]

        chosen[id(each.equation)] = total
    mirrored = {found.forward.invariant[n]: mirror for n, mirror in mirrors.items()}
    for equation in found.inner:
        if is_plain_product(equation) and equation.invars[1] in mirrored:

            def against(env: Env, e: Any = equation) -> list[Any]:
                return [product(env[e.invars[0]], mirrored[e.invars[1]], e, 1)]

            chosen[id(equation)] = against
    return chosen
