"""A loop's step and its derivative, taken apart: what to keep, what to defer, what must be redone.

The derivative of a step is linear in the tangents. Those of the weights and inputs (from outside the
loop) enter it at *taps*; those of the carry run through it. With `+` grown along additions,

    tangents out  =  A_t (carry's tangents)  +  one tap per sum that outside tangents enter,

the taps can be computed for all steps at once, and only A_t is left to the loop. Transposed, that is
the backward pass: A_t^T in the loop, and each weight's gradient as one product over all steps.

    traced together -> linear part taken apart -> what to keep -> the derivative
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jaxrnn.engine.evaluate import apply, trace
from jaxrnn.engine.ir import Atom, Env, Flat, is_float, is_var, reached, read, reads, size_bytes, slice_back, variables
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.minimum_cut import vertex_cut
from jaxrnn.engine.placement import leaving_before
from jaxrnn.engine.rules import Equation, inner_jaxprs, is_cheap, is_light, rule
from jaxrnn.engine.taps import Sum, grown_sums
from jaxrnn.trees import only


class Tangents(NamedTuple):
    """The linear part of a step, taken apart."""

    outer: list[Equation]  # from outside tangents to taps
    inner: list[Equation]  # from the carry's tangents and taps to the tangents out
    sums: list[Sum]  # equations of `inner` that a tap may enter
    direct: list[Var]  # outside tangents that equations of `inner` read as they are
    constant: list[Var]  # the same, those that do not change from step to step

    @property
    def entered(self) -> list[Sum]:
        """The sums that a tap enters."""
        return [each for each in self.sums if each.from_outside]


class Kept(NamedTuple):
    """A value that the tangents are computed from, per step, and where the forward loop leaves it."""

    var: Var
    stacked: int | None = None  # it is this one of the loop's stacked inputs;
    emitted: int | None = None  # or this one of what the forward loop emits;
    carry: int | None = None  # or this carry, which is emitted a step later as such

    def at_all_steps(self, carry: Leaves, stacked: Leaves, out: Leaves, reverse: bool) -> Any:
        """[T, ...], from what goes into the forward loop and what it emits."""
        if self.stacked is not None:
            return stacked[self.stacked]
        assert self.emitted is not None, "what is kept and not given is emitted"
        values = out[self.emitted]
        if self.carry is None:
            return values
        first = carry[self.carry][None]
        return jnp.concatenate([values[1:], first] if reverse else [first, values[:-1]])


class Derivative(NamedTuple):
    """What `differentiate` finds out about a loop's step."""

    forward: Loop  # the step, emitting also those of `kept` that it computes
    kept: list[Kept]
    redo: list[Equation]  # computes the rest of what the tangents need from `kept`
    tangents: Tangents
    d_invariant: list[Var]
    d_carry: list[Var]
    d_stacked: list[Var]
    d_carry_out: list[Atom]  # of the floating leaves
    d_emitted: list[Atom]


class _Joint(NamedTuple):
    """A step traced together with its tangents."""

    flat: Flat
    invariant: list[Var]
    carry: list[Var]
    stacked: list[Var]
    d_invariant: list[Var]  # of those that are moved
    d_carry: list[Var]
    d_stacked: list[Var]
    carry_out: list[Atom]
    emitted: list[Atom]
    d_carry_out: list[Atom]
    d_emitted: list[Atom]

    @property
    def d_out(self) -> list[Atom]:
        return [*self.d_carry_out, *self.d_emitted]

    @property
    def tangents(self) -> set[Var]:
        """All variables that are tangents."""
        return reached(self.flat.equations, [*self.d_invariant, *self.d_carry, *self.d_stacked])

    @property
    def every_step(self) -> set[Var]:
        """All variables, tangents too, that change from step to step."""
        return reached(self.flat.equations, [*self.carry, *self.stacked, *self.d_carry, *self.d_stacked])

    @property
    def plain(self) -> list[Equation]:
        """The equations of the step itself."""
        tangents = self.tangents
        return [e for e in self.flat.equations if not reads(e, tangents)]


