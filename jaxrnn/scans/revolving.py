"""`revolve`: the least recomputation for a given number of kept carries, as one compiled loop over a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.engine.ir import Flat, leaves_jax, read, run, trace
from jaxrnn.engine.memory import kept_under
from jaxrnn.engine.scheduled_loop import Job, Leaves, scheduled
from jaxrnn.engine.segments import joined
from jaxrnn.scans.fission import fissioned
from jaxrnn.trees import first_step, nbytes
from jaxrnn.types import Scan, Tree


def balanced_segment(steps: int, slots: int, carry: int, kept: int) -> int:
    """Steps per leaf such that a leaf keeps about as much as the slots; a divisor of `steps` where one is near."""
    ideal = min(max(slots * carry // max(kept, 1), 1), steps)
    near = [k for k in range(max(1, ideal // 2), min(2 * ideal, steps) + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(math.log(k / ideal)), default=ideal)


@dataclass(frozen=True)
class revolve:  # noqa: N801
    """A scan that keeps at most `slots` carries, and recomputes as little as that allows.

        leaves = (T - kept) / K;  the pass over them keeps carries at the places of the binomial schedule
        the last `kept` steps run as under `inner`
        for leaf in reversed(leaves):
            carry = the nearest kept one before the leaf, advanced to it, keeping others on the way
            gradients of `inner` over the leaf's K steps, from carry

    With s slots and S leaves, r the least with C(s + r, s) >= S, the gradient advances r S - C(s + r, r - 1)
    leaves, the first pass among them, and runs each once more for its own gradient: no schedule
    with s carries does it in fewer. The program is the same size for any T; the schedule is a table of
    integers in it (`scans/schedule.py`).

    Memory: (s + 1) c, with c the bytes of a carry, and what `inner` keeps over `kept` steps or over K,
    whichever is more. Recompute: about r forward passes over the leaves; r = 1 where slots >= S. Exact.
    `segment`: K. None: as many steps as make a leaf's bytes equal the slots'. Steps that are left over
    because K does not divide T - kept are kept too.
    Limits: derivatives of the gradient are those of a plain loop, in its memory; steps with effects
    cannot be recomputed; a carry of weak type comes back as of a strong one. Where two levels of
    `checkpointed` fit, they are about as good, and simpler.
    Raises: ValueError for slots or segment below 1, kept below 0, or a step with effects; TypeError for an
    inner that is no scan; and what `lax.scan` raises.
    Griewank and Walther 2000, "Algorithm 799: revolve".
    """

    slots: int
    segment: int | None = None
    kept: int = 0
    inner: Scan = fissioned()

    def __post_init__(self) -> None:
        # As Python's own integers: an array would make the strategy unhashable.
        object.__setattr__(self, "slots", checks.positive_int("revolve", "slots", self.slots))
        if self.segment is not None:
            object.__setattr__(self, "segment", checks.positive_int("revolve", "segment", self.segment))
        object.__setattr__(self, "kept", checks.positive_int("revolve", "kept", self.kept, least=0))
        checks.a_scan("revolve", "inner", self.inner)

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]:
        steps = checks.steps("revolve", xs, length)
        # lax.scan's own checks, errors and promotions.
        carry_type, ys_type = jax.eval_shape(lambda c, x: lax.scan(f, c, x, length=length), init, xs)
        x = first_step(xs)
        segment = self.segment or self._own_segment(f, carry_type, x, steps)
        leaves = max(steps - self.kept, 0) // segment
        if leaves == 0 or steps < 2:
            return self.inner(f, init, xs, length=length, reverse=reverse)
        flat = flat_step(f, carry_type, x)
        if any(map(leaves_jax, flat.equations)):
            raise ValueError(
                "revolve: the step has side effects, calls back into Python or communicates over a named axis, none of "
                "which can be repeated at will; take that out, or run it under jax.lax.scan"
            )
        carry = [jnp.asarray(a, b.dtype) for a, b in zip(*map(jax.tree.leaves, (init, carry_type)), strict=True)]
        ys: Leaves
        carry, ys = self._run(
            flat, leaves, segment, carry, [jnp.asarray(a) for a in jax.tree.leaves(xs)], steps, reverse
        )
        return jax.tree.unflatten(jax.tree.structure(init), carry), jax.tree.unflatten(jax.tree.structure(ys_type), ys)

    def _run(
        self, flat: Flat, leaves: int, segment: int, carry: Leaves, xs: Leaves, steps: int, reverse: bool
    ) -> tuple[Leaves, Leaves]:
        n, consts = len(carry), [jnp.asarray(c) for c in flat.consts]
        head = leaves * segment
        tail = steps - head
        start = tail if reverse else 0  # what is kept runs last

        def leaf(consts: Leaves, carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
            if segment == 1:  # a loop of one step is no loop
                carry, y = stepping(flat, consts, n)(carry, [a[0] for a in xs])
                return carry, [jnp.asarray(a)[None] for a in y]
            return self.inner(stepping(flat, consts, n), carry, xs, length=segment, reverse=reverse)

        job = Job(leaf, leaves, segment, start, min(self.slots, leaves), reverse)
        carry, ys = scheduled(job, consts, carry, xs)
        ys = joined(ys)
        if not tail:
            return carry, ys
        last = [a[:tail] if reverse else a[head:] for a in xs]
        carry, last_ys = self.inner(stepping(flat, consts, n), carry, last, length=tail, reverse=reverse)
        in_time = (last_ys, ys) if reverse else (ys, last_ys)
        return carry, [jnp.concatenate(both) for both in zip(*in_time, strict=True)]

    def _own_segment(self, f: Callable[..., Any], carry: Tree, x: Tree, steps: int) -> int:
        if steps < 2:
            return 1
        return balanced_segment(steps, self.slots, nbytes(carry), kept_under(self.inner, f, carry, x))


def flat_step(f: Callable[..., Any], carry: Tree, x: Tree) -> Flat:
    """The step's trace, from lists to lists, with all that it closed over in sight."""
    carry_tree: Any = jax.tree.structure(carry)
    x_tree: Any = jax.tree.structure(x)
    n = len(jax.tree.leaves(carry))

    def step(*args: Any) -> Leaves:
        return jax.tree.leaves(f(carry_tree.unflatten(args[:n]), x_tree.unflatten(args[n:])))

    return trace(step, *jax.tree.leaves(carry), *jax.tree.leaves(x))


def stepping(flat: Flat, consts: Leaves, n: int) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
    """The step again, as (n carry leaves, x leaves) -> (carry leaves, y leaves), with these values closed over."""

    def step(carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        inputs = dict(zip([*flat.const_vars, *flat.inputs], [*consts, *carry, *x], strict=True))
        env = run(flat.equations, inputs)
        out = [read(env, a) for a in flat.outputs]
        return out[:n], out[n:]

    return step
