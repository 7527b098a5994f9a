"""Which functions of a model are written down, and the types of all trees that they take and give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.engine import ir
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.serving.programs import Signature
from jaxrnn.training.files import reason
from jaxrnn.types import Cell, Params, Scan, SequenceLayer, Tree

Types = dict[str, Tree]  # of each tree, by the name that signatures use
Functions = dict[str, tuple[Signature, Callable[..., Sequence[Tree]]]]


class Sizes(NamedTuple):
    """Numbers, and JAX's free sizes."""

    batch: tuple[Any, ...]
    steps: Any | None


def functions_of(
    model: Cell | SequenceLayer, params: Params, x: Tree, sizes: Sizes, lengths: bool, scan: Scan
) -> tuple[Types, Functions]:
    """What is to be written of a model; x is one step's input of one example, or its type."""
    types: Types = {"params": trees.struct(params), "x": _broadcast(trees.placed_nowhere(x), sizes.batch)}
    if sizes.steps is not None:
        types["xs"] = _broadcast(types["x"], (sizes.steps,))
        if lengths:
            types["lengths"] = jax.ShapeDtypeStruct(sizes.batch, jnp.int32)
    if isinstance(model, SequenceLayer):
        return _of_a_layer(model, types, scan)
    checks.a_cell("export", model)
    types, functions = _of_a_cell(model, types, sizes.batch)
    for further in (_drawing(model, types, sizes.batch), _unrolled(model, types, scan)):
        types, functions = types | further[0], functions | further[1]
    return types, functions


def _broadcast(tree: Tree, dims: tuple[Any, ...]) -> Tree:
    return jax.eval_shape(lambda tree: jax.tree.map(lambda a: lax.broadcast(a, dims), tree), tree)


def _of_a_cell(cell: Cell, types: Types, batch: tuple[Any, ...]) -> tuple[Types, Functions]:
    """The first state, and a step without randomness."""
    start = lambda params, x: (cell.initial_state(params, batch),)
    step = lambda params, state, x: cell.step(params, state, x)
    x = types["x"]
    try:
        (state,) = jax.eval_shape(start, types["params"], x)
        after, y = jax.eval_shape(step, types["params"], state, x)
    except Exception as error:  # noqa: BLE001  whatever a user's step raises
        raise _not_taken(x, reason(error)) from error
    if not trees.same_shapes(state, after):
        raise _not_taken(x, f"the state goes in as {checks.describe_tree(state)} and comes out otherwise")
    checks.same_type("export", "state", state, after, "return it from the step as it came in")
    functions: Functions = {
        "start": (Signature(("params", "x"), ("state",)), start),
        "step": (Signature(("params", "state", "x"), ("state", "y")), step),
    }
    return {**types, "state": state, "y": y}, functions


def _not_taken(x: Tree, why: str) -> ValueError:
    return ValueError(
        f"export: the step does not take an x of {checks.describe_tree(x)} ({why}); "
        "x should be one step's input of one example, without batch dimensions, such as xs[0, 0]"
    )


def _drawing(cell: Cell, types: Types, batch: tuple[Any, ...]) -> tuple[Types, Functions]:
    """Of a cell that draws: what it draws once per sequence, its first state and its step with that, and a key."""
    begin = lambda params, key: (cell.begin(params, key),)
    start = lambda begun, x: (cell.initial_state(begun, batch),)
    step = lambda begun, state, x, key: cell.step(begun, state, x, key=key)
    key = jax.eval_shape(lambda: jax.random.key(0))
    (begun,) = jax.eval_shape(begin, types["params"], key)
    args = (begun, types["state"], types["x"], key)
    if not _reads(begin, (types["params"], key), key) and not _reads(step, args, key):
        return {}, {}
    state, y = jax.eval_shape(step, *args)
    checks.same_type("export", "state", types["state"], state, "return the same with a key as without one")
    checks.same_type("export", "y", types["y"], y, "return the same with a key as without one")
    functions: Functions = {
        "begin": (Signature(("params", "key"), ("begun",)), begin),
        "start_drawing": (Signature(("begun", "x"), ("state",)), start),
        "step_drawing": (Signature(("begun", "state", "x", "key"), ("state", "y")), step),
    }
    return {"key": key, "begun": begun}, functions


def _reads(fn: Callable[..., Any], args: Sequence[Tree], last: Tree) -> bool:
    """Whether anything that fn gives depends on its last argument."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    found = ir.reached(jaxpr.eqns, jaxpr.invars[-len(jax.tree.leaves(last)) :])
    return not found.isdisjoint(ir.variables(jaxpr.outvars))


def _unrolled(cell: Cell, types: Types, scan: Scan) -> tuple[Types, Functions]:
    """A whole sequence, from a state, where a number of steps is given."""
    if "xs" not in types:
        return {}, {}
    given = ("params", "state", "xs", *(["lengths"] if "lengths" in types else []))

    def run(params: Params, state: Tree, xs: Tree, lengths: jax.Array | None = None) -> tuple[Tree, Tree]:
        return unroll(cell, params, xs, state, lengths=lengths, scan=scan)

    _, ys = _looked(run, [types[name] for name in given])
    return {"ys": ys}, {"unroll": (Signature(given, ("state", "ys")), run)}


def _of_a_layer(layer: SequenceLayer, types: Types, scan: Scan) -> tuple[Types, Functions]:
    given = ("params", "xs", *(["lengths"] if "lengths" in types else []))

    def run(params: Params, xs: Tree, lengths: jax.Array | None = None) -> tuple[Tree, Tree]:
        return layer.apply(params, xs, lengths=lengths, scan=scan)

    state, ys = _looked(run, [types[name] for name in given])
    functions: Functions = {"unroll": (Signature(given, ("state", "ys")), run)}
    if "lengths" in types:
        shorter = lambda lengths: (layer.shortened(lengths).astype(jnp.int32),)
        functions["shortened"] = (Signature(("lengths",), ("lengths",)), shorter)
    return {**types, "state": state, "ys": ys}, functions


def _looked(run: Callable[..., tuple[Tree, Tree]], args: Sequence[Tree]) -> tuple[Tree, Tree]:
    try:
        return jax.eval_shape(run, *args)
    except Exception as error:  # noqa: BLE001  whatever a user's step raises
        raise ValueError(
            f"export: the unroll cannot be traced ({reason(error)}); where a free size is the trouble "
            "give a number for batch or steps, or another scan, such as jax.lax.scan"
        ) from error
