"""`python_loop`: the unrolled graph itself, one copy of the step per time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Tree


@dataclass(frozen=True)
class python_loop(Strategy):  # noqa: N801
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

    name: ClassVar[str] = "python_loop"

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        _, xs = problem.given
        carry_tree, ys = problem.traced.out_tree, []
        carry = carry_tree.unflatten(problem.init)
        times = range(problem.known_steps())
        for t in reversed(times) if problem.reverse else times:
            carry, y = problem.f(carry, jax.tree.map(lambda a, t=t: a[t], xs))
            ys.append(jax.tree.leaves(y))
        if not ys:
            return problem.result(problem.init, [jnp.zeros((0, *a.shape), a.dtype) for a in problem.traced.ys])
        if problem.reverse:
            ys.reverse()
        return problem.result(jax.tree.leaves(carry), [jnp.stack(each) for each in zip(*ys, strict=True)])
