"""A step split into what must run step by step and what can run for all steps at once.

    stage 1:  batched part, over time          everything that the loop reads and that needs no carry
              loop                             the carries of one component, and what they need
    stage 2:  batched part, loop               the next component, reading what the first has emitted
    ...
    last:     batched part                     outputs that no carry needs

What moves. Work that reads no carry (a product with the input, say) leaves the loop, as does work
that no carry needs (a readout, a loss). Only what pays moves: a value is batched if some real work
(anything but elementwise operations and reductions) is behind it, and batching stops before
operations that merely expand (a broadcast, a one-hot). What depends on neither carry nor input is
computed once, before everything.
"""

from __future__ import annotations

from typing import NamedTuple

from jax.extend.core import Var

from jaxrnn.engine.ir import (
    Atom,
    Equation,
    Flat,
    is_light,
    is_product,
    is_var,
    producers,
    reached,
    slice_back,
    stays_with_reader,
    variables,
)


class Batched(NamedTuple):
    """Evaluated for all steps at once."""

    equations: list[Equation]
    reads: list[Var]  # stacked over time
    makes: list[Var]  # stacked over time


class Loop(NamedTuple):
    """Evaluated step by step."""

    equations: list[Equation]
    invariant: list[Var]  # read, the same at every step
    carry: list[Var]
    stacked: list[Var]  # read, one per step
    carry_out: list[Atom]
    emitted: list[Var]  # one per step, for the parts after the loop


class Stage(NamedTuple):
    batched: Batched
    loop: Loop
    places: list[int]  # which leaves of the carry


class Plan(NamedTuple):
    flat: Flat
    carry: list[Var]
    xs: list[Var]
    constant: list[int]  # leaves of the carry that every step hands on as they came
    invariant: list[Equation]  # computed once
    stages: list[Stage]
    last: Batched
    carry_out: list[Atom]
    ys: list[Atom]  # those of the step, then what each of the totals grows by
    totals: tuple[int, ...] = ()  # leaves of the step's carry that only add something up; `carry` is without them

    @property
    def batched(self) -> list[Batched]:
        return [*(stage.batched for stage in self.stages), self.last]

    @property
    def pays(self) -> bool:
        """Whether anything is gained over `lax.scan`: work that leaves the loop, or a weight gradient."""
        work = any(not is_light(e) for part in self.batched for e in part.equations)
        return work or any(weights(stage.loop) for stage in self.stages)


def weights(loop: Loop) -> list[Var]:
    """The invariant values that products in the loop read: their gradients can be deferred."""
    known = set(loop.invariant)
    return list(dict.fromkeys(v for e in loop.equations if is_product(e) for v in variables(e.invars) if v in known))


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


def partition(flat: Flat, carries: int, separate: bool) -> Plan:
    """Splits a step, traced as (carry leaves, x leaves) -> (carry leaves, y leaves)."""
    growth = totals(flat, carries)
    kept = [j for j in range(carries) if j not in growth]
    if growth:
        inputs = [flat.inputs[j] for j in kept] + flat.inputs[carries:]
        outputs = [flat.outputs[j] for j in kept] + flat.outputs[carries:] + list(growth.values())
        flat = flat._replace(inputs=inputs, outputs=outputs)
    return _Partition(flat, len(kept)).plan(separate)._replace(totals=tuple(growth))


def totals(flat: Flat, carries: int) -> dict[int, Atom]:
    """The leaves of the carry that only add something up, and what they grow by: s_t = s_tm1 + u_t, read nowhere else.

    Such a sum is made of all steps' u_t at once, so that what u_t is computed from (a loss) need not
    be in the loop.
    """
    reads = [v for e in flat.equations for v in variables(e.invars)] + variables(flat.outputs)
    made_by = producers(flat.equations)
    found = {}
    for j in range(carries):
        s, out = flat.inputs[j], flat.outputs[j]
        e = made_by.get(out) if is_var(out) else None
        if e is None or e.primitive.name not in ("add", "add_any") or flat.outputs.count(out) > 1:
            continue
        others = [a for a in e.invars if a is not s]
        if len(others) == 1 and reads.count(s) == 1 and reads.count(out) == 1:
            found[j] = others[0]
    return found


