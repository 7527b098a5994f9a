"""A loop whose states are found for all steps at once, and its derivative.

Whatever way the states were found, their tangents obey

    dh_t = J_t dh_tm1 + g_t,     J_t = df/dh (h_tm1),     g_t = df/d(weights, inputs) of their tangents

which is an affine recurrence, solved in parallel whatever f is. It is stated once, as a `custom_jvp` whose linear part
JAX transposes into the reversed recurrence. Kept for the backward pass: the states, and what the loop reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Var

from jaxrnn.engine.closed_forms import ClosedForm
from jaxrnn.engine.evaluate import run_at_once
from jaxrnn.engine.forms import Affine, Form
from jaxrnn.engine.ir import Atom, Env, is_float, is_var, read, slice_back
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.reduce_then_scan import Elements, Order, shifted
from jaxrnn.engine.rules import worth_keeping
from jaxrnn.engine.semigroups import affine_states, clipped_states, linear_states, logarithmic_states
from jaxrnn.trees import only, put

Solve = Callable[[Leaves, Leaves, Leaves], Leaves]  # (invariant, first, stacked) -> the states [T, ...]
Slopes = Callable[[Leaves, Leaves, Leaves], Elements]  # (invariant, stacked, states before) -> J [leaves][leaves]


class Run(NamedTuple):
    """A loop over so many steps, in this order."""

    loop: Loop
    order: Order

    def at_once(self, wanted: Sequence[Atom], invariant: Leaves, before: Leaves, stacked: Leaves) -> Leaves:
        """Values of the step for all steps, given the states before each of them."""
        loop, steps = self.loop, self.order.steps
        over_time: set[Var] = {*loop.carry, *loop.stacked}
        env: Env = loop.held | dict(zip(loop.invariant, invariant, strict=True))
        env |= dict(zip([*loop.carry, *loop.stacked], [*before, *stacked], strict=True))
        env = run_at_once(slice_back(loop.equations, wanted, list(env)), env, over_time, steps)
        value = lambda a: jnp.asarray(read(env, a))
        repeated = lambda x: jnp.broadcast_to(x, (steps, *x.shape))
        return [value(a) if is_var(a) and a in over_time else repeated(value(a)) for a in wanted]

    def slopes(self, invariant: Leaves, stacked: Leaves, before: Leaves) -> Elements:
        """J by derivatives along ones, one per leaf: exact where element depends on element."""
        after = lambda before: self.at_once(self.loop.carry_out, invariant, before, stacked)
        along = lambda k: [jnp.ones_like(x) if j == k else jnp.zeros_like(x) for j, x in enumerate(before)]
        columns = [jax.jvp(after, (before,), (along(k),))[1] for k in range(len(before))]
        return [list(row) for row in zip(*columns, strict=True)]


def by_form(form: ClosedForm, run: Run) -> tuple[Solve, Slopes]:
    """The states of a loop with a closed form, and the slopes of its step."""

    def solve(invariant: Leaves, first: Leaves, stacked: Leaves) -> Leaves:
        found = form.at_all_steps(run.loop, invariant, stacked, run.order.steps)
        if form.kind == "clipped":
            return [clipped_states(tuple(found[0]), first[0], run.order)]
        if form.kind == "logarithmic":
            return [logarithmic_states(tuple(found[0]), first[0], run.order)]
        return affine_states(_slopes(found), [f.b for f in found if isinstance(f, Affine)], first, run.order, form.cuts)

    def slopes(invariant: Leaves, stacked: Leaves, before: Leaves) -> Elements:
        del before
        found = form.at_all_steps(run.loop, invariant, stacked, run.order.steps)
        return _slopes(found)

    return solve, slopes if form.is_derivative else run.slopes


def _slopes(forms: Sequence[Form]) -> Elements:
    return [list(f.a) for f in forms if isinstance(f, Affine)]


def solved_states(
    run: Run, solve: Solve, slopes: Slopes, cuts: bool, invariant: Leaves, first: Leaves, stacked: Leaves
) -> Leaves:
    """The states after each step [T, ...], found by `solve`, with a derivative in O(log T) depth."""
    if not all(map(is_float, run.loop.carry)):  # whole numbers have no derivative
        return solve(invariant, first, stacked)

    @jax.custom_jvp
    def found(invariant: Leaves, first: Leaves, stacked: Leaves) -> Leaves:
        return solve(invariant, first, stacked)

    @functools.partial(found.defjvp, symbolic_zeros=True)
    def rule(given: Any, d_given: Any) -> tuple[Leaves, Leaves]:
        states = found(*given)
        return states, _tangents(run, slopes, cuts, given, d_given, states)

    return found(invariant, first, stacked)


def _tangents(run: Run, slopes: Slopes, cuts: bool, given: Any, d_given: Any, states: Leaves) -> Leaves:
    moved = [[not isinstance(d, SymbolicZero) and is_float_tangent(d) for d in side] for side in d_given]
    d_first = [
        jnp.zeros_like(x) if isinstance(d, SymbolicZero) else d for x, d in zip(given[1], d_given[1], strict=True)
    ]
    d_moved = only(moved[0], d_given[0]), only(moved[2], d_given[2])

    # Redone in the backward pass, or JAX would keep what is computed on the way for every step.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(given: Any, states: Leaves, d_moved: Any, d_first: Leaves) -> Leaves:
        invariant, first, stacked = given
        before = shifted(first, states, run.order)

        def after(some_invariant: Leaves, some_stacked: Leaves) -> Leaves:
            whole = put(moved[0], some_invariant, invariant), put(moved[2], some_stacked, stacked)
            return run.at_once(run.loop.carry_out, whole[0], before, whole[1])

        if any(moved[0]) or any(moved[2]):
            _, g = jax.jvp(after, (only(moved[0], invariant), only(moved[2], stacked)), d_moved)
        else:
            g = [jnp.zeros_like(h) for h in states]
        return linear_states(slopes(invariant, stacked, before), g, d_first, run.order, cuts)

    return linear(given, states, d_moved, d_first)


def is_float_tangent(d: Any) -> bool:
    return d.dtype != jax.dtypes.float0


def emitted(run: Run, states: Leaves, invariant: Leaves, first: Leaves, stacked: Leaves) -> Leaves:
    """What the loop emits, [T, ...], given its states."""
    loop = run.loop
    made: Env = dict(zip(loop.carry, shifted(first, states, run.order), strict=True))
    made |= {a: h for a, h in zip(loop.carry_out, states, strict=True) if is_var(a)}
    rest = [v for v in loop.emitted if v not in made]

    @functools.partial(jax.checkpoint, prevent_cse=False, policy=worth_keeping)
    def lean(invariant: Leaves, before: Leaves, stacked: Leaves) -> Leaves:
        return run.at_once(rest, invariant, before, stacked)

    if rest:
        made |= dict(zip(rest, lean(invariant, [made[v] for v in loop.carry], stacked), strict=True))
    return [made[v] for v in loop.emitted]
