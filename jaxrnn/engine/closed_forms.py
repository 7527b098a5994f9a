"""The closed form of a loop's step, found by interpreting its equations symbolically.

What needs no carry is evaluated, what needs it becomes a form: `mul` scales one, `add` shifts one, `max` clips one. The
evaluation is traced, not run: the result is a program that computes the form's coefficients for all steps at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jaxrnn import trees
from jaxrnn.engine.evaluate import apply, run_at_once, trace
from jaxrnn.engine.forms import (
    Affine,
    Form,
    Logarithmic,
    Obstacle,
    added,
    chosen,
    clipped,
    constant,
    log_sum,
    mapped,
    scaled,
    wider,
)
from jaxrnn.engine.ir import Atom, Flat, is_var, read, slice_back
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.rules import (
    Equation,
    Kind,
    Role,
    draws_otherwise_when_batched,
    has_own_gradient,
    inner_jaxprs,
    rule,
)
from jaxrnn.engine.thin import is_elementwise, placed, shaped, thinly, together

_ARRAY = object()  # stands for an array where only the structure of forms is kept


class ClosedForm(NamedTuple):
    """How each leaf of a loop's carry depends on the carry before."""

    kind: str  # affine, clipped or logarithmic
    layout: tuple[Form, ...]  # one per leaf, with a mark in place of each array
    coefficients: Flat  # (invariant, stacked) -> the arrays
    cuts: bool  # whether a choice can set a coefficient to zero: what comes before it may be NaN
    is_derivative: bool  # whether the coefficients are also what JAX would find as derivative

    def at_all_steps(self, loop: Loop, invariant: Leaves, stacked: Leaves, steps: int) -> list[Form]:
        """The forms, each coefficient [T, ...], or [1, ...] where it is the same at every step."""
        inner, n = self.coefficients, len(loop.invariant)
        env = dict(zip(inner.const_vars, inner.consts, strict=True))
        env |= dict(zip(inner.inputs, [*invariant, *stacked], strict=True))
        over_time = set(inner.inputs[n:])
        env = run_at_once(inner.equations, env, over_time, steps)
        found = [read(env, a) for a in inner.outputs]
        each = iter([x if a in over_time else jnp.asarray(x)[None] for a, x in zip(inner.outputs, found, strict=True)])
        return [_filled(form, each) for form in self.layout]


def _filled(form: Form, arrays: Any) -> Form:
    """The form with the next arrays in the places of its marks, in order."""
    return mapped(form, lambda _: next(arrays))


def closed_form(loop: Loop) -> ClosedForm:
    """The form of a loop's step. Raises: Obstacle, which names the operation in the way."""
    check(loop)
    found: list[_Interpreter] = []

    def coefficients(*given: Any) -> list[Any]:
        this = _Interpreter(loop, dict(zip([*loop.invariant, *loop.stacked], given, strict=True)))
        forms = [this.form(a) for a in loop.carry_out]
        carry: list[Atom] = list(loop.carry)
        real = jnp.issubdtype(carry[0].aval.dtype, jnp.floating)
        if not real and not all(isinstance(f, Affine) for f in forms):
            raise Obstacle("a bound on what is no real number")
        whole = [_with_arrays(f, v) for f, v in zip(forms, loop.carry, strict=True)]
        arrays: list[Any] = []
        for form in whole:
            mapped(form, arrays.append)
        this.layout = [mapped(form, lambda _: _ARRAY) for form in whole]
        found.append(this)
        return arrays

    flat = trace(coefficients, *(v.aval for v in [*loop.invariant, *loop.stacked]))
    this = found[-1]
    kind = {Affine: "affine", Logarithmic: "logarithmic"}.get(type(this.layout[0]), "clipped")
    return ClosedForm(kind, tuple(this.layout), flat, this.cuts, kind == "affine" and not this.has_own_derivative)


def check(loop: Loop) -> None:
    """Raises: Obstacle, for a loop that cannot be solved at once whatever its form is."""
    carry: list[Atom] = list(loop.carry)
    floats = [trees.is_float(v.aval) for v in carry]
    for v in carry:
        if not jnp.issubdtype(v.aval.dtype, jnp.number):
            raise Obstacle(f"a leaf of {v.aval.dtype}")
    if any(floats) and not loop.defers:
        raise Obstacle("a cond or a custom_vjp in it")
    if len({(v.aval.dtype, v.aval.shape) for v in carry}) > 1:
        raise Obstacle("leaves of different shapes or types that need each other")
    given = {*loop.invariant, *loop.stacked}
    for e in loop.equations:
        if draws_otherwise_when_batched(e):
            raise Obstacle("random numbers that are others when drawn for all steps")
        if has_own_gradient(e) and any(a in given for a in e.invars if is_var(a)):
            raise Obstacle("a custom_vjp in it")


