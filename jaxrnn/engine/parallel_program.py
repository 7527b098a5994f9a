"""A partitioned step run over a sequence, each component of the carry in parallel over time where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxrnn.engine.closed_forms import ClosedForm, closed_form
from jaxrnn.engine.deferral import How
from jaxrnn.engine.forms import Obstacle
from jaxrnn.engine.loop import Leaves, Loop
from jaxrnn.engine.newton_iteration import check_elementwise, iterated, newton
from jaxrnn.engine.partition import Parts
from jaxrnn.engine.program import Program
from jaxrnn.engine.reduce_then_scan import Order, last
from jaxrnn.engine.solved import Run, by_form, emitted, solved_states


class Way(NamedTuple):
    """How one component of the carry is run."""

    form: ClosedForm | None = None
    iteration: newton | None = None  # where there is no form
    because: str = ""  # what stands in the way of a form
    mixes: str = ""  # what stands in the way of an iteration that was asked for

    @property
    def is_parallel(self) -> bool:
        return self.form is not None or self.iteration is not None

    def __str__(self) -> str:
        if self.form is not None:
            return f"{self.form.kind}, in parallel"
        return f"{'by iteration' if self.iteration else 'in order'} ({self.because})"


def way_of(loop: Loop, iteration: newton | None = None) -> Way:
    """How a loop is run: by its form, by iteration where that is asked for and possible, or else in order."""
    try:
        return Way(closed_form(loop))
    except Obstacle as obstacle:
        because = str(obstacle)
    if iteration is None:
        return Way(because=because)
    try:
        check_elementwise(loop)
    except Obstacle as obstacle:
        return Way(because=because, mixes=str(obstacle))
    return Way(iteration=iteration, because=because)


class ParallelProgram(Program):
    """A partitioned step of which loops with a closed form are solved for all steps of a segment at once.

    `over`: inside `jax.shard_map`, each device along an axis of the mesh has a stretch of the steps, one after another.
    """

    def __init__(
        self, parts: Parts, init: Sequence[Any], scan: Callable[..., Any], ways: Sequence[Way], over: str | None = None
    ):
        super().__init__(parts, init, scan)
        self.ways, self.over = ways, over

    def added(self, total: Any, each: Any) -> Any:
        grown = super().added(jnp.zeros_like(total), each)
        return total + (grown if self.over is None else lax.psum(grown, self.over))

    def run_loop(self, n: int, how: How, first: Leaves, each: Leaves) -> tuple[Leaves, Leaves]:
        loop, way = self.parts.stages[n].loop, self.ways[n]
        once = [self.once[v] for v in loop.invariant]
        run = Run(loop, Order(how.steps, how.reverse, self.over))
        if way.form is not None:
            (solve, slopes), cuts = by_form(way.form, run), way.form.cuts
        elif way.iteration is not None:
            solve, slopes, cuts = iterated(way.iteration, run, how), run.slopes, True
        else:
            return how(loop.at(once), first, each)
        states = solved_states(run, solve, slopes, cuts, once, first, each)
        return [last(h, run.order) for h in states], emitted(run, states, once, first, each)
