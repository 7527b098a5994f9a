"""`fissioned`: what need not run step by step leaves the loop, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.scans.cost import step_struct
from jaxrnn.scans.deferral import How, deferred_loop, transposable
from jaxrnn.scans.jaxprs import (
    Env,
    again,
    is_float,
    is_light,
    is_product,
    is_remat,
    is_var,
    leaves_jax,
    reached,
    read,
    run,
    run_at_once,
    size_bytes,
    slice_back,
    split_products,
    trace,
    worth_keeping,
)
from jaxrnn.scans.partition import Batched, Loop, Plan, partition
from jaxrnn.scans.segments import in_segments
from jaxrnn.scans.tangents import Body
from jaxrnn.types import Scan, Tree


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


def best_segment(plan: Plan, steps: int) -> int:
    """How many steps to batch at once: as many as make the batched arrays half as large as the weights.

    Per segment each weight's gradient is read and written once, and the batched arrays (what products
    give the loop and get from it in the backward pass) are written and read twice. With K = weight
    bytes / (2 * batched bytes per step) the two cost alike; fewer steps would spend the time on the
    weights, more would leave the cache. Between 4 and 64, and a divisor of T where one is near.
    """
    work = [e for part in plan.batched for e in part.equations if not is_light(e)]
    work += [e for stage in plan.stages for e in stage.loop.equations if is_product(e)]
    batched = sum(size_bytes(v) for e in work for v in e.outvars)
    weights = sum(size_bytes(v) for v in plan.flat.const_vars if is_float(v))
    ideal = min(max(weights // max(2 * batched, 1), 4), 64)
    if steps <= ideal * 3 // 2:
        return steps
    near = [k for k in range(ideal * 2 // 3, ideal * 3 // 2 + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(k - ideal), default=ideal)


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
        x = step_struct(xs)
        plan, y_tree = plan_of(f, carry_type, x, self.separate)
        if plan is None or not plan.pays:
            return scan(f, init, xs, length=length, reverse=reverse)
        first = [jnp.asarray(a, b.dtype) for a, b in zip(*map(jax.tree.leaves, (init, carry_type)), strict=True)]
        program = _Program(plan, first, scan)
        segment = self.segment or best_segment(plan, steps)

        def run_segment(carry: list[Any], xs: list[Any], n: int) -> tuple[list[Any], list[Any]]:
            return program(carry, xs, n, reverse)

        xs_leaves = [jnp.asarray(a) for a in jax.tree.leaves(xs)]
        carry, ys = in_segments(run_segment, first, xs_leaves, steps, segment, reverse)
        return jax.tree.unflatten(jax.tree.structure(init), carry), y_tree.unflatten(ys)


class _Program:
    """A plan with what is computed once for all segments."""

    def __init__(self, plan: Plan, init: Sequence[Any], scan: Callable[..., Any]):
        self.plan, self.scan = plan, scan
        env: Env = dict(zip(plan.flat.const_vars, plan.flat.consts, strict=True))
        moving, _ = self._apart(init)
        env |= {plan.carry[j]: moving[j] for j in plan.constant}
        self.once = run(plan.invariant, env)
        self.bodies = [self._body(stage.loop) for stage in plan.stages]
        self.mirrors = [
            {n: lax.optimization_barrier(self.once[body.invariant[n]].T) for n in transposable(body)}
            for body in self.bodies
        ]

    def _body(self, loop: Loop) -> Body:
        return Body({}, loop.equations, loop.invariant, loop.carry, loop.stacked, loop.carry_out, loop.emitted)

    def __call__(self, carry: list[Any], xs: list[Any], steps: int, reverse: bool) -> tuple[list[Any], list[Any]]:
        how = How(self.scan, steps, reverse)
        env: Env = dict(zip(self.plan.xs, xs, strict=True))
        carry, totals = self._apart(carry)
        for stage, body, mirrors in zip(self.plan.stages, self.bodies, self.mirrors, strict=True):
            self._batch(stage.batched, env, steps)
            free = [v in self.plan.xs for v in body.stacked]
            once, first = [self.once[v] for v in body.invariant], [carry[j] for j in stage.places]
            each = [env[v] for v in body.stacked]
            if body.defers:
                end, emitted = deferred_loop(body, how, free, once, mirrors, first, each)
            else:
                end, emitted = how(body.at(once), first, each)
            for j, value in zip(stage.places, end, strict=True):
                carry[j] = value
            env.update(zip(body.emitted, emitted, strict=True))
        self._batch(self.plan.last, env, steps)
        ys = [self._stacked(a, env, steps) for a in self.plan.ys]
        own = len(ys) - len(totals)
        for j, total, growth in zip(self.plan.totals, totals, ys[own:], strict=True):
            carry.insert(j, total + jnp.sum(growth, axis=0, dtype=total.dtype))
        return carry, ys[:own]

    def _apart(self, carry: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The leaves of the carry that run through a loop, and those that only add something up."""
        totals = [carry[j] for j in self.plan.totals]
        return [a for j, a in enumerate(carry) if j not in self.plan.totals], totals

    def _batch(self, part: Batched, env: Env, steps: int) -> None:
        """Adds to env what the part makes for all steps."""
        if not part.makes:
            return
        reads = [v for v in part.reads if v in env]

        @functools.partial(jax.checkpoint, prevent_cse=False, policy=worth_keeping)
        def lean(values: list[Any]) -> list[Any]:
            stacked = set(reads)
            found = run_at_once(part.equations, self.once | dict(zip(reads, values, strict=True)), stacked, steps)
            return [
                found[v] if v in stacked else jnp.broadcast_to(found[v], (steps, *found[v].shape)) for v in part.makes
            ]

        env.update(zip(part.makes, lean([env[v] for v in reads]), strict=True))

    def _stacked(self, atom: Any, env: Env, steps: int) -> Any:
        if is_var(atom) and atom in env:
            return env[atom]
        value = jnp.asarray(read(self.once, atom))
        return jnp.broadcast_to(value, (steps, *value.shape))


scan = fissioned()
