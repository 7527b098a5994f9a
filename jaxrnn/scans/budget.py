"""`within`: a byte budget in, the fastest exact plan out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxrnn import checks
from jaxrnn.engine.memory import StepBytes
from jaxrnn.scans.fission import fissioned
from jaxrnn.scans.planner import Candidate, Problem
from jaxrnn.types import Scan, Tree


class Row(NamedTuple):
    """One plan, with its price."""

    about: str
    strategy: Scan
    bytes: int  # scratch memory of the gradient, the outputs and their cotangents included
    passes: float  # extra forward passes over the sequence
    fits: bool

    @property
    def time(self) -> float:
        """Time relative to no recomputation, a backward pass counted as two forward passes."""
        return (3 + self.passes) / 3


class Plans(NamedTuple):
    """What each kind of plan takes; `str` gives a table."""

    rows: tuple[Row, ...]  # by recomputation, the least first
    limit: int | None
    steps: int
    cost: StepBytes  # of one step under the inner scan
    outputs: int  # bytes of all steps' outputs and their cotangents, in every row
    bound: float | None = None  # extra passes that no schedule does without, in the room that the limit leaves

    @property
    def chosen(self) -> Row | None:
        """The plan with the least recomputation that fits."""
        return next((row for row in self.rows if row.fits), None)

    def __str__(self) -> str:
        budget = "no limit" if self.limit is None else f"limit {_mebibytes(self.limit)}"
        lines = [
            f"{self.steps:,} steps, {budget}; per step: a carry {self.cost.carry:,} bytes, "
            f"kept for the backward pass {self.cost.kept:,}, input {self.cost.x:,}; "
            f"outputs in all {_mebibytes(self.outputs)}",
            f"     {'plan':<44}{'scratch memory':>16}{'extra passes':>14}{'time':>8}",
        ]
        for row in self.rows:
            mark = "  " if self.limit is None else "->" if row is self.chosen else "  " if row.fits else " x"
            lines.append(f"{mark}   {row.about:<44}{_mebibytes(row.bytes):>16}{row.passes:>14.2f}{row.time:>7.2f}x")
        if self.bound is not None:
            lines.append(
                f"     no schedule does with fewer than {self.bound:.2f} extra passes in the room that this leaves"
            )
        return "\n".join(lines)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB"


def _last_resorts(problem: Problem, limit: int) -> Iterator[Candidate]:
    """Plans for a budget in which no segment's work fits."""
    some = problem.single(problem.plain().kept)
    if some is not None:
        room = usable(limit) - (problem.bytes_of(some.strategy) - some.kept)
        found = problem.single(room)
        if found is not None:
            yield _fitted(problem, found, Problem.single, room, limit)
    yield problem.least()


SURROUNDINGS = 2**14  # bytes that even a small loss takes


def price(problem: Problem, limit: int | None, every: bool) -> Plans:
    """The kinds of plans for a limit, by recomputation; only up to the first that fits unless every one is wanted."""
    rows: list[Row] = []

    def add(found: Candidate) -> bool:
        """Whether the search is over."""
        size = problem.bytes_of(found.strategy)
        rows.append(Row(found.about, found.strategy, size, found.passes, limit is None or size <= usable(limit)))
        return rows[-1].fits and not every

    plain, bound = problem.plain(), None
    enough = limit is None or plain.kept + problem.outputs <= limit
    over = (every or enough) and add(plain)
    if not over and problem.steps > 1 and problem.repeatable:
        # What any plan needs beside what it keeps, such as the weights' gradients: learned from the leanest kind.
        leanest = problem.in_order()
        beside = problem.bytes_of(leanest.strategy) - leanest.kept
        if every and limit is not None:
            bound = problem.bound(usable(limit) - beside)
        at_best: dict[Kind, int] = {
            Problem.mixed: plain.kept // 2,
            Problem.binomial: leanest.kept // 2,
        }  # where there is no limit
        rooms = [at_best.get(kind, 0) if limit is None else usable(limit) - beside for kind in _KINDS]
        priced = zip(_KINDS, rooms, strict=True)
        made = [(found, kind, room) for kind, room in priced if (found := kind(problem, room)) is not None]
        least = plain.kept
        # Of plans that recompute alike the last kind in the list: segments are simpler than a schedule.
        for found, kind, room in sorted(reversed(made), key=lambda each: each[0].passes):
            if found.kept >= least or any(row.strategy == found.strategy for row in rows):
                continue  # recomputes more than a plan that fits, and keeps no less
            if over := add(_fitted(problem, found, kind, room, limit)):
                break
            least = found.kept if rows[-1].fits else least
        if limit is not None and not over and not any(row.fits for row in rows):
            for found in _last_resorts(problem, limit):
                if not any(row.strategy == found.strategy for row in rows) and add(found):
                    break
    rows.sort(key=lambda row: row.passes)
    # What recomputes more and takes no less is of no use to anybody.
    rows = [row for n, row in enumerate(rows) if all(row.bytes < before.bytes for before in rows[:n])]
    return Plans(tuple(rows), limit, problem.steps, problem.cost, problem.outputs, bound)


