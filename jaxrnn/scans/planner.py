"""The kinds of plans for a loop: what each keeps by closed form, and what it takes by the compiler's word.

Closed forms on the step's own bytes choose a plan's parameters; the compiler, asked about the
gradient of this loop alone, says what it really takes. Nothing is run.
"""

from __future__ import annotations

import functools
import hashlib
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.engine.binomial import evaluations_keeping_carries, evaluations_mixed
from jaxrnn.engine.ir import as_text
from jaxrnn.engine.loop import Leaves
from jaxrnn.engine.memory import StepBytes, kept_under
from jaxrnn.engine.rewrites import on_no_mesh
from jaxrnn.scans.base import LoopProblem
from jaxrnn.scans.checkpointing import checkpointed, kept_bytes, nested_sizes, segment_keeping_least
from jaxrnn.scans.revolving import revolve
from jaxrnn.trees import all_steps, is_float, nbytes, only, put, struct
from jaxrnn.types import Scan

MOST_PASSES = 12  # beyond so many extra forward passes nobody would want the plan
LONG_SEGMENT = 64  # steps: segments need not be longer to be fast
SHORT_SEGMENT = 4  # and shorter ones gain nothing from a loop engine inside


class Candidate(NamedTuple):
    """A plan and what closed forms say of it."""

    about: str
    strategy: Scan
    passes: float  # extra forward passes over the sequence
    kept: int  # bytes of carries, residuals and inputs that it keeps


