"""A partitioned step, run over a sequence: batched parts, loops, what is computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.engine.deferral import How, deferred_loop, transposable
from jaxrnn.engine.ir import (
    Env,
    is_float,
    is_light,
    is_product,
    is_var,
    read,
    run,
    run_at_once,
    size_bytes,
    worth_keeping,
)
from jaxrnn.engine.linearize import Body
from jaxrnn.engine.partition import Batched, Loop, Plan


def balanced_segment(plan: Plan, steps: int) -> int:
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


class Program:
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
