"""`parallel`: what a recurrence's form allows is solved for all steps at once, in O(log T) depth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxrnn import checks, guards, meshes, trees
from jaxrnn.engine.evaluate import run_at_once
from jaxrnn.engine.ir import Flat, reached, slice_back
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.newton_iteration import newton
from jaxrnn.engine.parallel_program import ParallelProgram, Way, way_of
from jaxrnn.engine.partition import Parts
from jaxrnn.engine.rewrites import has_guard, opened_remat, unguarded
from jaxrnn.engine.segments import in_segments
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.scans.fission import fissioned
from jaxrnn.types import Scan, Tree


@dataclass(frozen=True)
class parallel(Strategy):  # noqa: N801  a strategy reads like the function that it stands in for
    """A scan in O(log T) depth, for components of the carry whose recurrence is closed under composition.

        affine         h_t = A_t h_tm1 + b_t                     element by element, or m x m per element for m leaves
        clipped        h_t = min(max(a_t h_tm1 + b_t, l_t), u_t)
        logarithmic    h_t = log(exp(h_tm1 + c_t) + exp(d_t))

    where the coefficients may depend on the input and on components that do not need this one. Which form a
    component has is read from the step's equations; `explain` says which, or what stands in the way, and such a
    component runs under `inner`. Components run one after the other, with what lies between batched over time.
    The derivative is dh_t = J_t dh_tm1 + g_t, of the affine form whatever the recurrence is: in parallel too.
    A step without any such component runs as `inner` runs it.

    `newton=newton()`: elementwise recurrences without such a form are solved by iteration, with a certificate.
    `over="time"`: the steps lie in equal stretches on the devices along an axis of the mesh that is set
    (`jax.set_mesh`). Each solves its own stretch; per recurrence and pass one exchange tells all what the stretches
    compose to. Every component of the carry must have a form.
    `segment=K`: segments one after the other, each solved at once and recomputed in the backward pass.

    Memory: the states of all steps and what the step reads, T c + T x, about as `lax.scan`; with segments S c and one
    segment's work. Recompute: elementwise work; with segments one extra forward pass. Work: an affine recurrence 6
    operations per element of the state and step where a loop does 2; products as under `jaxrnn.scan`.
    Exact up to rounding: 16-bit recurrences are solved in 32 bits and rounded once.
    Limits: composed steps may overflow where no state does (slopes above 1 over long stretches). Under lengths and
    resets it stays parallel, unless a NaN goes in with the input: those sequences run under `inner`, with its
    guard. Everything is batched over a whole segment, so take segments where memory matters. On a CPU a loop
    is as fast; this is for machines that do much at once, small batches and long sequences.
    Raises: what `lax.scan` raises; ValueError for a segment below 1, for `over` without a mesh, without such an axis,
    with one that does not divide T or a component without a form; TypeError for an inner that is no scan.
    Blelloch 1990; Martin and Cundy 2018, "Parallelizing linear recurrent neural nets over sequence length".
    """

    segment: int | None = None
    newton: newton | None = None
    inner: Scan = fissioned()
    over: str | None = None
    name: ClassVar[str] = "parallel"

    def __post_init__(self) -> None:
        if self.segment is not None:
            checks.positive_int("parallel", "segment", self.segment)
        if not isinstance(self.newton, (newton, type(None))):
            raise TypeError(f"parallel: newton must be newton(...) or None, got {self.newton!r}")
        checks.a_scan("parallel", "inner", self.inner)
        if self.over is not None and (self.segment or self.newton):
            raise ValueError("parallel: over goes with neither segment nor newton; leave those out")

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps = problem.steps
        if getattr(jax.config, "jax_disable_jit", False) or not isinstance(steps, int):
            return problem.as_given(self.inner)
        if steps < 2 or problem.traced.leaves_jax:
            return problem.as_given(self.inner) if problem.traced.leaves_jax else problem.whole(self.inner)
        flat = opened_remat(problem.traced.flat, problem.traced.carries)
        parts, ways = self._planned(flat, problem)
        _warn_of_what_mixes(ways)
        if self.over is not None:
            _check_devices(self.over, steps, parts, ways)
        if parts is None or not any(way.is_parallel for way in ways):
            return problem.whole(self.inner)
        at_once = lambda: (
            self._at_once(problem, parts, ways) if self.over is None else self._over_devices(problem, self.over)
        )
        if not has_guard(flat):
            return problem.result(*at_once())

        def in_order() -> tuple[Leaves, Leaves]:
            how = {"length": problem.steps, "reverse": problem.reverse}
            return problem.under(self.inner)(problem.step, problem.init, problem.xs, **how)

        return problem.result(*_either(_nan_goes_in(flat, problem), in_order, at_once))

    def _planned(self, flat: Flat, problem: LoopProblem) -> tuple[Parts | None, list[Way]]:
        """The step without its guards, partitioned, and how each of its loops is run."""
        step = problem.traced._replace(flat=unguarded(flat) if has_guard(flat) else flat)
        parts = step.parts(separate=True)
        return parts, [way_of(stage.loop, self.newton) for stage in parts.stages] if parts else []

    def _at_once(self, problem: LoopProblem, parts: Parts, ways: Sequence[Way]) -> tuple[Leaves, Leaves]:
        program = ParallelProgram(parts, problem.init, problem.under(self.inner), ways)
        steps = problem.known_steps()
        segment = min(self.segment or steps, steps)

        def run_segment(carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
            if segment == steps:
                return program(carry, xs, n, problem.reverse)
            # Inside a loop nothing can be merged with the first pass, so its costly fence is not needed.
            recomputed = jax.checkpoint(lambda c, xs: program(c, xs, n, problem.reverse), prevent_cse=False)
            return recomputed(carry, xs)

        return in_segments(run_segment, problem.init, problem.xs, steps, segment, problem.reverse)

    def _over_devices(self, problem: LoopProblem, over: str) -> tuple[Leaves, Leaves]:
        """The step is traced again as one device sees it."""

        def stretch(init: Tree, xs: Tree) -> tuple[Leaves, Leaves]:
            steps = problem.known_steps() // lax.axis_size(over)
            init = meshes.settled(problem.f, init, trees.first_step(xs))
            own = LoopProblem(self.name, problem.f, init, xs, steps, problem.reverse, problem.options)
            parts, ways = self._planned(opened_remat(own.traced.flat, own.traced.carries), own)
            assert parts is not None  # the same step had some a moment ago
            program = ParallelProgram(parts, own.init, own.under(self.inner), ways, over)
            carry, ys = program(own.init, own.xs, steps, problem.reverse)
            return [meshes.common(a, over) for a in carry], ys

        everywhere, along = PartitionSpec(), PartitionSpec(over)
        spread = jax.shard_map(stretch, in_specs=(everywhere, along), out_specs=(everywhere, along), axis_names={over})
        return spread(*problem.given)


def _check_devices(over: str, steps: int, parts: Parts | None, ways: Sequence[Way]) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    if over not in mesh.axis_names:
        names = ", ".join(map(repr, mesh.axis_names))
        known = f"the mesh has {names}" if names else "none is set: use `jax.set_mesh(mesh)`"
        raise ValueError(f"parallel: over should name an axis of the mesh that is set, got {over!r}; {known}")
    if steps % mesh.shape[over]:
        raise ValueError(
            f"parallel: T should be a multiple of {mesh.shape[over]}, the devices along over={over!r}, got {steps}; "
            "pad xs and say `lengths`"
        )
    why = "the step is not to be taken apart" if parts is None else "; ".join(w.because for w in ways if w.because)
    if parts is None or why:
        raise ValueError(f"parallel: over={over!r} needs a closed form of every component of the carry; not so: {why}")


def _warn_of_what_mixes(ways: Sequence[Way]) -> None:
    for way in ways:
        if way.mixes:
            warnings.warn(
                f"parallel: a component cannot be iterated by newton(...): {way.mixes} mixes elements, so each "
                "iteration would multiply matrices [H, H] for all steps, work that grows with H^3; it runs under inner",
                stacklevel=2,
            )


def _either(
    predicate: jax.Array, in_order: Callable[[], tuple[Leaves, Leaves]], at_once: Callable[[], tuple[Leaves, Leaves]]
) -> tuple[Leaves, Leaves]:
    """One of two ways to the same result; the loop is recomputed, so that the other way keeps nothing for it."""
    types = jax.eval_shape(in_order)
    fit = lambda found: jax.tree.map(trees.of_type, found, types)
    recomputed = jax.checkpoint(in_order, prevent_cse=False)
    return lax.cond(predicate, lambda: fit(recomputed()), lambda: fit(at_once()))


def _nan_goes_in(flat: Flat, problem: LoopProblem) -> jax.Array:
    """Whether a guard could find a NaN at any step, where none is made by the step itself."""
    n = problem.traced.carries
    asked = [e.outvars[0] for e in flat.equations if guards.marked(e, guards.NAN_ENTERS)]
    by_carry = reached(flat.equations, flat.inputs[:n])
    at_input = [v for v in asked if v not in by_carry]
    consts, xs, init = lax.stop_gradient((flat.consts, problem.xs, problem.init))
    env = dict(zip(flat.const_vars, consts, strict=True)) | dict(zip(flat.inputs[n:], xs, strict=True))
    equations = slice_back(flat.equations, at_input, list(env))
    env = run_at_once(equations, env, set(flat.inputs[n:]), problem.known_steps())
    # Of what a guard further up in a stack sees, the sequence's own inputs are all that is known beforehand.
    others = [*init, *(xs if len(at_input) < len(asked) else [])]
    return guards.anywhere([*(env[v] for v in at_input), *(jnp.isnan(a) for a in others if trees.is_float(a))])