def differentiate(loop: Loop, invariant: Sequence[bool], stacked: Sequence[bool], free: Sequence[bool]) -> Derivative:
    """The derivative of a loop's step by its carry and by the marked invariant and stacked values.

    `free` marks the stacked values that exist anyway, hence cost nothing to keep.
    """
    joint = _traced_together(loop, invariant, stacked)
    tangents = _taken_apart(joint)
    needed = _needed_values(joint, tangents)
    kept = _least_to_keep(joint, needed, free)
    return _assembled(loop, joint, tangents, needed, kept)


def _traced_together(loop: Loop, invariant: Sequence[bool], stacked: Sequence[bool]) -> _Joint:
    moved = [
        only(invariant, loop.invariant),
        [v for v in loop.carry if is_float(v)],
        only(stacked, loop.stacked),
    ]
    perturbed = [v for side in moved for v in side]

    def both(*args: Any) -> Leaves:
        values, tangents = args[: len(loop.inputs)], args[len(loop.inputs) :]
        env = dict(zip(loop.inputs, values, strict=True))
        return _with_tangents(loop, loop.held | env, dict(zip(perturbed, tangents, strict=True)))

    flat = trace(both, *(v.aval for v in [*loop.inputs, *perturbed]))
    inputs, outputs = iter(flat.inputs), iter(flat.outputs)
    ins = [[next(inputs) for _ in side] for side in (loop.invariant, loop.carry, loop.stacked, *moved)]
    outs = [[next(outputs) for _ in side] for side in (loop.carry_out, loop.emitted)]
    d_outs = [[next(outputs) for a in side if is_float(a)] for side in (loop.carry_out, loop.emitted)]
    return _Joint(flat, *ins, *outs, *d_outs)


def _with_tangents(loop: Loop, env: Env, tangents: Env) -> Leaves:
    """Outputs and their tangents, equation by equation.

    An equation with equations inside (a loop, a `cond`) is evaluated once for its values alone and
    once more with tangents: the first runs in the forward loop, the second only in the backward one.
    """
    for equation in loop.equations:
        moved = [v for v in variables(equation.invars) if v in tangents]
        outs = None
        if moved and rule(equation).has_derivative:

            def values(*args: Any, equation: Equation = equation, moved: list[Var] = moved) -> Sequence[Any]:
                return apply(equation, env | dict(zip(moved, args, strict=True)))

            with_tangents, d_outs = jax.jvp(values, [env[v] for v in moved], [tangents[v] for v in moved])
            simple = not inner_jaxprs(equation) or equation.primitive.name.startswith("custom_")
            outs = with_tangents if simple else None
            tangents.update((v, d) for v, d in zip(equation.outvars, d_outs, strict=True) if is_float(v))
        env.update(zip(equation.outvars, apply(equation, env) if outs is None else outs, strict=True))

    def tangent(atom: Atom) -> Any:
        return tangents[atom] if is_var(atom) and atom in tangents else jnp.zeros_like(read(env, atom))

    return [read(env, a) for a in loop.outputs] + [tangent(a) for a in loop.outputs if is_float(a)]


def _taken_apart(joint: _Joint) -> Tangents:
    """What runs through the carry's tangents, where others enter it, and what these are computed by."""
    tangents, every_step = joint.tangents, joint.every_step
    through_carry = reached(joint.flat.equations, joint.d_carry)
    linear = slice_back([e for e in joint.flat.equations if reads(e, tangents)], joint.d_out, [])
    through_carry |= _as_well_in_the_loop(linear, through_carry, every_step)
    in_loop = [e for e in linear if not through_carry.isdisjoint(e.outvars)]
    # A long sum is one place for a tap to enter, however many additions it is written with.
    inner, sums = grown_sums(in_loop, through_carry, tangents, joint.d_out)
    summed = {id(each.equation) for each in sums}
    read_as_is = [a for e in inner if id(e) not in summed for a in e.invars]
    as_is = [v for v in variables([*read_as_is, *joint.d_out]) if v in tangents and v not in through_carry]
    entering = [*as_is, *(v for each in sums for v in each.from_outside)]
    outer = slice_back([e for e in linear if through_carry.isdisjoint(e.outvars)], entering, [])
    direct, constant = ([v for v in as_is if (v in every_step) is each] for each in (True, False))
    return Tangents(outer, inner, sums, direct, constant)


