"""A step's equations: traced flat, sliced by what they depend on, and evaluated piece by piece.

Everything the loop engine knows about a step it reads here. Only public JAX: equations are never
bound by hand but evaluated through one-equation jaxprs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

Atom = Any  # a Var or a Literal
Equation = Any  # jax's JaxprEqn
Env = dict[Var, Any]
Override = Callable[[Env], Sequence[Any]]

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
_REMAT = frozenset({"remat", "remat2", "checkpoint"})
# One pass over memory at most: redone in the backward pass rather than kept for it.
_CHEAP = frozenset(
    """add sub mul div neg max min abs sign square integer_pow clamp eq ne lt le gt ge and or xor not is_finite floor
    ceil round add_any select_n broadcast_in_dim reshape transpose squeeze expand_dims slice concatenate pad rev iota
    convert_element_type reduce_precision split copy copy_p optimization_barrier stop_gradient real imag""".split()
)
# Elementwise or shrinking: work in proportion to its inputs. Not worth a trip through memory on its own.
_LIGHT = _CHEAP | frozenset(
    """rem exp exp2 log log1p expm1 tanh logistic sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh
    sqrt rsqrt cbrt pow erf erfc erf_inv lgamma digamma nextafter reduce_sum reduce_max reduce_min reduce_prod
    reduce_and reduce_or argmax argmin shift_left shift_right_logical shift_right_arithmetic random_wrap
    random_unwrap""".split()
)


class Flat(NamedTuple):
    """A traced function without nested jit calls: outputs computed by equations from inputs and consts."""

    consts: list[Any]  # the values that it closed over
    const_vars: list[Var]
    inputs: list[Var]
    equations: list[Equation]
    outputs: list[Atom]


def is_var(atom: Atom) -> bool:
    return not isinstance(atom, Literal)


def variables(atoms: Iterable[Atom]) -> list[Var]:
    """The distinct variables among atoms, in order."""
    return list(dict.fromkeys(a for a in atoms if is_var(a)))


def is_float(v: Atom) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.inexact)


def size_bytes(v: Atom) -> int:
    dtype = v.aval.dtype
    return math.prod(v.aval.shape) * getattr(dtype, "itemsize", 4)


def like(v: Atom) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False))


def is_cheap(equation: Equation) -> bool:
    return equation.primitive.name in _CHEAP


def worth_keeping(primitive: Any, *avals: Any, **params: Any) -> bool:
    """A checkpoint policy for work batched over time: what to keep for the backward pass rather than redo.

    Products, unless the result is much larger than what it is computed from: a readout's logits are
    redone from the hidden units. Elementwise operations and reductions are redone.
    """
    name = primitive.name
    if name == "dot_general":
        (contracted, _), (batched, _) = params["dimension_numbers"]
        depth = math.prod(avals[0].shape[d] for d in contracted)
        shared = math.prod(avals[0].shape[d] for d in batched)
        return avals[1].size <= 2 * depth * depth * shared
    return name not in _LIGHT and name != "gather"


def is_product(equation: Equation) -> bool:
    return equation.primitive.name in ("dot_general", "conv_general_dilated")


def inner_jaxprs(equation: Equation) -> list[Jaxpr]:
    """The bodies of a loop, the branches of a `cond`, what a call calls."""
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, (ClosedJaxpr, Jaxpr)):
                found.append(each.jaxpr if isinstance(each, ClosedJaxpr) else each)
    return found


def hides_its_derivative(equation: Equation) -> bool:
    """Whether JAX can differentiate it only after a `vmap`, and our rules before: `cond`, `custom_vjp`.

    Under `vmap` a `cond` becomes a choice between stop_gradients, and a `custom_vjp` that was
    differentiated has no derivative left to be transposed.
    """
    inside = (e for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)
    name = equation.primitive.name
    return name == "cond" or name.startswith("custom_vjp") or any(map(hides_its_derivative, inside))


def leaves_jax(equation: Equation) -> bool:
    """Whether it does something that must happen at its step: an effect, or a call back into Python."""
    inside = (e for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)
    return bool(equation.effects) or "callback" in equation.primitive.name or any(map(leaves_jax, inside))


def is_remat(equation: Equation) -> bool:
    return equation.primitive.name in _REMAT


def is_light(equation: Equation) -> bool:
    """Whether an equation is elementwise work or less, all the way down."""
    if equation.primitive.name == "custom_jvp_call" or equation.primitive.name in _CALLS:
        inner = equation.params.get("call_jaxpr") or equation.params["jaxpr"]
        return all(is_light(e) for e in inner.jaxpr.eqns)
    return equation.primitive.name in _LIGHT


def stays_with_reader(equation: Equation) -> bool:
    """Whether an equation is better done where its result is read than on its own.

    What comes out is larger than what goes in, for next to no work; or it is a stop_gradient, which
    the loop must see in order to know that no derivative will be asked for.
    """
    if not is_light(equation):
        return False
    inputs, outputs = variables(equation.invars), equation.outvars
    return equation.primitive.name == "stop_gradient" or sum(map(size_bytes, outputs)) > sum(map(size_bytes, inputs))


def trace(fn: Callable[..., Sequence[Any]], *args: Any) -> Flat:
    """Traces fn(*args) -> list, nested jit calls opened; args are arrays or structs, one per input."""
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr = closed.jaxpr
    flat = Flat(list(closed.consts), jaxpr.constvars, jaxpr.invars, jaxpr.eqns, jaxpr.outvars)
    return flat if jaxpr.effects else again(flat)  # what has effects is left as it is


def again(flat: Flat, opened: Sequence[Equation] = (), overrides: Mapping[int, Override] | None = None) -> Flat:
    """Traces it once more, with the chosen `jax.checkpoint` opened or with stand-ins; every variable is its own."""
    chosen = {id(e) for e in opened}

    def enter(equations: Iterable[Equation], env: Env) -> Env:
        for equation in equations:
            inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            if id(equation) in chosen or equation.primitive.name in _CALLS:
                body, held = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
                inside = dict(zip(body.constvars, held, strict=True))
                inside |= dict(zip(body.invars, [read(env, a) for a in equation.invars], strict=True))
                inside = enter(body.eqns, inside)
                outs: Sequence[Any] = [read(inside, a) for a in body.outvars]
            else:
                stand_in = overrides.get(id(equation)) if overrides else None
                outs = stand_in(env) if stand_in else apply(equation, env)
            env.update(zip(equation.outvars, outs, strict=True))
        return env

    def fn(consts: list[Any], args: list[Any]) -> list[Any]:
        env = dict(zip(flat.const_vars, consts, strict=True)) | dict(zip(flat.inputs, args, strict=True))
        env = enter(flat.equations, env)
        return [read(env, a) for a in flat.outputs]

    closed = jax.make_jaxpr(fn)([like(v) for v in flat.const_vars], [like(v) for v in flat.inputs])
    jaxpr, n = closed.jaxpr, len(flat.consts)
    const_vars = [*jaxpr.invars[:n], *jaxpr.constvars]
    return Flat([*flat.consts, *closed.consts], const_vars, jaxpr.invars[n:], jaxpr.eqns, jaxpr.outvars)


def as_text(flat: Flat) -> str:
    """The whole function with its types, the same for the same function."""
    return str(_jaxpr([*flat.const_vars, *flat.inputs], flat.equations, flat.outputs))


def _jaxpr(inputs: Sequence[Var], equations: Sequence[Equation], outputs: Sequence[Atom]) -> Jaxpr:
    effects = frozenset().union(*(e.effects for e in equations)) if equations else frozenset()
    return Jaxpr((), list(inputs), list(outputs), list(equations), effects, _no_debug_info())


@functools.cache
def _no_debug_info() -> Any:
    return jax.make_jaxpr(lambda: ())().jaxpr.debug_info


def read(env: Mapping[Var, Any], atom: Atom) -> Any:
    return env[atom] if is_var(atom) else atom.val


def apply(equation: Equation, env: Mapping[Var, Any]) -> Sequence[Any]:
    inputs = variables(equation.invars)
    return jaxpr_as_fun(ClosedJaxpr(_jaxpr(inputs, [equation], equation.outvars), ()))(*[env[v] for v in inputs])


def run(equations: Iterable[Equation], env: Env, overrides: Mapping[int, Override] | None = None) -> Env:
    """Evaluates equations in order, some of them by a stand-in; returns env with their results added."""
    env = dict(env)
    for equation in equations:
        stand_in = overrides.get(id(equation)) if overrides else None
        outs = stand_in(env) if stand_in else apply(equation, env)
        env.update(zip(equation.outvars, outs, strict=True))
    return env


def run_at_once(equations: Iterable[Equation], env: Env, stacked: set[Var], steps: int) -> Env:
    """Evaluates equations for all steps: `stacked` names the variables whose values have a time axis in front.

    A product of stacked rows with one matrix is done as one matrix product, all steps' rows in one:
    with time and batch as separate axes XLA would transpose a copy of the operand for the gradient.
    Returns env with the results added, and adds their names to `stacked`.
    """
    env = dict(env)
    for equation in equations:
        inputs = variables(equation.invars)
        over_time = [v in stacked for v in inputs]
        if not any(over_time):
            outs = apply(equation, env)
        else:
            if is_plain_product(equation) and equation.invars[0] in stacked and equation.invars[1] not in stacked:
                outs = [_rows_at_once(equation, env)]
            else:
                values, axes = [env[v] for v in inputs], [0 if over else None for over in over_time]
                one = lambda *args, e=equation, vs=inputs: apply(e, dict(zip(vs, args, strict=True)))
                outs = jax.vmap(one, axes, axis_size=steps)(*values)
            stacked.update(equation.outvars)
        env.update(zip(equation.outvars, outs, strict=True))
    return env


def is_plain_product(equation: Equation) -> bool:
    """x W: the last axis of x with the first of a matrix W."""
    if equation.primitive.name != "dot_general" or not all(map(is_var, equation.invars)):
        return False
    x, w = (v.aval for v in equation.invars)
    return w.ndim == 2 and equation.params["dimension_numbers"] == (((x.ndim - 1,), (0,)), ((), ()))


def _rows_at_once(equation: Equation, env: Env) -> jax.Array:
    x, w = (env[v] for v in equation.invars)
    return product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), w, equation, 0).reshape(*x.shape[:-1], w.shape[-1])


def product(x: jax.Array, w: jax.Array, equation: Equation, axis: int) -> jax.Array:
    """The last axis of x with one axis of w, as precisely as the equation says."""
    how = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    return lax.dot_general(x, w, (((x.ndim - 1,), (axis,)), ((), ())), **how)


def split_products(flat: Flat, carries: int) -> Flat:
    """[x, h] W becomes x U + h V where x needs no carry and h does, so that x U can leave the loop.

    Cells that multiply input and state side by side with one matrix (Haiku's, say) then gain as
    others do.
    """
    made_by = producers(flat.equations)
    through_carry = reached(flat.equations, flat.inputs[:carries])
    overrides: dict[int, Override] = {}
    for equation in flat.equations:
        joined = made_by.get(equation.invars[0]) if is_plain_product(equation) else None
        if (
            joined is None
            or joined.primitive.name != "concatenate"
            or joined.params["dimension"] != len(joined.outvars[0].aval.shape) - 1
        ):
            continue
        if len({is_var(a) and a in through_carry for a in joined.invars}) == 1:
            continue

        def apart(env: Env, equation: Equation = equation, joined: Equation = joined) -> list[Any]:
            w, start, total = env[equation.invars[1]], 0, None
            for atom in joined.invars:
                rows = atom.aval.shape[-1]
                part = product(read(env, atom), lax.slice_in_dim(w, start, start + rows), equation, 0)
                total, start = part if total is None else total + part, start + rows
            return [total]

        overrides[id(equation)] = apart
    return again(flat, overrides=overrides) if overrides else flat


def producers(equations: Iterable[Equation]) -> dict[Var, Equation]:
    return {v: e for e in equations for v in e.outvars}


def slice_back(equations: Sequence[Equation], wanted: Iterable[Atom], given: Iterable[Var]) -> list[Equation]:
    """The equations that compute the wanted variables from the given ones, in order."""
    given = set(given)
    needed = {v for v in variables(wanted) if v not in given}
    chosen = []
    for equation in reversed(equations):
        if needed.intersection(equation.outvars):
            chosen.append(equation)
            needed.update(v for v in variables(equation.invars) if v not in given)
    return chosen[::-1]


def reached(equations: Iterable[Equation], sources: Iterable[Var]) -> set[Var]:
    """All variables that depend on the sources, the sources among them."""
    found = set(sources)
    for equation in equations:
        if not found.isdisjoint(variables(equation.invars)):
            found.update(equation.outvars)
    return found