def _with_arrays(form: Form, leaf: Atom) -> Form:
    """Numbers other than one as arrays, and every array of the leaf's rank, so that time comes in front of all."""
    rank = len(leaf.aval.shape)
    ranked = lambda x: jnp.asarray(x).reshape((1,) * rank) if jnp.ndim(x) == 0 else x
    number = lambda x: x if x is None or not isinstance(x, int) or x == 1 else ranked(jnp.asarray(x, leaf.aval.dtype))
    value = lambda x: ranked(jnp.asarray(x, leaf.aval.dtype)) if isinstance(x, int) else number(x)
    if isinstance(form, Affine):
        form = Affine(tuple(map(number, form.a)), value(form.b))
    else:  # of these only a slope may be a number
        first = number(form[0]) if not isinstance(form, Logarithmic) else value(form.c)
        form = type(form)(first, *map(value, form[1:]))
    return mapped(form, ranked)


class _Interpreter:
    """Evaluates one step: `values` of what needs no carry, thin; `forms` of what does."""

    def __init__(self, loop: Loop, values: dict[Var, Any]):
        self.leaves = len(loop.carry)
        self.values: dict[Var, Any] = loop.held | values
        self.forms: dict[Var, Form] = {}
        for k, v in enumerate(loop.carry):
            self.forms[v] = Affine(tuple(1 if j == k else None for j in range(self.leaves)))
        self.cuts = self.has_own_derivative = False
        self.layout: list[Form] = []
        given = [*loop.invariant, *loop.stacked, *loop.carry, *loop.held]
        self.enter(slice_back(loop.equations, loop.carry_out, given))

    def form(self, atom: Atom) -> Form:
        if is_var(atom) and atom in self.forms:
            return self.forms[atom]
        return constant(self.thin(atom), self.leaves)

    def thin(self, atom: Atom) -> Any:
        return jnp.asarray(read(self.values, atom))

    def full(self, atom: Atom) -> Any:
        value = read(self.values, atom)
        return value if jnp.shape(value) == atom.aval.shape else jnp.broadcast_to(value, atom.aval.shape)

    def moves(self, atom: Atom) -> bool:
        return is_var(atom) and atom in self.forms

    def enter(self, equations: Iterable[Equation]) -> None:
        for e in equations:
            if not any(map(self.moves, e.invars)):
                self.evaluate(e)
            elif e.primitive.name == "custom_jvp_call" or rule(e).kind in (Kind.CALL, Kind.REMAT):
                self.call(e)
            else:
                self.interpret(e)

    def evaluate(self, e: Equation) -> None:
        """An equation that needs no carry, on thin operands where it works element by element."""
        if e.primitive.name == "broadcast_in_dim" and len(e.invars) == 1:
            self.values[e.outvars[0]] = placed(self.thin(e.invars[0]), e)
            return
        known = {a: read(self.values, a) for a in e.invars if is_var(a)}
        if is_elementwise(e) and any(jnp.shape(x) != a.aval.shape for a, x in known.items()):
            self.values[e.outvars[0]] = thinly(e, together(known))
            return
        known = {a: self.full(a) for a in known}
        self.values.update(zip(e.outvars, apply(e, known), strict=True))

    def call(self, e: Equation) -> None:
        """What an equation calls, equation by equation: its value is that, its derivative may be another."""
        if e.primitive.name == "custom_jvp_call":
            if _is_logaddexp(e):
                try:
                    self.forms[e.outvars[0]] = log_sum(*map(self.form, e.invars))
                except Obstacle as why:
                    raise Obstacle(f"logaddexp of the carry: {why}") from None
                return
            self.has_own_derivative = True
        body = inner_jaxprs(e)[0]
        closed = next((p for p in e.params.values() if getattr(p, "jaxpr", None) is body), None)
        self.values.update(zip(body.constvars, closed.consts if closed is not None else (), strict=True))
        for v, a in zip(body.invars, e.invars, strict=True):
            self.hand_on(v, a)
        self.enter(body.eqns)
        for v, a in zip(e.outvars, body.outvars, strict=True):
            self.hand_on(v, a)

    def hand_on(self, v: Var, a: Atom) -> None:
        if self.moves(a):
            self.forms[v] = self.forms[a]
        else:
            self.values[v] = read(self.values, a)

    def interpret(self, e: Equation) -> None:
        """An equation that needs the carry."""
        role, name = rule(e).role, e.primitive.name
        if role is None or (len(e.outvars) > 1 and role is not Role.SAME):
            raise Obstacle(f"{name} of the carry")
        if role is Role.SAME:
            self.has_own_derivative |= not rule(e).has_derivative
            for v, a in zip(e.outvars, e.invars, strict=True):
                self.hand_on(v, a)
                if self.moves(a):
                    self.forms[v] = _cast(self.forms[a], a, v)
            return
        (out,) = e.outvars
        if role is not Role.SHAPES and any(self.moves(a) and a.aval.shape != out.aval.shape for a in e.invars):
            raise Obstacle(f"{name} of the carry, of another shape")
        try:
            self.forms[out] = self.combined(e, role)
        except Obstacle as why:
            raise why if str(why).endswith("carry") else Obstacle(f"{name} of the carry: {why}") from None

    def combined(self, e: Equation, role: Role) -> Form:
        operands, out = e.invars, e.outvars[0]
        moving = list(map(self.moves, operands))
        if role is Role.SHAPES:
            return mapped(self.form(operands[0]), shaped(e))
        if role is Role.NEGATIVE:
            return scaled(self.form(operands[0]), -1)
        if role is Role.SUM:
            return added(*map(self.form, operands))
        if role is Role.DIFFERENCE:
            first, second = map(self.form, operands)
            return added(first, scaled(second, -1))
        if role is Role.CHOICE:
            return self.choice(e)
        if role in (Role.PRODUCT, Role.QUOTIENT):
            if all(moving) or (role is Role.QUOTIENT and moving[1]):
                raise Obstacle(f"{e.primitive.name} of two values that need the carry")
            place = moving.index(True)
            factor = self.thin(operands[1 - place])
            if role is Role.QUOTIENT and not trees.is_float(out.aval):
                raise Obstacle("div of whole numbers of the carry")
            return scaled(self.form(operands[place]), 1 / factor if role is Role.QUOTIENT else factor)
        return self.bounded(e, role, moving)

    def bounded(self, e: Equation, role: Role, moving: list[bool]) -> Form:
        if role is Role.CLAMP:
            low, x, high = e.invars
            if moving[0] or moving[2]:
                raise Obstacle("clamp to bounds that need the carry")
            return clipped(self.form(x), self.thin(low), self.thin(high))
        if all(moving):
            raise Obstacle(f"{e.primitive.name} of two values that need the carry")
        place = moving.index(True)
        bound, x = self.thin(e.invars[1 - place]), self.form(e.invars[place])
        return clipped(x, bound, None) if role is Role.MAXIMUM else clipped(x, None, bound)

    def choice(self, e: Equation) -> Form:
        which, *cases = e.invars
        if self.moves(which) or len(cases) != 2:
            raise Obstacle("select_n of the carry by the carry")
        forms = list(map(self.form, cases))
        self.cuts |= any(_has_slope(f) for f in forms) and not all(_has_slope(f) for f in forms)
        return chosen(self.thin(which), forms[0], forms[1], e.outvars[0].aval.dtype)


