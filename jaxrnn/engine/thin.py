"""Values kept as thin as a step made them: what a broadcast would repeat has size 1 until all of it is needed.

A thin value has the rank of the whole one, or rank 0. So a scalar gate [B] that multiplies a memory [B, K, V] is
[B, 1, 1] wherever it goes, and composing two of its steps costs B operations, not B K V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxrnn.engine.forms import Obstacle
from jaxrnn.engine.ir import Atom, is_var
from jaxrnn.engine.rules import Equation, Kind, Role, inner_jaxprs, rule


def is_elementwise(e: Equation) -> bool:
    """Whether an equation may be evaluated on thinner operands, with a thinner result."""
    found = rule(e)
    arithmetic = found.kind in (Kind.ARITHMETIC, Kind.COSTLY) or found.role in (Role.SAME, Role.CHOICE)
    shape = e.outvars[0].aval.shape
    return (
        arithmetic
        and len(e.outvars) == 1
        and not inner_jaxprs(e)
        and all(_fits(a.aval.shape, shape) for a in e.invars)
        and e.primitive.name not in ("sharding_constraint", "reshard", "mesh_cast", "device_put")
    )


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an elementwise operation repeats an operand of this shape over its result, or takes it as it is."""
    return shape == () or (len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True)))


def together(known: dict[Atom, Any]) -> dict[Atom, Any]:
    """Thin operands of one elementwise operation, brought to the least shape that they have in common."""
    rank = max(len(a.aval.shape) for a in known)
    whole = {a: x.reshape((1,) * rank) if jnp.ndim(x) < len(a.aval.shape) else x for a, x in known.items()}
    shape = jnp.broadcast_shapes(*(jnp.shape(x) for a, x in whole.items() if a.aval.shape))
    return {a: jnp.broadcast_to(x, shape) if a.aval.shape else x for a, x in whole.items()}


def thinly(e: Equation, known: dict[Atom, Any]) -> Any:
    """Its result, as thin as the operands: the operation itself, for its variables have the types of whole ones."""
    return e.primitive.bind(*(known[a] if is_var(a) else a.val for a in e.invars), **e.params)


def placed(x: Any, e: Equation) -> Any:
    """The operand of a broadcast, with its sizes where the broadcast puts them, and 1 elsewhere."""
    rank = len(e.outvars[0].aval.shape)
    if jnp.ndim(x) == 0:
        return x
    shape = [1] * rank
    for place, size in zip(e.params["broadcast_dimensions"], jnp.shape(x), strict=True):
        shape[place] = size
    return x.reshape(shape)


def shaped(e: Equation) -> Callable[[Any], Any]:
    """What a change of shape does to a coefficient; elements stay in their order, none is repeated."""
    before, after = e.invars[0].aval.shape, e.outvars[0].aval.shape
    if math.prod(before) != math.prod(after) or len(e.invars) > 1:
        raise Obstacle(f"{e.primitive.name} of the carry")

    def fn(x: Any) -> Any:
        if jnp.ndim(x) == 0:
            return x
        if [n for n in before if n != 1] != [n for n in after if n != 1]:
            return jnp.broadcast_to(x, before).reshape(after)
        kept = iter([size for size, whole in zip(x.shape, before, strict=True) if whole != 1])
        return x.reshape([next(kept) if whole != 1 else 1 for whole in after])

    return fn
