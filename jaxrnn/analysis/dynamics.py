"""`lyapunov`: how fast neighbouring states of a recurrent net part, or meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, inference, trees
from jaxrnn.analysis.gradients import float_leaves, wide
from jaxrnn.engine.segments import in_segments
from jaxrnn.trees import is_float
from jaxrnn.types import Cell, Params, State, Tree


def lyapunov(
    cell: Cell,
    params: Params,
    xs: Tree,
    state: State | None = None,
    *,
    exponents: int = 1,
    every: int = 1,
    skip: int = 0,
) -> jax.Array:
    """The largest Lyapunov exponents of the carried state along a driven sequence, in nats per step.

        Q = k orthonormal directions, drawn once
        for t in range(T):
            Q = J_t Q,    J_t = d state_t / d state_tm1             k Jacobian-vector products, no J
            Q, R = qr(Q);    sums += log |diag R|                    at every `every`-th step, from `skip` on
        return sums / (T - skip)

    The first is the mean rate at which an error in the state grows: below 0 it is forgotten, above 0
    the net is chaotic; and gradients vanish or explode at the same rates backwards. For a linear net
    they are the logarithms of the eigenvalues' moduli.
    Shapes: xs [T, *B, ...] -> [*B, k], one example at a time (take the mean over the batch if wanted),
    the largest first once T is large: the directions find their order at the rate of the gaps, so
    leave out the beginning with `skip`. State may be any pytree: floating-point leaves are the
    dynamics, integers run along and are held fixed in the derivative.
    Cost: a step, and k products of it with a vector, per step; a QR of [n, k] every `every` steps,
    for n numbers in one example's state. No memory but k states. `every` above 1 saves time as long as
    the directions do not become parallel, or overflow, in so many steps.
    Limits: the cell runs without a key, as in evaluation; no lengths or resets: give each sequence
    alone. Where the Jacobian loses rank, as with units that are off, an exponent is -inf, or what rounding
    makes of it; neither it nor those after it say more than that.
    Raises: ValueError for more exponents than the state has numbers, `skip` outside 0..T-1, `every` or
    `exponents` below 1, or a state without floating-point leaves; what `unroll` raises.
    Benettin et al. 1980; for recurrent nets Engelken, Wolf and Abbott 2023; Vogt et al. 2022.
    """
    checks.a_cell("lyapunov", cell)
    exponents = checks.positive_int("lyapunov", "exponents", exponents)
    every = checks.positive_int("lyapunov", "every", every)
    skip = checks.positive_int("lyapunov", "skip", skip, least=0)
    steps = checks.steps("lyapunov", xs)
    if skip >= steps:
        raise ValueError(f"lyapunov: skip must leave some of the {steps} steps of xs, got {skip}; give a longer xs")
    batch = inference.batch_shape("lyapunov", cell, params, trees.first_step(xs))
    state = cell.initial_state(params, batch) if state is None else jax.tree.map(jnp.asarray, state)
    remedy = "start from cell.initial_state(params, batch_shape)"
    checks.same_type("lyapunov", "state", cell.initial_state(params, batch), state, remedy)
    size = sum(math.prod(leaf.shape[len(batch) :]) for leaf in float_leaves(state))
    if exponents > size:
        raise ValueError(f"lyapunov: exponents must be at most {size}, the numbers in one state, got {exponents}")

    step = lambda state, x: cell.step(params, state, x)[0]
    one = partial(_exponents, step, exponents=exponents, every=every, skip=skip)
    for _ in batch:
        one = jax.vmap(one, in_axes=(0, 1))
    return one(state, jax.tree.map(jnp.asarray, xs))


def _exponents(
    step: Callable[..., State], state: State, xs: Tree, *, exponents: int, every: int, skip: int
) -> jax.Array:
    """[k]: of one example, xs [T, ...]."""
    steps = checks.steps("lyapunov", xs)
    directions = _orthonormal(_random(state, exponents), state)[0]
    sums = jnp.zeros((exponents,), wide(float_leaves(state)))

    def push(state_and_directions: Tree, x: Tree) -> tuple[Tree, None]:
        state, directions = state_and_directions
        return _pushed(partial(step, x=x), state, directions), None

    def stretch(carry: Tree, xs: Tree, n: int) -> tuple[Tree, None]:
        """n steps, and what the directions have grown by."""
        state, directions, sums = carry
        (state, directions), _ = lax.scan(push, (state, directions), xs, length=n)
        directions, growth = _orthonormal(directions, state)
        return (state, directions, sums + jnp.log(growth)), None

    part = lambda start, stop: jax.tree.map(lambda a: a[start:stop], xs)
    carry = (state, directions, sums)
    if skip:
        (state, directions, _), _ = in_segments(stretch, carry, part(0, skip), skip, every, reverse=False)
        carry = (state, directions, sums)
    (_, _, sums), _ = in_segments(stretch, carry, part(skip, steps), steps - skip, every, reverse=False)
    return sums / (steps - skip)


def _pushed(step: Callable[[State], State], state: State, directions: list[jax.Array]) -> tuple[State, list[jax.Array]]:
    """The next state, and each direction (a leading k on every floating-point leaf) moved along with it."""
    leaves, structure = jax.tree.flatten(state)

    def of_floats(floats: list[jax.Array]) -> tuple[list[jax.Array], State]:
        remaining = iter(floats)
        full = [next(remaining) if is_float(leaf) else leaf for leaf in leaves]
        state = step(jax.tree.unflatten(structure, full))
        return float_leaves(state), state

    # Under vmap the state itself is computed once: only the tangents have the leading k.
    along = lambda direction: jax.jvp(of_floats, (float_leaves(state),), (direction,), has_aux=True)[1:]
    return jax.vmap(along, out_axes=(0, None))(directions)[::-1]


def _random(state: State, k: int) -> list[jax.Array]:
    """k directions that favour none: a net's own axes might be invariant."""
    leaves = float_leaves(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    wide_dtype = wide(leaves)
    drawn = (jax.random.normal(key, (k, *leaf.shape), wide_dtype) for key, leaf in zip(keys, leaves, strict=True))
    return [a.astype(leaf.dtype) for a, leaf in zip(drawn, leaves, strict=True)]


def _orthonormal(directions: list[jax.Array], state: State) -> tuple[list[jax.Array], jax.Array]:
    """The directions made orthonormal, and |diag R| [k]: by how much each volume had grown."""
    leaves = float_leaves(state)
    columns = [d.reshape(d.shape[0], -1).astype(wide(leaves)) for d in directions]
    q, r = jnp.linalg.qr(jnp.concatenate(columns, axis=1).T)
    ends = [sum(c.shape[1] for c in columns[: n + 1]) for n in range(len(columns))]
    parts = jnp.split(q.T, ends[:-1], axis=1)
    back = [p.reshape(d.shape).astype(d.dtype) for p, d in zip(parts, directions, strict=True)]
    return back, jnp.abs(jnp.diagonal(r))
