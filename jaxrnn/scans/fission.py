"""`fissioned`: what need not run step by step leaves the loop, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import lax

from jaxrnn import checks
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.program import Program, steps_at_once
from jaxrnn.engine.segments import in_segments
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Scan, Tree


@dataclass(frozen=True)
class fissioned(Strategy):  # noqa: N801  a strategy reads like the function that it stands in for
    """A scan that does in the loop only what must be in the loop, forward and backward.

        before = for all t at once: what needs no carry                e.g. z_t = U x_t + b
        for t in range(T): carry = what must go step by step           e.g. h_t = tanh(z_t + W h_tm1)
        ys     = for all t at once: what no carry needs                e.g. y_t = softmax(V h_t)

    and in the backward pass the loop runs through the carry alone, while the gradient of each weight is
    one product over all steps of a segment: dW = sum_t h_tm1^T dz_t, instead of an array of the
    weight's size that is read and written at every step. Any step will do, with any pytrees; it is
    traced a fixed number of times. `explain` shows what becomes of a step.

    `segment`: how many steps are batched at once. None: weight bytes / (2 * batched bytes per step),
    between 4 and 64, so that the weights' gradients and the batched arrays cost alike.
    `separate=True` runs independent parts of the carry (the layers of a stack) as loops one after the
    other, with batched products between, False all as one loop. None: one loop, but for parts that have no product
    of their own and read a large one, as CTC reads a readout of many classes: that product leaves the loop.
    `inner` runs the loops that remain. Under `checkpointed(K, inner=fissioned())` segments are recomputed.

    Memory: per step the fewest bytes from which cheap operations give what the backward pass needs (a
    minimum cut): for an LSTM 7H numbers, where `lax.scan` keeps 12H; and one segment's batched arrays.
    Recompute: cheap operations in the loop; in the batched parts everything but products, and those too
    whose result is much larger than what it comes from (a readout's logits). Exact; a leaf of the carry that
    only adds something up is summed per segment, so that 16-bit totals are rounded less often.
    Limits: a step with effects or callbacks (`jax.debug.print`), or with nothing to gain, runs as `inner`
    runs it. A `jax.checkpoint` around part of the recurrence is opened: the engine keeps less.
    Weights inside a loop within the step have their gradients accumulated step by step, as in
    `lax.scan`. Raises: what `lax.scan` raises; ValueError for a segment below 1.
    """

    segment: int | None = None
    separate: bool | None = None
    inner: Scan = lax.scan
    name: ClassVar[str] = "jaxrnn.scan"

    def __post_init__(self) -> None:
        if self.segment is not None:
            checks.positive_int("fissioned", "segment", self.segment)
        if not isinstance(self.separate, (bool, type(None))):
            raise ValueError(f"fissioned: separate must be True or False, or None, got {self.separate!r}")
        checks.a_scan("fissioned", "inner", self.inner)

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps = problem.steps
        if getattr(jax.config, "jax_disable_jit", False) or not isinstance(steps, int):
            return problem.as_given(self.inner)
        parts = problem.traced.parts(self.separate) if steps > 1 else None
        if parts is None or not parts.pays:
            return problem.as_given(self.inner) if problem.traced.leaves_jax else problem.whole(self.inner)
        program = Program(parts, problem.init, problem.under(self.inner))

        def run_segment(carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
            return program(carry, xs, n, problem.reverse)

        segment = self.segment or steps_at_once(parts, steps)
        return problem.result(*in_segments(run_segment, problem.init, problem.xs, steps, segment, problem.reverse))


scan = fissioned()
