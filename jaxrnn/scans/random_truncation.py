"""`randomly_truncated`: truncation at random places, compensated so that the gradient is right on average."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.engine.loop import Leaves
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.types import Key, Scan, Tree


@dataclass(frozen=True, eq=False)
class randomly_truncated(Strategy):  # noqa: N801
    """A scan whose gradient is cut at random places and compensated where it is not: unbiased truncation (ARTBP).

        for t in range(1, T):                               # X_t = 1 with probability c_t: a cut before step t
            dL/dcarry_t = 0                                 if X_t
                          what comes back / (1 - c_t)       otherwise

    Each factor is 1 on average, whatever came before it, so the mean of the gradient over keys is BPTT's
    gradient, and forward mode's slope has the right mean too; the values are exact. Segments are `mean_length`
    steps long on average. With `alpha=None` every step is as likely to begin one, c = 1 / mean_length,
    and what reaches back n steps is multiplied by (1 - c)^-n. With a number, c_t falls with the time d
    since the last cut (1 for the step after it), and lengths have a heavy tail, P(length > n) ~ n^(1 - alpha):

        c_t = (alpha - 1) / ((alpha - 2) mean_length + d)

    so that the compensation grows no faster than n^(alpha - 1); a larger alpha is nearer to the former. The
    less a problem's gradient reaches beyond `mean_length`, the less variance this adds.

    The first and the last carry's gradients are unbiased too. `key` is consumed: give each update its own,
    as in `scan=randomly_truncated(key, mean_length=20)` within the loss. All sequences of a batch are cut
    at the same places; under `vmap` over keys each at its own.
    Cost: `inner`'s, in memory too, and one number per step: under `jit` a segment's length must be known, so
    nothing is saved where the gradient is cut; give `inner=checkpointed(...)` to save memory. It serves to
    find out what the bias of `truncated` does to a training, all else being equal.
    Limits: not a value that compares (it holds a key). Raises: ValueError for a mean_length that is not
    above 1 or an alpha that is not above 2, TypeError for an inner that is no scan, and what `lax.scan`
    raises. Tallec and Ollivier 2017, "Unbiasing truncated backpropagation through time".
    """

    key: Key
    mean_length: float = field(kw_only=True)
    alpha: float | None = field(default=None, kw_only=True)
    inner: Scan = field(default=lax.scan, kw_only=True)
    name: ClassVar[str] = "randomly_truncated"

    def __post_init__(self) -> None:
        if not checks.number(self.mean_length) > 1:
            raise ValueError(
                f"randomly_truncated: mean_length must be a number of steps above 1, got {self.mean_length!r}; "
                "use truncated(1) to cut everywhere"
            )
        if self.alpha is not None and not 2 < checks.number(self.alpha) < math.inf:
            raise ValueError(
                f"randomly_truncated: alpha must be above 2, or lengths have no mean, got {self.alpha!r}; "
                "use alpha=None for a constant chance"
            )
        checks.a_scan("randomly_truncated", "inner", self.inner)

    def chance(self, since: jax.Array) -> jax.Array:
        """The probability of a cut before a step, `since` steps (at least 1) after the one that began the segment."""
        if self.alpha is None or math.isinf(self.mean_length):
            return jnp.full_like(since, 1 / self.mean_length)
        return (self.alpha - 1) / ((self.alpha - 2) * self.mean_length + since)

    def factors(self, steps: int) -> jax.Array:
        """[T], in the order in which steps run: 0 where it is cut before a step, else the compensation."""

        def body(since: jax.Array, draw: jax.Array) -> tuple[jax.Array, jax.Array]:
            chance = self.chance(since)
            cut = draw < chance
            return jnp.where(cut, jnp.ones_like(since), since + 1), jnp.where(cut, 0 * chance, 1 / (1 - chance))

        draws = jax.random.uniform(self.key, (max(steps - 1, 0),), dtype=float)
        _, factors = lax.scan(body, jnp.ones((), draws.dtype), draws)
        return jnp.concatenate([jnp.ones(min(steps, 1), draws.dtype), factors])  # nothing is cut before the first step

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        return reweighted(problem, self.inner, self.factors(problem.known_steps()))


def reweighted(problem: LoopProblem, inner: Scan, factors: jax.Array) -> tuple[Tree, Tree]:
    """The loop, whose gradient is multiplied by factors[t] where it goes back past the beginning of step t.

    factors [T], in the order in which steps run. A factor of 0 lets nothing pass, NaN included.
    """

    def step(carry: Leaves, factor_and_x: Leaves) -> tuple[Leaves, Leaves]:
        factor, *x = factor_and_x
        return problem.step([_passing(a, factor) if trees.is_float(a) else a for a in carry], x)

    factors = jnp.flip(factors) if problem.reverse else factors
    xs = [factors, *problem.xs]
    run = problem.under(inner)
    return problem.result(*run(step, problem.init, xs, length=problem.steps, reverse=problem.reverse))


@jax.custom_jvp
def _passing(a: jax.Array, factor: jax.Array) -> jax.Array:
    """a; its tangent, and so its gradient, times the factor."""
    del factor
    return a


@_passing.defjvp
def _passing_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[Tree, Tree]:
    (a, factor), (tangent, _) = primals, tangents
    scaled = tangent * factor.astype(a.dtype)
    return a, jnp.where(factor == 0, jnp.zeros_like(scaled), scaled)
