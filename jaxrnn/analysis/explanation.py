"""`explain`: what becomes of a cell's step under `jaxrnn.scan`, as a value and as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Var

from jaxrnn import checks, inference, trees
from jaxrnn.engine.ir import Equation, is_float, is_light, slice_back, variables
from jaxrnn.engine.linearize import Body, differentiate
from jaxrnn.engine.memory import kept_under, step_bytes
from jaxrnn.engine.partition import Loop, Plan
from jaxrnn.engine.step import plan_of
from jaxrnn.scans.fission import fissioned
from jaxrnn.trees import nbytes
from jaxrnn.types import Cell, Params, Tree


class LoopReport(NamedTuple):
    """What is left of the step in one loop."""

    carry: tuple[str, ...]  # leaves of the state that it carries
    operations: tuple[str, ...]  # real work, by name; elementwise operations are only counted
    elementwise: int
    deferred: tuple[str, ...]  # parameters whose gradient is one product over all steps of a segment
    accumulated: tuple[str, ...]  # parameters whose gradient is added up step by step


class Explanation(NamedTuple):
    """What `jaxrnn.scan` makes of a step; `str` gives a readable account."""

    once: tuple[str, ...]  # the same at every step: computed once
    before: tuple[str, ...]  # needs no carry: all steps at once, before or between the loops
    loops: tuple[LoopReport, ...]
    after: tuple[str, ...]  # needed by no carry: all steps at once, after the loops
    totals: tuple[str, ...]  # leaves of the state that only add something up: all steps at once as well
    batched: tuple[str, ...]  # parameters that only work outside the loops reads: one product as well
    pays: bool  # False: nothing would be gained, so it runs as lax.scan does
    kept: int  # bytes kept per step for the backward pass
    kept_by_lax_scan: int
    carry: int  # bytes of the carry

    def __str__(self) -> str:
        lines = []

        def section(title: str, entries: Iterable[str]) -> None:
            entries = list(entries)
            lines.extend([title, *(f"    {entry}" for entry in entries)] if entries else [])

        if not self.pays:
            lines.append("nothing to gain, or effects to keep in order: runs as lax.scan does")
        section("once, before everything:", self.once)
        section("for all steps at once, before the loop:", self.before)
        for loop in self.loops:
            section(
                f"step by step, carrying {', '.join(loop.carry) or 'nothing'}:",
                [*loop.operations, f"{loop.elementwise} elementwise operations"],
            )
            section("  gradient as one product per segment:", loop.deferred)
            section("  gradient added up step by step:", loop.accumulated)
        section("for all steps at once, after the loop:", self.after)
        section("added up for all steps at once:", self.totals)
        section("gradient as one product per segment, outside the loop altogether:", self.batched)
        share = f" ({self.kept / self.kept_by_lax_scan:.0%})" if self.kept_by_lax_scan else ""
        lines.append(f"kept per step for the backward pass: {self.kept:,} bytes{share}; ")
        lines[-1] += f"by lax.scan: {self.kept_by_lax_scan:,}; one carry: {self.carry:,}"
        return "\n".join(lines)


def explain(
    cell: Cell, params: Params, x: Tree, batch_shape: tuple[int, ...] | None = None, *, separate: bool = False
) -> Explanation:
    """What leaves the loop, what stays, and what the backward pass keeps, for one cell under `jaxrnn.scan`.

    x is one step's input [*batch_shape, ...] or its ShapeDtypeStruct, params may be structs too; the
    batch shape is found by tracing if it is not given. `separate` as in `fissioned`.
    Cost: some traces; computes nothing. Raises: TypeError for what is no cell, and what the step raises.
    """
    checks.a_cell("explain", cell)
    batch = inference.batch_shape("explain", cell, params, x) if batch_shape is None else batch_shape
    found: list[Explanation] = []

    def trace(params: Params) -> None:
        state = jax.eval_shape(lambda: cell.initial_state(params, batch))
        step = lambda s, x: cell.step(params, s, x)
        plan, _ = plan_of(step, state, trees.struct(x), separate)
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = {id(leaf): checks.leaf_name("params", path) for path, leaf in paths}
        whole = fissioned(segment=2**30, separate=separate) if plan is not None and plan.pays else lax.scan
        carries = [checks.leaf_name("state", path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        found.append(
            _explained(plan, carries, names)._replace(
                kept=kept_under(whole, step, state, trees.struct(x)),
                kept_by_lax_scan=step_bytes(step, state, trees.struct(x)).kept,
                carry=nbytes(state),
            )
        )

    jax.eval_shape(trace, params)  # as tracers the parameters are constants of the step that can be told apart
    return found[0]


def _explained(plan: Plan | None, carries: list[str], names: dict[int, str]) -> Explanation:
    if plan is None:
        return Explanation((), (), (), (), (), (), False, 0, 0, 0)
    named = {v: names.get(id(c), "a constant") for v, c in zip(plan.flat.const_vars, plan.flat.consts, strict=True)}

    def names_of(v: Var) -> list[str]:
        """The parameters that an invariant value is computed from."""
        sources = [w for e in slice_back(plan.invariant, [v], named) for w in variables(e.invars)]
        return [named[w] for w in [v, *sources] if w in named]

    def described(equations: list[Equation]) -> tuple[str, ...]:
        return tuple(_describe(e, named) for e in equations if not is_light(e))

    totals = tuple(carries[j] for j in plan.totals)
    carries = [name for name in carries if name not in totals]
    loops = []
    for stage in plan.stages:
        deferred, accumulated = _gradients(stage.loop, set(plan.xs))
        flat = lambda vs: tuple(dict.fromkeys(name for v in vs for name in names_of(v)))
        loops.append(
            LoopReport(
                carry=tuple(carries[j] for j in stage.places),
                operations=described(stage.loop.equations),
                elementwise=sum(map(is_light, stage.loop.equations)),
                deferred=tuple(n for n in flat(deferred) if n not in flat(accumulated)),
                accumulated=flat(accumulated),
            )
        )
    in_loops = {name for loop in loops for name in (*loop.deferred, *loop.accumulated)}
    read = [v for part in plan.batched for v in part.reads if is_float(v)]
    batched = dict.fromkeys(name for v in read for name in names_of(v) if name not in in_loops)
    return Explanation(
        once=described(plan.invariant),
        before=tuple(text for stage in plan.stages for text in described(stage.batched.equations)),
        loops=tuple(loops),
        after=described(plan.last.equations),
        totals=totals,
        batched=tuple(batched),
        pays=plan.pays,
        kept=0,
        kept_by_lax_scan=0,
        carry=0,
    )


def _gradients(loop: Loop, xs: set[Var]) -> tuple[list[Var], list[Var]]:
    """Which of the invariant values that a loop reads have their gradient deferred, and which not."""
    body = Body({}, loop.equations, loop.invariant, loop.carry, loop.stacked, loop.carry_out, loop.emitted)
    weights = [v for v in loop.invariant if is_float(v)]
    if not body.defers:
        return [], weights
    stacked = [is_float(v) for v in loop.stacked]
    found = differentiate(body, [is_float(v) for v in loop.invariant], stacked, [v in xs for v in loop.stacked])
    weight_of = dict(zip(found.d_invariant, weights, strict=True))
    read_by_all = [v for e in slice_back(found.outer, found.constant, []) for v in variables(e.invars)]
    accumulated = [weight_of[v] for v in dict.fromkeys([*found.constant, *read_by_all]) if v in weight_of]
    return [v for v in weights if v not in accumulated], accumulated


def _describe(equation: Equation, named: dict[Var, str]) -> str:
    """`dot_general float32[32,64] x params['U'] float32[64,256] -> float32[32,256]`"""

    def one(v: Any) -> str:
        return f"{named[v]} {_type(v)}" if isinstance(v, Var) and v in named else _type(v)

    inputs = " x ".join(one(v) for v in equation.invars)
    return f"{equation.primitive.name} {inputs} -> {', '.join(map(_type, equation.outvars))}"


def _type(v: Any) -> str:
    return f"{v.aval.dtype}[{','.join(map(str, v.aval.shape))}]"
