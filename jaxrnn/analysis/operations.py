"""What a program computes: floating-point operations, counted from its trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr

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
