"""A partitioned step, run over a sequence: batched parts, loops, what is computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.engine.deferral import How, deferred_loop
from jaxrnn.engine.evaluate import run, run_at_once
from jaxrnn.engine.ir import Atom, Env, is_float, is_var, read, size_bytes
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.partition import Batched, Parts
from jaxrnn.engine.rules import is_light, is_product, worth_keeping
from jaxrnn.trees import put


def steps_at_once(parts: Parts, steps: int) -> int:
    """How many steps to batch at once: as many as make the batched arrays half as large as the weights.

    Per segment each weight's gradient is read and written once, and the batched arrays (what products
    give the loop and get from it in the backward pass) are written and read twice. With K = weight
    bytes / (2 * batched bytes per step) the two cost alike; fewer steps would spend the time on the
    weights, more would leave the cache. Between 4 and 64, and a divisor of T where one is near.
    """
    work = [e for part in parts.batched for e in part.equations if not is_light(e)]
    work += [e for stage in parts.stages for e in stage.loop.equations if is_product(e)]
    batched = sum(size_bytes(v) for e in work for v in e.outvars)
    weights = sum(size_bytes(v) for v in parts.flat.const_vars if is_float(v))
    ideal = min(max(weights // max(2 * batched, 1), 4), 64)
    if steps <= ideal * 3 // 2:
        return steps
    near = [k for k in range(ideal * 2 // 3, ideal * 3 // 2 + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(k - ideal), default=ideal)


class Program:
    """A partitioned step with what is computed once for all segments; called, it runs one segment."""

    def __init__(self, parts: Parts, init: Sequence[Any], scan: Callable[..., Any]):
        self.parts, self.scan = parts, scan
        self.is_total = [j in parts.totals for j in range(len(init))]
        env: Env = dict(zip(parts.flat.const_vars, parts.flat.consts, strict=True))
        moving, _ = self._apart(init)
        env |= {parts.carry[j]: moving[j] for j in parts.constant}
        self.once = run(parts.once, env)
        self.mirrors = [
            {n: lax.optimization_barrier(self.once[stage.loop.invariant[n]].T) for n in stage.loop.matrices}
            for stage in parts.stages
        ]

    def __call__(self, carry: Leaves, xs: Leaves, steps: int, reverse: bool) -> tuple[Leaves, Leaves]:
        how = How(self.scan, steps, reverse)
        env: Env = dict(zip(self.parts.xs, xs, strict=True))
        carry, totals = self._apart(carry)
        for n, stage in enumerate(self.parts.stages):
            self._batch(stage.batched, env, steps)
            first, each = [carry[j] for j in stage.places], [env[v] for v in stage.loop.stacked]
            end, emitted = self.run_loop(n, how, first, each)
            for j, value in zip(stage.places, end, strict=True):
                carry[j] = value
            env.update(zip(stage.loop.emitted, emitted, strict=True))
        self._batch(self.parts.last, env, steps)
        ys = [self._stacked(a, env, steps) for a in self.parts.ys]
        own = len(ys) - len(totals)
        grown = [self.added(s, u) for s, u in zip(totals, ys[own:], strict=True)]
        return put(self.is_total, grown, put([not t for t in self.is_total], carry, self.is_total)), ys[:own]

    def added(self, total: Any, each: Any) -> Any:
        """A leaf of the carry that only adds something up, after the steps that add `each` [T, ...]."""
        return total + jnp.sum(each, axis=0, dtype=total.dtype)

    def run_loop(self, n: int, how: How, first: Leaves, each: Leaves) -> tuple[Leaves, Leaves]:
        """Runs the loop of a stage: its last carry, and what it emits."""
        loop = self.parts.stages[n].loop
        once = [self.once[v] for v in loop.invariant]
        if not loop.defers:
            return how(loop.at(once), first, each)
        free = [v in self.parts.xs for v in loop.stacked]
        return deferred_loop(loop, how, free, once, self.mirrors[n], first, each)

    def _apart(self, carry: Sequence[Any]) -> tuple[Leaves, Leaves]:
        """The leaves of the carry that run through a loop, and those that only add something up."""
        loops = [a for a, is_total in zip(carry, self.is_total, strict=True) if not is_total]
        return loops, [carry[j] for j in self.parts.totals]

    def _batch(self, part: Batched, env: Env, steps: int) -> None:
        """Adds to env what the part makes for all steps."""
        if not part.makes:
            return
        known = [v for v in part.reads if v in env]

        @functools.partial(jax.checkpoint, prevent_cse=False, policy=worth_keeping)
        def lean(values: Leaves) -> Leaves:
            stacked = set(known)
            found = run_at_once(part.equations, self.once | dict(zip(known, values, strict=True)), stacked, steps)
            return [
                found[v] if v in stacked else jnp.broadcast_to(found[v], (steps, *found[v].shape)) for v in part.makes
            ]

        env.update(zip(part.makes, lean([env[v] for v in known]), strict=True))

    def _stacked(self, atom: Atom, env: Env, steps: int) -> Any:
        if is_var(atom) and atom in env:
            return env[atom]
        value = jnp.asarray(read(self.once, atom))
        return jnp.broadcast_to(value, (steps, *value.shape))
