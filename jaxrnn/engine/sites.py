"""Where weights enter a step: taps, values z of which each is a sum of terms a V with a weight V.

    z = x U + h W + b            one tap, [*B, G]; its terms have the operands x, h and 1

The derivative of anything by a weight is its derivative by z, times the operand: so what is kept of the past for all
the weights of a tap has one pattern, and one coefficient per unit of z. A weight may be computed from weights alone
(a normed matrix, say). Terms are products with a matrix, rows looked up in a table (an embedding: a product with
zeros and a one), and weights repeated for every example (biases, peepholes). What enters in any other way (the kernel
of a convolution) is a tap of its own, shared by all examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn.engine.dependence import is_stretched_to
from jaxrnn.engine.evaluate import Override, again, is_plain_product, product
from jaxrnn.engine.ir import Atom, Env, Flat, is_float, is_var, read, slice_back, variables
from jaxrnn.engine.rewrites import split_products
from jaxrnn.engine.rules import Equation, is_light, is_remat, rule


class Term(NamedTuple):
    """One summand of a tap: operand times weight."""

    weight: Atom  # a parameter, or computed from parameters alone
    equation: Equation  # what makes the summand

    @property
    def operand(self) -> Any:
        """What the weight meets, [*B, I]; of a table the index, [*B, 1]; None for a weight that is merely repeated."""
        name = self.equation.primitive.name
        return None if name == "broadcast_in_dim" else self.equation.invars[1 if name == "gather" else 0]

    @property
    def depth(self) -> int:
        """I: how many rows the weight has."""
        return 1 if self.operand is None else int(self.weight.aval.shape[0])

    def factors(self, env: Env, batch: tuple[int, ...], dtype: Any) -> jax.Array:
        """a, [*B, I]."""
        if self.operand is None:
            return jnp.ones((*batch, 1), dtype)
        if self.equation.primitive.name != "gather":
            return env[self.operand].astype(dtype)
        index = env[self.operand][..., 0]
        if self.equation.params["mode"] == lax.GatherScatterMode.CLIP:
            index = jnp.clip(index, 0, self.depth - 1)
        return jax.nn.one_hot(index, self.depth, dtype=dtype)

    def gradient(self, by_factor: jax.Array, batch_dims: int) -> jax.Array:
        """The weight's gradient, from that of (z, a): by_factor [G, I]."""
        if self.operand is not None:
            return by_factor.T
        out, weight = self.equation.outvars[0].aval.shape[batch_dims:], self.weight.aval.shape
        # Each feature of z is a feature of the weight: what was repeated among features is added up.
        place = {dim - batch_dims: n for n, dim in enumerate(self.equation.params["broadcast_dimensions"])}
        repeated = [n for n in range(len(out)) if n not in place or weight[place[n]] != out[n]]
        return jnp.sum(by_factor.reshape(out), tuple(repeated)).reshape(weight)


class Tap(NamedTuple):
    """A value through which weights enter."""

    at: Atom  # [*B, ...]; where the weight itself is the tap, the weight
    terms: tuple[Term, ...]  # none where the weight itself is the tap
    size: int  # G: units of z
    depth: int  # I: of all terms, one after the other

    @property
    def is_shared(self) -> bool:
        """Whether it is the weight itself, of which all examples have the same one."""
        return not self.terms


class Entered(NamedTuple):
    """A step, (state leaves, params leaves, x leaves) -> (state leaves, y leaves), sorted by its weights."""

    flat: Flat
    once: list[Equation]  # of weights alone
    core: list[Equation]  # the rest
    taps: list[Tap]  # those that reach the state, in the order of the equations


def entered(flat: Flat, states: int, params: int, batch: tuple[int, ...]) -> Entered:
    """Finds the taps of a step that was traced with `states` leaves of the state, then `params` of the parameters."""
    while any(map(is_remat, flat.equations)):
        flat = again(flat, opened=[e for e in flat.equations if is_remat(e)])
    flat = split_products(flat, states)
    known = _Weights.of(flat, states, params)
    overrides = {id(e): way for e in flat.equations if (way := _as_rows(e, known, batch)) is not None}
    if overrides:
        flat = again(flat, overrides=overrides)
    known = _Weights.of(flat, states, params).without_repeated(flat, batch)
    core = [e for e in flat.equations if id(e) not in known.made]
    return Entered(
        flat, [e for e in flat.equations if id(e) in known.made], core, _taps(flat, core, states, known, batch)
    )


