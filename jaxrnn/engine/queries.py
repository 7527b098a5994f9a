"""What a recurrence is: how each component of a carry depends on itself, read from the step's equations.

    constant      s_t = s_tm1
    total         s_t = s_tm1 + u_t
    elementwise   s_t = a_t * s_tm1 + b_t       element by element
    affine        s_t = A_t s_tm1 + b_t
    nonlinear     anything else

where u_t, a_t, b_t and A_t may depend on the input and on components that do not need this one. A
component is a set of leaves that need one another. Found by interpreting the equations, each form
the worst that any path from the carry to itself meets, never by trying numbers: so an answer holds for
all values, and a recurrence that happens to be linear in a roundabout way is called nonlinear.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jax.extend.core import Jaxpr, Var

from jaxrnn.engine.ir import Atom, Flat, is_var, reached, slice_back
from jaxrnn.engine.partition import components
from jaxrnn.engine.rules import Equation, Kind, inner_jaxprs, rule


class Form(enum.IntEnum):
    """How a value depends on a component of the carry; the later, the less is known."""

    FREE = 0  # not at all
    SAME = 1  # it is the leaf
    SHIFTED = 2  # the leaf plus something
    ELEMENTWISE = 3
    AFFINE = 4
    NONLINEAR = 5


_NAMES = {
    Form.FREE: "elementwise",  # with a coefficient of zero
    Form.SAME: "constant",
    Form.SHIFTED: "total",
    Form.ELEMENTWISE: "elementwise",
    Form.AFFINE: "affine",
    Form.NONLINEAR: "nonlinear",
}


class Recurrence(NamedTuple):
    """One component of a carry."""

    leaves: tuple[int, ...]  # which leaves of the carry
    kind: str  # constant, total, elementwise, affine or nonlinear
    because: str  # the primitive that made it so; empty for a constant


class _Dependence(NamedTuple):
    form: Form
    because: str = ""


_FREE = _Dependence(Form.FREE)


def recurrence(flat: Flat, carries: int) -> list[Recurrence]:
    """What each component of the carry of a traced step is, those that others need first.

    The step is traced as (carry leaves, x leaves) -> (carry leaves, y leaves). Cost: one pass over the
    equations for each component.
    """
    needs = [reached(flat.equations, [v]) for v in flat.inputs[:carries]]
    depends = [{k for k in range(carries) if is_var(a) and a in needs[k]} for a in flat.outputs[:carries]]
    return [_of_component(flat, group) for group in components(depends)]


def _of_component(flat: Flat, group: Sequence[int]) -> Recurrence:
    carry, out = [flat.inputs[j] for j in group], [flat.outputs[j] for j in group]
    equations = slice_back(flat.equations, out, [])
    known: dict[Var, dict[Var, _Dependence]] = {v: {v: _Dependence(Form.SAME)} for v in carry}
    _interpret(equations, known)
    worst = _FREE
    for own, atom in zip(carry, out, strict=True):
        for leaf, found in _of(known, atom).items():
            # A leaf that becomes another one is moved about within the component.
            moved = found if leaf is own else _at_least(found, Form.ELEMENTWISE, "another leaf")
            if leaf is not own and getattr(leaf.aval, "shape", None) != getattr(own.aval, "shape", None):
                moved = _at_least(moved, Form.AFFINE, "another shape")
            worst = max(worst, moved, key=lambda each: each.form)
    return Recurrence(tuple(group), _NAMES[worst.form], worst.because)


def _of(known: dict[Var, dict[Var, _Dependence]], atom: Atom) -> dict[Var, _Dependence]:
    return known.get(atom, {}) if is_var(atom) else {}


def _at_least(found: _Dependence, form: Form, because: str) -> _Dependence:
    return found if found.form >= form else _Dependence(form, because)


def _interpret(equations: Iterable[Equation], known: dict[Var, dict[Var, _Dependence]]) -> None:
    """Adds to known how every result depends on the leaves."""
    for equation in equations:
        operands = [_of(known, a) for a in equation.invars]
        if not any(operands):
            continue
        inside = _called(equation)
        if inside is None:
            results = [_result(equation, operands)] * len(equation.outvars)
        else:
            within = dict(zip(inside.invars, operands, strict=True))
            _interpret(inside.eqns, within)
            results = [_of(within, a) for a in inside.outvars]
        known.update(zip(equation.outvars, results, strict=True))


def _called(equation: Equation) -> Jaxpr | None:
    """What an equation calls with its own operands: a jit, a checkpoint, a function with its own derivative."""
    has_rule = equation.primitive.name.startswith(("custom_jvp", "custom_vjp"))
    inside = inner_jaxprs(equation)[:1] if has_rule or rule(equation).kind in (Kind.CALL, Kind.REMAT) else []
    return inside[0] if inside and len(inside[0].invars) == len(equation.invars) else None


def _result(equation: Equation, operands: list[dict[Var, _Dependence]]) -> dict[Var, _Dependence]:
    """How the results of one equation depend on the leaves that its operands depend on."""
    name = equation.primitive.name
    dependent = [n for n, each in enumerate(operands) if each]
    allowed, in_place, only_moves = _linearity(equation, dependent)
    found: dict[Var, _Dependence] = {}
    for n in dependent:
        for leaf, each in operands[n].items():
            if not allowed:
                each = _at_least(each, Form.NONLINEAR, name)
            elif not in_place:
                each = _at_least(each, Form.AFFINE, name)
            elif not (only_moves and len(dependent) == 1):
                each = _at_least(each, Form.ELEMENTWISE, name)
            elif rule(equation).is_sum or name == "sub":
                each = _at_least(each, Form.SHIFTED, name)
            found[leaf] = max(found.get(leaf, _FREE), each, key=lambda one: one.form)
    return found


def _linearity(equation: Equation, dependent: list[int]) -> tuple[bool, bool, bool]:
    """Whether an equation is linear in these operands, element by element, and with coefficient one."""
    if equation.primitive.name == "select_n":  # a choice that does not depend on the carry is a coefficient of 0 or 1
        return 0 not in dependent, True, False
    linear = rule(equation).linear
    if linear is None:
        return False, False, False
    shape = equation.outvars[0].aval.shape
    in_place = linear.in_place and all(equation.invars[n].aval.shape == shape for n in dependent)
    if linear.either:
        return len(dependent) == 1, in_place, False
    allowed = linear.operands is None or all(n in linear.operands for n in dependent)
    # `a - s` has the coefficient minus one, `-s` too.
    negates = equation.primitive.name == "neg" or (equation.primitive.name == "sub" and 1 in dependent)
    scales = equation.primitive.name == "div"
    return allowed, in_place, not (negates or scales)
