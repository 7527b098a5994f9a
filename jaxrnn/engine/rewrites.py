"""A step's equations written in another way, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import guards
from jaxrnn.engine.evaluate import Override, again, is_plain_product, product, run
from jaxrnn.engine.ir import Env, Flat, is_var, producers, reached, read, slice_back
from jaxrnn.engine.rules import Equation, Role, inner_jaxprs, is_remat, rule


def opened_remat(flat: Flat, carries: int) -> Flat:
    """Without `jax.checkpoint` around parts of the recurrence.

    It would hide them, and the engine has its own way to keep little.
    """
    while True:
        needed = slice_back(flat.equations, flat.outputs[:carries], [])
        through_carry = reached(flat.equations, flat.inputs[:carries])
        hiding = [e for e in needed if is_remat(e) and not through_carry.isdisjoint(e.outvars)]
        if not hiding:
            return flat
        flat = again(flat, opened=hiding)


def rewritten_remat(
    equation: Equation, varying: set[Any], known: Mapping[Any, Any], rewrite: Callable[[Flat], Flat]
) -> Override:
    """A `jax.checkpoint` with what is in it written otherwise; `known` has values of what no step changes, if any."""
    (body,) = inner_jaxprs(equation)
    pairs = list(zip(equation.invars, body.invars, strict=True))
    same = [(a, v) for a, v in pairs if not is_var(a) or a not in varying]
    moving = [(a, v) for a, v in pairs if is_var(a) and a in varying]
    values = [known.get(a) if is_var(a) else a.val for a, _ in same]
    flat = rewrite(again(Flat(values, [v for _, v in same], [v for _, v in moving], body.eqns, body.outvars)))
    how = {name: equation.params[name] for name in ("prevent_cse", "policy")}

    def stand_in(env: Env) -> list[Any]:
        consts = [*(read(env, a) for a, _ in same), *flat.consts[len(same) :]]

        def inside(given: list[Any]) -> list[Any]:
            found = dict(zip([*flat.const_vars, *flat.inputs], [*consts, *given], strict=True))
            found = run(flat.equations, found)
            return [read(found, a) for a in flat.outputs]

        return jax.checkpoint(inside, **how)([read(env, a) for a, _ in moving])

    return stand_in


def has_guard(flat: Flat) -> bool:
    return any(guards.marked(e, guards.GUARDED) for e in flat.equations)


def unguarded(flat: Flat) -> Flat:
    """The step as it is where no NaN goes in: no example is guarded, and what is chosen by that is chosen at once."""
    overrides: dict[int, Override] = {}
    nobody: set[Any] = set()  # variables that are false throughout
    for equation in flat.equations:
        if guards.marked(equation, guards.GUARDED):
            overrides[id(equation)] = _zeros(equation)
            nobody.update(equation.outvars)
        elif rule(equation).role in (Role.SAME, Role.SHAPES) and all(a in nobody for a in map(_var, equation.invars)):
            nobody.update(equation.outvars)
        elif rule(equation).role is Role.CHOICE and is_var(equation.invars[0]) and equation.invars[0] in nobody:
            overrides[id(equation)] = _first_case(equation)
    return again(flat, overrides=overrides)


def _zeros(equation: Equation) -> Override:
    return lambda env: [jnp.zeros_like(read(env, equation.invars[0]))]


def _first_case(equation: Equation) -> Override:
    return lambda env: [read(env, equation.invars[1])]


def _var(atom: Any) -> Any:
    return atom if is_var(atom) else None


def placed_nowhere(flat: Flat) -> Flat:
    """The step as one device runs it, without a word of the mesh that it was traced on; to be read, not run there."""
    overrides: dict[int, Override] = {}
    for equation in flat.equations:
        if equation.primitive.name in ("pvary", "pcast", "reshard", "mesh_cast", "sharding_constraint"):
            overrides[id(equation)] = _operands(equation)
    with on_no_mesh():
        return again(flat._replace(consts=[]), overrides=overrides, type_of=_without_place)


def _operands(equation: Equation) -> Override:
    return lambda env: [read(env, a) for a in equation.invars]


def _without_place(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False))


def on_no_mesh() -> AbstractContextManager[Any]:
    """Inside, programs are traced as they are outside of every mesh."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def gates_apart(flat: Flat, placed: Callable[[Any], Any]) -> Flat:
    """split(x W + b, g) with W [D, g H] becomes the g parts of x W' + b' with W' [D, g, H], and b' [g, H].

    Devices that hold equal parts of the units then hold theirs of every gate; of g H columns in a row they would hold
    a gate each, and send all of them about at every step. `placed` says where the new weights are to lie.
    """
    made_by, varying = producers(flat.equations), reached(flat.equations, flat.inputs)
    overrides: dict[int, Override] = {}
    for e in flat.equations:
        if e.primitive.name == "split" and _is_made_of_weights(e.invars[0], made_by, varying):
            sizes, last = e.params["sizes"], e.invars[0].aval.ndim - 1
            if len(set(sizes)) == 1 and e.params["axis"] == last:
                overrides[id(e)] = _gates(e, made_by, placed)
        elif is_remat(e):
            overrides[id(e)] = rewritten_remat(e, varying, {}, lambda flat: gates_apart(flat, placed))
    if not overrides:
        return flat
    flat = again(flat, overrides=overrides)
    return flat._replace(equations=slice_back(flat.equations, flat.outputs, []))


