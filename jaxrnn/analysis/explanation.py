"""`explain`: what becomes of a cell's step under `jaxrnn.scan`, as a value and as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrnn import checks, inference, meshes, trees
from jaxrnn.analysis.communication import Collectives, collectives
from jaxrnn.engine.ir import is_float, slice_back, variables
from jaxrnn.engine.linearize import differentiate
from jaxrnn.engine.loop import Loop
from jaxrnn.engine.memory import kept_under, step_bytes
from jaxrnn.engine.parallel_program import way_of
from jaxrnn.engine.partition import Parts
from jaxrnn.engine.queries import Recurrence, recurrence
from jaxrnn.engine.rules import Equation, is_light
from jaxrnn.engine.step import TracedStep, traced
from jaxrnn.scans.fission import fissioned
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Params, Tree

STEPS = 24  # of the gradient whose collectives are looked at


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
    recurrences: tuple[str, ...]  # what each component of the state is: constant, total, elementwise, affine, nonlinear
    parallel: tuple[str, ...]  # how `parallel` runs each component that changes, or what stands in its way
    pays: bool  # False: nothing would be gained, so it runs as lax.scan does
    kept: int  # bytes kept per step for the backward pass
    kept_by_lax_scan: int
    carry: int  # bytes of the carry
    sent: Collectives | None = None  # what a gradient over STEPS steps sends between the devices of a mesh

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
        section("the recurrence:", self.recurrences)
        section("under parallel():", self.parallel)
        share = f" ({self.kept / self.kept_by_lax_scan:.0%})" if self.kept_by_lax_scan else ""
        lines.append(f"kept per step for the backward pass: {self.kept:,} bytes{share}; ")
        lines[-1] += f"by lax.scan: {self.kept_by_lax_scan:,}; one carry: {self.carry:,}"
        if self.sent is not None:
            section(f"between devices, of a gradient over {STEPS} steps:", str(self.sent).splitlines())
        return "\n".join(lines)


def explain(
    cell: Cell,
    params: Params,
    x: Tree,
    batch_shape: tuple[int, ...] | None = None,
    *,
    separate: bool | None = None,
    mesh: Mesh | None = None,
) -> Explanation:
    """What leaves the loop, what stays, and what the backward pass keeps, for one cell under `jaxrnn.scan`.

    x is one step's input [*batch_shape, ...] or its ShapeDtypeStruct, params may be structs too; the
    batch shape is found by tracing if it is not given. `separate` as in `fissioned`.
    `mesh`: also what a gradient sends between its devices, and how often, params and x lying as their shardings say
    (`training.shardings(...).put`, or structs with a sharding), x's examples along its first axis.
    Cost: some traces; computes nothing. With a mesh a gradient over some steps is compiled.
    Raises: TypeError for what is no cell, and what the step raises.
    """
    checks.a_cell("explain", cell)
    if mesh is not None:  # what becomes of a step is the same on every mesh
        one, its_x = trees.placed_nowhere((params, x))
        alone = explain(cell, one, its_x, batch_shape, separate=separate)
        return alone._replace(sent=_sent(cell, params, x, mesh, separate))
    batch = inference.batch_shape("explain", cell, params, x) if batch_shape is None else batch_shape
    found: list[Explanation] = []

    def trace(params: Params) -> None:
        state = jax.eval_shape(lambda: cell.initial_state(params, batch))
        step = traced(lambda s, x: cell.step(params, s, x), state, x)
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = {id(leaf): checks.leaf_name("params", path) for path, leaf in paths}
        carries = [checks.leaf_name("state", path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        found.append(_explained(step, carries, names, separate))

    jax.eval_shape(trace, params)  # as tracers the parameters are constants of the step that can be told apart
    return found[0]


def _sent(cell: Cell, params: Params, x: Tree, mesh: Mesh, separate: bool | None) -> Collectives:
    """What the gradient of a mean of all outputs sends, each loop told where the examples lie."""

    def placed(leaf: Any, *, steps: tuple[int, ...] = ()) -> jax.ShapeDtypeStruct:
        where = getattr(leaf, "sharding", None)
        spec = tuple(where.spec) if isinstance(where, NamedSharding) else ()
        at = NamedSharding(mesh, PartitionSpec(*(None for _ in steps), *spec))
        return jax.ShapeDtypeStruct((*steps, *jnp.shape(leaf)), jnp.result_type(leaf), sharding=at)

    def loss(params: Params, xs: Tree) -> jax.Array:
        _, ys = unroll(cell, params, xs, scan=fissioned(separate=separate))
        return sum((jnp.mean(y) for y in jax.tree.leaves(ys) if trees.is_float(y)), start=jnp.zeros(()))

    params, xs = jax.tree.map(placed, params), jax.tree.map(lambda leaf: placed(leaf, steps=(STEPS,)), x)
    spread = [leaf.sharding.spec[1] for leaf in jax.tree.leaves(xs) if len(leaf.sharding.spec) > 1]
    axes = next(filter(None, map(meshes.axes_of, spread)), None)
    gradient = jax.jit(jax.grad(loss, allow_int=True), out_shardings=jax.tree.map(lambda p: p.sharding, params))
    with jax.set_mesh(mesh), meshes.examples_spread(None if axes is None else meshes.Shards(axes, mesh)):
        return collectives(gradient, params, xs)


def _explained(step: TracedStep, carries: list[str], names: dict[int, str], separate: bool | None) -> Explanation:
    recurrences = tuple(_recurrence(each, carries) for each in recurrence(step.flat, step.carries))
    parts = step.parts(separate)
    pays = parts is not None and parts.pays
    run, types = step.at(step.flat.consts), [v.aval for v in step.flat.inputs]
    carry, x = types[: step.carries], types[step.carries :]
    return Explanation(
        **(_NOTHING if parts is None else _Reader(parts, carries, names).report()),
        recurrences=recurrences,
        parallel=_in_parallel(step, carries),
        pays=pays,
        kept=kept_under(fissioned(segment=2**30, separate=separate) if pays else lax.scan, run, carry, x),
        kept_by_lax_scan=step_bytes(run, carry, x).kept,
        carry=trees.nbytes(carry),
    )


_NOTHING: dict[str, Any] = dict.fromkeys(("once", "before", "loops", "after", "totals", "batched"), ())


def _recurrence(found: Recurrence, carries: list[str]) -> str:
    """`state.h: nonlinear (tanh)`"""
    because = f" ({found.because})" if found.because else ""
    return f"{', '.join(carries[j] for j in found.leaves)}: {found.kind}{because}"


def _in_parallel(step: TracedStep, carries: list[str]) -> tuple[str, ...]:
    """`state.h: affine, in parallel`, or `state.h: in order (dot_general of the carry)`"""
    parts = step.parts(separate=True)
    if parts is None:
        return ()
    names = [name for j, name in enumerate(carries) if j not in parts.totals]
    stages = [f"{', '.join(names[j] for j in stage.places)}: {way_of(stage.loop)}" for stage in parts.stages]
    return (*(f"{carries[j]}: added up, in parallel" for j in parts.totals), *stages)


class _Reader:
    """Reads off a partitioned step what is where, by the names of parameters and of leaves of the state."""

    def __init__(self, parts: Parts, carries: list[str], names: dict[int, str]):
        self.parts = parts
        consts = zip(parts.flat.const_vars, parts.flat.consts, strict=True)
        self.named = {v: names.get(id(c), "a constant") for v, c in consts}
        self.totals = tuple(carries[j] for j in parts.totals)
        self.carries = [name for name in carries if name not in self.totals]

    def report(self) -> dict[str, Any]:
        parts = self.parts
        loops = tuple(self.loop(stage.loop, stage.places) for stage in parts.stages)
        in_loops = {name for loop in loops for name in (*loop.deferred, *loop.accumulated)}
        read = [v for part in parts.batched for e in part.equations for v in variables(e.invars) if is_float(v)]
        return {
            "once": self.described(parts.once),
            "before": tuple(text for stage in parts.stages for text in self.described(stage.batched.equations)),
            "loops": loops,
            "after": self.described(parts.last.equations),
            "totals": self.totals,
            "batched": tuple(name for name in self.names_of(read) if name not in in_loops),
        }

    def loop(self, loop: Loop, places: list[int]) -> LoopReport:
        deferred, accumulated = map(self.names_of, _gradients(loop, set(self.parts.xs)))
        return LoopReport(
            carry=tuple(self.carries[j] for j in places),
            operations=self.described(loop.equations),
            elementwise=sum(map(is_light, loop.equations)),
            deferred=tuple(name for name in deferred if name not in accumulated),
            accumulated=tuple(accumulated),
        )

    def names_of(self, values: Iterable[Var]) -> list[str]:
        """The parameters that invariant values are computed from."""
        found: dict[str, None] = {}
        for v in values:
            sources = [w for e in slice_back(self.parts.once, [v], self.named) for w in variables(e.invars)]
            found |= dict.fromkeys(self.named[w] for w in [v, *sources] if w in self.named)
        return list(found)

    def described(self, equations: list[Equation]) -> tuple[str, ...]:
        return tuple(_describe(e, self.named) for e in equations if not is_light(e))


def _gradients(loop: Loop, xs: set[Var]) -> tuple[list[Var], list[Var]]:
    """Which of the invariant values that a loop reads have their gradient deferred, and which not."""
    weights = [v for v in loop.invariant if is_float(v)]
    if not loop.defers:
        return [], weights
    stacked = [is_float(v) for v in loop.stacked]
    found = differentiate(loop, [is_float(v) for v in loop.invariant], stacked, [v in xs for v in loop.stacked])
    weight_of = dict(zip(found.d_invariant, weights, strict=True))
    constant = found.tangents.constant
    read_by_all = [v for e in slice_back(found.tangents.outer, constant, []) for v in variables(e.invars)]
    accumulated = [weight_of[v] for v in dict.fromkeys([*constant, *read_by_all]) if v in weight_of]
    return [v for v in weights if v not in accumulated], accumulated


def _describe(equation: Equation, named: dict[Var, str]) -> str:
    """`dot_general float32[32,64] x params['U'] float32[64,256] -> float32[32,256]`"""

    def one(v: Any) -> str:
        return f"{named[v]} {_type(v)}" if isinstance(v, Var) and v in named else _type(v)

    inputs = " x ".join(one(v) for v in equation.invars)
    return f"{equation.primitive.name} {inputs} -> {', '.join(map(_type, equation.outvars))}"


def _type(v: Any) -> str:
    return f"{v.aval.dtype}[{','.join(map(str, v.aval.shape))}]"
