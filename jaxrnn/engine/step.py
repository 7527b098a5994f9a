"""A step, traced once and split into what must run step by step and what need not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxrnn.engine.ir import again, is_remat, leaves_jax, reached, slice_back, split_products, trace
from jaxrnn.engine.partition import Plan, partition
from jaxrnn.types import Tree


def plan_of(f: Callable[..., Any], carry: Tree, x: Tree, separate: bool) -> tuple[Plan | None, Any]:
    """Traces a step once and splits it; also the structure of its y. Carry and x may be structs.

    None for a step that must be left alone, because it has effects or calls back into Python.
    """
    carry_leaves, x_leaves = jax.tree.leaves(carry), jax.tree.leaves(x)
    carry_tree: Any = jax.tree.structure(carry)
    x_tree: Any = jax.tree.structure(x)
    n = len(carry_leaves)
    structure: list[Any] = []

    def step(*args: Any) -> list[Any]:
        carry_out, y = f(carry_tree.unflatten(args[:n]), x_tree.unflatten(args[n:]))
        y_leaves, y_tree = jax.tree.flatten(y)
        structure.append(y_tree)
        return [*jax.tree.leaves(carry_out), *y_leaves]

    flat = trace(step, *carry_leaves, *x_leaves)
    if any(map(leaves_jax, flat.equations)):
        return None, structure[0]
    while True:
        # A checkpoint around part of the recurrence would hide it; the engine has its own way to keep little.
        needed = slice_back(flat.equations, flat.outputs[:n], [])
        through_carry = reached(flat.equations, flat.inputs[:n])
        hiding = [e for e in needed if is_remat(e) and not through_carry.isdisjoint(e.outvars)]
        if not hiding:
            return partition(split_products(flat, n), n, separate), structure[0]
        flat = again(flat, opened=hiding)
