"""Which coordinates of a result depend on which coordinates of what goes in: booleans, propagated through equations.

A mask of a value is [C, *shape]: whether each of its elements can change when the c-th of C chosen coordinates of the
inputs does, to first order. Exact for elementwise operations and for those that move data or add it up; an operation
that is not known mixes all features of an example, which claims too much and never too little. So an answer holds for
all values, and nothing is ever found by trying numbers.

Examples are what the leading dimensions `*B` count. An unknown operation is taken to keep them apart, as a cell must.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Var

from jaxrnn import trees
from jaxrnn.engine.evaluate import apply, trace
from jaxrnn.engine.ir import Atom, is_float, is_var, variables
from jaxrnn.engine.rules import Equation, Kind, inner_jaxprs, rule

Mask = Any  # a numpy array of booleans, [C, *shape]
Masks = dict[Var, Mask]  # of the variables that depend on anything; the others are not in it


class Seen(NamedTuple):
    """How masks are propagated."""

    batch: tuple[int, ...]  # *B


def reached_from(equations: Iterable[Equation], seeds: Masks, seen: Seen) -> Masks:
    """Masks of all variables that depend on the seeds. Cost: C times the step's elements, in bytes."""
    found = dict(seeds)
    for equation in equations:
        operands = [found.get(a) if is_var(a) else None for a in equation.invars]
        if all(m is None for m in operands) or not rule(equation).has_derivative:
            continue
        results = _results(equation, operands, seen)
        for v, mask in zip(equation.outvars, results, strict=True):
            if mask is not None and is_float(v) and mask.any():
                found[v] = mask | seeds[v] if v in seeds else mask
    return found


def _results(equation: Equation, operands: list[Mask | None], seen: Seen) -> Sequence[Mask | None]:
    name = equation.primitive.name
    if name.startswith("custom_jvp"):
        return _of_rule(equation, operands, seen)
    if rule(equation).kind in (Kind.CALL, Kind.REMAT):
        return _called(equation, operands, seen)
    if name == "cond":
        return _of_branches(equation, operands, seen)
    if name == "scan":
        return _of_scan(equation, operands, seen)
    if name == "dot_general":
        return [_of_product(equation, operands)]
    if name == "sort":
        return _of_sort(equation, operands)
    if name == "optimization_barrier":
        return operands
    if name == "select_n":
        operands = [None, *operands[1:]]
    move = _MOVES.get(name)
    if move is not None:
        return _moved(equation, operands, move)
    if _is_elementwise(equation):
        return [_union(equation.outvars[0], operands)]
    return _dense(equation, operands, seen)


def _shape(atom: Atom) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _columns(operands: Iterable[Mask | None]) -> int:
    return next(len(m) for m in operands if m is not None)


