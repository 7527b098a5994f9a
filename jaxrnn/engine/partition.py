"""A step split into what must run step by step and what can run for all steps at once.

    stage 1:  batched part, over time          what the loop reads and that needs no carry
              loop                             the carries of one component, and what they need
    stage 2:  batched part, loop               the next component, reading what the first has emitted
    ...
    last:     batched part                     what only outputs need

What depends on neither carry nor input is computed once, before everything. Of the rest,
`placement` decides by bytes what leaves. Three things never leave:

- an operation with a gradient of its own (`custom_vjp`) that reads a weight: its rule is due once for each
  step's copy of the weight, not once for their sum;
- random numbers drawn with keys of which `vmap` would make other numbers;
- a `stop_gradient` that the loop reads: it must see that no derivative will be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jax.extend.core import Var

from jaxrnn.engine.ir import Atom, Flat, is_float, is_var, producers, reached, reads, size_bytes, slice_back, variables
from jaxrnn.engine.loop import Loop
from jaxrnn.engine.placement import leaving_before, staying_for_outputs
from jaxrnn.engine.rules import (
    Equation,
    draws_otherwise_when_batched,
    has_own_gradient,
    is_light,
    is_product,
    rule,
    worth_keeping,
)


class Batched(NamedTuple):
    """Evaluated for all steps at once."""

    equations: list[Equation]
    reads: list[Var]  # stacked over time
    makes: list[Var]  # stacked over time


class Stage(NamedTuple):
    batched: Batched
    loop: Loop
    places: list[int]  # which leaves of the carry


class Parts(NamedTuple):
    """A step, partitioned."""

    flat: Flat
    carry: list[Var]
    xs: list[Var]
    constant: list[int]  # leaves of the carry that every step hands on as they came
    once: list[Equation]  # what no step changes
    stages: list[Stage]
    last: Batched
    ys: list[Atom]  # those of the step, then what each of the totals grows by
    totals: tuple[int, ...] = ()  # leaves of the step's carry that only add something up; `carry` is without them

    @property
    def batched(self) -> list[Batched]:
        return [*(stage.batched for stage in self.stages), self.last]

    @property
    def pays(self) -> bool:
        """Whether anything is gained over `lax.scan`: work that leaves the loop, or a weight gradient."""
        work = any(not is_light(e) for part in self.batched for e in part.equations)
        return work or any(stage.loop.weights for stage in self.stages)


def components(depends: list[set[int]]) -> list[list[int]]:
    """Strongly connected components, those that others need first; depends[j]: what j needs."""
    n = len(depends)
    reach = [set(d) for d in depends]
    for k in range(n):
        for j in range(n):
            if k in reach[j]:
                reach[j] |= reach[k]
    order: list[list[int]] = []
    for j in sorted(range(n), key=lambda j: (len(reach[j] | {j}), j)):
        if not any(j in group for group in order):
            order.append([k for k in range(n) if k == j or (k in reach[j] and j in reach[k])])
    return order


def totals(flat: Flat, carries: int) -> dict[int, Atom]:
    """The leaves of the carry that only add something up, and what they grow by: s_t = s_tm1 + u_t, read nowhere else.

    Such a sum is made of all steps' u_t at once, so that what u_t is computed from (a loss) need not
    be in the loop.
    """
    uses = [v for e in flat.equations for v in variables(e.invars)] + variables(flat.outputs)
    made_by = producers(flat.equations)
    found = {}
    for j in range(carries):
        s, out = flat.inputs[j], flat.outputs[j]
        e = made_by.get(out) if is_var(out) else None
        if e is None or not rule(e).is_sum or flat.outputs.count(out) > 1:
            continue
        others = [a for a in e.invars if a is not s]
        if len(others) == 1 and uses.count(s) == 1 and uses.count(out) == 1:
            found[j] = others[0]
    return found


def partitioned(flat: Flat, carries: int, separate: bool | None) -> Parts:
    """Splits a step, traced as (carry leaves, x leaves) -> (carry leaves, y leaves).

    `separate`: a stage for every component of the carry (True), one for all (False), or as pays (None).
    """
    growth = totals(flat, carries)
    kept = [j for j in range(carries) if j not in growth]
    if growth:
        inputs = [flat.inputs[j] for j in kept] + flat.inputs[carries:]
        outputs = [flat.outputs[j] for j in kept] + flat.outputs[carries:] + list(growth.values())
        flat = flat._replace(inputs=inputs, outputs=outputs)
    return _Partition(flat, len(kept)).parts(separate)._replace(totals=tuple(growth))


class _Partition:
    """The step being split, stage after stage: what is known of its values so far."""

    def __init__(self, flat: Flat, carries: int):
        self.flat, self.equations = flat, flat.equations
        self.carry, self.xs = flat.inputs[:carries], flat.inputs[carries:]
        self.carry_out, self.ys = flat.outputs[:carries], flat.outputs[carries:]
        # A leaf that every step hands on as it came is as good as closed over.
        self.constant = [j for j in range(carries) if self.carry_out[j] is self.carry[j]]
        self.moving = [j for j in range(carries) if j not in self.constant]
        self.consts = {*flat.const_vars, *(self.carry[j] for j in self.constant)}
        sources = [*self.xs, *(self.carry[j] for j in self.moving)]
        self.bound = _bound_to_their_step(self.equations, reached(self.equations, sources))
        self.varying = reached(self.equations, [*sources, *self.bound])
        self.needed_by = {j: reached(self.equations, [self.carry[j]]) for j in self.moving}
        self.alike = self.consts | {v for e in self.equations for v in e.outvars if v not in self.varying}
        # Computed once; what merely expands (a broadcast, a one-hot) is made again where it is read.
        made = [e for e in self.equations if self.varying.isdisjoint(e.outvars) and not _stays_with_reader(e)]
        self.once = self.consts | {v for e in made for v in e.outvars}
        self.stacked = set(self.xs)  # what exists for all steps by now
        self.made_in: dict[Var, int] = {}  # which loop has a value
        self.emitted: list[dict[Var, None]] = []  # what each loop emits, as found out
        self.done: set[int] = set()  # leaves of the carry whose loop is planned

    def parts(self, separate: bool | None) -> Parts:
        groups = [self.moving] if self.moving or self.bound else []
        if separate is not False and not self.bound:  # what is bound to its step is done in it, for all that read it
            place = {j: n for n, j in enumerate(self.moving)}
            found = components([{place[k] for k in self.needs(self.carry_out[j])} for j in self.moving])
            groups = [[self.moving[n] for n in group] for group in found]
            groups = groups if separate else self._as_pays(groups)
        stages = [self._stage(group) for group in groups]
        last = self._batched([y for y in variables(self.ys) if not self._exists(y)])
        for y in variables(self.ys):
            self._exists(y)
        stages = [
            stage._replace(loop=stage.loop._replace(emitted=list(emitted)))
            for stage, emitted in zip(stages, self.emitted, strict=True)
        ]
        outside = [e for part in (*(stage.batched for stage in stages), last) for e in part.equations]
        once = [v for stage in stages for v in stage.loop.invariant] + variables(self.ys)
        once += [v for e in outside for v in variables(e.invars)]
        computed = slice_back(self.equations, [v for v in once if v in self.once], self.consts)
        return Parts(self.flat, self.carry, self.xs, self.constant, computed, stages, last, self.ys)

    def _as_pays(self, components: list[list[int]]) -> list[list[int]]:
        """The components in as few stages as keep large products out of loops that have none of their own.

        Such a loop (CTC's, a CRF's) that reads a readout's logits has them made for all steps at once, and in the
        backward pass made again from the hidden units, instead of kept for each step.
        """
        groups: list[list[int]] = []
        for component in components:
            if not groups or self._behind_a_large_product(component):
                groups.append([])
            groups[-1] += component
        return [sorted(group) for group in groups]

    def _behind_a_large_product(self, component: list[int]) -> bool:
        """Whether a component has no product of its own and reads one from other loops better redone than kept."""
        others = [j for j in self.moving if j not in component]
        given = {*self.consts, *self.xs, *(self.carry[j] for j in self.moving)}
        behind = lambda places: slice_back(self.equations, [self.carry_out[j] for j in places], given)
        theirs = {id(e) for e in behind(others)}
        products = [e for e in behind(component) if is_product(e) and id(e) not in theirs]
        own = set().union(*(self.needed_by[j] for j in component))
        read = set().union(*(self.needed_by[j] for j in others))
        return own.isdisjoint(v for e in products for v in e.outvars) and any(
            reads(e, read) and not worth_keeping(e.primitive, *(v.aval for v in e.invars), **e.params) for e in products
        )

    def needs(self, v: Atom) -> set[int]:
        """The leaves of the carry that a value of the step depends on."""
        return {j for j, found in self.needed_by.items() if is_var(v) and v in found}

    def _exists(self, v: Var) -> bool:
        """Whether a value exists for all steps, or once; a loop that has it is told to emit it."""
        if v in self.made_in:
            self.emitted[self.made_in[v]][v] = None
            self.stacked.add(v)
        return v in self.stacked or v in self.once

    def _stage(self, group: list[int]) -> Stage:
        own, out = [self.carry[j] for j in group], [self.carry_out[j] for j in group]
        in_loop = reached(self.equations, [*own, *self.bound])
        there = {*self.stacked, *self.made_in, *self.once}
        core = self._made_here(out, in_loop, there | set(own))
        self.done.update(group)
        roots = [*out, *self._roots_of_outputs(core, own, in_loop, there)]
        everything = self._made_here(roots, in_loop, there | set(own))
        before = self._before(everything, roots, in_loop, there)
        outside = {v for e in before for v in e.outvars}
        equations = slice_back(self.equations, roots, there | outside | set(own))
        made = {*own, *(v for e in equations for v in e.outvars)}
        read = [v for v in variables([a for e in equations for a in e.invars] + roots) if v not in made]
        stacked = [v for v in read if v in self.varying]
        invariant = [v for v in read if v not in self.varying]
        batched = self._batched([v for v in stacked if not self._exists(v)])
        for v in [*own, *(v for e in equations for v in e.outvars)]:
            if v in in_loop:  # what needs no carry is as easily made again as emitted
                self.made_in.setdefault(v, len(self.emitted))
        self.emitted.append({})
        return Stage(batched, Loop(equations, invariant, own, stacked, out, []), group)

    def _made_here(self, roots: Iterable[Atom], in_loop: set[Var], given: set[Var]) -> list[Equation]:
        """The equations behind the roots that need this loop's carries, or are bound to their step."""
        elsewhere = {v for e in self.equations for v in e.outvars if v not in in_loop}
        return slice_back(self.equations, roots, given | elsewhere)

    def _roots_of_outputs(self, core: list[Equation], own: list[Var], in_loop: set[Var], there: set[Var]) -> list[Var]:
        """What the loop makes for the outputs alone: those outputs, or what they are computed from after it."""
        made = {*own, *(v for e in core for v in e.outvars)}
        due = [y for y in variables(self.ys) if y in in_loop and y not in there and self.needs(y) <= self.done]
        beyond = self._made_here(due, in_loop, there | made)
        staying = staying_for_outputs(beyond, made, set(due), self.alike, self.bound)
        chosen = {id(e) for e in staying}
        read_after = {v for e in beyond if id(e) not in chosen for v in variables(e.invars)}
        return [v for e in staying for v in e.outvars if v in read_after or v in due]

    def _before(
        self, made_here: list[Equation], roots: list[Atom], in_loop: set[Var], there: set[Var]
    ) -> list[Equation]:
        """The equations to be done before the loop: of those that it needs and that need no carry."""
        read = [v for v in variables([a for e in made_here for a in e.invars] + roots) if v not in in_loop]
        given = there | self.alike
        behind = slice_back(self.equations, read, given)
        while stopped := [e for e in behind if _stops_gradient(e) and not set(e.outvars).isdisjoint(read)]:
            gone = {v for e in stopped for v in e.outvars}
            read = [v for v in read if v not in gone] + [v for e in stopped for v in variables(e.invars)]
            behind = slice_back(self.equations, read, given)
        return leaving_before(behind, [v for v in read if v not in given], self.alike)

    def _batched(self, makes: list[Var]) -> Batched:
        """What makes these values for all steps, from what exists for all steps."""
        found: list[Var] = []
        waiting, seen = list(makes), set()
        chosen: set[int] = set()
        made_by = producers(self.equations)
        while waiting:
            v = waiting.pop()
            if v in seen or v in self.once:
                continue
            seen.add(v)
            if self._exists(v):
                found.append(v)
                continue
            chosen.add(id(made_by[v]))
            waiting += variables(made_by[v].invars)
        self.stacked.update(makes)
        return Batched([e for e in self.equations if id(e) in chosen], found, makes)


def _bound_to_their_step(equations: list[Equation], varying: set[Var]) -> set[Var]:
    """What must be computed in a loop although it may need no carry."""

    def bound(e: Equation) -> bool:
        weights = [v for v in variables(e.invars) if is_float(v) and v not in varying]
        return (bool(weights) and has_own_gradient(e)) or (reads(e, varying) and draws_otherwise_when_batched(e))

    return {v for e in equations if bound(e) for v in e.outvars}


def _stops_gradient(equation: Equation) -> bool:
    return equation.primitive.name == "stop_gradient"


def _stays_with_reader(equation: Equation) -> bool:
    """Whether an equation is better done where its result is read: for next to no work, more comes out than goes in."""
    if not is_light(equation):
        return False
    grows = sum(map(size_bytes, equation.outvars)) > sum(map(size_bytes, variables(equation.invars)))
    return grows or _stops_gradient(equation)
