"""`within`: a byte budget in, the fastest exact plan out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxrnn import checks
from jaxrnn.engine.memory import StepBytes
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.scans.fission import fissioned
from jaxrnn.scans.planner import Candidate, Pricing
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


def _last_resorts(pricing: Pricing, limit: int) -> Iterator[Candidate]:
    """Plans for a budget in which no segment's work fits."""
    some = pricing.single(pricing.plain().kept)
    if some is not None:
        room = usable(limit) - (pricing.bytes_of(some.strategy) - some.kept)
        found = pricing.single(room)
        if found is not None:
            yield _fitted(pricing, found, Pricing.single, room, limit)
    yield pricing.least()


SURROUNDINGS = 2**14  # bytes that even a small loss takes


def price(pricing: Pricing, limit: int | None, every: bool) -> Plans:
    """The kinds of plans for a limit, by recomputation; only up to the first that fits unless every one is wanted."""
    rows: list[Row] = []

    def add(found: Candidate) -> bool:
        """Whether the search is over."""
        size = pricing.bytes_of(found.strategy)
        rows.append(Row(found.about, found.strategy, size, found.passes, limit is None or size <= usable(limit)))
        return rows[-1].fits and not every

    plain, bound = pricing.plain(), None
    enough = limit is None or plain.kept + pricing.outputs <= limit
    over = (every or enough) and add(plain)
    if not over and pricing.steps > 1 and pricing.repeatable:
        # What any plan needs beside what it keeps, such as the weights' gradients: learned from the leanest kind.
        leanest = pricing.in_order()
        beside = pricing.bytes_of(leanest.strategy) - leanest.kept
        if every and limit is not None:
            bound = pricing.bound(usable(limit) - beside)
        at_best: dict[Kind, int] = {
            Pricing.mixed: plain.kept // 2,
            Pricing.binomial: leanest.kept // 2,
        }  # where there is no limit
        rooms = [at_best.get(kind, 0) if limit is None else usable(limit) - beside for kind in _KINDS]
        priced = zip(_KINDS, rooms, strict=True)
        made = [(found, kind, room) for kind, room in priced if (found := kind(pricing, room)) is not None]
        least = plain.kept
        # Of plans that recompute alike the last kind in the list: segments are simpler than a schedule.
        for found, kind, room in sorted(reversed(made), key=lambda each: each[0].passes):
            if found.kept >= least or any(row.strategy == found.strategy for row in rows):
                continue  # recomputes more than a plan that fits, and keeps no less
            if over := add(_fitted(pricing, found, kind, room, limit)):
                break
            least = found.kept if rows[-1].fits else least
        if limit is not None and not over and not any(row.fits for row in rows):
            for found in _last_resorts(pricing, limit):
                if not any(row.strategy == found.strategy for row in rows) and add(found):
                    break
    rows.sort(key=lambda row: row.passes)
    # What recomputes more and takes no less is of no use to anybody.
    rows = [row for n, row in enumerate(rows) if all(row.bytes < before.bytes for before in rows[:n])]
    return Plans(tuple(rows), limit, pricing.steps, pricing.cost, pricing.outputs, bound)