def usable(limit: int) -> int:
    """What the loop may take of a budget: the rest is for what surrounds it, such as the loss itself."""
    return limit - max(limit // 32, SURROUNDINGS)


Kind = Callable[[Problem, int], Candidate | None]
_KINDS: tuple[Kind, ...] = (
    Problem.mixed,
    Problem.binomial,
    *(functools.partial(Problem.segments, levels=levels) for levels in (1, 2, 3, 4)),
)


def _fitted(problem: Problem, found: Candidate, kind: Kind, room: int, limit: int | None) -> Candidate:
    """The candidate; if the compiler says that it takes more than the limit, one for less room."""
    for _ in range(4):
        over = 0 if limit is None else problem.bytes_of(found.strategy) - usable(limit)
        room -= over + over // 4
        smaller = kind(problem, room) if over > 0 else None
        if smaller is None or smaller.kept >= found.kept:
            break
        found = smaller
    return found


@dataclass(frozen=True)
class within:  # noqa: N801
    """A scan that finds the plan with the least recomputation whose gradient stays within a number of bytes.

        plans = everything kept; part kept; segments; levels; the binomial schedule          with their best parameters
        run the first, by recomputation, of which scratch memory <= bytes

    `bytes` is a number, or a text such as "64MiB" or "2GB". It bounds the gradient's scratch memory: what
    is kept, one segment's work, the weights' gradients, and the outputs ys, which a loss reads, with
    their cotangents. Make these small: `with_loss` or `summed` for a loss over all steps,
    `unroll(..., outputs=False)` for one on the last state. What else the program does comes on top.
    `inner` runs the steps of a segment. `report`, if given, is called with the `Plans` that were
    weighed, when the program is traced.

    Memory: at most `bytes`. Recompute: the least that fits, among plans of up to 12 extra forward
    passes. Exact. Cost: while tracing, one compilation of the loop's gradient for each plan that is
    weighed (most often two or three), remembered for the next trace; so use it where you
    differentiate. The compiler's own figure decides, on the backend in use.
    Limits: under `vmap` a scan sees one example, so the bytes are one example's; a gradient by xs
    comes on top. A step with side effects cannot be recomputed.
    Raises: ValueError for a budget that is none, or that no plan meets, with the least that would do and what
    it goes to; TypeError for an inner that is no scan; and what `lax.scan` raises.
    """

    bytes: int | str
    inner: Scan = fissioned()
    report: Callable[[Plans], None] | None = None

    def __post_init__(self) -> None:
        checks.byte_count("within", "bytes", self.bytes)
        checks.a_scan("within", "inner", self.inner)
        try:
            hash(self.inner)
        except TypeError as error:
            raise TypeError(f"within: inner must be hashable, since prices are remembered by it: {error}") from None
        if self.report is not None and not callable(self.report):
            raise TypeError(f"within: report must be a function of Plans, got {self.report!r}")

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]:
        limit = checks.byte_count("within", "bytes", self.bytes)
        steps = checks.steps("within", xs, length)
        problem = Problem(f, init, xs, steps, self.inner, reverse)
        plans = price(problem, limit, every=False)
        if plans.chosen is None:
            raise ValueError(_too_little(problem, limit))
        if self.report is not None:
            self.report(plans)
        strategy: Any = plans.chosen.strategy
        return strategy(f, init, xs, length=length, reverse=reverse)


def _too_little(problem: Problem, limit: int) -> str:
    where = f"within: no plan for {problem.steps:,} steps stays within {limit:,} bytes"
    if not problem.repeatable:
        return (
            f"{where}: the step has side effects or calls back into Python, so nothing can be recomputed, and to keep "
            f"everything takes {problem.bytes_of(problem.inner):,} bytes; take the effects out, or raise the limit"
        )
    least = problem.least()
    needed = problem.bytes_of(least.strategy)
    enough = needed + max(needed // 31 + 1, SURROUNDINGS)  # `usable` makes `needed` of it
    parts = {
        "outputs and their cotangents": problem.outputs,
        "kept carries and one segment's steps": least.kept,
        "the weights' gradients and one segment's work": needed - problem.outputs - least.kept,
    }
    remedy = {
        "outputs and their cotangents": "sum the loss inside the loop (with_loss, summed), or leave them out "
        "(unroll(..., outputs=False))",
        "kept carries and one segment's steps": "take a smaller batch or state",
        "the weights' gradients and one segment's work": "take a smaller net",
    }
    most = max(parts, key=lambda name: parts[name])
    shares = "; ".join(f"{name} {size:,}" for name, size in parts.items())
    return f"{where}; the least is {enough:,} bytes ({least.about}): {shares}. Raise the limit, or {remedy[most]}"
