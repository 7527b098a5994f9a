"""`uoro`: an unbiased estimate of the gradient, of rank one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jaxrnn.engine.ir import Env
from jaxrnn.engine.jacobian import linear_step, nothing_added, pulled_back
from jaxrnn.online import remembering
from jaxrnn.online.learner import Found, Method, Window
from jaxrnn.online.step import OnlineStep
from jaxrnn.types import State

# (key, shape, dtype) -> independent numbers of mean 0 and variance 1
Signs = Callable[[Any, tuple[int, ...], Any], jax.Array]


class RankOne(NamedTuple):
    """The influence as a product of two vectors, for each example."""

    state: jax.Array  # [*B, N]
    weights: list[jax.Array]  # for each tap, [*B, G, I]


@dataclasses.dataclass(frozen=True)
class uoro(Method):
    """Unbiased online recurrent optimization: the influence as one outer product, right in the mean.

        M_t ~ s~_t theta~_t
        s~_t     = r0 A_t s~_tm1 + r1 nu              nu random signs, [*B, N]
        theta~_t = theta~_tm1 / r0 + nu^T B_t a_t / r1
        g_t      = dL_t / dtheta + (dL_t / ds_tm1 . s~_tm1) theta~_tm1
        r0 = sqrt(|theta~_tm1| / |A_t s~_tm1|),   r1 = sqrt(|nu^T B_t a_t| / |nu|)

    One derivative forward and one back of any step, one estimate for each example. Its mean over all signs is the
    exact gradient, as long as the parameters stay; its variance is large and grows with the state and with what is
    remembered: at a trained net of 32 units one estimate points almost anywhere. It needs a key: `init(..., key=key)`.
    Memory: the weights once per example, and the state. Cost per step: about 11 forward steps, whatever the size.
    `signs(key, shape, dtype)` draws nu; any independent numbers of mean 0 and variance 1 leave it unbiased.
    Tallec and Ollivier 2017, "Unbiased online recurrent optimization" (arXiv 1702.05043).
    """

    signs: Signs = jax.random.rademacher

    draws: ClassVar[bool] = True

    def memory(self, step: OnlineStep) -> RankOne:
        core = step.structure.core
        weights = [jnp.zeros((*core.batch, tap.size, tap.depth), step.dtype) for tap in core.taps]
        return RankOne(jnp.zeros((*core.batch, core.units), step.dtype), weights)

    def one(self, step: OnlineStep, state: State, memory: RankOne, now: Window) -> Found:
        moment, core = step.moment(now.params, now.begin, state, now.given), step.structure.core
        b = remembering.letters(core)
        past: dict[Var, jax.Array] = {}
        owed = jnp.sum(moment.by_state * memory.state, -1)
        for tap, weights in zip(core.taps, memory.weights, strict=True):
            remembering.add_weights(core, tap, jnp.einsum(f"{b},{b}gi->gi", owed, weights), past)
        grads = step.with_past(now.params, now.begin, moment.grads, past)
        nu = self.signs(now.signs, memory.state.shape, step.dtype)
        return moment.state, self._next(step, memory, moment.env, nu), moment.loss, grads

    def _next(self, step: OnlineStep, memory: RankOne, env: Env, nu: jax.Array) -> RankOne:
        core, lead = step.structure.core, len(step.batch)
        linear = linear_step(step.structure, env, step.dtype)
        moved = linear(memory.state, *nothing_added(core))
        owed = pulled_back(step.structure, linear, nu, step.dtype)
        here = [
            z[..., None] * remembering.factors(core, tap, env, step.dtype)[..., None, :]
            for tap, z in zip(core.taps, owed, strict=True)
        ]
        none = jnp.zeros((*step.batch, 1), step.dtype)
        r0 = ratio(norm([none, *memory.weights], lead), norm([moved], lead))
        r1 = ratio(norm([none, *here], lead), norm([nu], lead))
        weights = [a / r0[..., None, None] + c / r1[..., None, None] for a, c in zip(memory.weights, here, strict=True)]
        return RankOne(r0[..., None] * moved + r1[..., None] * nu, weights)


def norm(arrays: list[jax.Array], lead: int) -> jax.Array:
    """Of all of them together, for each example, [*B]."""
    squares = [jnp.sum(a**2, tuple(range(lead, a.ndim))) for a in arrays]
    return jnp.sqrt(functools.reduce(jnp.add, squares))


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(a / b), 1 where both are 0; any factor but 0 leaves the product of the two vectors as it is."""
    least = jnp.sqrt(jnp.finfo(a.dtype).tiny)
    return jnp.sqrt((a + least) / (b + least))
