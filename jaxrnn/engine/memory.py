"""What one step costs in memory, measured from its trace: bytes of a carry, bytes kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from jaxrnn.engine.ir import as_jaxpr, slice_back, variables
from jaxrnn.trees import all_steps, leaf_bytes, nbytes
from jaxrnn.types import Scan, Tree


class StepBytes(NamedTuple):
    carry: int  # c: bytes of one carry
    kept: int  # r: bytes that the scan keeps per step for the backward pass
    x: int  # bytes of one step's input


def step_bytes(f: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, x: Tree, scan: Scan = lax.scan) -> StepBytes:
    """(c, r, x) of a step `carry, y = f(carry, x)` that is differentiated by everything that it reads.

    r counts the distinct arrays that the step's vector-Jacobian product needs and that differ from
    step to step. What depends only on closed-over values (weights) is kept once, not per step, and
    an input x is in xs already; neither counts. Traces f once and computes nothing. Under another scan r
    is what `kept_under` finds.
    """
    if scan is not lax.scan:
        return StepBytes(nbytes(carry), kept_under(scan, f, carry, x), nbytes(x))
    backward, n, _ = _backward(f, carry, x)
    carry_leaves = jax.tree.leaves(carry)
    varies = set(backward.invars[n:])
    inputs = set(backward.invars[n + len(carry_leaves) :])
    for equation in backward.eqns:
        if any(not isinstance(v, Literal) and v in varies for v in equation.invars):
            varies.update(equation.outvars)
    kept = {v for v in backward.outvars if not isinstance(v, Literal) and v in varies and v not in inputs}
    return StepBytes(nbytes(carry), sum(leaf_bytes(v.aval) for v in kept), nbytes(x))


def carry_read_again(f: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, x: Tree) -> int:
    """Bytes of those leaves of the carry from which a segment is computed again: what its end costs.

    They are what the values to keep depend on, in this step or through a later one. A total, or a buffer that is
    only written to, is none of them, and XLA keeps nothing of it at a segment's end.
    """
    backward, consts, step = _backward(f, carry, x)
    leaves = jax.tree.leaves(carry)
    again = [v in _sources(backward, backward.outvars) for v in backward.invars[consts : consts + len(leaves)]]
    while True:
        wanted = [after for after, is_read in zip(step.outvars, again, strict=False) if is_read]
        sources = _sources(step, wanted)
        found = [was or v in sources for was, v in zip(again, step.invars, strict=False)]
        if found == again:
            return sum(leaf_bytes(leaf) for leaf, is_read in zip(leaves, again, strict=True) if is_read)
        again = found


def _sources(jaxpr: Jaxpr, wanted: list[Any]) -> set[Var]:
    """All variables that the wanted ones are or are computed from."""
    return {v for e in slice_back(jaxpr.eqns, wanted, []) for v in variables(e.invars)} | set(variables(wanted))


def kept_under(scan: Scan, f: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, x: Tree) -> int:
    """Bytes that a scan keeps per step for the backward pass, its inputs aside: the slope over two lengths."""

    def residuals(steps: int) -> int:
        xs = all_steps(x, steps)
        backward, _, _ = _backward(lambda carry, xs: scan(f, carry, xs, length=steps), carry, xs)
        kept = {v for v in backward.outvars if not isinstance(v, Literal)} - set(backward.invars)
        return sum(leaf_bytes(v.aval) for v in kept)

    return (residuals(8) - residuals(4)) // 4


def _backward(f: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, x: Tree) -> tuple[Jaxpr, int, Jaxpr]:
    """What f's vector-Jacobian product needs; how many of its first inputs were closed over; f's own trace."""
    closed = jax.make_jaxpr(f)(carry, x)
    consts = [v.aval for v in closed.jaxpr.constvars]
    jaxpr = closed.jaxpr
    # The same with what it closed over as its first arguments, so that those are differentiated too.
    opened = ClosedJaxpr(as_jaxpr([*jaxpr.constvars, *jaxpr.invars], jaxpr.eqns, jaxpr.outvars), ())

    def residuals(*args: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(jaxpr_as_fun(opened), *args)[1])

    return jax.make_jaxpr(residuals)(*consts, *jax.tree.leaves((carry, x))).jaxpr, len(consts), jaxpr