def _has_slope(form: Form) -> bool:
    return any(a is not None for a in form.a) if isinstance(form, Affine) else True


def _cast(form: Form, before: Atom, after: Atom) -> Form:
    """In another floating dtype; a narrower one is left for the end, so that a decay of 0.999 does not become 1."""
    old, new = before.aval.dtype, after.aval.dtype
    if old == new:
        return form
    if not (jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)):
        raise Obstacle("convert_element_type of the carry")
    if jnp.issubdtype(old, jnp.complexfloating) != jnp.issubdtype(new, jnp.complexfloating):
        raise Obstacle("convert_element_type of the carry")
    return mapped(form, lambda x: x.astype(wider(x.dtype, new)))


def _is_logaddexp(e: Equation) -> bool:
    """By its equations: names are lost when a step is traced anew."""
    if len(e.invars) != 2:
        return False
    body = inner_jaxprs(e)[0]
    own = jax.make_jaxpr(jnp.logaddexp)(*(v.aval for v in body.invars)).jaxpr
    return any(_operations(body.eqns) == _operations(j.eqns) for o in own.eqns for j in inner_jaxprs(o))


def _operations(equations: Sequence[Equation]) -> list[str]:
    """Names of primitives, calls opened."""
    found: list[str] = []
    for e in equations:
        inner = inner_jaxprs(e)
        found += _operations(inner[0].eqns) if rule(e).kind is Kind.CALL and inner else [e.primitive.name]
    return found
