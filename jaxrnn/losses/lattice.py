"""The transducer's loss: a recurrence over frames, and within each frame one over labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.cells.base import WithoutParameters
from jaxrnn.losses.alignment import (
    NEVER,
    check_no_blank,
    check_range,
    checked_counts,
    checked_labels,
    log_sum,
    negative_log,
    wide_float,
    wider,
)
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan


class TransducerState(NamedTuple):
    """`alpha[n]`: log of the probability, divided by exp(scale), that the frames so far emitted z_1 .. z_n."""

    alpha: jax.Array  # [*B, L+1]
    scale: jax.Array  # [*B]


def transducer(labels: Any, *, label_lengths: Any = None, blank: int = 0, dtype: Any = jnp.float32) -> Cell:
    """The probability of a labelling under a transducer, which after each label predicts anew.

        x_t(n) = logits at frame t after n labels,   p_t(. | n) = softmax(x_t(n))
        r_t(n) = alpha_tm1(n) + p_t(z_n | n-1) r_t(n-1)      at frame t with n labels emitted          n = 0 .. L
        alpha_t(n) = r_t(n) p_t(blank | n)                   and no more of them at this frame
        before the first frame alpha(0) = 1, all else 0;     p(z | x) = alpha_T(L)

    The recurrence over n is affine, so it is done in log2(L) rounds. All is in the state, a `TransducerState`;
    `transducer_nll` reads the loss off it. The logits of all frames and labels, T L V of them, are what makes this
    loss dear. As a cell it needs those of one frame at a time:

        joint = lift(lambda encoded: join(encoded, predicted))     encoded [*B, H], predicted [*B, L+1, H] closed over
        state, _ = unroll(stack(encoder, joint, transducer(labels)), params, xs, outputs="none", scan=checkpointed())

    Shapes: labels [*B, L], label_lengths [*B], x_t [*B, L+1, V]; 16-bit logits are computed in `dtype`, float32 or
    float64. Cost: the softmax of (L + 1) V logits per frame and sequence.
    Raises: TypeError or ValueError for labels or lengths that do not fit, or out of range where they are known; under
    `jit` such labels make the loss NaN. Graves 2012, "Sequence transduction with recurrent neural networks".
    """
    return _of_labels(labels, label_lengths, blank, dtype).cell


def _of_labels(labels: Any, label_lengths: Any, blank: int, dtype: Any) -> Transducer:
    labels, counted = checked_labels("transducer", labels, label_lengths)
    blank = checks.positive_int("transducer", "blank", blank, least=0)
    check_no_blank("transducer", labels, counted, blank)
    return Transducer(labels, counted, blank, wide_float("transducer", dtype))


@dataclass(frozen=True, eq=False)  # labels are data: two of these are the same if they are one object
class Transducer(WithoutParameters):
    labels: jax.Array  # [*B, L]
    counted: jax.Array  # [*B, L]: false for padding
    blank: int
    dtype: np.dtype

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> TransducerState:
        del params
        *batch, count = self.labels.shape
        if tuple(batch_shape) != tuple(batch):
            raise ValueError(
                f"transducer: labels are {checks.describe(self.labels)}, [*B, L], so *B must be {tuple(batch)}, "
                f"got {tuple(batch_shape)}; give one row of labels per sequence"
            )
        alpha = jnp.full((*batch, count + 1), NEVER, self.dtype).at[..., 0].set(0.0)
        return TransducerState(alpha, jnp.zeros(batch, self.dtype))

    def step(
        self, params: Params, state: TransducerState, x: jax.Array, *, key: Key | None = None
    ) -> tuple[TransducerState, tuple[()]]:
        del params, key
        self.check(x)
        log_blank, log_label = self._frame(x, state.alpha.dtype)
        alpha = jnp.maximum(_within_a_frame(state.alpha, log_label), NEVER) + log_blank
        highest = lax.stop_gradient(jnp.max(alpha, axis=-1))  # cancels: it has no gradient to pass on
        highest = jnp.where(highest <= NEVER / 2, 0.0, highest)
        return TransducerState(jnp.maximum(alpha - highest[..., None], NEVER), state.scale + highest), ()

    def check(self, x: Any) -> None:
        """One frame's logits must be as many as the labels need, and have their classes."""
        *batch, count = self.labels.shape
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:-1] != (*batch, count + 1):
            raise ValueError(
                f"transducer: x must be floating-point logits [*B, L+1, V] = {[*batch, count + 1]} + [V], as labels "
                f"are {checks.describe(self.labels)}, got {checks.describe(x)}"
            )
        if self.blank >= x.shape[-1]:
            raise ValueError(f"transducer: blank must be one of the {x.shape[-1]} classes, got {self.blank}")
        check_range("transducer", self.labels, self.counted, x.shape[-1])

    def _frame(self, logits: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """log p of the blank after n labels, [*B, L+1], and of the label that is due there, [*B, L]."""
        logits = logits.astype(wider(logits.dtype, dtype))
        total = jax.nn.logsumexp(logits, axis=-1)
        wanted = jnp.take_along_axis(logits[..., :-1, :], self.labels[..., None], axis=-1, mode="clip")[..., 0]
        wrong = (self.labels < 0) | (self.labels >= logits.shape[-1]) | (self.labels == self.blank)
        log_label = jnp.where(wrong, jnp.nan, wanted - total[..., :-1])
        log_label = jnp.where(self.counted, log_label, NEVER)
        return (logits[..., self.blank] - total).astype(dtype), log_label.astype(dtype)


def _within_a_frame(alpha: jax.Array, log_label: jax.Array) -> jax.Array:
    """r(n) = log(e^alpha(n) + e^(log_label(n) + r(n-1))), all n in log2(L) rounds; log_label has none for n = 0."""
    first = jnp.full((*log_label.shape[:-1], 1), NEVER, log_label.dtype)

    def then(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (a, r), (b, s) = one, other
        return a + b, log_sum(r + b, s)

    return lax.associative_scan(then, (jnp.concatenate([first, log_label], axis=-1), alpha), axis=alpha.ndim - 1)[1]


def transducer_nll(state: TransducerState, label_lengths: Any = None) -> jax.Array:
    """-log p(z | x), read off the state of `transducer` after the last frame: [*B]; inf, and no gradient, if p is 0."""
    *batch, most = state.alpha.shape
    if label_lengths is None:
        return negative_log(state.alpha[..., -1], state.scale)
    ends = checked_counts("transducer_nll", label_lengths, (*batch, most - 1))
    return negative_log(jnp.take_along_axis(state.alpha, ends[..., None], axis=-1)[..., 0], state.scale)


def transducer_loss(
    logits: Any,
    labels: Any,
    *,
    lengths: Any = None,
    label_lengths: Any = None,
    blank: int = 0,
    scan: Scan = fissioned_scan,
) -> jax.Array:
    """The transducer loss (RNN-T) of each sequence: -log p(labels | logits), [*B], in nats; see `transducer`.

    Shapes: logits [T, *B, L+1, V], time first: those of frame t after n labels; labels [*B, L], lengths [*B] frames,
    label_lengths [*B]. Padding may hold anything, NaN included. Computed in float32 at least.
    Cost and errors as for `transducer`, which holds one frame's logits where this is given all.

    >>> even = jnp.zeros((2, 1, 2, 2))  # two frames, one label, two classes: all alike
    >>> round(float(jnp.exp(-transducer_loss(even, [[1]])[0])), 3)  # the label comes at either frame: 2 / 2^3
    0.25
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 3 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"transducer_loss: logits must be floating-point [T, *B, L+1, V], got {checks.describe(logits)}"
        )
    made = _of_labels(labels, label_lengths, blank, wider(logits.dtype, jnp.float32))
    made.check(trees.first_step(logits))
    start = made.initial_state((), logits.shape[1:-2])
    state, _ = unroll(made.cell, (), logits, start, lengths=lengths, outputs="none", scan=scan)
    return transducer_nll(state, label_lengths)
