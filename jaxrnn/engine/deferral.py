"""A loop whose weight gradients are deferred: one product over all steps instead of one sum per step.

The derivative is a `custom_jvp`, so every transformation follows from one definition: (1) the loop
runs and keeps what the tangents need, (2) the taps are computed for all steps at once, (3) a linear
loop carries the carry's tangents. JAX transposes (3) into the backward loop and (2) into the large
products. (A `custom_vjp` would have no forward mode, and under `vmap` it would make a copy of every
weight gradient per example.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn.engine.evaluate import Override, is_plain_product, product, run, run_at_once
from jaxrnn.engine.ir import Env, is_float, read
from jaxrnn.engine.linearize import Derivative, differentiate
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.taps import Sum, added
from jaxrnn.trees import only, with_float0

Mirrors = dict[int, Any]  # the transposes of some of a loop's invariant matrices, by their place


class How(NamedTuple):
    """How a loop is run."""

    scan: Callable[..., Any]
    steps: int
    reverse: bool

    def __call__(self, body: Any, carry: Any, xs: Any) -> Any:
        return self.scan(body, carry, xs, length=self.steps, reverse=self.reverse)


class _Given(NamedTuple):
    """What goes into a loop, or its tangents."""

    invariant: Leaves
    mirrors: Mirrors
    carry: Leaves
    stacked: Leaves


def deferred_loop(
    loop: Loop, how: How, free: Sequence[bool], invariant: Leaves, mirrors: Mirrors, carry: Leaves, stacked: Leaves
) -> tuple[Leaves, Leaves]:
    """Runs a loop over time: (carry, emitted values stacked over time).

    `free` marks the stacked values that exist anyway. `mirrors` has the transpose of some invariant
    matrices, made once outside: the backward loop multiplies with W^T, which it would otherwise do
    against the grain of memory at every step.
    """

    @jax.custom_jvp
    def looped(given: _Given) -> tuple[Leaves, Leaves]:
        return how(loop.at(given.invariant), given.carry, given.stacked)

    @functools.partial(looped.defjvp, symbolic_zeros=True)
    def rule(primals: tuple[_Given], tangents: tuple[_Given]) -> Any:
        return _with_tangents(loop, how, free, *primals, *tangents)

    return looped(_Given(invariant, mirrors, carry, stacked))


def _with_tangents(loop: Loop, how: How, free: Sequence[bool], given: _Given, d_given: _Given) -> Any:
    moves = lambda side: [not isinstance(d, SymbolicZero) for d in side]
    found = differentiate(loop, moves(d_given.invariant), moves(d_given.stacked), free)
    end, out = deferred_loop(found.forward, how, free, *given)
    floats = [is_float(v) for v in loop.carry]
    moved = _Given(
        only(moves(d_given.invariant), d_given.invariant),
        {},
        [
            jnp.zeros_like(c) if isinstance(d, SymbolicZero) else d
            for c, d in zip(only(floats, given.carry), only(floats, d_given.carry), strict=True)
        ],
        only(moves(d_given.stacked), d_given.stacked),
    )

    # Redone in the backward pass as a whole, or JAX would keep for every step what is computed on the way.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(given: _Given, out: Leaves, moved: _Given) -> tuple[Leaves, Leaves]:
        kept = {k.var: k.at_all_steps(given.carry, given.stacked, out, how.reverse) for k in found.kept}
        env = found.forward.held | dict(zip(found.forward.invariant, given.invariant, strict=True))
        return _linear_loop(found, how, env, given.mirrors, kept, moved)

    d_end, d_emitted = linear(given, out, moved)
    emitted = out[: len(loop.emitted)]
    return (end, emitted), (with_float0(d_end, end), with_float0(d_emitted, emitted))


def _linear_loop(
    found: Derivative, how: How, given: Env, mirrors: Mirrors, kept: Env, moved: _Given
) -> tuple[Leaves, Leaves]:
    """Tangents in, tangents out: the taps for all steps at once, then a loop for what runs through the carry."""
    tangents = found.tangents
    stacked = {*kept, *found.d_stacked}
    env = given | kept | dict(zip(found.d_stacked, moved.stacked, strict=True))
    env |= dict(zip(found.d_invariant, moved.invariant, strict=True))
    env = run_at_once([*found.redo, *tangents.outer], env, stacked, how.steps)
    over_time = lambda v: env[v] if v in stacked else jnp.broadcast_to(env[v], (how.steps, *env[v].shape))
    taps = [each.tap(over_time, how.steps) for each in tangents.entered]
    direct = [over_time(v) for v in tangents.direct]
    constant = {v: env[v] for v in tangents.constant}

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(d_carry: Leaves, at_t: tuple[Leaves, Leaves, Leaves]) -> tuple[Leaves, Leaves]:
        kept_t, taps_t, direct_t = at_t
        env = run(found.redo, given | dict(zip(kept, kept_t, strict=True)))
        env |= dict(zip(found.d_carry, d_carry, strict=True)) | constant
        env |= dict(zip(tangents.direct, direct_t, strict=True))
        tap_of = {id(each.equation): tap for each, tap in zip(tangents.entered, taps_t, strict=True)}
        env = run(tangents.inner, env, _stand_ins(found, tap_of, mirrors))
        return [read(env, a) for a in found.d_carry_out], [read(env, a) for a in found.d_emitted]

    return how(body, moved.carry, (list(kept.values()), taps, direct))


def _stand_ins(found: Derivative, tap_of: dict[int, Any], mirrors: Mirrors) -> dict[int, Override]:
    """Sums that a tap enters, and products of tangents with a matrix whose transpose is at hand."""
    chosen: dict[int, Override] = {}
    for each in found.tangents.sums:

        def total(env: Env, each: Sum = each) -> Leaves:
            tap = [tap_of[id(each.equation)]] if id(each.equation) in tap_of else []
            return [added([env[v] for v in each.inner] + tap)]

        chosen[id(each.equation)] = total
    mirrored = {found.forward.invariant[n]: mirror for n, mirror in mirrors.items()}
    for equation in found.tangents.inner:
        if is_plain_product(equation) and equation.invars[1] in mirrored:

            def against(env: Env, e: Any = equation) -> Leaves:
                return [product(env[e.invars[0]], mirrored[e.invars[1]], e, 1)]

            chosen[id(equation)] = against
    return chosen
