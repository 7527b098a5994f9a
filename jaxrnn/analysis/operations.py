"""What a program computes: floating-point operations, and how many must come one after the other, from its trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Var

from jaxrnn.engine import rules


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of fn(*args), counted from its trace.

    A product counts 2 per multiply-add, an elementwise operation or reduction 1 per element, a scan's
    body once per step (XLA's own `cost_analysis` counts it once in all), the costliest branch of a
    `cond`. A `while` whose number of trips is not in the program counts once. Recomputation by
    `jax.checkpoint` is in the trace and so in the count.
    """
    return _counted(jax.make_jaxpr(fn)(*args).jaxpr)


def _counted(jaxpr: Jaxpr) -> int:
    return sum(rules.flops(equation, _counted) for equation in jaxpr.eqns)


def depth(fn: Callable[..., Any], *args: Any) -> int:
    """Operations of fn(*args) that must come one after the other: the longest chain in its trace.

    A scan counts its length times the depth of its body, a `cond` its deepest branch, any other equation one. A `while`
    whose number of trips is not in the program counts once. So a machine with room for everything at once would
    take about so many steps: for a loop over T steps at least T, for `parallel` about log T.
    """
    return _deepest(jax.make_jaxpr(fn)(*args).jaxpr)


def _deepest(jaxpr: Jaxpr) -> int:
    reached: dict[Var, int] = {}
    for equation in jaxpr.eqns:
        before = max((reached.get(v, 0) for v in equation.invars if isinstance(v, Var)), default=0)
        reached.update(dict.fromkeys(equation.outvars, before + _steps_of(equation)))
    return max((reached.get(v, 0) for v in jaxpr.outvars if isinstance(v, Var)), default=0)


def _steps_of(equation: rules.Equation) -> int:
    name = equation.primitive.name
    if name == "custom_linear_solve":  # the system itself stands in it as well, and is not evaluated
        return _deepest(equation.params["jaxprs"].solve.jaxpr)
    inner = [_deepest(jaxpr) for jaxpr in rules.inner_jaxprs(equation)]
    if name == "scan":
        return int(equation.params["length"]) * sum(inner)
    if name == "while":
        return sum(inner)
    return max(inner, default=1)
