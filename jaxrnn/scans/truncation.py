"""`truncated`: truncated backpropagation through time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.segments import in_segments
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Scan, Tree


def _cut(where: jnp.ndarray, carry: Leaves) -> Leaves:
    """The same values; where the scalar is true, no gradient flows back into them. Integers and keys have none."""
    return [jnp.where(where, lax.stop_gradient(a), a) if trees.is_float(a) else a for a in carry]


@dataclass(frozen=True)
class truncated(Strategy):  # noqa: N801
    """A scan whose gradient does not cross segment ends.

        for start in range(0, T, segment):
            carry = stop_gradient(carry)                    # but not the very first one
            carry, ys = inner(f, carry, xs[start:start+segment])

    Memory: `inner`'s for each of the segments, all of them kept; give `inner=checkpointed(...)` to
    keep less. Recompute: `inner`'s. The values are exact; the gradient is biased: a step's error
    reaches back at most `segment` steps, and what lies further back counts as constant.
    The gradient of the first carry (a learned initial state, say) is that of the first segment;
    the last carry is differentiable, within the last segment.
    Limits: segments begin at multiples of `segment` from the first step, also in reverse. For
    sequences that do not fit at once, carry the state from one window to the next instead
    (`fit(..., carry=...)`).
    Raises: ValueError for a segment below 1, TypeError for an inner that is no scan, and what
    `lax.scan` raises. Williams and Peng 1990, "An efficient gradient-based algorithm for on-line
    training of recurrent network trajectories".
    """

    segment: int
    inner: Scan = lax.scan
    name: ClassVar[str] = "truncated"

    def __post_init__(self) -> None:
        checks.positive_int("truncated", "segment", self.segment)
        checks.a_scan("truncated", "inner", self.inner)

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps = problem.known_steps()
        if steps <= self.segment:
            return problem.whole(self.inner)
        inner, step, reverse = problem.under(self.inner), problem.step, problem.reverse

        def run(started_and_carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
            started, *carry = started_and_carry
            carry, ys = inner(step, _cut(started, carry), xs, length=n, reverse=reverse)
            return [jnp.ones((), jnp.bool_), *carry], ys

        first = [jnp.zeros((), jnp.bool_), *problem.init]
        (_, *carry), ys = in_segments(run, first, problem.xs, steps, self.segment, reverse)
        return problem.result(carry, ys)