class _Weights(NamedTuple):
    """What needs nothing but parameters: the variables, those with a derivative among them, and their equations."""

    invariant: set[Var]
    learned: set[Var]
    made: dict[int, Equation]

    @classmethod
    def of(cls, flat: Flat, states: int, params: int) -> _Weights:
        given = flat.inputs[states : states + params]
        invariant, learned = {*given, *flat.const_vars}, set(filter(is_float, given))
        made: dict[int, Equation] = {}
        for e in flat.equations:
            if e.effects or not all(not is_var(a) or a in invariant for a in e.invars) or not variables(e.invars):
                continue
            made[id(e)] = e
            invariant.update(e.outvars)
            if rule(e).has_derivative and not learned.isdisjoint(variables(e.invars)):
                learned.update(filter(is_float, e.outvars))
        return cls(invariant, learned, made)

    def without_repeated(self, flat: Flat, batch: tuple[int, ...]) -> _Weights:
        """Without those that are repeated for each example, and what is made of these element by element."""
        repeated, made, lead = set(), dict(self.made), len(batch)
        for e in self.made.values():
            out: Atom = e.outvars[0]
            if lead and out in self.learned and out.aval.shape[:lead] == batch:
                again_so = [a for a in variables(e.invars) if a in repeated]
                if again_so and all(_shape(a) in (_shape(out), ()) for a in variables(e.invars)):
                    repeated.add(out)
                elif _repeats(e, batch):
                    repeated.add(out)
        for e in flat.equations:  # what a matrix is made of stays with the matrix, though it be as large as the batch
            reads_one = not repeated.isdisjoint(variables(e.invars)) and repeated.isdisjoint(e.outvars)
            if reads_one and (id(e) in self.made or not is_light(e)):
                repeated -= _above(self.made.values(), e)
        for e in self.made.values():
            if not repeated.isdisjoint(e.outvars):
                del made[id(e)]
        return _Weights(self.invariant - repeated, self.learned - repeated, made)


def _above(equations: Iterable[Equation], reader: Equation) -> set[Var]:
    return {v for e in slice_back(list(equations), reader.invars, []) for v in e.outvars}


def _repeats(equation: Equation, batch: tuple[int, ...]) -> bool:
    """Whether it repeats a weight for each example."""
    if equation.primitive.name != "broadcast_in_dim" or not is_var(equation.invars[0]):
        return False
    weight, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    places = equation.params["broadcast_dimensions"]
    return out[: len(batch)] == batch and all(d >= len(batch) or weight[n] == 1 for n, d in enumerate(places))


# --- products brought into one form -------------------------------------------------------------------------------


def _as_rows(equation: Equation, known: _Weights, batch: tuple[int, ...]) -> Override | None:
    """`W h`, `h W^T` and complex products as real products of rows with a matrix; complex weights in two parts."""
    if equation.primitive.name in _ELEMENTWISE:
        return _spread(equation, known, batch)
    if equation.primitive.name == "broadcast_in_dim":
        v = equation.invars[0]
        is_pair = is_var(v) and v in known.learned and jnp.issubdtype(v.aval.dtype, jnp.complexfloating)
        return _in_parts(equation) if is_pair and _repeats(equation, batch) else None
    if equation.primitive.name != "dot_general" or not all(map(is_var, equation.invars)):
        return None
    ((left, right), batched) = equation.params["dimension_numbers"]
    sides = [n for n in (1, 0) if equation.invars[n] in known.learned and equation.invars[1 - n] not in known.invariant]
    if batched != ((), ()) or len(left) != 1 or not sides:
        return None
    (side,), axes = sides[:1], (left[0], right[0])
    w, a = equation.invars[side].aval, equation.invars[1 - side].aval
    if w.ndim != 2 or a.shape[:-1] != batch or axes[1 - side] != a.ndim - 1:
        return None
    is_complex = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating)
    return None if is_plain_product(equation) and not is_complex else _rows(equation, side, axes[side], is_complex)


# What weights are added to or multiplied with in a step, as functions that can be called with other shapes.
_ELEMENTWISE: dict[str, Callable[..., jax.Array]] = {
    "add_any": lax.add,
    **{name: getattr(lax, name) for name in ("add", "sub", "mul", "div", "max", "min", "pow")},
}


def _spread(equation: Equation, known: _Weights, batch: tuple[int, ...]) -> Override | None:
    """Weights that an elementwise operation repeats for each example, scalars or rows of one, repeated beforehand."""
    out = equation.outvars[0].aval.shape
    if not batch or out[: len(batch)] != batch or not all(is_stretched_to(_shape(a), out) for a in equation.invars):
        return None
    ones = (1,) * len(batch)
    repeated = [
        a
        for a in variables(equation.invars)
        if a in known.learned and _shape(a) != out and _shape(a)[: len(batch)] in ((), ones)
    ]
    if not repeated or all(a in known.invariant for a in variables(equation.invars)):
        return None

    def spread(env: Env) -> Any:
        dims = lambda a: tuple(range(len(out) - len(_shape(a)), len(out)))
        wide = {a: lax.broadcast_in_dim(env[a], out, dims(a)) for a in repeated}
        return [_ELEMENTWISE[equation.primitive.name](*(read(env | wide, a) for a in equation.invars))]

    return spread


def _rows(equation: Equation, side: int, axis: int, is_complex: bool) -> Override:
    multiply = _product_of_parts if is_complex else _product

    def rows(env: Env) -> list[Any]:
        w, a = env[equation.invars[side]], env[equation.invars[1 - side]]
        z = multiply(a, w if axis == 0 else w.T, equation)
        return [z if side == 1 else jnp.moveaxis(z, -1, 0)]

    return rows


