"""CTC without end: training on a stream by windows that are shorter than its utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln

from jaxrnn import checks
from jaxrnn.cells.base import WithoutParameters
from jaxrnn.combinators.masking import choose
from jaxrnn.losses.alignment import (
    NEVER,
    CTCState,
    advanced,
    check_logits,
    check_no_blank,
    check_range,
    ctc_nll,
    ctc_prefix_nll,
    log_sum,
    negative_log,
    nothing_read,
    shifted,
    wide_float,
)
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree

PARTIAL = ("prefixes", "truncated", "progress")


class Utterances(NamedTuple):
    """What is known of each frame of a stream: to which utterance it belongs, and where in it."""

    labels: Any  # [T, *B, L] integers: those of the whole utterance
    label_lengths: Any  # [T, *B]: how many of them there are
    begins: Any  # [T, *B] booleans: whether it begins with this frame
    ends: Any  # [T, *B] booleans: whether it ends with this frame
    progress: Any  # [T, *B]: which share of it has passed with this frame; read by partial="progress" alone


def utterances(labels: Sequence[Sequence[int]], frames: Sequence[int], *, most: int | None = None) -> Utterances:
    """One stream of utterances laid end to end: utterance n lasts frames[n] frames and reads labels[n].

    Gives numpy arrays [T, ...] with T = sum(frames), labels padded to `most` of them. Streams side by side:
    `jax.tree.map(lambda *each: np.stack(each, axis=1), *streams)`.
    Raises: ValueError for lists of unequal length, an utterance of no frames, more labels than `most`.

    >>> utterances([[3, 1], [2]], [3, 2]).labels.tolist()
    [[3, 1], [3, 1], [3, 1], [2, 0], [2, 0]]
    """
    count = max((len(z) for z in labels), default=0)
    most = count if most is None else checks.positive_int("utterances", "most", most, least=0)
    if len(labels) != len(frames) or any(n < 1 for n in frames) or count > most:
        raise ValueError(
            "utterances: labels and frames must be equally many, each utterance of at least one frame and at most "
            f"{most} labels, got {len(labels)} and {len(frames)}, at least {min(frames, default=1)} frames and up to "
            f"{count} labels"
        )
    rows = np.array([[*z, *[0] * (most - len(z))] for z in labels], np.int32).reshape(len(labels), most)
    nth = np.repeat(np.arange(len(frames)), frames)
    last = np.cumsum(frames)[nth] - 1 if len(frames) else np.zeros(0, int)
    t, total = np.arange(len(nth)), np.asarray(frames, int)[nth]
    passed = t - last + total  # of its own frames
    lengths = np.array([len(z) for z in labels], np.int32)[nth]
    return Utterances(rows[nth], lengths, passed == 1, passed == total, (passed / total).astype(np.float32))


def ctc_stream(labels: int, *, blank: int = 0, dtype: Any = jnp.float32) -> Cell:
    """CTC over a stream of utterances of up to L = `labels` labels each, one after the other.

        x_t = (logits of frame t [*B, V], Utterances of frame t)
        y_t = -log p(labels | the utterance's frames)  where one ends,  else 0              [*B]

    Its state is that of `ctc` for the open utterance, everything impossible where none is. An utterance whose
    beginning was not seen, or that its frames cannot hold, gives 0 and no gradient.
    """
    L = checks.positive_int("ctc_stream", "labels", labels, least=0)
    return CTCStream(
        L, checks.positive_int("ctc_stream", "blank", blank, least=0), wide_float("ctc_stream", dtype)
    ).cell


@dataclass(frozen=True)
class CTCStream(WithoutParameters):
    labels: int
    blank: int
    dtype: np.dtype

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> CTCState:
        del params
        return _closed(nothing_read((*batch_shape, self.labels), self.dtype))

    def step(self, params: Params, state: CTCState, x: Any, *, key: Key | None = None) -> tuple[CTCState, jax.Array]:
        del params, key
        logits, now = x[0], Utterances(*x[1])
        labels = now.labels.astype(jnp.int32)
        check_logits("ctc_stream", logits, labels, self.blank)
        counted = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1) < now.label_lengths[..., None]
        check_no_blank("ctc_stream", labels, counted, self.blank)
        check_range("ctc_stream", labels, counted, logits.shape[-1])
        state = choose("ctc_stream", "state", now.begins, nothing_read(labels.shape, state.scale.dtype), state)
        state = advanced(state, logits, labels, counted, self.blank)
        nll = ctc_nll(state, now.label_lengths)
        return choose("ctc_stream", "state", now.ends, _closed(state), state), jnp.where(now.ends, _known(nll), 0.0)


def _closed(state: CTCState) -> CTCState:
    """No utterance is open: nothing is possible until one begins."""
    never = lambda a: jnp.full_like(a, NEVER)
    return CTCState(never(state.blank), never(state.label), jnp.zeros_like(state.scale))


def _known(nll: jax.Array) -> jax.Array:
    """0, a constant, where nothing was possible."""
    return jnp.where(jnp.isinf(nll), 0.0, nll)


class OnlineStates(NamedTuple):
    """What one window hands to the next; all of it constants."""

    net: State  # before the window's first frame
    ctc: CTCState  # before the first frame that sends errors


class Window(NamedTuple):
    states: OnlineStates  # for the window that begins `emit` frames later
    closed: jax.Array  # [*B]: the losses of the utterances that ended among the `emit` frames: what to report


def online_start(net: Cell, params: Params, utterances: Utterances, *, dtype: Any = jnp.float32) -> OnlineStates:
    """The states before a stream: the net's own, and no utterance open. `utterances` [T, *B, ...] says *B and L."""
    _, *batch, count = np.shape(utterances.labels)
    stream = ctc_stream(count, dtype=dtype)
    return OnlineStates(net.initial_state(params, tuple(batch)), stream.initial_state((), tuple(batch)))


def online_ctc(
    net: Cell,
    params: Params,
    states: OnlineStates,
    xs: Tree,
    utterances: Utterances,
    *,
    reach: int,
    emit: int,
    lookahead: int,
    partial: str = "prefixes",
    blank: int = 0,
    key: Key | None = None,
    scan: Scan = fissioned_scan,
) -> tuple[jax.Array, Window]:
    """CTC on one window of an endless stream: utterances may be longer than the window, and never need to end in it.

        |--- reach ---|--- emit ---|--- lookahead ---|          one window; the next begins `emit` frames later
         errors flow    errors come   what follows is seen,
         back through   from here     so that alignments are known

    Of the window's frames only the `emit` in the middle send errors, so each frame of the stream does it once;
    they flow back through `reach` frames before, at least. Forward variables and net states go on from window to window
    (`states`, at first `online_start`), so an utterance's loss, once it ends, is that of the whole utterance.
    xs [reach + emit + lookahead, *B, ...] and `utterances` alike are one window's; the net's outputs are logits.
    Gives (loss [*B], Window): differentiate the loss, hand on `Window.states`, report `Window.closed`:

        states = online_start(net, params, utterances)
        for s in range(0, T - (reach + emit + lookahead) + 1, emit):     the first `reach` frames send no errors
            loss, (states, closed) = online_ctc(net, params, states, xs[s : s + window], ...)

    An utterance that ends in the window gives its own loss. Of one still open at the window's end `partial` says:
      "prefixes"   -log of the probability of having read any beginning of its labels. Its gradient is that of
                   expectation maximisation over how far the reading has got. It always teaches something; but the
                   empty beginning is one of them, so while the net says little but blanks it pulls to all-blank
                   (below: half the right direction and several times as strong), and training is slow to get away.
      "truncated"  nothing. Frames learn only if their utterance ends within the window, the more the longer the
                   lookahead; the errors that come are exact, but for those cut off by `reach`.
      "progress"   as "prefixes", each beginning of n of L labels weighted by how likely n are after the share f of
                   the frames that has passed, Binomial(L, f): silence is no longer the easy answer. Biased where
                   labels are spread unevenly, and needs to know f.
    Where reach and lookahead cover whatever a frame depends on, the sum of the windows' gradients is the whole
    stream's. Else, its cosine with that (GRU of 32, utterances of about 80 frames, 6 to 12 labels of 7), at first /
    after 60 updates with the whole gradient, where the net says little but blanks / after 300, where it has learnt:

        reach / emit / lookahead      prefixes             truncated            progress
        96 / 32 / 96                  1.000 1.000 1.000    1.000 1.000 1.000
        32 / 32 / 32                  0.995 0.493 1.000    0.978 0.868 0.877    0.997 0.792 1.000
        16 / 16 / 16                  0.971 0.420 0.999    0.920 0.655 0.520    0.984 0.538 0.999
         0 / 64 /  0                  0.977 0.440 0.985                         0.987 0.593 0.990
         0 / 32 /  0                  0.935 0.408 0.967

    `partial` may change from call to call. On speech, in windows shorter than most utterances, nets begun with
    "prefixes" or "progress" stayed at all-blank; begun with "truncated" for the first fifth of the training and gone on
    with "progress", they learnt what whole utterances teach (experiments.endless_speech).

    Cost: the net over reach + emit frames forward and backward, over lookahead frames forward; memory up to
    `scan`, for reach + emit frames, however long the stream.
    Raises: ValueError for frame counts that do not fit, an unknown `partial`, and what `ctc` and `unroll` raise.
    After Hwang and Sung 2016, "Sequence to sequence training of CTC-RNNs with partial windowing", whose online
    CTC by expectation maximisation trains on streams longer than the unrolled net.
    """
    reach = checks.positive_int("online_ctc", "reach", reach, least=0)
    emit = checks.positive_int("online_ctc", "emit", emit)
    lookahead = checks.positive_int("online_ctc", "lookahead", lookahead, least=0)
    checks.one_of("online_ctc", "partial", partial, PARTIAL)
    steps = checks.steps("online_ctc", (xs, utterances))
    if steps != reach + emit + lookahead:
        raise ValueError(
            f"online_ctc: xs and utterances should have reach + emit + lookahead = {reach + emit + lookahead} frames, "
            f"got {steps}; cut one window out of the stream"
        )
    states, seen = lax.stop_gradient(states), Utterances(*map(jnp.asarray, utterances))
    if seen.labels.shape[1:] != states.ctc.label.shape:
        raise ValueError(
            f"online_ctc: utterances.labels should be [T, *B, L] with *B, L as in states, {states.ctc.label.shape}, "
            f"got {checks.describe(seen.labels)}; begin with online_start(net, params, utterances)"
        )
    logits, ahead, next_net = _logits(net, params, states.net, xs, (reach, emit), key, scan)
    cell = ctc_stream(seen.labels.shape[-1], blank=blank, dtype=states.ctc.scale.dtype)
    read = lambda state, logits, start: unroll(
        cell, (), (logits, cut(seen, start, start + len(logits))), state, outputs="sum", scan=scan
    )
    next_ctc, ended = read(states.ctc, logits, reach)
    last, ended_ahead = read(next_ctc, ahead, reach + emit)
    loss = ended + ended_ahead + _open(partial, last, cut(seen, steps - 1, steps))
    return loss, lax.stop_gradient(Window(OnlineStates(next_net, next_ctc), ended))


def cut(tree: Tree, start: int, stop: int) -> Tree:
    """Some steps of [T, ...]."""
    return jax.tree.map(lambda a: a[start:stop], tree)


def _logits(
    net: Cell, params: Params, state: State, xs: Tree, sizes: tuple[int, int], key: Key | None, scan: Scan
) -> tuple[jax.Array, jax.Array, State]:
    """Logits of the frames that send errors, those of the frames ahead (constants), and the next window's state."""
    reach, emit = sizes
    marks = sorted({0, reach, emit, reach + emit})
    keys = [None] * len(marks) if key is None else list(jax.random.split(key, len(marks)))
    pieces, next_state = [], state
    for (start, stop), k in zip(pairwise(marks), keys[1:], strict=True):
        outputs = "all" if start >= reach else "none"  # before that only the state is of use
        state, ys = unroll(net, params, cut(xs, start, stop), state, key=k, outputs=outputs, scan=scan)
        if outputs == "all":
            pieces.append(ys)
        if stop == emit:
            next_state = state
    constant = lax.stop_gradient((params, state))
    _, ahead = unroll(
        net, constant[0], cut(xs, reach + emit, checks.steps("online_ctc", xs)), constant[1], key=keys[0], scan=scan
    )
    return jnp.concatenate(pieces), lax.stop_gradient(ahead), next_state


def _open(partial: str, state: CTCState, last: Utterances) -> jax.Array:
    """What an utterance gives that is open at the window's end: [*B]."""
    if partial == "truncated":
        return jnp.zeros_like(state.scale)
    if partial == "prefixes":
        return _known(ctc_prefix_nll(state))
    weights = _expected(state, last.label_lengths[0], last.progress[0])
    read = log_sum(state.blank, shifted(state.label)) + weights
    return _known(negative_log(jax.nn.logsumexp(jnp.maximum(read, NEVER), axis=-1), state.scale))


def _expected(state: CTCState, label_lengths: jax.Array, progress: jax.Array) -> jax.Array:
    """log Binomial(n; how many labels there are, the share that has passed), [*B, L+1]."""
    dtype, shape = state.blank.dtype, state.blank.shape
    n = lax.broadcasted_iota(dtype, shape, len(shape) - 1)
    count = jnp.broadcast_to(label_lengths.astype(dtype)[..., None], shape)
    share = jnp.broadcast_to(jnp.clip(progress.astype(dtype), 1e-3, 1 - 1e-3)[..., None], shape)
    left = jnp.maximum(count - n, 0.0)
    ways = gammaln(count + 1.0) - gammaln(n + 1.0) - gammaln(left + 1.0)
    return jnp.where(n <= count, ways + n * jnp.log(share) + left * jnp.log1p(-share), NEVER)
