"""What a program computes: floating-point operations, counted from its trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of fn(*args), counted from its trace.

    A product counts 2 per multiply-add, an elementwise operation or reduction 1 per element, a scan's
    body once per step (XLA's own `cost_analysis` counts it once in all), the costliest branch of a
    `cond`. A `while` whose number of trips is not in the program counts once. Recomputation by
    `jax.checkpoint` is in the trace and so in the count.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


# Moving, naming and typing data is not arithmetic.
_FREE = frozenset(
    """broadcast_in_dim reshape transpose squeeze slice dynamic_slice dynamic_update_slice concatenate gather
    scatter select_n convert_element_type bitcast_convert_type copy copy_p iota pad rev stop_gradient
    optimization_barrier device_put random_wrap random_unwrap split expand_dims name""".split()
)


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _inner(params: Mapping[str, Any]) -> list[Jaxpr]:
    found: list[Jaxpr] = []
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, Jaxpr):
                found.append(each)
    return found


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        return 2 * depth * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (kernel.size // max(outputs, 1))
    if inner:
        return sum(inner)  # jit, checkpoint, custom rules, while
    if name in _FREE or name.startswith("random_"):
        return 0
    is_reduction = name.startswith(("reduce_", "arg", "cum"))
    arrays = equation.invars if is_reduction else equation.outvars
    return sum(getattr(v.aval, "size", 0) for v in arrays)
