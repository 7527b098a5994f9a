"""`python_loop`: the unrolled graph itself, one copy of the step per time step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.types import Tree


@dataclass(frozen=True)
class python_loop:  # noqa: N801  a strategy reads like the function that it stands in for
    """A scan of T explicit copies of the step: the reference for every other scan.

        ys = []
        for x in xs:
            carry, y = f(carry, x)
            ys.append(y)

    Memory: as `lax.scan`, T times what a step keeps. Recompute: none. Exact.
    Limits: trace and compile time grow with T, so use it for tests and for a handful of steps; else
    `lax.scan`. (The step is traced here too; to look at values use `jax.debug.print`.)
    Raises: what `lax.scan` raises for the same arguments.
    """

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]:
        steps = checks.steps("python_loop", xs, length)
        # lax.scan's own checks and dtype promotions, and the outputs' types for the case of no steps.
        carry_type, ys_type = jax.eval_shape(lambda c, x: lax.scan(f, c, x, length=steps), init, xs)
        carry = jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), init, carry_type)
        ys = []
        for t in reversed(range(steps)) if reverse else range(steps):
            carry, y = f(carry, jax.tree.map(lambda a, t=t: a[t], xs))
            ys.append(y)
        if not ys:
            return carry, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), ys_type)
        if reverse:
            ys.reverse()
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)