def is_stretched_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether elementwise operations take one for the other: scalars, and sizes of 1, are repeated."""
    return shape == () or (len(shape) == len(wanted) and all(a in (1, b) for a, b in zip(shape, wanted, strict=True)))


def _is_elementwise(equation: Equation) -> bool:
    """Whether each element of the result needs the elements in its own place alone."""
    known, out = rule(equation), _shape(equation.outvars[0])
    fits = all(is_stretched_to(_shape(a), out) for a in equation.invars)
    in_place = known.linear is not None and known.linear.in_place
    named = equation.primitive.name in ("select_n", "real", "imag", "complex", "clamp")
    return fits and len(equation.outvars) == 1 and (in_place or named or known.kind in (Kind.ARITHMETIC, Kind.COSTLY))


def _union(out: Var, operands: Iterable[Mask | None]) -> Mask | None:
    shape = _shape(out)
    wide = [m.reshape(len(m), *(1,) * (len(shape) - m.ndim + 1), *m.shape[1:]) for m in operands if m is not None]
    return np.broadcast_to(functools.reduce(operator.or_, wide), (len(wide[0]), *shape)) if wide else None


# --- operations that move data, or add it up ---------------------------------------------------------------------

# (mask of one operand [C, *its shape], the equation's parameters, the shapes of the results) -> masks of the results
Move = Callable[[Mask, Mapping[str, Any], list[tuple[int, ...]]], list[Mask]]


def _broadcast(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    wide = [1] * len(shapes[0])
    for n, dim in enumerate(params["broadcast_dimensions"]):
        wide[dim] = mask.shape[n + 1]
    return [np.broadcast_to(mask.reshape(len(mask), *wide), (len(mask), *shapes[0]))]


def _sliced(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    steps = params["strides"] or (1,) * len(shapes[0])
    cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [mask[(slice(None), *(slice(*cut) for cut in cuts))]]


def _split(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return np.split(mask, np.cumsum(params["sizes"])[:-1], axis=params["axis"] + 1)


def _reshaped(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return [mask.reshape(len(mask), *shapes[0])]


def _transposed(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return [mask.transpose(0, *(n + 1 for n in params["permutation"]))]


def _reversed(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return [np.flip(mask, tuple(n + 1 for n in params["dimensions"]))]


def _any_of(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return [mask.any(tuple(n + 1 for n in params["axes"]))]


def _along(mask: Mask, params: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> list[Mask]:
    return [np.broadcast_to(mask.any(params["axis"] + 1, keepdims=True), mask.shape)]


_MOVES: dict[str, Move | str] = {
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "split": _split,
    "transpose": _transposed,
    "rev": _reversed,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshaped),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _any_of),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along),
    "concatenate": "side by side",
}


def _moved(equation: Equation, operands: list[Mask | None], move: Move | str) -> list[Mask | None]:
    if not callable(move):
        count = _columns(operands)
        each = [
            np.zeros((count, *_shape(a)), bool) if m is None else m
            for a, m in zip(equation.invars, operands, strict=True)
        ]
        return [np.concatenate(each, equation.params["dimension"] + 1)]
    if operands[0] is None:
        return [None] * len(equation.outvars)
    return list(move(operands[0], equation.params, [_shape(v) for v in equation.outvars]))


def _of_product(equation: Equation, operands: list[Mask | None]) -> Mask | None:
    """[*batched, *free of the left, *free of the right]: each needs what was contracted into it."""
    (contracted, batched), out = equation.params["dimension_numbers"], _shape(equation.outvars[0])
    lead, total = len(batched[0]), None
    for side, mask in enumerate(operands):
        if mask is None:
            continue
        rank = mask.ndim - 1
        free = [n for n in range(rank) if n not in contracted[side] and n not in batched[side]]
        kept = mask.any(tuple(n + 1 for n in contracted[side]), keepdims=True)
        kept = kept.transpose(0, *(n + 1 for n in (*batched[side], *free, *contracted[side])))
        kept = kept.reshape(kept.shape[: 1 + lead + len(free)])
        others = (1,) * (len(out) - lead - len(free))
        shape = (*kept.shape, *others) if side == 0 else (*kept.shape[: 1 + lead], *others, *kept.shape[1 + lead :])
        wide = np.broadcast_to(kept.reshape(shape), (len(kept), *out))
        total = wide if total is None else total | wide
    return total


# --- what calls something, and what is not known ------------------------------------------------------------------


def _of_rule(equation: Equation, operands: list[Mask | None], seen: Seen) -> Sequence[Mask | None]:
    """Of a function with a derivative of its own: what its rule makes of tangents, whatever its values do."""
    inputs = variables(equation.invars)
    floats = [is_float(v) for v in inputs]
    moved = [is_float(v) for v in equation.outvars]

    def tangents(*args: Any) -> list[Any]:
        primals, directions = args[: len(inputs)], list(args[len(inputs) :])
        value = lambda *given: apply(equation, dict(zip(inputs, trees.put(floats, given, primals), strict=True)))
        return trees.only(moved, jax.jvp(lambda *g: list(value(*g)), trees.only(floats, primals), directions)[1])

    kinds = [v.aval for v in inputs]
    flat = trace(tangents, *kinds, *trees.only(floats, kinds))
    given = {a: m for a, m in zip(equation.invars, operands, strict=True) if is_var(a)}
    seeds = {v: given[a] for v, a in zip(flat.inputs[len(inputs) :], trees.only(floats, inputs), strict=True)}
    found: dict[Any, Mask] = reached_from(flat.equations, {v: m for v, m in seeds.items() if m is not None}, seen)
    results = iter(found.get(a) if is_var(a) else None for a in flat.outputs)
    return [next(results) if has else None for has in moved]


def _of_scan(equation: Equation, operands: list[Mask | None], seen: Seen) -> Sequence[Mask | None]:
    """A loop within a step: its carry until nothing is added; what is stacked, of any of its rounds."""
    (body,) = inner_jaxprs(equation)
    # Constants, carry and rows told apart by rank: of a row the body sees an axis less. JAX 0.12 has other parameters.
    rank = lambda a: len(a.aval.shape)
    last = sum(rank(a) == rank(v) for a, v in zip(equation.invars, body.invars, strict=True))
    carries = sum(rank(v) == rank(a) for v, a in zip(equation.outvars, body.outvars, strict=True))
    consts = last - carries
    within = [m if n < last or m is None else m.any(1) for n, m in enumerate(operands)]
    while True:
        seeds = {v: m for v, m in zip(body.invars, within, strict=True) if m is not None}
        found: dict[Any, Mask] = reached_from(body.eqns, seeds, seen)
        out = [found.get(a) if is_var(a) else None for a in body.outvars]
        grown = [_either(a, b) for a, b in zip(within[consts:last], out[:carries], strict=True)]
        if all(_same(a, b) for a, b in zip(grown, within[consts:last], strict=True)):
            break
        within[consts:last] = grown
    stacked = [
        None if m is None else np.broadcast_to(m[:, None], (len(m), *_shape(v)))
        for m, v in zip(out[carries:], equation.outvars[carries:], strict=True)
    ]
    return [*grown, *stacked]


def _of_sort(equation: Equation, operands: list[Mask | None]) -> Sequence[Mask | None]:
    axis = equation.params["dimension"] + 1
    # Which place a value goes to has no derivative; it may go to any.
    spread = lambda m: None if m is None else np.broadcast_to(m.any(axis, keepdims=True), m.shape)
    return [spread(m) for m in operands]


def _same(a: Mask | None, b: Mask | None) -> bool:
    return a is b or (a is not None and b is not None and bool((a == b).all()))


def _either(a: Mask | None, b: Mask | None) -> Mask | None:
    return b if a is None else a if b is None else a | b


def _called(equation: Equation, operands: list[Mask | None], seen: Seen) -> Sequence[Mask | None]:
    inside = inner_jaxprs(equation)[0]
    if len(inside.invars) != len(operands):
        return _dense(equation, operands, seen)
    seeds = {v: m for v, m in zip(inside.invars, operands, strict=True) if m is not None}
    found: dict[Any, Mask] = reached_from(inside.eqns, seeds, seen)
    return [found.get(a) if is_var(a) else None for a in inside.outvars]


def _of_branches(equation: Equation, operands: list[Mask | None], seen: Seen) -> Sequence[Mask | None]:
    """What any branch may do; which one is taken has no derivative."""
    results: list[Mask | None] = [None] * len(equation.outvars)
    for branch in inner_jaxprs(equation):
        seeds = {v: m for v, m in zip(branch.invars, operands[1:], strict=True) if m is not None}
        found: dict[Any, Mask] = reached_from(branch.eqns, seeds, seen)
        each = [found.get(a) if is_var(a) else None for a in branch.outvars]
        results = [_either(a, b) for a, b in zip(results, each, strict=True)]
    return results


def _dense(equation: Equation, operands: Iterable[Mask | None], seen: Seen) -> list[Mask | None]:
    """All features of an example need all features of that example."""
    lead = len(seen.batch)
    by_example = []
    for m in operands:
        if m is None:
            continue
        apart = m.shape[1 : 1 + lead] == seen.batch
        axes = tuple(range(1 + lead if apart else 1, m.ndim))
        any_of = m.any(axes)
        by_example.append(any_of if apart else np.broadcast_to(any_of.reshape(-1, *(1,) * lead), (len(m), *seen.batch)))
    whole = functools.reduce(operator.or_, by_example)
    results: list[Mask | None] = []
    for v in equation.outvars:
        shape, apart = _shape(v), _shape(v)[:lead] == seen.batch
        kept = whole if apart else whole.any(tuple(range(1, 1 + lead)))
        kept = kept.reshape(*kept.shape, *(1,) * (len(shape) + 1 - kept.ndim))
        results.append(np.broadcast_to(kept, (len(whole), *shape)))
    return results
