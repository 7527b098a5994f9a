"""`fissioned`: what need not run step by step leaves the loop, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.engine.program import Program, balanced_segment
from jaxrnn.engine.segments import in_segments
from jaxrnn.engine.step import plan_of
from jaxrnn.trees import first_step
from jaxrnn.types import Scan, Tree


@dataclass(frozen=True)
class fissioned:  # noqa: N801
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
    other, with batched products between, instead of as one loop.
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
    separate: bool = False
    inner: Scan = lax.scan

    def __post_init__(self) -> None:
        if self.segment is not None:
            checks.positive_int("fissioned", "segment", self.segment)
        if not isinstance(self.separate, bool):
            raise ValueError(f"fissioned: separate must be True or False, got {self.separate!r}")
        checks.a_scan("fissioned", "inner", self.inner)

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
        unroll: int | bool = 1,
    ) -> tuple[Tree, Tree]:
        inner: Callable[..., Any] = self.inner
        scan = inner if unroll == 1 else functools.partial(inner, unroll=unroll)
        steps = checks.steps("fissioned", xs, length)
        # lax.scan's own checks, errors and promotions.
        carry_type, _ = jax.eval_shape(lambda c, x: lax.scan(f, c, x, length=length), init, xs)
        if steps < 2:
            return scan(f, init, xs, length=length, reverse=reverse)
        x = first_step(xs)
        plan, y_tree = plan_of(f, carry_type, x, self.separate)
        if plan is None or not plan.pays:
            return scan(f, init, xs, length=length, reverse=reverse)
        first = [jnp.asarray(a, b.dtype) for a, b in zip(*map(jax.tree.leaves, (init, carry_type)), strict=True)]
        program = Program(plan, first, scan)
        segment = self.segment or balanced_segment(plan, steps)

        def run_segment(carry: list[Any], xs: list[Any], n: int) -> tuple[list[Any], list[Any]]:
            return program(carry, xs, n, reverse)

        xs_leaves = [jnp.asarray(a) for a in jax.tree.leaves(xs)]
        carry, ys = in_segments(run_segment, first, xs_leaves, steps, segment, reverse)
        return jax.tree.unflatten(jax.tree.structure(init), carry), y_tree.unflatten(ys)


scan = fissioned()