def _as_well_in_the_loop(linear: list[Equation], through_carry: set[Var], every_step: set[Var]) -> set[Var]:
    """Results of real work on outside tangents that would take more memory for all steps at once than it saves."""
    outer = [e for e in linear if not reads(e, through_carry)]
    same = {v for e in outer for v in variables(e.invars) if v not in every_step}
    read = [v for e in linear if reads(e, through_carry) for v in variables(e.invars)]
    made = {v for e in outer for v in e.outvars}
    leaving = {id(e) for e in leaving_before(outer, [v for v in dict.fromkeys(read) if v in made], same)}
    staying = [e for e in outer if id(e) not in leaving and not is_light(e)]
    return reached(outer, [v for e in staying for v in e.outvars])


def _needed_values(joint: _Joint, tangents: Tangents) -> list[Var]:
    """The step's values that its linear part reads."""
    read_by_linear = [*(a for e in [*tangents.inner, *tangents.outer] for a in e.invars), *joint.d_out]
    known = joint.tangents
    return [v for v in variables(read_by_linear) if v not in known]


def _least_to_keep(joint: _Joint, needed: list[Var], free: Sequence[bool]) -> set[Var]:
    """What to keep per step: the fewest bytes from which cheap operations alone give all that is needed."""
    values = joint.every_step - joint.tangents
    # Stacked inputs that are there anyway cost nothing; nor do outputs, and carries that are emitted as outputs.
    nothing = {*only(free, joint.stacked), *variables(joint.emitted)}
    nothing |= {v for v, after in _after(joint).items() if after in joint.emitted}
    cost = {v: 0 if v in nothing else size_bytes(v) for v in values}
    # A carry that is needed itself is kept in any case: if under its name after the step, that then costs no more
    # than the first one of each segment, which has at least four steps.
    for v, after in _after(joint).items():
        if v in needed and after in cost:
            cost[after] = min(cost[after], size_bytes(v) // 4)
    edges, sources = [], [*joint.carry, *joint.stacked, *variables(joint.emitted)]
    for equation in joint.plain:
        outs = [v for v in equation.outvars if v in cost]
        if is_cheap(equation):
            edges += [(a, v) for a in variables(equation.invars) if a in cost for v in outs]
        else:
            sources += outs
    return vertex_cut(cost, edges, sources, [v for v in needed if v in values])


def _after(joint: _Joint) -> dict[Var, Var]:
    """Each carry, and what it is after the step where that is a variable."""
    return {v: after for v, after in zip(joint.carry, joint.carry_out, strict=True) if is_var(after)}


def _assembled(loop: Loop, joint: _Joint, tangents: Tangents, needed: list[Var], kept: set[Var]) -> Derivative:
    """The forward loop that leaves what is kept, and what redoes the rest."""
    plain, emitted = joint.plain, variables(joint.emitted)
    computed = {v for e in plain for v in e.outvars if v in kept}.union(emitted)
    # A carry that is kept under its name after the step need not be kept under that before it.
    later = {v: after for v, after in _after(joint).items() if v in kept and after in computed}
    own = [v for v in [*joint.carry, *(v for e in plain for v in e.outvars)] if v in kept and v not in later]
    out = [*joint.emitted, *(v for v in own if v not in emitted)]
    found = [Kept(v, stacked=n) for n, v in enumerate(joint.stacked) if v in kept]
    found += [Kept(v, emitted=out.index(v)) for v in own]
    found += [Kept(v, emitted=out.index(after), carry=joint.carry.index(v)) for v, after in later.items()]
    held = loop.held | dict(zip(joint.flat.const_vars, joint.flat.consts, strict=True))
    ins = joint.invariant, joint.carry, joint.stacked
    forward = slice_back(plain, [*joint.carry_out, *out], [v for side in ins for v in side])
    return Derivative(
        forward=Loop(forward, *ins, joint.carry_out, out, held),
        kept=found,
        redo=slice_back(plain, needed, [*kept, *joint.invariant]),
        tangents=tangents,
        d_invariant=joint.d_invariant,
        d_carry=joint.d_carry,
        d_stacked=joint.d_stacked,
        d_carry_out=joint.d_carry_out,
        d_emitted=joint.d_emitted,
    )
