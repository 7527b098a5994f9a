"""`kf_rtrl`: an unbiased estimate of the gradient by Kronecker factors."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jaxrnn.engine.jacobian import Jacobian
from jaxrnn.online import remembering
from jaxrnn.online.learner import Found, Method, Window
from jaxrnn.online.rank_one import Signs, norm, ratio
from jaxrnn.online.step import OnlineStep
from jaxrnn.types import Key, State


class Factors(NamedTuple):
    """The influence of one tap, M[n, g, i] ~ H[n, g] u[i]."""

    operand: jax.Array | None  # u [*B, I]; None where I is 1, and H exact
    state: jax.Array  # H [*B, N, G]


@dataclasses.dataclass(frozen=True)
class kf_rtrl(Method):
    """Kronecker-factored real-time recurrent learning: of each tap a product of two factors, right in the mean.

        M_t ~ H_t (x) u_t                          H [N, G], u [I] for each tap z = a V
        u_t = c1 p1 u_tm1 + c2 p2 a_t              c1, c2 random signs, one each for a tap and example
        H_t = c1 A_t H_tm1 / p1 + c2 B_t / p2
        p1 = sqrt(|A_t H_tm1| / |u_tm1|),   p2 = sqrt(|B_t| / |a_t|)

    Weights that meet nothing but a one (peepholes, single biases) are exact. The mean over all signs is the exact
    gradient, as long as the parameters stay; the variance is far smaller than that of `uoro`. It needs a key:
    `init(..., key=key)`.
    Memory: N numbers for each unit of a tap and example: for a GRU about twice its weights, for an LSTM four times.
    Cost per step: 2 to 4 N forward steps, most of it A H. `signs(key, shape, dtype)` draws c1 and c2.
    Mujika et al. 2018, "Approximating real-time recurrent learning with random Kronecker factors" (arXiv 1805.10842).
    """

    signs: Signs = jax.random.rademacher

    draws: ClassVar[bool] = True

    def memory(self, step: OnlineStep) -> list[Factors]:
        core, found = step.structure.core, []
        for tap in core.taps:
            operand = None if tap.depth == 1 else jnp.zeros((*core.batch, tap.depth), step.dtype)
            found.append(Factors(operand, jnp.zeros((*core.batch, core.units, tap.size), step.dtype)))
        return found

    def one(self, step: OnlineStep, state: State, memory: list[Factors], now: Window) -> Found:
        moment, core = step.moment(now.params, now.begin, state, now.given), step.structure.core
        b = remembering.letters(core)
        past: dict[Var, jax.Array] = {}
        for tap, (u, H) in zip(core.taps, memory, strict=True):
            by_unit = jnp.einsum(f"{b}n,{b}ng->{b}g", moment.by_state, H)
            ones = jnp.ones((*core.batch, 1), H.dtype)
            by_factor = jnp.einsum(f"{b}g,{b}i->gi", by_unit, ones if u is None else u)
            remembering.add_weights(core, tap, by_factor, past)
        grads = step.with_past(now.params, now.begin, moment.grads, past)
        J = Jacobian(step.structure, moment.env, step.dtype)
        whole, found = J.by_state(), []
        key: Any = now.signs
        for k, (tap, factors) in enumerate(zip(core.taps, memory, strict=True)):
            carried, here = jnp.einsum(f"{b}mn,{b}ng->{b}mg", whole, factors.state), J.by_tap(k)
            a = remembering.factors(core, tap, moment.env, step.dtype)
            found.append(self._mixed(factors.operand, carried, a, here, jax.random.fold_in(key, k)))
        return moment.state, found, moment.loss, grads

    def _mixed(self, u: Any, carried: jax.Array, a: jax.Array, here: jax.Array, key: Key) -> Factors:
        """u (x) carried + a (x) here, as one product that is right in the mean."""
        if u is None:
            return Factors(None, carried + here)
        lead = a.ndim - 1
        c1, c2 = self.signs(key, (2, *a.shape[:-1]), a.dtype)
        p1 = c1 * ratio(norm([carried], lead), norm([u], lead))
        p2 = c2 * ratio(norm([here], lead), norm([a], lead))
        operand = p1[..., None] * u + p2[..., None] * a
        return Factors(operand, carried / p1[..., None, None] + here / p2[..., None, None])
