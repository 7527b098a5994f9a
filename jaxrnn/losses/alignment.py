"""CTC as a recurrence: its forward variables are the state of a cell over logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import checks
from jaxrnn.cells.base import WithoutParameters
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan

NEVER = -1e30  # the log of 0. It is finite, so that no gradient is NaN, and absorbs whatever is added to it.


class CTCState(NamedTuple):
    """What the frames so far say of a labelling z of L labels, in logs.

    `blank[n]`, `label[n]`: the probability, divided by exp(scale), that the frames so far read z_1 .. z_n and
    the last of them is blank (n = 0 .. L), or is z_n itself (n = 1 .. L, kept at n - 1).
    """

    blank: jax.Array  # [*B, L+1]
    label: jax.Array  # [*B, L]
    scale: jax.Array  # [*B]


def ctc(labels: Any, *, label_lengths: Any = None, blank: int = 0, dtype: Any = jnp.float32) -> Cell:
    """Connectionist temporal classification: the probability of a labelling whose alignment is not known.

        x_t = logits of frame t,   p_t = softmax(x_t),   z = the labels, none of them blank
        blank_t(n) = p_t(blank) (blank_tm1(n) + label_tm1(n))                                        n = 0 .. L
        label_t(n) = p_t(z_n) (label_tm1(n) + blank_tm1(n-1) + [z_n != z_nm1] label_tm1(n-1))        n = 1 .. L
        before the first frame blank(0) = 1, all else 0

    Everything is said by the state, a `CTCState`; there is no output. After the last frame `ctc_nll` reads
    -log p(z | x) off it, at any time `ctc_prefix_nll` the probability of having read some beginning of z.
    So frames may come in pieces, and a net and its loss are one cell, of which no scan keeps all logits:

        state, _ = unroll(stack(net, ctc(labels)), (params, ()), xs, lengths=lengths, outputs="none")
        losses = ctc_nll(state[-1])

    Shapes: labels [*B, L] integers (past label_lengths [*B] anything), x_t [*B, V]; 16-bit logits are computed
    in `dtype`, that of the state, float32 or float64. The labels are closed over, as `unroll` does with lengths.
    Computed in logs, lowered at each step by their largest, so that nothing underflows and long sequences lose
    no accuracy. Cost: the softmax of V logits, and 2L + 1 sums of two or three numbers.
    Raises: TypeError or ValueError for labels or lengths that do not fit, labels out of range or blank where
    their values are known; under `jit` such labels make the loss NaN.
    Graves et al. 2006, "Connectionist temporal classification".
    """
    labels, counted = checked_labels("ctc", labels, label_lengths)
    blank = checks.positive_int("ctc", "blank", blank, least=0)
    check_no_blank("ctc", labels, counted, blank)
    return CTC(labels, counted, blank, wide_float("ctc", dtype)).cell


def wide_float(where: str, dtype: Any) -> np.dtype:
    """A dtype in which probabilities of long sequences can be kept."""
    found = checks.float_dtype(where, dtype)
    if found.itemsize < 4:
        raise ValueError(f"{where}: dtype must be float32 or float64, got {found}; 16-bit logits may stay as they are")
    return found


def wider(a: Any, b: Any) -> np.dtype:
    """Of two floating-point dtypes the one with more bits."""
    return max(np.dtype(a), np.dtype(b), key=lambda dtype: dtype.itemsize)


def checked_labels(where: str, labels: Any, label_lengths: Any) -> tuple[jax.Array, jax.Array]:
    """Labels [*B, L] as int32, and which of them count, [*B, L]."""
    array = jnp.asarray(labels)
    if array.size == 0 and not hasattr(labels, "dtype"):
        array = array.astype(jnp.int32)  # an empty list has no type of its own
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.ndim == 0:
        raise TypeError(f"{where}: labels must be integers [*B, L], got {checks.describe(array)}")
    counted = jnp.ones(array.shape, jnp.bool_)
    if label_lengths is not None:
        lengths = checked_counts(where, label_lengths, array.shape)
        counted = lax.broadcasted_iota(jnp.int32, array.shape, array.ndim - 1) < lengths[..., None]
    return array.astype(jnp.int32), counted


def checked_counts(where: str, label_lengths: Any, shape: tuple[int, ...]) -> jax.Array:
    """label_lengths [*B] for labels of this shape."""
    lengths = jnp.asarray(label_lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != shape[:-1]:
        raise ValueError(
            f"{where}: label_lengths must be integers [*B] = {list(shape[:-1])}, as labels have, "
            f"got {checks.describe(lengths)}"
        )
    if checks.is_known(lengths) and lengths.size:
        low, high = int(np.min(np.asarray(lengths))), int(np.max(np.asarray(lengths)))
        if low < 0 or high > shape[-1]:
            raise ValueError(
                f"{where}: label_lengths must lie in 0..{shape[-1]} (that many labels are there), "
                f"got values from {low} to {high}"
            )
    return lengths.astype(jnp.int32)


def check_no_blank(where: str, labels: Any, counted: Any, blank: int) -> None:
    """No label that counts may be the blank, where their values are known."""
    if checks.is_known((labels, counted)):
        wrong = (np.asarray(labels) == blank) & np.asarray(counted)
        if wrong.any():
            raise ValueError(
                f"{where}: labels must not be the blank, {blank}, got it at {[int(n) for n in np.argwhere(wrong)[0]]}; "
                "give label_lengths if it is padding, or name another class with blank=..."
            )


@dataclass(frozen=True, eq=False)  # labels are data: two of these are the same if they are one object
class CTC(WithoutParameters):
    labels: jax.Array  # [*B, L]
    counted: jax.Array  # [*B, L]: false for padding
    blank: int
    dtype: np.dtype

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> CTCState:
        del params
        if tuple(batch_shape) != self.labels.shape[:-1]:
            raise ValueError(
                f"ctc: labels are {checks.describe(self.labels)}, [*B, L], so *B must be "
                f"{self.labels.shape[:-1]}, got {tuple(batch_shape)}; give one row of labels per sequence"
            )
        return nothing_read(self.labels.shape, self.dtype)

    def step(
        self, params: Params, state: CTCState, x: jax.Array, *, key: Key | None = None
    ) -> tuple[CTCState, tuple[()]]:
        del params, key
        check_logits("ctc", x, self.labels, self.blank)
        check_range("ctc", self.labels, self.counted, x.shape[-1])
        return advanced(state, x, self.labels, self.counted, self.blank), ()


def check_logits(where: str, x: Any, labels: jax.Array, blank: int) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:-1] != labels.shape[:-1]:
        raise ValueError(
            f"{where}: x must be floating-point logits [*B, V] with the batch dimensions {labels.shape[:-1]} of "
            f"labels, got {checks.describe(x)}"
        )
    if blank >= x.shape[-1]:
        raise ValueError(f"{where}: blank must be one of the {x.shape[-1]} classes of the logits, got {blank}")


def check_range(where: str, labels: Any, counted: Any, classes: int) -> None:
    """Labels that count must be classes of the logits."""
    checks.classes(where, "labels", labels, counted, classes, f"the logits have {classes} classes")


def nothing_read(shape: tuple[int, ...], dtype: Any) -> CTCState:
    """The state before the first frame, for labels of this shape, [*B, L]."""
    *batch, count = shape
    blank = jnp.full((*batch, count + 1), NEVER, dtype).at[..., 0].set(0.0)
    return CTCState(blank, jnp.full((*batch, count), NEVER, dtype), jnp.zeros(batch, dtype))


def advanced(state: CTCState, logits: jax.Array, labels: jax.Array, counted: jax.Array, blank: int) -> CTCState:
    """The forward variables one frame on."""
    log_blank, log_label = frame(logits, labels, counted, blank, state.blank.dtype)
    read = log_sum(state.blank, shifted(state.label))  # z_1 .. z_n, however they ended
    # A label may follow itself only after a blank.
    before = jnp.where(repeats(labels), state.blank[..., :-1], read[..., :-1])
    new_blank = log_blank[..., None] + read
    new_label = log_label + log_sum(state.label, before)
    return CTCState(*lowered(new_blank, new_label, state.scale))


def frame(
    logits: jax.Array, labels: jax.Array, counted: jax.Array, blank: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """log p of the blank, [*B], and of each label, [*B, L]: NEVER for padding, NaN for what is no label."""
    logits = logits.astype(wider(logits.dtype, dtype))
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    wanted = jnp.take_along_axis(logits, labels, axis=-1, mode="clip") - total
    wrong = (labels < 0) | (labels >= logits.shape[-1]) | (labels == blank)
    wanted = jnp.where(counted, jnp.where(wrong, jnp.nan, wanted), NEVER)
    return (logits[..., blank] - total[..., 0]).astype(dtype), wanted.astype(dtype)


def log_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(e^a + e^b) of numbers, none of them infinite.

    Unlike in `jnp.logaddexp` the two derivatives add up to 1 however the sum was rounded: over hundreds of
    frames the gradient's total, a probability, would drift.
    """
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    return high + jnp.log1p(jnp.exp(low - high))