def _is_made_of_weights(v: Any, made_by: Mapping[Any, Equation], varying: set[Any]) -> bool:
    """Whether a value is a sum of products with matrices that no step changes, and of vectors of that kind."""
    e = made_by.get(v) if is_var(v) else None
    if e is None:
        return False
    if e.primitive.name == "add":
        return all(_is_made_of_weights(a, made_by, varying) for a in e.invars)
    if e.primitive.name == "broadcast_in_dim":
        return e.params["broadcast_dimensions"] == (v.aval.ndim - 1,) and e.invars[0] not in varying
    return is_plain_product(e) and e.invars[1] not in varying


def _gates(split: Equation, made_by: Mapping[Any, Equation], placed: Callable[[Any], Any]) -> Override:
    shape = len(split.params["sizes"]), int(split.params["sizes"][0])

    def apart(env: Env, v: Any) -> Any:
        e = made_by[v]
        if e.primitive.name == "add":
            return apart(env, e.invars[0]) + apart(env, e.invars[1])
        if e.primitive.name == "broadcast_in_dim":
            bias = placed(read(env, e.invars[0]).reshape(shape))
            return lax.broadcast_in_dim(bias, (*v.aval.shape[:-1], *shape), (v.aval.ndim - 1, v.aval.ndim))
        weights = env[e.invars[1]]
        return product(env[e.invars[0]], placed(weights.reshape(weights.shape[0], *shape)), e, 0)

    def gates(env: Env) -> list[Any]:
        together = apart(env, split.invars[0])
        return [lax.index_in_dim(together, k, together.ndim - 2, keepdims=False) for k in range(shape[0])]

    return gates


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
        if joined is None or not _joins_features(joined):
            continue
        if len({is_var(a) and a in through_carry for a in joined.invars}) > 1:
            overrides[id(equation)] = _apart(equation, joined.invars)
    return again(flat, overrides=overrides) if overrides else flat


def _joins_features(equation: Equation) -> bool:
    last = len(equation.outvars[0].aval.shape) - 1
    return equation.primitive.name == "concatenate" and equation.params["dimension"] == last


def _apart(equation: Equation, parts: Sequence[Any]) -> Override:
    """A product of things side by side as a sum of products."""

    def apart(env: Env) -> list[Any]:
        w, start, total = env[equation.invars[1]], 0, None
        for atom in parts:
            rows = atom.aval.shape[-1]
            part = product(read(env, atom), lax.slice_in_dim(w, start, start + rows), equation, 0)
            total, start = part if total is None else total + part, start + rows
        return [total]

    return apart
