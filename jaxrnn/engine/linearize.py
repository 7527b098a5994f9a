"""A loop's step and its derivative, taken apart: what to keep, what to defer, what must be redone.

The derivative of a step is linear in the tangents. Those of the weights and inputs (from outside the
loop) enter it at *taps*; those of the carry run through it. With `+` grown along additions,

    tangents out  =  A_t (carry's tangents)  +  one tap per sum that outside tangents enter,

the taps can be computed for all steps at once, and only A_t is left to the loop. Transposed, that is
the backward pass: A_t^T in the loop, and each weight's gradient as one product over all steps.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn.engine.ir import (
    Atom,
    Env,
    Equation,
    apply,
    hides_its_derivative,
    inner_jaxprs,
    is_cheap,
    is_float,
    is_var,
    like,
    reached,
    read,
    run,
    size_bytes,
    slice_back,
    trace,
    variables,
)
from jaxrnn.engine.minimum_cut import minimum_cut

_NO_DERIVATIVE = frozenset({"stop_gradient", "sign", "floor", "ceil", "round"})
_SUMS = frozenset({"add", "add_any"})


class Body(NamedTuple):
    """One step of a loop: from `invariant`, `carry` and `stacked` values to `carry_out` and `emitted`."""

    held: Env  # constants of the trace
    equations: list[Equation]
    invariant: list[Var]
    carry: list[Var]
    stacked: list[Var]
    carry_out: list[Atom]
    emitted: list[Atom]

    @property
    def defers(self) -> bool:
        """Whether its derivative can be taken apart: not where a `cond` is differentiated."""
        tangents = {v for v in [*self.invariant, *self.carry, *self.stacked] if is_float(v)}
        for equation in self.equations:
            moved = not tangents.isdisjoint(variables(equation.invars))
            if moved and hides_its_derivative(equation):
                return False
            if moved and equation.primitive.name not in _NO_DERIVATIVE:
                tangents.update(filter(is_float, equation.outvars))
        return True

    def at(self, invariant: Sequence[Any]) -> Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any]]]:
        """The body as a scan wants it: (carry, stacked values of one step) -> (carry, emitted)."""
        given = self.held | dict(zip(self.invariant, invariant, strict=True))

        def step(carry: Sequence[Any], stacked: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            env = given | dict(zip(self.carry, carry, strict=True)) | dict(zip(self.stacked, stacked, strict=True))
            env = run(self.equations, env)
            return [read(env, a) for a in self.carry_out], [read(env, a) for a in self.emitted]

        return step


class Blocks(NamedTuple):
    """Sums of outside terms, side by side along an axis; an empty sum is zero."""

    terms: list[list[Var]]
    shapes: list[tuple[int, ...]]
    axis: int


class Sum(NamedTuple):
    """A sum in the derivative: terms that run through the carry, and terms from outside the loop."""

    equation: Equation
    inner: list[Var]
    outer: list[Var]
    outer_blocks: list[Blocks]

    @property
    def from_outside(self) -> list[Var]:
        return [*self.outer, *(v for blocks in self.outer_blocks for terms in blocks.terms for v in terms)]

    def tap(self, value: Callable[[Var], Any], steps: int) -> Any:
        """The outside terms of all steps, added up."""
        rank = len(self.equation.outvars[0].aval.shape)

        def row(v: Var) -> Any:
            """Scalars may be added to arrays; behind a time axis they need the array's rank."""
            term = value(v)
            return term.reshape(steps, *(1,) * (rank + 1 - term.ndim), *term.shape[1:])

        terms = [row(v) for v in self.outer]
        for blocks in self.outer_blocks:
            nothing = jnp.zeros((), value(self.from_outside[0]).dtype)
            parts = [
                jnp.broadcast_to(added(map(row, vs)) if vs else nothing, (steps, *shape))
                for vs, shape in zip(blocks.terms, blocks.shapes, strict=True)
            ]
            terms.append(jnp.concatenate(parts, axis=blocks.axis + 1))
        return added(terms)


def added(terms: Iterable[Any]) -> Any:
    return functools.reduce(lax.add, terms)


class Derivative(NamedTuple):
    """What `differentiate` finds out about a body."""

    forward: Body  # the body, emitting also those of `kept` that it computes
    kept: list[Var]  # what the tangents are computed from, per step, in this order:
    kept_stacked: list[int]  # - some of the stacked inputs
    kept_emitted: list[int]  # - some of what `forward` emits
    kept_shifted: list[tuple[int, int]]  # - carries that `forward` emits a step later as such: (which, emitted as)
    redo: list[Equation]  # computes the rest of what the tangents need from `kept`
    outer: list[Equation]  # from outside tangents to taps; linear
    inner: list[Equation]  # from the carry's tangents and taps to the tangents out; linear
    sums: list[Sum]  # equations of `inner` that a tap enters
    direct: list[Var]  # outside tangents that equations of `inner` read as they are
    constant: list[Var]  # the same, those that do not change from step to step
    d_invariant: list[Var]
    d_carry: list[Var]
    d_stacked: list[Var]
    d_carry_out: list[Atom]  # of the floating leaves
    d_emitted: list[Atom]