def usable(limit: int) -> int:
    """What the loop may take of a budget: the rest is for what surrounds it, such as the loss itself."""
    return limit - max(limit // 32, SURROUNDINGS)


Kind = Callable[[Pricing, int], Candidate | None]
_KINDS: tuple[Kind, ...] = (
    Pricing.mixed,
    Pricing.binomial,
    *(functools.partial(Pricing.segments, levels=levels) for levels in (1, 2, 3, 4)),
)


def _fitted(pricing: Pricing, found: Candidate, kind: Kind, room: int, limit: int | None) -> Candidate:
    """The candidate; if the compiler says that it takes more than the limit, one for less room."""
    for _ in range(4):
        over = 0 if limit is None else pricing.bytes_of(found.strategy) - usable(limit)
        room -= over + over // 4
        smaller = kind(pricing, room) if over > 0 else None
        if smaller is None or smaller.kept >= found.kept:
            break
        found = smaller
    return found


@dataclass(frozen=True)
class within(Strategy):  # noqa: N801
    """A scan that finds the plan with the least recomputation whose gradient stays within a number of bytes.

        plans = everything kept; part kept; segments; levels; the binomial schedule          with their best parameters
        run the first, by recomputation, of which scratch memory <= bytes

    `bytes` is a number, or a text such as "64MiB" or "2GB". It bounds the gradient's scratch memory: what
    is kept, one segment's work, the weights' gradients, and the outputs ys, which a loss reads, with
    their cotangents. Make these small: `with_loss` and `unroll(..., outputs="sum")` for a loss over all steps,
    `outputs="none"` for one on the last state. What else the program does comes on top.
    `inner` runs the steps of a segment. `report`, if given, is called with the `Plans` that were
    weighed, when the program is traced.

    Memory: at most `bytes`. Recompute: the least that fits, among plans of up to 12 extra forward
    passes. Exact. Cost: while tracing, one compilation of the loop's gradient for each plan that is
    weighed (most often two or three), remembered for the next trace; so use it where you
    differentiate. The compiler's own figure decides, on the backend in use.
    Limits: under `vmap` a scan sees one example, so the bytes are one example's; a gradient by xs
    comes on top. A step with side effects cannot be recomputed; one with a callback that has no derivative
    has no gradient to be bounded, and runs as under `inner`.
    Raises: ValueError for a budget that is none, or that no plan meets, with the least that would do and what
    it goes to; TypeError for an inner that is no scan; and what `lax.scan` raises.
    """

    bytes: int | str
    inner: Scan = fissioned()
    report: Callable[[Plans], None] | None = None
    name: ClassVar[str] = "within"

    def __post_init__(self) -> None:
        checks.byte_count("within", "bytes", self.bytes)
        checks.a_scan("within", "inner", self.inner)
        try:
            hash(self.inner)
        except TypeError as error:
            raise TypeError(f"within: inner must be hashable, since prices are remembered by it: {error}") from None
        if self.report is not None and not callable(self.report):
            raise TypeError(f"within: report must be a function of Plans, got {self.report!r}")

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        limit = checks.byte_count("within", "bytes", self.bytes)
        if not problem.traced.is_differentiable:
            return problem.as_given(self.inner)
        pricing = Pricing(problem, self.inner)
        plans = price(pricing, limit, every=False)
        if plans.chosen is None:
            raise ValueError(_too_little(pricing, limit))
        if self.report is not None:
            self.report(plans)
        return problem.whole(plans.chosen.strategy) if pricing.repeatable else problem.as_given(plans.chosen.strategy)


def _too_little(pricing: Pricing, limit: int) -> str:
    where = f"within: no plan for {pricing.steps:,} steps stays within {limit:,} bytes"
    if not pricing.repeatable:
        return (
            f"{where}: the step has side effects or calls back into Python, so nothing can be recomputed, and to keep "
            f"everything takes {pricing.bytes_of(pricing.inner):,} bytes; take the effects out, or raise the limit"
        )
    least = pricing.least()
    needed = pricing.bytes_of(least.strategy)
    enough = needed + max(needed // 31 + 1, SURROUNDINGS)  # `usable` makes `needed` of it
    parts = {
        "outputs and their cotangents": pricing.outputs,
        "kept carries and one segment's steps": least.kept,
        "the weights' gradients and one segment's work": needed - pricing.outputs - least.kept,
        "what surrounds the loop": enough - needed,
    }
    remedy = {
        "outputs and their cotangents": "sum the loss inside the loop (with_loss and "
        "unroll(..., outputs='sum')), or leave them out (outputs='none')",
        "kept carries and one segment's steps": "take a smaller batch or state",
        "the weights' gradients and one segment's work": "take a smaller net",
    }
    most = max(remedy, key=lambda name: parts[name])
    shares = "; ".join(f"{name} {size:,}" for name, size in parts.items())
    return f"{where}; the least is {enough:,} bytes ({least.about}): {shares}. Raise the limit, or {remedy[most]}"