def repeats(labels: jax.Array) -> jax.Array:
    """[*B, L]: whether a label is the same as the one before it."""
    same = labels[..., 1:] == labels[..., :-1]
    return jnp.concatenate([jnp.zeros_like(labels[..., :1], jnp.bool_), same], axis=-1)


def shifted(label: jax.Array) -> jax.Array:
    """[*B, L] as [*B, L+1]: what stood at n - 1 stands at n, NEVER at 0."""
    return jnp.concatenate([jnp.full((*label.shape[:-1], 1), NEVER, label.dtype), label], axis=-1)


def lowered(blank: jax.Array, label: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same probabilities, the largest of them 1; what was divided out goes into the scale.

    The largest is treated as a number: it cancels in every probability, so it has no gradient to pass on.
    """
    highest = lax.stop_gradient(jnp.max(jnp.concatenate([blank, label], axis=-1), axis=-1))
    highest = jnp.where(highest <= NEVER / 2, 0.0, highest)  # where nothing is possible, nothing becomes so
    lower = lambda a: jnp.maximum(a - highest[..., None], NEVER)
    return lower(blank), lower(label), scale + highest


def ctc_nll(state: CTCState, label_lengths: Any = None) -> jax.Array:
    """-log p(z | x), read off the state of `ctc` after the last frame: [*B].

        -log (blank_T(L) + label_T(L))

    label_lengths [*B] says where each labelling ends; give the same as to `ctc`, or all L labels are asked for, which
    with padding among them is impossible. inf, and a zero gradient, where the labels cannot be read from so few
    frames. Raises: ValueError for lengths of another shape.
    """
    count = state.label.shape[-1]
    read = log_sum(state.blank, shifted(state.label))
    if label_lengths is None:
        return negative_log(read[..., -1], state.scale)
    ends = checked_counts("ctc_nll", label_lengths, (*state.label.shape[:-1], count))
    return negative_log(jnp.take_along_axis(read, ends[..., None], axis=-1)[..., 0], state.scale)


def ctc_prefix_nll(state: CTCState) -> jax.Array:
    """-log of the probability that the frames so far read z_1 .. z_n for some n, 0 <= n <= L: [*B].

    -log sum_n (blank_t(n) + label_t(n))
    """
    return negative_log(jax.nn.logsumexp(jnp.concatenate([state.blank, state.label], axis=-1), axis=-1), state.scale)


def negative_log(log_p: jax.Array, scale: jax.Array) -> jax.Array:
    """-(log p + scale); inf, a constant, where p is 0. NaN stays NaN."""
    return jnp.where(log_p <= NEVER / 2, jnp.inf, -(log_p + scale))


def ctc_loss(
    logits: jax.Array,
    labels: Any,
    *,
    lengths: Any = None,
    label_lengths: Any = None,
    blank: int = 0,
    scan: Scan = fissioned_scan,
) -> jax.Array:
    """The CTC loss of each sequence, from the logits of all frames: [*B], in nats.

        -log p(labels | logits), summed over all alignments: see `ctc`, whose cell this runs over time

    Shapes: logits [T, *B, V], time first; labels [*B, L]; lengths [*B] frames and label_lengths [*B] labels that
    count. Padding of both may hold anything, NaN included, and reaches no gradient. A labelling that its frames
    cannot hold (every label a frame, and one more between equal neighbours) gives inf and a zero gradient, so
    `jnp.where(jnp.isinf(losses), 0, losses)` leaves it out. Computed in float32 at least, float64 for float64.
    Cost: T softmaxes and T (2L + 1) sums; memory is up to `scan`. Where logits of all frames are too many,
    stack `ctc` on the net. Raises: as `ctc` and `unroll`.

    >>> sure = jnp.log(jnp.array([[0.2, 0.8, 0.0], [0.2, 0.0, 0.8]]) + 1e-9)[:, None]  # two frames of one sequence
    >>> round(float(jnp.exp(-ctc_loss(sure, [[1, 2]])[0])), 2)  # there is one way to read 1, 2
    0.64
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"ctc_loss: logits must be floating-point [T, *B, V], got {checks.describe(logits)}")
    cell = ctc(labels, label_lengths=label_lengths, blank=blank, dtype=wider(logits.dtype, jnp.float32))
    start = cell.initial_state((), logits.shape[1:-1])
    state, _ = unroll(cell, (), logits, start, lengths=lengths, outputs="none", scan=scan)
    return ctc_nll(state, label_lengths)