class _Partition:
    def __init__(self, flat: Flat, carries: int):
        self.flat = flat
        self.carry, self.xs = flat.inputs[:carries], flat.inputs[carries:]
        self.carry_out, self.ys = flat.outputs[:carries], flat.outputs[carries:]
        # A leaf that every step hands on as it came is as good as closed over.
        self.constant = [j for j in range(carries) if self.carry_out[j] is self.carry[j]]
        self.consts = {*flat.const_vars, *(self.carry[j] for j in self.constant)}
        moving = [v for j, v in enumerate(self.carry) if j not in self.constant]
        self.varying = reached(flat.equations, [*self.xs, *moving])
        self.producer = producers(flat.equations)
        self.read_from_carry = {v: reached(flat.equations, [v]) for v in moving}
        self.stacked = set(self.xs)  # what exists for all steps by now
        self.loops: list[dict[Var, None]] = []  # what each loop emits, as found out
        self.computed_by: dict[Var, int] = {}  # which loop has a value
        self.done: set[int] = set()  # leaves of the carry whose loop is planned
        self.once: dict[Var, None] = {}  # invariant values to compute before everything

    def needs(self, v: Atom) -> set[int]:
        """The leaves of the carry that a value of the step depends on."""
        if not is_var(v):
            return set()
        return {j for j, c in enumerate(self.carry) if c in self.read_from_carry and v in self.read_from_carry[c]}

    def plan(self, separate: bool) -> Plan:
        moving = [j for j in range(len(self.carry)) if j not in self.constant]
        groups = [moving] if moving else []
        if separate:
            place = {j: n for n, j in enumerate(moving)}
            found = components([{place[k] for k in self.needs(self.carry_out[j])} for j in moving])
            groups = [[moving[n] for n in group] for group in found]
        stages = [self._stage(group) for group in groups]
        emitted_now = [v for v in variables(self.ys) if not self._available(v)]
        last = self._batched(emitted_now)
        for v in variables(self.ys):
            self._available(v)
        stages = [
            stage._replace(loop=stage.loop._replace(emitted=list(emitted)))
            for stage, emitted in zip(stages, self.loops, strict=True)
        ]
        once = slice_back(self.flat.equations, self.once, self.consts)
        return Plan(self.flat, self.carry, self.xs, self.constant, once, stages, last, self.carry_out, self.ys)

    def _available(self, v: Var) -> bool:
        """Whether a value exists for all steps, or once; a loop that computes it is told to emit it."""
        if v in self.computed_by:
            self.loops[self.computed_by[v]][v] = None
            self.stacked.add(v)
        elif v in self.consts or (v not in self.varying and not stays_with_reader(self.producer[v])):
            self.once[v] = None
        return v in self.stacked or v in self.once

    def _with_work_behind(self, given: set[Var]) -> set[Var]:
        """The values that real work has to be done for at every step, where the given ones are there already."""
        found: set[Var] = set()
        for e in self.flat.equations:
            own_work = not is_light(e) and not self.varying.isdisjoint(e.outvars)
            if own_work or not found.isdisjoint(variables(e.invars)):
                found.update(v for v in e.outvars if v not in given)
        return found

    def _stage(self, group: list[int]) -> Stage:
        number = len(self.loops)
        known = {*self.stacked, *self.computed_by}
        moves = self._with_work_behind(known)
        in_loop = set().union(*(self.read_from_carry[self.carry[j]] for j in group))
        own = [self.carry[j] for j in group]

        def body(roots: list[Atom]) -> tuple[list[Equation], dict[Var, None], dict[Var, None]]:
            """The loop's equations, and what it reads, once and per step."""
            chosen: set[int] = set()
            reads: dict[Var, None] = {}
            waiting, seen = variables(roots), set(own)
            while waiting:
                v = waiting.pop()
                if v in seen:
                    continue
                seen.add(v)
                if v in known or v in self.consts or not (v in in_loop or self._stays(v, moves)):
                    reads[v] = None
                    continue
                chosen.add(id(self.producer[v]))
                waiting += variables(self.producer[v].invars)
            equations = [e for e in self.flat.equations if id(e) in chosen]
            order = [v for e in equations for v in variables(e.invars)] + variables(roots)
            reads = dict.fromkeys(v for v in order if v in reads)
            return (
                equations,
                {v: None for v in reads if v not in self.varying},
                {v: None for v in reads if v in self.varying},
            )

        roots = [self.carry_out[j] for j in group]
        core = {v for e in body(roots)[0] for v in e.outvars} | set(own)
        moves_after = self._with_work_behind(core | known)
        self.done.update(group)
        for y in variables(self.ys):  # an output that costs next to nothing is made in the loop
            if y in in_loop and y not in core and self.needs(y) <= self.done and y not in moves_after:
                roots.append(y)
        equations, invariant, stacked = body(roots)
        for v in [*invariant, *stacked]:
            self._available(v)
        batched = self._batched([v for v in stacked if v not in self.stacked])
        for v in [*own, *(v for e in equations for v in e.outvars)]:
            if v in in_loop:  # what needs no carry is as easily made again as emitted
                self.computed_by.setdefault(v, number)
        self.loops.append({})
        loop = Loop(equations, list(invariant), own, list(stacked), [self.carry_out[j] for j in group], [])
        return Stage(batched, loop, group)

    def _stays(self, v: Var, moves: set[Var]) -> bool:
        """Whether a value that needs no carry is nevertheless made where it is used."""
        return stays_with_reader(self.producer[v]) or (v in self.varying and v not in moves)

    def _batched(self, makes: list[Var]) -> Batched:
        chosen: set[int] = set()
        reads: dict[Var, None] = {}
        waiting, seen = list(makes), set()
        while waiting:
            v = waiting.pop()
            if v in seen:
                continue
            seen.add(v)
            if self._available(v):
                reads[v] = None
                continue
            chosen.add(id(self.producer[v]))
            waiting += variables(self.producer[v].invars)
        self.stacked.update(makes)
        equations = [e for e in self.flat.equations if id(e) in chosen]
        return Batched(equations, list(reads), makes)