def differentiate(body: Body, invariant: Sequence[bool], stacked: Sequence[bool], free: Sequence[bool]) -> Derivative:
    """The derivative of a body by its carry and by the marked invariant and stacked values.

    `free` marks the stacked values that exist anyway, hence cost nothing to keep.
    """
    sides = (body.invariant, body.carry, body.stacked)
    marks = (invariant, [is_float(v) for v in body.carry], stacked)
    wanted = [[v for v, m in zip(side, mark, strict=True) if m] for side, mark in zip(sides, marks, strict=True)]
    primals, perturbed = [v for side in sides for v in side], [v for side in wanted for v in side]

    def both(*args: Any) -> list[Any]:
        values, tangents = args[: len(primals)], args[len(primals) :]
        env = dict(zip(primals, values, strict=True))
        return _with_tangents(body, body.held | env, dict(zip(perturbed, tangents, strict=True)))

    flat = trace(both, *map(like, [*primals, *perturbed]))
    inputs, outputs = iter(flat.inputs), iter(flat.outputs)
    w, s, i, dw, ds, di = ([next(inputs) for _ in side] for side in (*sides, *wanted))
    s_out, e_out = ([next(outputs) for _ in side] for side in (body.carry_out, body.emitted))
    ds_out, de_out = ([next(outputs) for a in side if is_float(a)] for side in (body.carry_out, body.emitted))
    d_out = [*ds_out, *de_out]

    def reads(equation: Equation, found: set[Var]) -> bool:
        return not found.isdisjoint(variables(equation.invars))

    tangents, through_carry = reached(flat.equations, [*dw, *ds, *di]), reached(flat.equations, ds)
    plain = [e for e in flat.equations if not reads(e, tangents)]
    linear = slice_back([e for e in flat.equations if reads(e, tangents)], d_out, [])
    inner, sums = _grown_sums([e for e in linear if reads(e, through_carry)], through_carry, tangents, d_out)
    summed = {id(each.equation) for each in sums}
    read_as_is = [a for e in inner if id(e) not in summed for a in e.invars]
    direct = [v for v in variables([*read_as_is, *d_out]) if v in tangents and v not in through_carry]
    every_step = reached(flat.equations, [*s, *i, *di])
    constant = [v for v in direct if v not in every_step]
    direct = [v for v in direct if v in every_step]
    from_outside = [e for e in linear if not reads(e, through_carry)]
    outer = slice_back(from_outside, [*constant, *direct, *(v for each in sums for v in each.from_outside)], [])

    read_by_linear = [*(a for e in [*inner, *outer] for a in e.invars), *d_out]
    needed = [v for v in variables(read_by_linear) if v not in tangents]
    values = every_step - tangents
    nothing = {*(v for v, f in zip(i, free, strict=True) if f), *variables(e_out)}
    nothing |= {v for v, after in zip(s, s_out, strict=True) if is_var(after) and after in e_out}
    cost = {v: 0 if v in nothing else size_bytes(v) for v in values}
    kept = _cheapest(plain, cost, [*s, *i, *variables(e_out)], [v for v in needed if v in values])
    computed = {v for e in plain for v in e.outvars if v in kept}.union(variables(e_out))
    later = {v: after for v, after in zip(s, s_out, strict=True) if v in kept and is_var(after) and after in computed}
    shifted = list(later)
    emitted = [v for v in [*s, *(v for e in plain for v in e.outvars)] if v in kept and v not in shifted]
    out = [*e_out, *(v for v in emitted if v not in variables(e_out))]
    stacked_kept = [n for n, v in enumerate(i) if v in kept]
    held = body.held | dict(zip(flat.const_vars, flat.consts, strict=True))
    in_order = [*(i[n] for n in stacked_kept), *emitted, *shifted]
    return Derivative(
        forward=Body(held, slice_back(plain, [*s_out, *out], [*w, *s, *i]), w, s, i, s_out, out),
        kept=in_order,
        kept_stacked=stacked_kept,
        kept_emitted=[out.index(v) for v in emitted],
        kept_shifted=[(s.index(v), out.index(later[v])) for v in shifted],
        redo=slice_back(plain, needed, [*kept, *w]),
        outer=outer,
        inner=inner,
        sums=sums,
        direct=direct,
        constant=constant,
        d_invariant=dw,
        d_carry=ds,
        d_stacked=di,
        d_carry_out=ds_out,
        d_emitted=de_out,
    )


