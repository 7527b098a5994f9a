"""Taps: where tangents from outside a loop enter its derivative, one per sum.

A sum of terms that run through the carry and terms from outside is grown along additions; its outside
terms are one tap, computed for all steps at once. Taps of the parts of something split enter it
before the split instead: for an LSTM one tap for all gates.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn.engine.ir import Atom, is_var
from jaxrnn.engine.rules import Equation, rule


class Blocks(NamedTuple):
    """Sums of outside terms, side by side along an axis; an empty sum is zero."""

    terms: list[list[Var]]
    shapes: list[tuple[int, ...]]
    axis: int


class Sum(NamedTuple):
    """A sum in the derivative: terms that run through the carry, and terms from outside the loop."""

    equation: Equation
    inner: list[Var]
    outer: list[Var]
    outer_blocks: list[Blocks]

    @property
    def from_outside(self) -> list[Var]:
        return [*self.outer, *(v for blocks in self.outer_blocks for terms in blocks.terms for v in terms)]

    def tap(self, value: Callable[[Var], Any], steps: int) -> Any:
        """The outside terms of all steps, added up."""
        rank = len(self.equation.outvars[0].aval.shape)

        def row(v: Var) -> Any:
            """Scalars may be added to arrays; behind a time axis they need the array's rank."""
            term = value(v)
            return term if term.ndim > rank else jnp.expand_dims(term, range(1, rank + 2 - term.ndim))

        terms = [row(v) for v in self.outer]
        for blocks in self.outer_blocks:
            nothing = jnp.zeros((), value(self.from_outside[0]).dtype)
            parts = [
                jnp.broadcast_to(added(map(row, vs)) if vs else nothing, (steps, *shape))
                for vs, shape in zip(blocks.terms, blocks.shapes, strict=True)
            ]
            terms.append(jnp.concatenate(parts, axis=blocks.axis + 1))
        return added(terms)


def added(terms: Iterable[Any]) -> Any:
    return functools.reduce(lax.add, terms)


def grown_sums(
    equations: list[Equation], through_carry: set[Var], tangents: set[Var], outputs: Sequence[Atom]
) -> tuple[list[Equation], list[Sum]]:
    """The equations without the inner additions of longer sums, and the sums that outside terms enter."""
    uses = Counter(a for e in equations for a in e.invars if is_var(a))
    uses.update(2 * [a for a in outputs if is_var(a)])
    terms, swallowed = _terms(equations, tangents, uses)
    sums = []
    for equation in equations:
        out = equation.outvars[0]
        if out in terms and out not in swallowed:
            inner = [v for v in terms[out] if v in through_carry]
            outer = [v for v in terms[out] if v not in through_carry]
            sums.append(Sum(equation, inner, outer, []))
    left = [e for e in equations if e.outvars[0] not in swallowed]
    return left, _above_splits(left, sums, uses)


def _terms(equations: list[Equation], tangents: set[Var], uses: Counter[Var]) -> tuple[dict[Var, list[Var]], set[Var]]:
    """What each sum of tangents adds up, and the sums that are only terms of another one."""
    terms: dict[Var, list[Var]] = {}
    swallowed: set[Var] = set()
    for equation in equations:
        if not rule(equation).is_sum or not all(is_var(a) and a in tangents for a in equation.invars):
            continue
        found: list[Var] = []
        for v in equation.invars:
            if v in terms and uses[v] == 1:
                found += terms[v]
                swallowed.add(v)
            else:
                found.append(v)
        terms[equation.outvars[0]] = found
    return terms, swallowed


def _above_splits(equations: list[Equation], sums: list[Sum], uses: Counter[Var]) -> list[Sum]:
    """Taps that enter the parts of something split enter it before the split instead: one tap for all gates.

    (a_1 + x_1, ..., a_n + x_n)  of  split(a)   =   split(a + concatenate(x_1, ..., x_n))
    """
    sum_of = {each.equation.outvars[0]: n for n, each in enumerate(sums)}
    entered_by = {v: n for n, each in enumerate(sums) for v in each.inner if uses[v] == 1 and each.outer}
    for equation in equations:
        source, parts = equation.invars[0], equation.outvars
        if equation.primitive.name != "split" or source not in sum_of or uses[source] != 1:
            continue
        # A sum of several parts has its tap moved through one of them only.
        found: list[int | None] = []
        for v in parts:
            n = entered_by.get(v)
            found.append(n if n is not None and sums[n].outer and n not in found else None)
        if sum(n is not None for n in found) < 2:
            continue
        terms = [[] if n is None else sums[n].outer for n in found]
        blocks = Blocks(terms, [v.aval.shape for v in parts], equation.params["axis"])
        above = sum_of[source]
        sums[above] = sums[above]._replace(outer_blocks=[*sums[above].outer_blocks, blocks])
        for n in found:
            if n is not None:
                sums[n] = sums[n]._replace(outer=[])
    return sums
