"""`truncated`: truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.engine.segments import in_segments
from jaxrnn.types import Scan, Tree


def _cut(where: jax.Array, tree: Tree) -> Tree:
    """The same values; where the scalar is true, no gradient flows back into them."""

    def cut(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf  # integers and keys have no gradient
        return jnp.where(where, lax.stop_gradient(leaf), leaf)

    return jax.tree.map(cut, tree)


@dataclass(frozen=True)
class truncated:  # noqa: N801
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

    def __post_init__(self) -> None:
        checks.positive_int("truncated", "segment", self.segment)
        checks.a_scan("truncated", "inner", self.inner)

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]:
        steps = checks.steps("truncated", xs, length)
        if steps <= self.segment:
            return self.inner(f, init, xs, length=steps, reverse=reverse)

        def run(started_and_carry: Tree, xs: Tree, n: int) -> tuple[Tree, Tree]:
            started, carry = started_and_carry
            carry, ys = self.inner(f, _cut(started, carry), xs, length=n, reverse=reverse)
            return (jnp.ones((), jnp.bool_), carry), ys

        first = (jnp.zeros((), jnp.bool_), init)
        (_, carry), ys = in_segments(run, first, xs, steps, self.segment, reverse)
        return carry, ys
