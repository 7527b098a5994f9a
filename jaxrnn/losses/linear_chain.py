"""Linear-chain conditional random fields: the score of a tagging and the sum over all of them, as a recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import checks
from jaxrnn.cells.base import Definition, WithoutParameters
from jaxrnn.losses.alignment import wide_float, wider
from jaxrnn.losses.stepwise import counted_steps
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan


class CRFState(NamedTuple):
    """What the steps so far say of all taggings, and of the given one."""

    alpha: jax.Array  # [*B, K]: log of the sum over all taggings that end in each tag, lowered by its largest
    gap: jax.Array  # [*B]: what alpha was lowered by, less the given tagging's score: small where the net is sure
    score: jax.Array  # [*B]: of the given tagging so far
    tag: jax.Array  # [*B] int32: its last tag
    begun: jax.Array  # [*B] bool: whether there was a step


def crf(tags: int, *, dtype: Any = jnp.float32) -> Cell:
    """A linear-chain conditional random field over K = `tags` tags: a cell over emissions and the given tags.

        score(z) = start[z_1] + sum_t x_t[z_t] + sum_t transitions[z_tm1, z_t] + end[z_T]
        alpha_t(j) = x_t(j) + log sum_i exp(alpha_tm1(i) + transitions[i, j]),   alpha_1 = x_1 + start
        log Z = log sum_j exp(alpha_T(j) + end_j);     -log p(z | x) = log Z - score(z)

    Parameters: transitions [K, K], start [K], end [K], zero at first, so that every tagging is judged by its
    emissions alone. x_t is a pair (emissions [*B, K], tags [*B] integers); the state, a `CRFState`, says all, and
    there is no output. `crf_nll` reads the loss off it, `crf_log_z` the logarithm of the sum. So a net and its loss
    are one cell: `stack(alongside(net), crf(K))` over (inputs, tags).
    `dtype` is that of parameters and state, float32 or float64; 16-bit emissions are computed in it. alpha is
    lowered by its largest at each step, so long sequences lose no accuracy.
    Cost: K^2 sums per step and sequence. Raises: ValueError for another number of tags, TypeError for tags that are
    no integers; a tag out of range makes the loss NaN (`crf_loss` looks where values are known).
    Lafferty, McCallum and Pereira 2001, "Conditional random fields".
    """
    return CRF(checks.positive_int("crf", "tags", tags), wide_float("crf", dtype)).cell


@dataclass(frozen=True)
class CRF(Definition):
    tags: int
    dtype: np.dtype

    def init(self, key: Key, x: Any) -> Params:
        del key, x
        zeros = lambda *shape: jnp.zeros(shape, self.dtype)
        return {"transitions": zeros(self.tags, self.tags), "start": zeros(self.tags), "end": zeros(self.tags)}

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> CRFState:
        dtype = params["transitions"].dtype
        zero = jnp.zeros(batch_shape, dtype)
        alpha = jnp.zeros((*batch_shape, self.tags), dtype)
        return CRFState(alpha, zero, zero, jnp.zeros(batch_shape, jnp.int32), jnp.zeros(batch_shape, jnp.bool_))

    def step(self, params: Params, state: CRFState, x: Any, *, key: Key | None = None) -> tuple[CRFState, tuple[()]]:
        del key
        check_params("crf", params, self.tags)
        emissions, tag = pair_of("crf", x, self.tags)
        emissions = emissions.astype(state.alpha.dtype)
        came = over_transitions(jax.nn.logsumexp, state, params)
        alpha = came + emissions
        highest = lax.stop_gradient(jnp.max(alpha, axis=-1))  # cancels in the loss: it has no gradient to pass on
        into = jnp.where(
            state.begun[..., None],
            jnp.take(params["transitions"], state.tag, axis=0, mode="clip"),
            over(params["start"], alpha),
        )
        gained = at_tag(into + emissions, tag)
        moved = CRFState(
            alpha=alpha - highest[..., None],
            gap=state.gap + (highest - gained),
            score=state.score + gained,
            tag=tag.astype(jnp.int32),
            begun=jnp.ones_like(state.begun),
        )
        return moved, ()


def check_params(where: str, params: Params, tags: int) -> None:
    if params["transitions"].shape != (tags, tags):
        raise ValueError(
            f"{where}: params['transitions'] should be [{tags}, {tags}], got {checks.describe(params['transitions'])}; "
            "use parameters made for this number of tags"
        )


def pair_of(where: str, x: Any, tags: int) -> tuple[jax.Array, jax.Array]:
    """One step's emissions and tags."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(
            f"{where}: x must be a pair (emissions [*B, {tags}], tags [*B]), got {type(x).__name__}; "
            "a net goes in front with stack(alongside(net), crf(...))"
        )
    emissions, tag = x
    checks.features(where, emissions, tags)
    if not jnp.issubdtype(tag.dtype, jnp.integer) or tag.shape != emissions.shape[:-1]:
        raise TypeError(
            f"{where}: tags must be integers {list(emissions.shape[:-1])}, as emissions are "
            f"{checks.describe(emissions)}, got {checks.describe(tag)}"
        )
    return emissions, tag


