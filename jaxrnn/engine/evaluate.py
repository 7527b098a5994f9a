"""Equations evaluated: traced into a list of them, run one by one, and run for all steps at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from jaxrnn.engine.ir import Env, Flat, as_jaxpr, is_var, read, variables
from jaxrnn.engine.rules import Equation, Kind, inner_jaxprs, rule

Override = Callable[[Env], Sequence[Any]]  # an equation's results, computed in another way


def trace(fn: Callable[..., Sequence[Any]], *args: Any) -> Flat:
    """Traces fn(*args) -> list, nested jit calls opened; args are arrays or types, one per input."""
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr = closed.jaxpr
    flat = Flat(list(closed.consts), jaxpr.constvars, jaxpr.invars, jaxpr.eqns, jaxpr.outvars)
    return flat if jaxpr.effects else again(flat)  # what has effects is left as it is


def again(
    flat: Flat,
    opened: Sequence[Equation] = (),
    overrides: Mapping[int, Override] | None = None,
    type_of: Callable[[Var], Any] = lambda v: v.aval,
) -> Flat:
    """Traces it once more, with the chosen `jax.checkpoint` opened or with stand-ins; every variable is its own."""
    chosen = {id(e) for e in opened}

    def enter(equations: Iterable[Equation], env: Env) -> Env:
        for equation in equations:
            if id(equation) in chosen or rule(equation).kind is Kind.CALL:
                outs = called(equation, env)
            else:
                stand_in = overrides.get(id(equation)) if overrides else None
                outs = stand_in(env) if stand_in else apply(equation, env)
            env.update(zip(equation.outvars, outs, strict=True))
        return env

    def called(equation: Equation, env: Env) -> Sequence[Any]:
        (body,) = inner_jaxprs(equation)
        held = next((p.consts for p in equation.params.values() if isinstance(p, ClosedJaxpr)), ())
        inside = dict(zip(body.constvars, held, strict=True))
        inside |= dict(zip(body.invars, [read(env, a) for a in equation.invars], strict=True))
        inside = enter(body.eqns, inside)
        return [read(inside, a) for a in body.outvars]

    def fn(consts: list[Any], args: list[Any]) -> list[Any]:
        env = dict(zip(flat.const_vars, consts, strict=True)) | dict(zip(flat.inputs, args, strict=True))
        env = enter(flat.equations, env)
        return [read(env, a) for a in flat.outputs]

    closed = jax.make_jaxpr(fn)([type_of(v) for v in flat.const_vars], [type_of(v) for v in flat.inputs])
    jaxpr, n = closed.jaxpr, len(flat.const_vars)
    const_vars = [*jaxpr.invars[:n], *jaxpr.constvars]
    return Flat([*flat.consts, *closed.consts], const_vars, jaxpr.invars[n:], jaxpr.eqns, jaxpr.outvars)


def apply(equation: Equation, env: Mapping[Var, Any]) -> Sequence[Any]:
    """The results of one equation."""
    inputs = variables(equation.invars)
    return jaxpr_as_fun(ClosedJaxpr(as_jaxpr(inputs, [equation], equation.outvars), ()))(*[env[v] for v in inputs])


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
    Where rows may lie on several devices, or their number is a symbol, the axes stay apart.
    Returns env with the results added, and adds their names to `stacked`.
    """
    env = dict(env)
    for equation in equations:
        inputs = variables(equation.invars)
        over_time = [v in stacked for v in inputs]
        if not any(over_time):
            outs = apply(equation, env)
        else:
            x = equation.invars[0]
            if is_plain_product(equation) and x in stacked and equation.invars[1] not in stacked and _can_merge(env[x]):
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


def _can_merge(x: jax.Array) -> bool:
    """Whether the leading axes may become one: not where they can be spread over devices, nor if one is a symbol."""
    one_device = jax.device_count() == 1 and jax.sharding.get_abstract_mesh().empty
    return one_device and all(isinstance(n, int) for n in x.shape)


def _rows_at_once(equation: Equation, env: Env) -> jax.Array:
    x, w = (env[v] for v in equation.invars)
    return product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), w, equation, 0).reshape(*x.shape[:-1], w.shape[-1])


def product(x: jax.Array, w: jax.Array, equation: Equation, axis: int) -> jax.Array:
    """The last axis of x with one axis of w, as precisely as the equation says, and placed as it says."""
    how = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    to = equation.params.get("out_sharding")
    return lax.dot_general(x, w, (((x.ndim - 1,), (axis,)), ((), ())), out_sharding=to, **how)