def _with_tangents(body: Body, env: Env, tangents: dict[Var, Any]) -> list[Any]:
    """Outputs and their tangents, equation by equation.

    An equation with equations inside (a loop, a `cond`) is evaluated once for its values alone and
    once more with tangents: the first runs in the forward loop, the second only in the backward one.
    """
    for equation in body.equations:
        moved = [v for v in variables(equation.invars) if v in tangents]
        outs = None
        if moved and equation.primitive.name not in _NO_DERIVATIVE:

            def values(*args: Any, equation: Equation = equation, moved: list[Var] = moved) -> Sequence[Any]:
                return apply(equation, env | dict(zip(moved, args, strict=True)))

            with_tangents, d_outs = jax.jvp(values, [env[v] for v in moved], [tangents[v] for v in moved])
            simple = not inner_jaxprs(equation) or equation.primitive.name.startswith("custom_")
            outs = with_tangents if simple else None
            tangents.update((v, d) for v, d in zip(equation.outvars, d_outs, strict=True) if is_float(v))
        env.update(zip(equation.outvars, apply(equation, env) if outs is None else outs, strict=True))

    def tangent(atom: Atom) -> Any:
        return tangents[atom] if is_var(atom) and atom in tangents else jnp.zeros(atom.aval.shape, atom.aval.dtype)

    outputs = [*body.carry_out, *body.emitted]
    return [read(env, a) for a in outputs] + [tangent(a) for a in outputs if is_float(a)]


def _grown_sums(
    equations: list[Equation], through_carry: set[Var], tangents: set[Var], outputs: Sequence[Atom]
) -> tuple[list[Equation], list[Sum]]:
    """The equations without the inner additions of longer sums, and the sums that outside terms enter."""
    uses = Counter(a for e in equations for a in e.invars if is_var(a))
    uses.update(2 * [a for a in outputs if is_var(a)])
    terms: dict[Var, list[Var]] = {}
    swallowed: dict[Var, Equation] = {}
    for equation in equations:
        if equation.primitive.name not in _SUMS or not all(is_var(a) and a in tangents for a in equation.invars):
            continue
        found: list[Var] = []
        for v in equation.invars:
            if v in terms and uses[v] == 1:
                found += terms[v]
                swallowed[v] = equation
            else:
                found.append(v)
        terms[equation.outvars[0]] = found
    sums = []
    for equation in equations:
        out = equation.outvars[0]
        if out not in terms or out in swallowed:
            continue
        inner = [v for v in terms[out] if v in through_carry]
        outer = [v for v in terms[out] if v not in through_carry]
        sums.append(Sum(equation, inner, outer, []))
    gone = {id(e) for e in equations if e.outvars[0] in swallowed}
    left = [e for e in equations if id(e) not in gone]
    return left, _above_splits(left, sums, uses)


def _above_splits(equations: list[Equation], sums: list[Sum], uses: Counter[Var]) -> list[Sum]:
    """Taps that enter the parts of something split enter it before the split instead: one tap for all gates.

    (a_1 + x_1, ..., a_n + x_n)  of  split(a)   =   split(a + concatenate(x_1, ..., x_n))
    """
    sum_of = {each.equation.outvars[0]: n for n, each in enumerate(sums)}
    entered_by = {v: n for n, each in enumerate(sums) for v in each.inner if uses[v] == 1 and each.outer}
    for equation in equations:
        source, parts = equation.invars[0], equation.outvars
        if equation.primitive.name != "split" or source not in sum_of or uses[source] != 1:
            continue
        # A sum of several parts has its tap moved through one of them only.
        found: list[int | None] = []
        for v in parts:
            n = entered_by.get(v)
            found.append(n if n is not None and sums[n].outer and n not in found else None)
        if sum(n is not None for n in found) < 2:
            continue
        terms = [[] if n is None else sums[n].outer for n in found]
        blocks = Blocks(terms, [v.aval.shape for v in parts], equation.params["axis"])
        above = sum_of[source]
        sums[above] = sums[above]._replace(outer_blocks=[*sums[above].outer_blocks, blocks])
        for n in found:
            if n is not None:
                sums[n] = sums[n]._replace(outer=[])
    return sums


def _cheapest(plain: list[Equation], cost: dict[Var, int], inputs: list[Var], needed: list[Var]) -> set[Var]:
    """What to keep per step: the fewest bytes from which cheap operations alone give all that is needed."""
    edges, sources = [], list(inputs)
    for equation in plain:
        outs = [v for v in equation.outvars if v in cost]
        if is_cheap(equation):
            edges += [(a, v) for a in variables(equation.invars) if a in cost for v in outs]
        else:
            sources += outs
    return minimum_cut(cost, edges, sources, needed)
