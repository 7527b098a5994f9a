"""Newton's method over time: the states of a nonlinear recurrence for all steps at once, with a certificate.

    r_t = f(h_tm1, x_t) - h_t                what is wrong, at all steps
    d_t = J_t d_tm1 + r_t                    an affine recurrence, J_t = df/dh at the present states
    h  += d                                  until the largest |r| / (1 + |h|) is small

Each iteration costs a few affine solves, so it pays where J_t is elementwise, or m x m per element of m leaves. Lim et
al. 2024, "Parallelizing non-linear sequential models over the sequence length" (DEER); Danieli et al. 2025, "ParaRNN".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn import checks, guards
from jaxrnn.engine.closed_forms import check
from jaxrnn.engine.deferral import How
from jaxrnn.engine.forms import Obstacle
from jaxrnn.engine.ir import Atom, is_var, reads, slice_back
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.reduce_then_scan import shifted
from jaxrnn.engine.rules import Equation, Kind, inner_jaxprs, rule
from jaxrnn.engine.semigroups import affine_states
from jaxrnn.engine.solved import Run, Solve
from jaxrnn.engine.thin import is_elementwise


class Certificate(NamedTuple):
    """How well the states of a component obey its recurrence."""

    iterations: Any
    residual: Any  # the largest |f(h_tm1, x_t) - h_t| / (1 + |h_t|)
    bound: Any  # the largest error that this can make, to first order: e_t = |J_t| e_tm1 + |r_t|
    met: Any  # whether the residual is within the tolerance; else the states are those of the loop


@dataclass(frozen=True)
class newton:  # noqa: N801  a value that reads like what it stands for, as strategies do
    """For `parallel(newton=newton())`: elementwise recurrences that have no closed form are solved by iteration.

    At most so many `iterations`, until the residual, relative to 1 + |h|, is within `tolerance` (None: 16 times the
    dtype's precision). Where it is not, as for a chaotic recurrence, the component runs step by step and has the
    loop's values: an answer is never worse than the loop's. `report`, if given, is called with a `Certificate` for
    each component each time it is solved. `iterations=0`: forward in order, backward in parallel.

    Memory: some arrays of all steps' states, J among them. Cost: per iteration the step, its derivative along each
    leaf and an affine solve; 5 to 13 iterations for 10,000 steps of gated cells with elementwise recurrent weights.
    A step that mixes elements (h W: an LSTM, a GRU) is not iterated: J_t would be an H x H matrix at each step, and
    the work grows with H^3. It runs under `inner`, with a warning.
    Raises: ValueError for iterations below 0 or a tolerance that is not positive.
    """

    iterations: int = 20
    tolerance: float | None = None
    report: Callable[[Certificate], None] | None = None

    def __post_init__(self) -> None:
        checks.positive_int("newton", "iterations", self.iterations, least=0)
        if self.tolerance is not None and not checks.number(self.tolerance) > 0:
            raise ValueError(f"newton: tolerance must be a positive number, or None, got {self.tolerance!r}")
        if self.report is not None and not callable(self.report):
            raise TypeError(f"newton: report must be a function of a Certificate, got {self.report!r}")


def check_elementwise(loop: Loop) -> None:
    """Raises: Obstacle, for a step in which an element of the carry depends on another one's past."""
    check(loop)
    carry: list[Atom] = list(loop.carry)
    if not jnp.issubdtype(carry[0].aval.dtype, jnp.floating):
        raise Obstacle("what is no real number")
    shape = carry[0].aval.shape
    _check_each(slice_back(loop.equations, loop.carry_out, loop.inputs), set(loop.carry), shape)


def _check_each(equations: Iterable[Equation], moving: set[Var], shape: tuple[int, ...]) -> set[Var]:
    """The variables that depend on the carry, if all of them do so element by element."""
    for e in equations:
        if not reads(e, moving):
            continue
        if e.primitive.name == "custom_jvp_call" or rule(e).kind in (Kind.CALL, Kind.REMAT):
            body = inner_jaxprs(e)[0]
            into = {v for v, a in zip(body.invars, e.invars, strict=True) if is_var(a) and a in moving}
            found = _check_each(body.eqns, into, shape)
            moving.update(v for v, a in zip(e.outvars, body.outvars, strict=True) if is_var(a) and a in found)
            continue
        same = all(a.aval.shape == shape for a in [*e.outvars, *(a for a in e.invars if is_var(a) and a in moving)])
        if not (is_elementwise(e) and same):
            raise Obstacle(f"{e.primitive.name} of the carry")
        moving.update(e.outvars)
    return moving


def iterated(settings: newton, run: Run, how: How) -> Solve:
    """The states of a loop: by iteration where that converges, in order where not."""

    def in_order(invariant: Leaves, first: Leaves, stacked: Leaves) -> Leaves:
        step = run.loop.at(invariant)
        twice = lambda carry, x: (after := step(carry, x)[0], after)
        return how(twice, list(first), list(stacked))[1]

    def solve(invariant: Leaves, first: Leaves, stacked: Leaves) -> Leaves:
        found, certificate = _iterate(settings, run, invariant, first, stacked)
        if settings.report is not None:
            jax.debug.callback(settings.report, certificate)
        missed = guards.anywhere([~certificate.met])
        return lax.cond(missed, lambda: in_order(invariant, first, stacked), lambda: found)

    return solve if settings.iterations else in_order


def _iterate(
    settings: newton, run: Run, invariant: Leaves, first: Leaves, stacked: Leaves
) -> tuple[Leaves, Certificate]:
    tolerance = settings.tolerance or 16 * float(jnp.finfo(first[0].dtype).eps)
    nothing = [jnp.zeros_like(x) for x in first]
    before = lambda h: shifted(first, h, run.order)
    after = lambda h: run.at_once(run.loop.carry_out, invariant, before(h), stacked)
    wrong = lambda h: [a - x for a, x in zip(after(h), h, strict=True)]
    solved = lambda J, r: affine_states(J, r, nothing, run.order, cuts=True)

    def size(r: Leaves, h: Leaves) -> jax.Array:
        return jnp.max(jnp.stack([jnp.max(jnp.abs(a) / (1 + jnp.abs(x))) for a, x in zip(r, h, strict=True)]))

    def goes_on(now: Any) -> jax.Array:
        h, r, n = now
        return (n < settings.iterations) & (size(r, h) > tolerance)  # a NaN does not get better

    def better(now: Any) -> Any:
        h, r, n = now
        d = solved(run.slopes(invariant, stacked, before(h)), r)
        h = [x + y for x, y in zip(h, d, strict=True)]
        return h, wrong(h), n + 1

    flat = [jnp.broadcast_to(x, (run.order.steps, *x.shape)) for x in first]
    guess = run.at_once(run.loop.carry_out, invariant, flat, stacked)
    h, r, n = lax.while_loop(goes_on, better, (guess, wrong(guess), jnp.int32(0)))
    residual = size(r, h)
    bound = jnp.zeros_like(residual)
    if settings.report is not None:
        J = [[jnp.abs(a) for a in row] for row in run.slopes(invariant, stacked, before(h))]
        bound = jnp.max(jnp.stack([jnp.max(e) for e in solved(J, [jnp.abs(a) for a in r])]))
    return h, Certificate(n, residual, bound, residual <= tolerance)
