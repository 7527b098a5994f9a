"""`truncated`: truncated backpropagation through time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.engine.loop import Leaves, Step
from jaxrnn.engine.segments import grouped, in_segments, joined
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Scan, Tree


@dataclass(frozen=True)
class truncated(Strategy):  # noqa: N801
    """A scan whose gradient reaches back `reach` steps, and is taken every `every` steps.

        for end in range(every, T + every, every):                  # ys[end - every : end] is a block
            begin = max(0, end - reach)
            carry = stop_gradient(the carry before step `begin`)    # but not the very first one
            _, ys[begin:end] = inner(f, carry, xs[begin:end])       # of which the last block counts

    BPTT(k2; k1) with k2 = `reach`, k1 = `every`: the error of each output is sent back once, at least
    reach - every and less than `reach` steps far; what lies further back counts as constant. The values
    are exact, the gradient is biased. `truncated(k)` is short for every = reach = k: segments that no
    gradient crosses. `reach` >= T is BPTT. `reach` need not be a multiple of `every`, nor `every` divide T.

    The last carry's gradient reaches as far as that of the last block's outputs. The first carry's
    (a learned initial state, say) is that of the outputs of the blocks whose windows begin with it.
    Memory: `inner`'s for each of the windows, all of them kept, so reach / every times that of T steps;
    give `inner=checkpointed(...)` to keep less. For every < reach also the inputs, reach / every times,
    and as many carries. Recompute: reach / every forward and backward passes in all (of an overlap's
    outputs nothing is computed that the carry does not need), and `inner`'s. For every = reach one.
    Limits: blocks begin at multiples of `every` from the first step, also in reverse. For sequences
    that do not fit at once, carry the state from one window to the next instead (`fit(..., carry=...)`).
    Raises: ValueError for numbers below 1, a reach below every, or a segment together with them,
    TypeError for an inner that is no scan, and what `lax.scan` raises. Williams and Peng 1990, "An
    efficient gradient-based algorithm for on-line training of recurrent network trajectories".

    >>> slope = jax.grad(lambda xs: truncated(every=2, reach=3)(lambda c, x: (c + x, c + x), 0.0, xs)[1][4])
    >>> slope(jnp.ones(6)).tolist()  # y_4 belongs to steps 4 and 5: its window begins at step 3
    [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    """

    segment: int | None = None
    inner: Scan = lax.scan
    every: int = field(default=0, kw_only=True)
    reach: int = field(default=0, kw_only=True)
    name: ClassVar[str] = "truncated"

    def __post_init__(self) -> None:
        given = self.every != 0 or self.reach != 0
        if given == (self.segment is not None):
            raise ValueError("truncated: give either segment, as in truncated(20), or both every and reach")
        if self.segment is not None:
            every = reach = checks.positive_int("truncated", "segment", self.segment)
        else:
            every = checks.positive_int("truncated", "every", self.every)
            reach = checks.positive_int("truncated", "reach", self.reach, least=every)
        checks.a_scan("truncated", "inner", self.inner)
        # The short and the long form of the same scan are the same value.
        for name, value in {"segment": every if every == reach else None, "every": every, "reach": reach}.items():
            object.__setattr__(self, name, value)

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        steps, overlap = problem.known_steps(), self.reach - self.every
        if not overlap and steps > self.reach:
            return problem.result(*_in_cut_segments(problem, self.inner, self.every))
        first = steps % self.every if problem.reverse else 0
        blocks = range(first or self.every, steps, self.every)  # where all but the first begin, in the order they run
        head = next((start for start in blocks if start > overlap), steps)
        if steps <= self.reach or head == steps:
            return problem.whole(self.inner)
        windows = _Windows(problem.step, problem.under(self.inner), self.every, overlap, problem.reverse)
        return problem.result(*windows.run(problem.init, problem.xs, steps, head))


def _cut(where: jnp.ndarray, carry: Leaves) -> Leaves:
    """The same values; where the scalar is true, no gradient flows back into them. Integers and keys have none."""
    return [jnp.where(where, lax.stop_gradient(a), a) if trees.is_float(a) else a for a in carry]


def _in_cut_segments(problem: LoopProblem, inner: Scan, segment: int) -> tuple[Leaves, Leaves]:
    """Windows without overlap: each step is run once."""
    inner, step, reverse = problem.under(inner), problem.step, problem.reverse

    def run(started_and_carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
        started, *carry = started_and_carry
        carry, ys = inner(step, _cut(started, carry), xs, length=n, reverse=reverse)
        return [jnp.ones((), jnp.bool_), *carry], ys

    first = [jnp.zeros((), jnp.bool_), *problem.init]
    (_, *carry), ys = in_segments(run, first, problem.xs, problem.known_steps(), segment, reverse)
    return carry, ys


@dataclass(frozen=True)
class _Windows:
    """Windows that overlap: a block of `every` steps, and `overlap` steps before it that are run once more.

    Steps are counted in the order in which they run. A window begins with the carry that an earlier one
    had there, so none is run for the sake of its carry alone: the carries before the next windows wait
    in a queue. The head, all blocks whose windows begin with the first step, is one window.
    """

    step: Step
    inner: Scan
    every: int
    overlap: int
    reverse: bool

    def run(self, init: Leaves, xs: Leaves, steps: int, head: int) -> tuple[Leaves, Leaves]:
        carry, queue, ys = self.head(init, self.part(xs, 0, head), head)
        count, rest = divmod(steps - head, self.every)
        found = [ys]

        def body(queue_and_last: tuple[Leaves, Leaves], xs: Leaves) -> tuple[tuple[Leaves, Leaves], Leaves]:
            queue, _ = queue_and_last
            last, begin, ys = self.window([q[0] for q in queue], xs)
            return ([jnp.concatenate([q[1:], b[None]]) for q, b in zip(queue, begin, strict=True)], last), ys

        if count:
            stacked = self.windows(self.part(xs, head - self.overlap, self.overlap + count * self.every))
            (queue, carry), ys = lax.scan(body, (queue, carry), stacked, length=count, reverse=self.reverse)
            found.append(joined(ys))
        if rest:
            xs = self.part(xs, steps - rest - self.overlap, self.overlap + rest)
            carry = self.passed([q[0] for q in queue], self.part(xs, 0, self.overlap), self.overlap)
            carry, ys = self.steps(carry, self.part(xs, self.overlap, rest), rest)
            found.append(ys)
        return carry, self.in_order(found)

    def head(self, init: Leaves, xs: Leaves, steps: int) -> tuple[Leaves, Leaves, Leaves]:
        """(last carry, the carries before the next windows [windows, ...], ys), no gradient cut."""
        blocks, rest = divmod(self.overlap, self.every)
        lead, cut = steps - self.overlap, blocks * self.every

        def body(carry: Leaves, xs: Leaves) -> tuple[Leaves, tuple[Leaves, Leaves]]:
            carry, ys = self.steps(carry, xs, self.every)
            return carry, (_constant(carry), ys)

        carry, ys = self.steps(init, self.part(xs, 0, lead), lead)
        queue, found = [a[None] for a in _constant(carry)], [ys]
        if blocks:
            stacked = grouped(self.part(xs, lead, cut), self.every)
            carry, (begins, ys) = lax.scan(body, carry, stacked, length=blocks, reverse=self.reverse)
            begins = [jnp.flip(a, 0) for a in begins] if self.reverse else begins
            queue = [jnp.concatenate(pair) for pair in zip(queue, begins, strict=True)]
            found.append(joined(ys))
        if rest:
            carry, ys = self.steps(carry, self.part(xs, lead + cut, rest), rest)
            found.append(ys)
        return carry, queue, self.in_order(found)

    def window(self, carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """(last carry, the carry before the window that is the first to begin in this block, the block's ys)."""
        rest = self.overlap % self.every
        carry = self.passed(carry, self.part(xs, 0, self.overlap), self.overlap)
        carry, ys = self.steps(carry, self.part(xs, self.overlap, self.every - rest), self.every - rest)
        begin, found = _constant(carry), [ys]
        if rest:
            carry, ys = self.steps(carry, self.part(xs, self.overlap + self.every - rest, rest), rest)
            found.append(ys)
        return carry, begin, self.in_order(found)

    def steps(self, carry: Leaves, xs: Leaves, n: int) -> tuple[Leaves, Leaves]:
        return self.inner(self.step, carry, xs, length=n, reverse=self.reverse)

    def passed(self, carry: Leaves, xs: Leaves, n: int) -> Leaves:
        """The carry after n steps whose outputs nobody reads."""
        return self.inner(lambda c, x: (self.step(c, x)[0], []), carry, xs, length=n, reverse=self.reverse)[0]

    def part(self, xs: Leaves, start: int, n: int) -> Leaves:
        """n steps of xs from the one that runs as number `start`."""
        return [a[len(a) - start - n : len(a) - start] if self.reverse else a[start : start + n] for a in xs]

    def in_order(self, parts: list[Leaves]) -> Leaves:
        """Parts that ran one after the other, as one, in the order of xs."""
        parts = parts[::-1] if self.reverse else parts
        return parts[0] if len(parts) == 1 else [jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)]

    def windows(self, xs: Leaves) -> Leaves:
        """[overlap + S every, ...] as S windows [S, overlap + every, ...].

        Column by column, by slices: a gather's transpose would be a scatter.
        """
        blocks, rest = divmod(self.overlap, self.every)
        steps = len(xs[0]) - self.overlap if xs else 0
        columns = [grouped(self.part(xs, rest + n * self.every, steps), self.every) for n in range(blocks + 1)]
        if rest:
            partly = grouped(self.part(xs, 0, steps), self.every)
            columns.insert(0, [a[:, -rest:] if self.reverse else a[:, :rest] for a in partly])
        columns = columns[::-1] if self.reverse else columns
        return [jnp.concatenate(leaves, axis=1) for leaves in zip(*columns, strict=True)]


def _constant(carry: Leaves) -> Leaves:
    """The same values, into which no gradient flows back. Integers and keys have none."""
    return jax.tree.map(lambda a: lax.stop_gradient(a) if trees.is_float(a) else a, carry)