def over(row: jax.Array, like: jax.Array) -> jax.Array:
    """A row of parameters, [K], for every sequence: [*B, K]."""
    return jnp.broadcast_to(row, like.shape)


def over_transitions(reduce: Any, state: Any, params: Params) -> jax.Array:
    """What each tag is reached with, [*B, K]: by `reduce` over the tags before; at first from the start."""
    ways = state.alpha[..., :, None] + jnp.broadcast_to(
        params["transitions"], (*state.alpha.shape, state.alpha.shape[-1])
    )
    return jnp.where(state.begun[..., None], reduce(ways, axis=-2), over(params["start"], state.alpha))


def at_tag(values: jax.Array, tag: jax.Array) -> jax.Array:
    """values[tag], [*B]; NaN for what is no tag."""
    chosen = jnp.take_along_axis(values, tag[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.where((tag < 0) | (tag >= values.shape[-1]), jnp.nan, chosen)


def crf_nll(params: Params, state: CRFState) -> jax.Array:
    """-log p(tags | x), read off the state of `crf` after the last step: [*B], in nats; 0 where there was none.

    log sum_j exp(alpha_T(j) + end_j) - score(tags)
    """
    total = jax.nn.logsumexp(state.alpha + over(params["end"], state.alpha), axis=-1)
    return jnp.where(state.begun, total + state.gap - jnp.take(params["end"], state.tag, mode="clip"), 0.0)


def crf_log_z(params: Params, state: CRFState) -> jax.Array:
    """log Z, the sum over all taggings, read off the state of `crf`: [*B]; 0 where there was no step.

    Its gradient by the emissions is the probability of each tag at each step, see `crf_marginals`.
    """
    total = jax.nn.logsumexp(state.alpha + over(params["end"], state.alpha), axis=-1)
    return jnp.where(state.begun, total + state.gap + state.score, 0.0)


def crf_loss(
    params: Params, emissions: Any, tags: Any, *, lengths: Any = None, scan: Scan = fissioned_scan
) -> jax.Array:
    """-log p(tags | emissions) of each sequence under a linear-chain CRF: [*B], in nats; see `crf`.

    Shapes: emissions [T, *B, K], tags [T, *B] integers, lengths [*B]; padding may hold anything, NaN included.
    Cost: T K^2 sums per sequence; memory is up to `scan`. Raises: ValueError or TypeError for shapes, dtypes or
    lengths that do not fit, and for tags out of range where their values are known (else the loss is NaN).
    """
    emissions, tags = jnp.asarray(emissions), jnp.asarray(tags)
    check_emissions("crf_loss", params, emissions)
    if tags.shape != emissions.shape[:-1] or not jnp.issubdtype(tags.dtype, jnp.integer):
        raise ValueError(
            f"crf_loss: tags must be integers [T, *B] = {list(emissions.shape[:-1])}, got {checks.describe(tags)}"
        )
    counted = counted_steps("crf_loss", tags.shape, lengths, None)
    checks.classes("crf_loss", "tags", tags, counted, emissions.shape[-1], "say with lengths what is padding")
    return crf_nll(params, _last_state(params, emissions, tags, lengths, scan))


def check_emissions(where: str, params: Params, emissions: jax.Array) -> None:
    tags = params["transitions"].shape[-1]
    if emissions.ndim < 2 or emissions.shape[-1] != tags or not jnp.issubdtype(emissions.dtype, jnp.floating):
        raise ValueError(
            f"{where}: emissions must be floating-point [T, *B, {tags}], as there are {tags} tags in the parameters, "
            f"got {checks.describe(emissions)}"
        )


def _last_state(params: Params, emissions: jax.Array, tags: jax.Array, lengths: Any, scan: Scan) -> CRFState:
    cell = crf(emissions.shape[-1], dtype=wider(params["transitions"].dtype, jnp.float32))
    start = cell.initial_state(params, emissions.shape[1:-1])
    return unroll(cell, params, (emissions, tags), start, lengths=lengths, outputs="none", scan=scan)[0]


def crf_marginals(params: Params, emissions: Any, *, lengths: Any = None, scan: Scan = fissioned_scan) -> jax.Array:
    """The probability of each tag at each step: [T, *B, K], 0 in padding.

        p(z_t = k | x) = d log Z / d x_t(k)

    The backward pass through log Z is the backward half of the forward-backward algorithm, so every scan serves
    it. Shapes and errors as in `crf_loss`.
    """
    emissions = jnp.asarray(emissions)
    check_emissions("crf_marginals", params, emissions)
    tags = jnp.zeros(emissions.shape[:-1], jnp.int32)  # any: log Z does not depend on them

    def total(emissions: jax.Array) -> jax.Array:
        return jnp.sum(crf_log_z(params, _last_state(params, emissions, tags, lengths, scan)))

    return jax.grad(total)(emissions)


class ViterbiState(NamedTuple):
    alpha: jax.Array  # [*B, K]: the best score of a tagging that ends in each tag
    begun: jax.Array  # [*B] bool


@dataclass(frozen=True)
class Viterbi(Definition):
    """x_t = emissions [*B, K]; y_t(j): the tag before j in the best tagging that ends in j, [*B, K] int32."""

    tags: int

    def init(self, key: Key, x: Any) -> Params:
        return CRF(self.tags, np.dtype(np.float32)).init(key, x)

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> ViterbiState:
        alpha = jnp.zeros((*batch_shape, self.tags), params["transitions"].dtype)
        return ViterbiState(alpha, jnp.zeros(batch_shape, jnp.bool_))

    def step(
        self, params: Params, state: ViterbiState, x: jax.Array, *, key: Key | None = None
    ) -> tuple[ViterbiState, jax.Array]:
        del key
        alpha = over_transitions(jnp.max, state, params) + x.astype(state.alpha.dtype)
        before = over_transitions(jnp.argmax, state, {**params, "start": jnp.zeros(self.tags, jnp.int32)})
        return ViterbiState(alpha, jnp.ones_like(state.begun)), before.astype(jnp.int32)


@dataclass(frozen=True)
class Followed(WithoutParameters):
    """Back along the best tagging: the state is the tag, x_t says which one came before it, y_t = the tag."""

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> jax.Array:
        del params
        return jnp.zeros(batch_shape, jnp.int32)

    def step(
        self, params: Params, state: jax.Array, x: jax.Array, *, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del params, key
        return jnp.take_along_axis(x, state[..., None], axis=-1)[..., 0], state


def viterbi(
    params: Params, emissions: Any, *, lengths: Any = None, scan: Scan = fissioned_scan
) -> tuple[jax.Array, jax.Array]:
    """The best tagging of each sequence under a linear-chain CRF, and its score: tags [T, *B] int32, scores [*B].

        alpha_t(j) = x_t(j) + max_i (alpha_tm1(i) + transitions[i, j])
        z_T = argmax_j alpha_T(j) + end_j,  and back from there along the i that were taken

    Shapes: emissions [T, *B, K], lengths [*B]; tags are 0 in padding, which may hold anything.
    Cost: two loops over T, K^2 sums per step; T K small integers are kept.
    Raises: ValueError or TypeError for shapes, dtypes or lengths that do not fit.

    >>> params = crf(2).init(None, None) | {"transitions": jnp.array([[0.0, -5.0], [-5.0, 0.0]])}  # rather stay
    >>> tags, score = viterbi(params, jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> tags.tolist(), float(score)
    ([0, 0, 0], 2.0)
    """
    emissions = jnp.asarray(emissions)
    check_emissions("viterbi", params, emissions)
    batch = emissions.shape[1:-1]
    forward = Viterbi(emissions.shape[-1]).cell
    state, before = unroll(forward, params, emissions, forward.initial_state(params, batch), lengths=lengths, scan=scan)
    final = state.alpha + over(params["end"], state.alpha)
    last = jnp.argmax(final, axis=-1).astype(jnp.int32)
    _, tags = unroll(Followed().cell, (), before, last, lengths=lengths, reverse=True, scan=scan)
    return tags, jnp.where(state.begun, jnp.max(final, axis=-1), 0.0)