class Pricing:
    """A loop to be planned: its step's trace, its length, and what the compiler says of candidates."""

    def __init__(self, problem: LoopProblem, inner: Scan):
        self.steps, self.reverse, self.inner = problem.known_steps(), problem.reverse, inner
        effects = [effect for e in problem.traced.flat.equations for effect in e.effects]
        if any(type(effect).__name__ == "NamedAxisEffect" for effect in effects):
            raise ValueError(
                "within, plan: the step communicates over a named axis (a collective such as psum), so its gradient "
                "cannot be compiled on its own to be priced; take checkpointed(...) instead"
            )
        self.traced = problem.traced.on_one_device()
        self.apart = on_no_mesh if self.traced.flat.equations is not problem.traced.flat.equations else nullcontext
        types: list[Any] = [v.aval for v in [*self.traced.flat.const_vars, *self.traced.flat.inputs]]
        if not all(isinstance(n, int) for t in types for n in t.shape):
            raise ValueError(
                f"within, plan: sizes must be known to be priced, got {', '.join(map(str, types))}; "
                "export with jaxrnn.scan, or with definite sizes"
            )
        with self.apart():
            moving = struct(types)
            self.consts = moving[: len(self.traced.flat.const_vars)]
            inputs = moving[len(self.consts) :]
            self.carry, self.x = inputs[: self.traced.carries], inputs[self.traced.carries :]
            kept = self._kept() if self.steps else 0
        self.repeatable = not self.traced.leaves_jax
        self.outputs = 2 * self.steps * nbytes(self.traced.ys)
        self.cost = StepBytes(nbytes(self.carry), kept, nbytes(self.x))

    def _kept(self) -> int:
        """Bytes that the inner scan keeps per step."""
        found: list[int] = []

        def asked(consts: Leaves) -> None:
            found.append(kept_under(self.inner, self.traced.at(consts), self.carry, self.x))

        jax.eval_shape(asked, self.consts)  # the weights are types; as tracers the step can close over them
        return found[0]

    @functools.cached_property
    def key(self) -> Any:
        """What the bytes of a gradient depend on, the strategy aside."""
        text = hashlib.sha256(as_text(self.traced.flat).encode()).digest()
        return text, len(self.carry), self.steps, self.reverse, jax.default_backend()

    def bytes_of(self, strategy: Scan) -> int:
        """Scratch memory of the gradient under a strategy: compiled, not run. Asked once, then remembered."""
        key = (strategy, self.key)
        if key not in _COMPILED:
            while len(_COMPILED) >= 256:
                del _COMPILED[next(iter(_COMPILED))]
            _COMPILED[key] = self._compiled_bytes(strategy)
        return _COMPILED[key]

    def _compiled_bytes(self, strategy: Scan) -> int:
        traced, moves = self.traced, [is_float(v) for v in self.consts]

        def loss(moving: Leaves, init: Leaves, consts: Leaves, xs: Leaves) -> jax.Array:
            """Any loss on the last carry and the outputs whose cotangents depend on their values."""
            step = traced.at(put(moves, moving, consts))
            out = strategy(step, init, xs, length=self.steps, reverse=self.reverse)
            floats = [a for a in jax.tree.leaves(out) if jnp.issubdtype(a.dtype, jnp.inexact)]
            return sum((jnp.sum(jnp.real(a * a.conj()).astype(jnp.float32)) for a in floats), jnp.float32(0))

        def gradient(consts: Leaves, init: Leaves, xs: Leaves) -> Any:
            return jax.grad(loss, (0, 1), allow_int=True)(only(moves, consts), init, consts, xs)

        with self.apart():
            xs = all_steps(self.x, self.steps)
            analysis = jax.jit(gradient).lower(self.consts, self.carry, xs).compile().memory_analysis()
        if analysis is None:
            raise RuntimeError(f"within: the backend {jax.default_backend()!r} reports no memory analysis")
        return int(analysis.temp_size_in_bytes)

    # Candidates by closed form. `room` is what they may keep beside what any plan needs.

    def plain(self) -> Candidate:
        return Candidate("everything kept", self.inner, 0.0, self.steps * self.cost.kept)

    def mixed(self, room: int) -> Candidate | None:
        """The first steps in segments, recomputed; of the last steps, as many as there is room for are kept."""
        c, r, x = self.cost
        best = None
        for segment in _lengths(self.steps, SHORT_SEGMENT):
            if segment > LONG_SEGMENT:
                break
            # parts c + tail (r + x) <= room, with parts = (steps - tail) / segment; at least one
            each = max(r + x - c // segment, 1)
            tail = min((room - c - self.steps * c // segment) // each, self.steps - segment)
            parts = -(-(self.steps - tail) // segment)
            tail = self.steps - parts * segment
            if segment < tail and (best is None or tail >= best[0]):
                best = (tail, parts, segment)
        if best is None:
            return None
        tail, parts, segment = best
        about = f"{parts * segment:,} steps in segments of {segment}, {tail:,} kept"
        strategy = revolve(parts, segment, tail, self.inner)
        return Candidate(about, strategy, parts * segment / self.steps, (parts + 1) * c + tail * (r + x))

    def segments(self, room: int, levels: int) -> Candidate:
        """Segments as long as is fast where there is room, else those that keep least."""
        segment = self.least_segment(levels)
        for k in range(min(LONG_SEGMENT, self.steps // 2), segment, -1):
            if self.steps % k == 0 and kept_bytes(self.steps, nested_sizes(self.steps, k, levels), self.cost) <= room:
                segment = k
                break
        sizes = nested_sizes(self.steps, segment, levels)
        about = f"segments of {segment:,}" + (f" in {len(sizes)} levels" if len(sizes) > 1 else "")
        kept = kept_bytes(self.steps, sizes, self.cost)
        strategy = checkpointed(segment, max(len(sizes), 1), self.inner)
        return Candidate(about, strategy, float(len(sizes)), kept)

    def least_segment(self, levels: int) -> int:
        """The segment that keeps least, but not so short that a loop engine inside is of no use."""
        return min(max(segment_keeping_least(self.steps, levels, self.cost), SHORT_SEGMENT), max(self.steps, 1))

    def in_order(self) -> Candidate:
        """Segments as a schedule with a slot for each: the same recomputation, and never a copy of the inputs."""
        c, r, x = self.cost
        segment = self.least_segment(1)
        parts = max(self.steps // segment, 1)
        strategy = revolve(parts, segment, inner=self.inner)
        return Candidate(f"segments of {segment:,} (revolve)", strategy, 1.0, (parts + 1) * c + segment * (r + x))

    def binomial(self, room: int) -> Candidate | None:
        """The binomial schedule with the fewest forward evaluations in this room."""
        return self._binomial(room, _lengths(self.steps, SHORT_SEGMENT))

    def single(self, room: int) -> Candidate | None:
        """The same with segments of one step: slow, but it has no segment's work to hold."""
        return self._binomial(room, [1])

    def _binomial(self, room: int, segments: list[int]) -> Candidate | None:
        c, r, x = self.cost
        best: tuple[float, int, int] | None = None
        for segment in segments:
            parts = self.steps // segment
            slots = min((room - segment * (r + x)) // max(c, 1) - 1, parts)
            if parts < 2 or slots < 1:
                continue
            # The schedule counts a segment's own gradient as an evaluation, and not the first pass's last one.
            passes = (evaluations_keeping_carries(parts, slots) + 1) / parts - 1
            # Of plans that are about equal the longer segments: fewer trips.
            order = (round(20 * passes), -segment)
            if passes <= MOST_PASSES and (best is None or order < (round(20 * best[0]), -best[1])):
                best = (passes, segment, slots)
        if best is None:
            return None
        passes, segment, slots = best
        kept = (slots + 1) * c + segment * (r + x)
        about = f"{slots:,} {'carry' if slots == 1 else 'carries'}, segments of {segment:,} (revolve)"
        return Candidate(about, revolve(slots, segment, inner=self.inner), passes, kept)

    def least(self) -> Candidate:
        """What takes least among plans that anybody would run; the compiler is asked about some."""
        found = [self.segments(0, levels) for levels in (1, 2, 3)]
        for kind in (self.binomial, self.single):
            low, high = 0, self.plain().kept
            while high - low > max(self.cost.carry, 1):  # the least room in which the schedule ends in time
                middle = (low + high) // 2
                low, high = (middle, high) if kind(middle) is None else (low, middle)
            smallest = kind(high)
            found += [smallest] if smallest else []
        return min(found, key=lambda each: self.bytes_of(each.strategy))

    def bound(self, room: int) -> float | None:
        """The least extra passes of any schedule that keeps carries and whole steps in this room, none of it scratch.

        By the dynamic programme; None where no schedule fits, or the programme would take long.
        """
        c, r, _ = self.cost
        slot = max(min(c // 4, r), 1)
        carry, whole = max(c // slot, 1), max(r // slot, 1)  # rounded down: it stays a bound
        slots = min(room // slot, self.steps * whole) - whole  # the step at work has its own
        if slots < 0 or self.steps * slots > 2 * 10**7:
            return None
        return evaluations_mixed(self.steps, slots, whole, carry) / self.steps - 1


_COMPILED: dict[Any, int] = {}


def _lengths(steps: int, shortest: int) -> list[int]:
    """Segments worth trying: divisors, or where there are few, lengths a quarter apart."""
    divisors = [k for k in range(1, min(steps // 2, 4096) + 1) if steps % k == 0]
    ladder = sorted({int(1.25**n) for n in range(38)})
    tried = divisors if len(divisors) >= 6 else sorted({*divisors, *(k for k in ladder if k <= steps // 2)})
    return [k for k in tried if k >= shortest] or tried[-1:]
