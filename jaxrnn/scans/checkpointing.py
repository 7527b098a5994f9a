"""`checkpointed`: keep the carry at segment ends, recompute the rest in the backward pass."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import lax

from jaxrnn import checks
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.memory import StepBytes, carry_read_again, step_bytes
from jaxrnn.engine.segments import in_segments
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Scan, Tree


@functools.cache
def branches(segments: int, levels: int) -> list[int]:
    """How many parts each level is split into, outermost first; their product is at least `segments`.

    The fewest kept carries (the least sum) among the exact factorisations of `segments`: levels that
    divide evenly need no shorter last segment, hence no copy of the inputs. Where all of those are
    lopsided (a prime, say), the same number at every level, rounded up.
    """
    if levels == 1:
        return [segments]
    even = 1
    while even**levels < segments:
        even += 1
    exact = [
        [b, *rest]
        for b in range(1, 2 * even + 1)
        if segments % b == 0
        for rest in [branches(segments // b, levels - 1)]
        if b * math.prod(rest) == segments
    ]
    best = min(exact, key=sum, default=[segments])
    return best if sum(best) <= 2 * levels * even else [even] * levels


def nested_sizes(steps: int, segment: int, levels: int) -> list[int]:
    """Steps per segment at each level, outermost first, the innermost being `segment`.

    A level of which one segment would hold all steps saves nothing and is left out.
    """
    parts = branches(-(-steps // segment), levels)
    sizes = [segment * math.prod(parts[level + 1 :]) for level in range(levels)]
    return [n for k, n in enumerate(sizes) if n < steps and n not in sizes[:k]]


def kept_bytes(steps: int, sizes: list[int], cost: StepBytes) -> int:
    """Bytes that nested segments of these sizes keep.

    Every level's carries and the inputs of its current segment; the steps of one innermost segment.
    A level with a shorter last segment copies all its inputs once more, to cut them in two.
    """
    if not sizes:
        return steps * cost.kept
    full, rest = divmod(steps, sizes[0])
    inputs = sizes[0] * cost.x + (steps * cost.x if rest else 0)
    return (full + bool(rest)) * cost.carry + inputs + kept_bytes(sizes[0], sizes[1:], cost)


def segment_keeping_least(steps: int, levels: int, cost: StepBytes) -> int:
    """The segment that keeps the fewest bytes; for one level about sqrt(steps * c / r), preferably a divisor."""
    smooth = steps ** (1 / (levels + 1)) * (cost.carry / max(cost.kept, 1)) ** (levels / (levels + 1))
    low, high = max(1, int(smooth / 8)), min(max(steps, 1), int(smooth * 8) + 1)
    # Every length of a short range; of a long one the divisors, and a sample of the rest.
    candidates = {k for k in range(low, high + 1) if steps % k == 0}
    candidates.update(range(low, high + 1, max(1, (high - low) // 256)))
    return min(sorted(candidates), key=lambda k: kept_bytes(steps, nested_sizes(steps, k, levels), cost))


@dataclass(frozen=True)
class checkpointed(Strategy):  # noqa: N801
    """A scan that keeps the carry at segment ends and recomputes what lies between.

        for each segment:  carry, ys = jax.checkpoint(inner over K steps)(carry, xs)

    With c bytes in a carry and r bytes kept per step, S = ceil(T / K) segments keep S c + K r where
    `lax.scan` keeps T r. L levels nest this: T = b^L K steps keep about L b c + K r.
    `segment=None` measures c and r (under `inner`) from the step's trace and takes the K that keeps least: for one
    level about sqrt(T c / r), preferably a divisor of T.

    Memory: as above, so O(sqrt T) for one level, O(T^(1/(L+1))) for L.
    Recompute: one extra forward pass per level. Exact.
    Limits: any T; where K does not divide it the last segment is shorter, which costs a copy of xs
    and, over L levels, a program of up to 2^L copies of the step. `levels=1` serves up to some
    thousand steps; take more levels for longer sequences, and `lax.scan` where memory does not matter.
    Raises: ValueError for a segment or levels below 1, TypeError for an inner that is no scan, and
    what `lax.scan` raises. Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """

    segment: int | None = None
    levels: int = 1
    inner: Scan = lax.scan
    name: ClassVar[str] = "checkpointed"

    def __post_init__(self) -> None:
        if self.segment is not None:
            checks.positive_int("checkpointed", "segment", self.segment)
        checks.positive_int("checkpointed", "levels", self.levels)
        checks.a_scan("checkpointed", "inner", self.inner)

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps, segment = problem.known_steps(), self.segment
        if segment is None and steps:
            step = problem.step, problem.carry_types, problem.x_types
            cost = step_bytes(*step, self.inner)._replace(carry=carry_read_again(*step))
            segment = segment_keeping_least(steps, self.levels, cost)
        sizes = nested_sizes(steps, segment or 1, self.levels)
        return problem.result(*self._nested(sizes, problem, problem.init, problem.xs, steps))

    def _nested(
        self, sizes: list[int], problem: LoopProblem, init: Leaves, xs: Leaves, steps: int
    ) -> tuple[Leaves, Leaves]:
        if not sizes:
            return problem.under(self.inner)(problem.step, init, xs, length=steps, reverse=problem.reverse)

        def run(carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
            def recomputed(carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
                return self._nested([size for size in sizes[1:] if size < n], problem, carry, xs, n)

            # Inside a loop nothing can be merged with the first pass, so its costly fence is not needed.
            return jax.checkpoint(recomputed, prevent_cse=False)(carry, xs)

        return in_segments(run, init, xs, steps, sizes[0], problem.reverse)