def _product(a: jax.Array, w: jax.Array, equation: Equation) -> jax.Array:
    return product(a, w, equation, 0)


def _product_of_parts(a: jax.Array, w: jax.Array, equation: Equation) -> jax.Array:
    """(a + i b)(U + i V) = (a U - b V) + i (a V + b U)"""
    how = {name: equation.params.get(name) for name in ("precision", "out_sharding")}
    by = lambda p, q: lax.dot_general(p, q, (((p.ndim - 1,), (0,)), ((), ())), **how)
    if not jnp.iscomplexobj(w):
        return lax.complex(by(a.real, w), by(a.imag, w))
    if not jnp.iscomplexobj(a):
        return lax.complex(by(a, w.real), by(a, w.imag))
    return lax.complex(by(a.real, w.real) + by(a.imag, -w.imag), by(a.real, w.imag) + by(a.imag, w.real))


def _in_parts(equation: Equation) -> Override:
    """A complex weight, repeated as two real ones."""
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]
    wide: Callable[[jax.Array], jax.Array] = lambda a: lax.broadcast_in_dim(a, shape, dims)
    return lambda env: [lax.complex(wide(env[equation.invars[0]].real), wide(env[equation.invars[0]].imag))]


# --- taps ---------------------------------------------------------------------------------------------------------


def _taps(flat: Flat, core: Sequence[Equation], states: int, known: _Weights, batch: tuple[int, ...]) -> list[Tap]:
    to_state = {v for e in slice_back(core, flat.outputs[:states], []) for v in e.outvars}
    entries: dict[Var, list[Term]] = {}
    shared: dict[Var, None] = {}
    uses = Counter(a for e in core for a in e.invars if is_var(a))
    uses.update(2 * [a for a in flat.outputs if is_var(a)])
    for e in core:
        if to_state.isdisjoint(e.outvars) or not rule(e).has_derivative:
            continue
        term = _term(e, known, batch)
        if term is not None:
            entries[e.outvars[0]] = [term]
            continue
        shared.update(dict.fromkeys(a for a in variables(e.invars) if a in known.learned))
        if rule(e).is_sum:
            _grow(e, entries, uses)
    shared.update(dict.fromkeys(a for a in flat.outputs[:states] if is_var(a) and a in known.learned))
    taps = [_tap(v, terms, len(batch)) for v, terms in entries.items()]
    order = {v: n for n, e in enumerate(core) for v in e.outvars}
    taps.sort(key=lambda tap: order[tap.at])
    return [*taps, *(Tap(v, (), _parts(v) * math.prod(_shape(v)), 1) for v in shared)]


def _parts(v: Atom) -> int:
    return 2 if jnp.issubdtype(v.aval.dtype, jnp.complexfloating) else 1


def _tap(v: Atom, terms: Iterable[Term], batch_dims: int) -> Tap:
    return Tap(v, tuple(terms), math.prod(v.aval.shape[batch_dims:]), sum(term.depth for term in terms))


def _term(equation: Equation, known: _Weights, batch: tuple[int, ...]) -> Term | None:
    out = equation.outvars[0].aval
    if out.shape[: len(batch)] != batch or jnp.issubdtype(out.dtype, jnp.complexfloating):
        return None
    name, operands = equation.primitive.name, equation.invars
    learned = [is_var(a) and a in known.learned for a in operands]
    if name == "broadcast_in_dim" and batch and learned[0] and _repeats(equation, batch):
        return Term(operands[0], equation)
    is_site = is_plain_product(equation) and learned[1] and out.shape[:-1] == batch
    if is_site and operands[0] not in known.invariant:
        return Term(operands[1], equation)
    if name == "gather" and learned[0] and _looks_up_rows(equation, batch):
        return Term(operands[0], equation)
    return None


def _looks_up_rows(equation: Equation, batch: tuple[int, ...]) -> bool:
    """Whether it is table[index] with one index per example."""
    table, index = (a.aval for a in equation.invars)
    numbers = equation.params["dimension_numbers"]
    one_row = numbers.collapsed_slice_dims == (0,) and numbers.start_index_map == (0,)
    whole = table.ndim == 2 and tuple(equation.params["slice_sizes"]) == (1, table.shape[1])
    return one_row and whole and index.shape == (*batch, 1) and numbers.offset_dims == (len(batch),)


def _shape(v: Atom) -> tuple[int, ...]:
    return tuple(v.aval.shape)


def _grow(equation: Equation, entries: dict[Var, list[Term]], uses: Counter[Var]) -> None:
    """A sum takes over the terms of summands that nothing else reads."""
    out = equation.outvars[0]
    alone = [a for a in entries if uses[a] == 1 and a in equation.invars]
    taken = [a for a in alone if _shape(a) == _shape(out)]
    if taken:
        entries[out] = [term for a in taken for term in entries.pop(a)]
