"""A window of real-time recurrent learning at once: BPTT within the window, the influence multiplied once for all.

    ds_K / dtheta = (ds_K / ds_0) M_0 + sum_t (ds_K / dz_t) a_t

One backward pass through the window for each feature of the state gives both derivatives; the sum over steps is one
product. Schmidhuber 1992, "A fixed size storage O(n^3) time complexity learning algorithm".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.engine.evaluate import run
from jaxrnn.engine.influence import Kept
from jaxrnn.engine.jacobian import flat_features, shared_taps, units, where, with_taps
from jaxrnn.online import remembering
from jaxrnn.online.learner import Found, Window
from jaxrnn.online.step import OnlineStep, from_real, real_leaves
from jaxrnn.types import State


def pays(step: OnlineStep, kept: Sequence[Kept], window: Window) -> bool:
    """Whether it is worth it: more than one step, and most of what is remembered is dense."""
    if checks.steps("update", window.given) == 1 or _has_shared(step):
        return False
    size = lambda tap, held: held.rows**2 * tap.size * tap.depth
    work = [(size(tap, held), held.which is None) for tap, held in zip(step.structure.core.taps, kept, strict=True)]
    return 2 * sum(n for n, is_dense in work if is_dense) > sum(n for n, _ in work)


def _has_shared(step: OnlineStep) -> bool:
    """Whether a weight enters in a way for which examples have no derivative each of their own."""
    return math.prod(step.batch) > 1 and any(tap.is_shared for tap in step.structure.core.taps)


def over(step: OnlineStep, kept: Sequence[Kept], state: State, memory: list[jax.Array], window: Window) -> Found:
    if _has_shared(step):
        raise ValueError(
            "rtrl: block=True needs weights that enter by products, look-ups or repeated for each example; one enters "
            "otherwise (a convolution's kernel, say): leave block out"
        )
    state_out, loss, grads, by_state = _through_window(step, state, window)
    past = remembering.read(step.structure.core, kept, memory, by_state)
    grown = _grown(step, kept, state, memory, window)
    return state_out, grown, loss, step.with_past(window.params, window.begin, grads, past)


def _through_window(
    step: OnlineStep, state: State, window: Window
) -> tuple[State, jax.Array, list[jax.Array], jax.Array]:
    """The window's loss by BPTT: (state after it, loss, by the parameters' real parts, by the state before it)."""
    params_in, state_in = real_leaves(window.params), real_leaves(state)
    learned, carried = ([trees.is_float(leaf) for leaf in leaves] for leaves in (params_in, state_in))

    def total(params_floats: list[Any], state_floats: list[Any]) -> tuple[jax.Array, State]:
        params = from_real(trees.put(learned, params_floats, params_in), window.params)
        before = from_real(trees.put(carried, state_floats, state_in), state)
        return step.total(params, window.begin, before, window.given, lax.scan)

    floats = trees.only(learned, params_in), trees.only(carried, state_in)
    loss, back, state_out = jax.vjp(total, *floats, has_aux=True)
    grads, by_state = back(jnp.ones_like(loss))
    return state_out, loss, grads, flat_features(step.structure.core, by_state, step.dtype)


def _grown(
    step: OnlineStep, kept: Sequence[Kept], state: State, memory: list[jax.Array], window: Window
) -> list[jax.Array]:
    """The influence after the window."""
    core, b, lead = step.structure.core, remembering.letters(step.structure.core), len(step.batch)
    steps = checks.steps("update", window.given)
    once, state_in = step.once(window.params, window.begin), real_leaves(state)
    carried = [trees.is_float(leaf) for leaf in state_in]

    def last(state_floats: list[Any], added: list[jax.Array]) -> tuple[jax.Array, Any]:
        def body(state: State, each: Any) -> tuple[State, Any]:
            given, more = each
            added = dict(zip((tap.at for tap in core.taps), more, strict=True))
            moved = {tap.at: once[tap.at] + added[tap.at] for tap in shared_taps(core)}
            env = run(step.found.core, once | step.inputs(state, given) | moved, with_taps(core, added, once))
            return step.outcome(env)[0], [remembering.factors(core, tap, env, step.dtype) for tap in core.taps]

        before = from_real(trees.put(carried, state_floats, state_in), state)
        state_out, factors = lax.scan(body, before, (window.given, added))
        floats = [leaf for leaf in real_leaves(state_out) if trees.is_float(leaf)]
        return flat_features(core, floats, step.dtype), factors

    nothing = [jnp.zeros((steps, *tap.at.aval.shape), tap.at.aval.dtype) for tap in core.taps]
    end, back, factors = jax.vjp(last, trees.only(carried, state_in), nothing, has_aux=True)
    rows = jnp.broadcast_to(
        jnp.eye(core.units, dtype=step.dtype).reshape(-1, *(1,) * lead, core.units), (core.units, *end.shape)
    )
    by_state, by_tap = jax.vmap(back)(rows)
    whole = jax.vmap(lambda each: flat_features(core, each, step.dtype), out_axes=lead)(by_state)  # [*B, N, N]

    found = []
    for held, M, e, a in zip(kept, memory, by_tap, factors, strict=True):
        e = units(e.reshape(core.units, steps, *step.batch, -1), step.dtype)
        here = jnp.einsum(f"nk{b}g,k{b}i->{b}ngi", e, a)
        if held.which is None:
            grown = jnp.einsum(f"{b}mn,{b}ngi->{b}mgi", whole, M) + here
            found.append(where(held.mask[..., None], grown))
        else:
            past = remembering.carried_on(core, held.which, lambda r, c: whole[..., r, c], M)
            found.append(past + remembering.rows_of(held.which, here, lead))
    return found
