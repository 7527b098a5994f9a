"""A cell's step as an online method sees it: traced once, sorted by its weights, looked at from close by."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn import checks, trees
from jaxrnn.engine.evaluate import again, apply, run, trace
from jaxrnn.engine.influence import Core, Mixes, Structure, core_of, lateral, same_program, structure
from jaxrnn.engine.ir import Env, Flat, read, slice_back
from jaxrnn.engine.jacobian import flat_features
from jaxrnn.engine.rules import has_own_gradient, inner_jaxprs, leaves_jax
from jaxrnn.engine.sites import Entered, entered
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree


class Given(NamedTuple):
    """What one step reads beside the parameters and the state."""

    x: Tree
    key: Key | None  # the step's own
    fresh: jax.Array | None  # whether it is the first, of a cell whose first state is learned


class Moment(NamedTuple):
    """One step, run and differentiated."""

    env: Env  # what every variable of the step stands for
    loss: jax.Array
    state: State  # after the step
    grads: list[jax.Array]  # by the real parts of the parameters, what came before the step taken as it is
    by_state: jax.Array  # the loss's derivative by the state before the step, [*B, N]


def real_leaves(tree: Tree) -> list[Any]:
    """The leaves, complex ones in two."""
    split = lambda leaf: [leaf.real, leaf.imag] if _is_complex(leaf) else [leaf]
    return [part for leaf in jax.tree.leaves(tree) for part in split(leaf)]


def from_real(leaves: Any, like: Tree, *, conjugate: bool = False) -> Tree:
    """The tree with these leaves; `conjugate` for gradients, which JAX defines as dL/dx - i dL/dy."""
    parts = iter(leaves)

    def whole(leaf: Any) -> Any:
        one = next(parts)
        if not _is_complex(leaf):
            return one
        other = next(parts)
        return lax.complex(one, -other if conjugate else other)

    return jax.tree.map(whole, like)


def _is_complex(leaf: Any) -> bool:
    return bool(
        jnp.issubdtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype, jnp.complexfloating)
    )


@dataclasses.dataclass(frozen=True)
class OnlineStep:
    """A cell's step, for parameters, states and inputs of given types.

    `begin` is the key of what a cell draws once per sequence; it counts as a parameter without a derivative.
    """

    cell: Cell
    batch: tuple[int, ...]
    params: Params  # types
    state: State
    given: Given
    begin: Any  # the type of a key, or None
    is_cut: bool = False  # no derivative through the products with which a layer feeds itself

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, params: Params, begin: Key | None, state: State, given: Given) -> tuple[State, jax.Array]:
        """(state, loss per example) after one step; as `unroll` has it."""
        begun = params if begin is None else self.cell.begin(params, begin)
        fresh = given.fresh
        if fresh is not None:
            start = self.cell.initial_state(begun, self.batch)
            state = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), start, state)
        state_out, loss = self.cell.step(begun, state, given.x, key=given.key)
        batch = self.batch if jax.tree.leaves(self.state) else None
        return jax.tree.map(trees.of_type, state_out, self.state), a_loss(loss, batch)

    def total(
        self, params: Params, begin: Key | None, state: State, given: Given, loop: Scan
    ) -> tuple[jax.Array, State]:
        """(the sum of the losses, the state) after several steps, given [K, ...], run by a scan."""

        def body(state: State, given: Given) -> tuple[State, jax.Array]:
            state, loss = self.run(params, begin, state, given)
            return state, mean(loss)

        state, losses = loop(body, state, given)
        return jnp.sum(losses), state

    @functools.cached_property
    def dtype(self) -> Any:
        """What influences are held in: float64 where the state is, else float32."""
        wide = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in jax.tree.leaves(self.state) if trees.is_float(leaf))
        return jnp.dtype(jnp.float64 if wide else jnp.float32)

    # --- as equations --------------------------------------------------------------------------------------------

    @functools.cached_property
    def found(self) -> Entered:
        flat, states, params = self._traced(self.batch)
        first = entered(flat, states, params, self.batch)
        return self._cut(first, states, params, self.batch) if self.is_cut else first

    def _cut(self, found: Entered, states: int, params: int, batch: tuple[int, ...]) -> Entered:
        core = core_of(found, states, batch)
        ways = {}
        for term in lateral(core):
            ways[id(term.equation)] = _held_fast(term.equation)
        return entered(again(found.flat, overrides=ways), states, params, batch) if ways else found

    def _traced(self, batch: tuple[int, ...]) -> tuple[Flat, int, int]:
        """The step of so many examples as equations, and how many leaves the state and the parameters have."""
        sized = functools.partial(_resized, self.batch, batch)
        given = self.given._replace(x=sized(self.given.x))
        step = dataclasses.replace(self, batch=batch, state=sized(self.state), given=given)
        state, params = (real_leaves_of_types(t) for t in (step.state, (self.params, self.begin)))
        x_tree: Any
        x_leaves, x_tree = jax.tree.flatten(step.given)
        n, m = len(state), len(state) + len(params)

        def flat_step(*args: Any) -> list[Any]:
            params, begin = from_real(args[n:m], (self.params, self.begin))
            state_out, loss = step.run(params, begin, from_real(args[:n], step.state), x_tree.unflatten(args[m:]))
            return [*real_leaves(state_out), loss]

        flat = trace(flat_step, *state, *params, *x_leaves)
        if any(map(leaves_jax, flat.equations)):
            raise ValueError(
                "online: the step has a side effect or calls back into Python, and what reaches its state is read off "
                "its equations; take that out of the step, or use tbptt()"
            )
        return flat, n, len(params)

    @functools.cached_property
    def core(self) -> Core:
        return core_of(self.found, len(real_leaves_of_types(self.state)), self.batch)

    @functools.cached_property
    def structure(self) -> Structure:
        """What reaches what. Seen in a few examples, of which there are as many as of nothing else in the step.

        So no size of a weight is taken for that of the batch. Where it is not the same program then (one example may
        need no repetition, say), it is seen in the batch itself.
        """
        self._check_derivatives()
        seen = self.core
        if self.batch:
            few = next(n for n in itertools.count(2) if n not in _sizes(self.found.flat.equations))
            other = self._core_of_batch((few,) * len(self.batch))
            seen = other if other is not None and same_program(other, self.core) else seen
        try:
            return structure(self.core, seen)
        except Mixes as error:
            raise ValueError(
                f"online: {error}; an influence is kept example by example, so the cell must treat the examples of "
                "a batch each by itself"
            ) from None

    def _core_of_batch(self, batch: tuple[int, ...]) -> Core | None:
        """The core of so many examples; None for a step that holds something of the size of its own batch."""
        try:
            flat, states, params = self._traced(batch)
        except Exception:  # noqa: BLE001  whatever a user's step raises
            return None
        found = entered(flat, states, params, batch)
        return core_of(self._cut(found, states, params, batch) if self.is_cut else found, states, batch)

    def _check_derivatives(self) -> None:
        """Raises: ValueError for what has no derivative forwards, or belongs to no example."""
        for equation in slice_back(self.found.core, self.core.state_out, []):
            if has_own_gradient(equation):
                raise ValueError(
                    "online: a function with a jax.custom_vjp leads to the state, and JAX cannot differentiate it "
                    "forwards; write it as a jax.custom_jvp, or use tbptt()"
                )
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state):
            if trees.is_float(leaf) and leaf.shape[: len(self.batch)] != self.batch:
                raise ValueError(
                    f"online: {checks.leaf_name('state', path)} should start with the batch dimensions "
                    f"{list(self.batch)}, got {checks.describe(leaf)}; an influence is kept example by example: give "
                    "each its own, or use tbptt()"
                )

    # --- at values -----------------------------------------------------------------------------------------------

    def once(self, params: Params, begin: Key | None) -> Env:
        """What is computed from weights alone."""
        flat, n = self.found.flat, len(real_leaves_of_types(self.state))
        leaves = real_leaves((params, begin))
        env = dict(zip(flat.const_vars, flat.consts, strict=True))
        env |= dict(zip(flat.inputs[n : n + len(leaves)], leaves, strict=True))
        return run(self.found.once, env)

    def inputs(self, state: State, given: Given) -> Env:
        flat, leaves, xs = self.found.flat, real_leaves(state), jax.tree.leaves(given)
        env = dict(zip(flat.inputs[: len(leaves)], leaves, strict=True))
        return env | dict(zip(flat.inputs[len(flat.inputs) - len(xs) :], xs, strict=True))

    def outcome(self, env: Env) -> tuple[State, jax.Array]:
        """The state and the loss in an env."""
        *state, loss = (read(env, a) for a in self.found.flat.outputs)
        return from_real(state, self.state), loss

    def moment(self, params: Params, begin: Key | None, state: State, given: Given) -> Moment:
        """One step and its derivative by the parameters and by the state: one pass forward, one back."""
        params_in, state_in = real_leaves(params), real_leaves(state)
        learned, carried = ([trees.is_float(leaf) for leaf in leaves] for leaves in (params_in, state_in))
        names: list[Var] = []

        def forward(params_floats: list[Any], state_floats: list[Any]) -> tuple[jax.Array, Any]:
            whole = from_real(trees.put(learned, params_floats, params_in), params)
            before = from_real(trees.put(carried, state_floats, state_in), state)
            env = run(self.found.core, self.once(whole, begin) | self.inputs(before, given))
            names[:] = env
            state_out, loss = self.outcome(env)
            return mean(loss), (list(env.values()), state_out)

        floats = trees.only(learned, params_in), trees.only(carried, state_in)
        loss, back, (values, state_out) = jax.vjp(forward, *floats, has_aux=True)
        grads, by_state = back(jnp.ones_like(loss))
        return Moment(
            dict(zip(names, values, strict=True)),
            loss,
            state_out,
            grads,
            flat_features(self.core, by_state, self.dtype),
        )

    def nothing(self, params: Params) -> tuple[jax.Array, list[jax.Array]]:
        """The loss and the gradient of no step at all, in which those of many can be added up."""
        floats = [leaf for leaf in real_leaves(params) if trees.is_float(leaf)]
        zeros = [jnp.zeros(leaf.shape, trees.wide(leaf.dtype)) for leaf in floats]
        return jnp.zeros((), _sum_type(self.found.flat.outputs[-1].aval)), zeros

    def by_params(self, params: Params, begin: Key | None, by_weight: dict[Var, jax.Array]) -> list[jax.Array]:
        """Gradients of what is computed from weights alone, as those of the real parts of the parameters."""
        leaves = real_leaves(params)
        learned = [trees.is_float(leaf) for leaf in leaves]
        names = list(by_weight)

        def weights(floats: list[Any]) -> list[Any]:
            env = self.once(from_real(trees.put(learned, floats, leaves), params), begin)
            return [env[v] for v in names]

        values, back = jax.vjp(weights, trees.only(learned, leaves))
        (grads,) = back([by_weight[v].astype(value.dtype) for v, value in zip(names, values, strict=True)])
        return grads

    def with_past(
        self, params: Params, begin: Key | None, now: list[Any], past: dict[Var, jax.Array]
    ) -> list[jax.Array]:
        """The gradient by the parameters as they enter now, and by the weights as they entered before."""
        return [a + b for a, b in zip(now, self.by_params(params, begin, past), strict=True)] if past else now

    def gradient(self, params: Params, real_grads: list[jax.Array]) -> Params:
        """Gradients by the real parts as a tree like the parameters; zeros for what has no derivative."""
        leaves = real_leaves(params)
        learned = [trees.is_float(leaf) for leaf in leaves]
        zeros = [leaf if has else jnp.zeros_like(leaf) for has, leaf in zip(learned, leaves, strict=True)]
        found = trees.put(learned, real_grads, zeros)
        typed = [a.astype(leaf.dtype) if has else a for a, leaf, has in zip(found, leaves, learned, strict=True)]
        return from_real(typed, params, conjugate=True)


def _sizes(equations: Iterable[Any]) -> set[Any]:
    """Of all that a step and what it calls compute with."""
    sizes = {n for e in equations for v in (*e.invars, *e.outvars) for n in getattr(v.aval, "shape", ())}
    return sizes.union(*(_sizes(jaxpr.eqns) for e in equations for jaxpr in inner_jaxprs(e)))


def _sum_type(loss: Any) -> Any:
    return trees.wide(loss.dtype)


def _held_fast(equation: Any) -> Callable[[Env], Any]:
    """A product that lets no derivative through to what it multiplies with the weight."""
    a = equation.invars[0]
    return lambda env: apply(equation, env | {a: lax.stop_gradient(env[a])})


def real_leaves_of_types(tree: Tree) -> list[Any]:
    return jax.tree.leaves(jax.eval_shape(lambda tree: real_leaves(tree), tree))


def _resized(batch: tuple[int, ...], wanted: tuple[int, ...], tree: Tree) -> Tree:
    """The types of so many examples."""

    def resized(leaf: Any) -> Any:
        if leaf.shape[: len(batch)] != batch:
            return leaf
        return jax.ShapeDtypeStruct((*wanted, *leaf.shape[len(batch) :]), leaf.dtype)

    return tree if batch == wanted else jax.tree.map(resized, tree)


def a_loss(loss: Any, batch: tuple[int, ...] | None) -> jax.Array:
    """What a cell that ends in its loss returns; without a state nothing says what the batch is.

    Raises: ValueError for anything else.
    """
    leaves = jax.tree.leaves(loss)
    is_number = len(leaves) == 1 and jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating)
    if not (is_number and (batch is None or jnp.shape(leaves[0]) in (batch, ()))):
        raise ValueError(
            f"online: the cell must end in its loss, one floating-point number per example, {list(batch or ())}; its "
            f"output is {checks.describe_tree(loss)}; put with_loss(cell, loss) around it, with a loss for each example"
        )
    return leaves[0]


def mean(loss: jax.Array) -> jax.Array:
    """Over the batch, in 32 bits at least."""
    return jnp.mean(loss.astype(_sum_type(loss)))
