"""`revolve`: the least recomputation for a given number of kept carries, as one compiled loop over a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.memory import kept_under
from jaxrnn.engine.scheduled_loop import Job, Segment, scheduled
from jaxrnn.engine.segments import joined
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.scans.fission import fissioned
from jaxrnn.trees import nbytes
from jaxrnn.types import Scan, Tree


def segment_like_slots(steps: int, slots: int, carry: int, kept: int) -> int:
    """Steps per segment such that one keeps about as much as the slots; a divisor of `steps` where one is near."""
    ideal = min(max(slots * carry // max(kept, 1), 1), steps)
    near = [k for k in range(max(1, ideal // 2), min(2 * ideal, steps) + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(math.log(k / ideal)), default=ideal)


@dataclass(frozen=True)
class revolve(Strategy):  # noqa: N801
    """A scan that keeps at most `slots` carries, and recomputes as little as that allows.

        S = (T - kept) / K segments;  the pass over them keeps carries at the places of the binomial schedule
        the last `kept` steps run as under `inner`
        for each segment, the last one first:
            carry = the nearest kept one before the segment, advanced to it, keeping others on the way
            gradients of `inner` over its K steps, from carry

    With s slots, r the least with C(s + r, s) >= S, the gradient advances r S - C(s + r, r - 1)
    segments, the first pass among them, and runs each once more for its own gradient: no schedule
    with s carries does it in fewer. The program is the same size for any T; the schedule is a table of
    integers in it (`engine/binomial.py`).

    Memory: (s + 1) c, with c the bytes of a carry, and what `inner` keeps over `kept` steps or over K,
    whichever is more. Recompute: about r forward passes over the segments; r = 1 where slots >= S. Exact.
    `segment`: K. None: as many steps as make a segment's bytes equal the slots'. Steps that are left over
    because K does not divide T - kept are kept too.
    Limits: derivatives of the gradient are those of a plain loop, in its memory; steps with effects
    cannot be recomputed. Where two levels of
    `checkpointed` fit, they are about as good, and simpler.
    Raises: ValueError for slots or segment below 1, kept below 0, or a step with effects; TypeError for an
    inner that is no scan; and what `lax.scan` raises.
    Griewank and Walther 2000, "Algorithm 799: revolve".
    """

    slots: int
    segment: int | None = None
    kept: int = 0
    inner: Scan = fissioned()
    name: ClassVar[str] = "revolve"

    def __post_init__(self) -> None:
        # As Python's own integers: an array would make the strategy unhashable.
        object.__setattr__(self, "slots", checks.positive_int("revolve", "slots", self.slots))
        if self.segment is not None:
            object.__setattr__(self, "segment", checks.positive_int("revolve", "segment", self.segment))
        object.__setattr__(self, "kept", checks.positive_int("revolve", "kept", self.kept, least=0))
        checks.a_scan("revolve", "inner", self.inner)

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps = problem.known_steps()
        segment = self.segment or self._own_segment(problem, steps)
        segments = max(steps - self.kept, 0) // segment
        if segments == 0 or steps < 2:
            return problem.whole(self.inner)
        if problem.traced.leaves_jax:
            raise ValueError(
                "revolve: the step has side effects, calls back into Python or communicates over a named axis, none of "
                "which can be repeated at will; take that out, or run it under jax.lax.scan"
            )
        head, reverse = segments * segment, problem.reverse
        tail = steps - head
        start = tail if reverse else 0  # what is kept runs last
        run = self._segment_of(problem, segment)
        job = Job(run, segments, segment, start, min(self.slots, segments), reverse)
        consts = [jnp.asarray(c) for c in problem.traced.flat.consts]
        carry, ys = scheduled(job, consts, problem.init, problem.xs)
        ys = joined(ys)
        if not tail:
            return problem.result(carry, ys)
        last = [a[:tail] if reverse else a[head:] for a in problem.xs]
        carry, last_ys = problem.under(self.inner)(problem.step, carry, last, length=tail, reverse=reverse)
        in_time = (last_ys, ys) if reverse else (ys, last_ys)
        return problem.result(carry, [jnp.concatenate(both) for both in zip(*in_time, strict=True)])

    def _segment_of(self, problem: LoopProblem, length: int) -> Segment:
        """One segment as a function of all that it reads: a primitive's parameter must hold no tracer."""
        at, inner, reverse = problem.traced.without_consts().at, problem.under(self.inner), problem.reverse

        def run(consts: Leaves, carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
            if length == 1:  # a loop of one step is no loop
                carry, y = at(consts)(carry, [a[0] for a in xs])
                return carry, [jnp.asarray(a)[None] for a in y]
            return inner(at(consts), carry, xs, length=length, reverse=reverse)

        return run

    def _own_segment(self, problem: LoopProblem, steps: int) -> int:
        if steps < 2:
            return 1
        kept = kept_under(self.inner, problem.step, problem.carry_types, problem.x_types)
        return segment_like_slots(steps, self.slots, nbytes(problem.carry_types), kept)
