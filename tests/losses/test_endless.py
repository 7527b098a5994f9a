"""CTC without end: windows against the whole stream."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.losses import (
    OnlineStates,
    Utterances,
    Window,
    ctc_loss,
    ctc_stream,
    online_ctc,
    online_start,
    utterances,
)
from tests.losses.test_alignment import by_enumeration, random

OTHERS = "truncated", "progress"
CLASSES, FEATURES = 7, 8
PAIRS = [(0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0)]  # a label is two codes in order, so that context is needed
CODES = np.random.default_rng(7).standard_normal((4, FEATURES))


def one_stream(rng, steps, most):
    """Frames [steps, D] and what is known of them: whole utterances of most / 2 to `most` labels, then silence."""
    rows, labels, frames = [], [], []
    while True:
        z, mine = rng.integers(1, CLASSES, rng.integers(most // 2, most + 1)).tolist(), []
        for k in z:
            for code in PAIRS[k - 1]:
                mine += [CODES[code]] * rng.integers(2, 5)
            mine += [np.zeros(FEATURES)] * rng.integers(1, 5)
        if len(rows) + len(mine) > steps:
            break
        rows, labels, frames = rows + mine, [*labels, z], [*frames, len(mine)]
    fill = lambda a: np.concatenate([a, np.zeros((steps - len(a), *a.shape[1:]), a.dtype)])
    return fill(np.array(rows, np.float32)), jax.tree.map(fill, utterances(labels, frames, most=most))


class Stream:
    """Streams side by side with silence around them, a net, and both ways to its gradient."""

    def __init__(self, batch, steps, around, most, hidden, net=None):
        rng = np.random.default_rng(0)
        each = [one_stream(rng, steps, most) for _ in range(batch)]
        silence = lambda a: np.zeros((around, *a.shape[1:]), a.dtype)
        padded = lambda *a: np.concatenate([silence(s := np.stack(a, 1)), s, silence(s)])
        xs, seen = jax.tree.map(padded, *each)
        xs = xs + 0.3 * rng.standard_normal(xs.shape).astype("f4")
        self.xs, self.seen = jax.tree.map(jnp.asarray, (xs, seen))
        self.steps, self.around = steps, around
        self.net = rnn.stack(rnn.gru(hidden), rnn.layer(nn.Dense(CLASSES))) if net is None else net
        self.params = jax.jit(self.net.init)(jax.random.key(0), xs[0])

    def whole(self, params):
        _, logits = rnn.unroll(self.net, params, self.xs)
        cell = ctc_stream(self.seen.labels.shape[-1])
        return rnn.unroll(cell, (), (logits, self.seen), outputs="sum")[1].sum()

    @functools.cached_property
    def of_whole(self):
        return jax.jit(jax.value_and_grad(self.whole))(self.params)

    def windows(self, params, reach, emit, lookahead, partial="prefixes", scan=lax.scan):
        """The sum over all windows, and the losses of the utterances as they end."""
        start = online_start(self.net, params, self.seen)
        before, _ = rnn.unroll(self.net, params, self.xs[: self.around - reach], start.net, outputs="none")

        def body(states, t):
            cut = lambda a: lax.dynamic_slice_in_dim(a, t - reach, reach + emit + lookahead)
            xs, seen = jax.tree.map(cut, (self.xs, self.seen))
            options = {"reach": reach, "emit": emit, "lookahead": lookahead, "partial": partial, "scan": scan}
            loss, (states, closed) = online_ctc(self.net, params, states, xs, seen, **options)
            return states, (loss.sum(), closed)

        starts = self.around + emit * jnp.arange(self.steps // emit)
        _, (losses, closed) = lax.scan(body, start._replace(net=lax.stop_gradient(before)), starts)
        return losses.sum(), closed

    def cosine(self, *sizes, partial="prefixes"):
        return cosine(
            jax.jit(jax.grad(lambda p: self.windows(p, *sizes, partial)[0]))(self.params),
            self.of_whole[1],
        )


def cosine(a, b):
    a, b = (np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(g)]) for g in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


SHORT = Stream(batch=2, steps=64, around=40, most=4, hidden=6)


@pytest.mark.parametrize("partial", ["prefixes", *(pytest.param(p, marks=pytest.mark.slow) for p in OTHERS)])
def test_full_coverage_is_the_whole_gradient(partial):
    assert SHORT.cosine(40, 8, 40, partial=partial) >= 0.9999
    assert int(SHORT.seen.ends.sum()) >= 3


@pytest.mark.slow
def test_emit_longer_than_reach():
    loss, grads = jax.jit(jax.value_and_grad(lambda p: SHORT.windows(p, 8, 64, 0)[0]))(SHORT.params)
    # One window over everything, but for the silence: all errors are sent, few of them are cut off.
    assert float(loss) == pytest.approx(float(SHORT.of_whole[0]), rel=1e-5)
    assert cosine(grads, SHORT.of_whole[1]) > 0.999


@functools.cache
def losses_of_whole_utterances():
    """For each of the streams the sum of ctc_loss over its utterances, each cut out of the whole logits."""
    seen = jax.tree.map(np.asarray, SHORT.seen)
    stream, begins = np.nonzero(seen.begins.T)
    ends = np.nonzero(seen.ends.T)[1]
    frames = begins + np.arange(max(ends - begins) + 1)[:, None]
    labels, counts = seen.labels[begins, stream], seen.label_lengths[begins, stream]

    def losses(params):
        _, logits = rnn.unroll(SHORT.net, params, SHORT.xs)
        cut = logits[np.minimum(frames, len(logits) - 1), stream]
        return ctc_loss(cut, labels, lengths=ends - begins + 1, label_lengths=counts)

    return np.bincount(stream, jax.jit(losses)(SHORT.params), minlength=2)


@pytest.mark.parametrize("sizes", [(0, 8, 0), pytest.param((8, 4, 4), marks=pytest.mark.slow), (4, 16, 8)])
def test_utterances_that_end_have_their_whole_loss(sizes):
    """Forward variables and net states go on: however short the window, the loss is the whole utterance's."""
    _, closed = jax.jit(lambda p: SHORT.windows(p, *sizes))(SHORT.params)
    expected = losses_of_whole_utterances()
    assert expected.shape == (2,) and (expected > 0).all()
    np.testing.assert_allclose(np.asarray(closed).sum(0), expected, rtol=1e-5)


def test_each_frame_sends_errors_once():
    """A readout alone, whose gradient has no reach: the windows' errors add up to the whole loss's."""
    stream = Stream(batch=1, steps=64, around=40, most=4, hidden=2, net=rnn.layer(nn.Dense(CLASSES)))
    got = jax.jit(jax.grad(lambda p: stream.windows(p, 0, 16, 40)[0]))(stream.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, stream.of_whole[1])


@pytest.mark.slow
def test_windows_shorter_than_utterances_point_the_same_way_at_first():
    stream = Stream(batch=4, steps=384, around=96, most=12, hidden=32)
    frames = np.concatenate([np.flatnonzero(stream.seen.ends[:, b]) for b in range(4)])
    assert len(frames) <= 4 * 384 / 64  # longer than the 32 frames that send errors, on average
    assert stream.cosine(96, 32, 96) >= 0.9999
    assert stream.cosine(32, 32, 32) >= 0.99
    assert stream.cosine(32, 32, 32, partial="progress") >= 0.99
    assert stream.cosine(0, 32, 0) < stream.cosine(0, 32, 32)


# --- what one window says ----------------------------------------------------------------------------


def window(logits, seen, partial, states=None):
    """The value of one window of a net that hands its input on."""
    net = rnn.lift(lambda x: x)
    states = online_start(net, (), seen) if states is None else states
    options = {"reach": 0, "emit": len(logits), "lookahead": 0, "partial": partial}
    return online_ctc(net, (), states, logits, seen, **options)


def one_batch(u):
    return jax.tree.map(lambda a: np.expand_dims(a, 1), u)


@pytest.mark.parametrize("partial", ["prefixes", "truncated", "progress"])
def test_an_open_utterance_by_enumeration(partial):
    logits, z = random(4, 3), (2, 1, 1)
    seen = jax.tree.map(lambda a: a[:4], one_batch(utterances([z], [9])))
    p = [by_enumeration(logits).get(z[:n], 0.0) for n in range(4)]
    share = 4 / 9
    binomial = [(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3]
    expected = {
        "prefixes": -np.log(sum(p)),
        "truncated": 0.0,
        "progress": -np.log(np.dot(p, binomial)),
    }[partial]
    loss, found = jax.jit(lambda x: window(x, seen, partial))(logits[:, None])
    assert isinstance(found, Window) and isinstance(found.states, OnlineStates)
    assert float(loss[0]) == pytest.approx(expected, rel=1e-5, abs=1e-6) and found.closed[0] == 0


def test_what_was_not_seen_from_its_beginning_gives_nothing():
    seen = jax.tree.map(lambda a: a[2:7], one_batch(utterances([[1, 2], [2]], [5, 9])))
    later = jax.tree.map(lambda a: a[3:], seen)  # the second utterance alone
    run = jax.jit(lambda x: (window(x, seen, "prefixes"), window(x[3:], later, "prefixes")[0]))
    (loss, found), of_later = run(random(5, 3)[:, None])
    assert found.closed[0] == 0 and float(loss[0]) == pytest.approx(float(of_later[0]))


def test_what_frames_cannot_hold_gives_nothing():
    seen = one_batch(utterances([[1, 1]], [2]))
    run = jax.jit(jax.value_and_grad(lambda x: window(x, seen, "prefixes")[0][0]))
    logits = jnp.asarray(random(2, 3))[:, None]
    value, grads = run(logits)
    assert value == 0 and (np.asarray(grads) == 0).all()
    assert window(logits, seen, "prefixes")[0][0] == 0  # also one operation after the other


def test_a_net_that_draws():
    net = rnn.stack(rnn.dropout(rnn.gru(4), 0.5), rnn.layer(nn.Dense(CLASSES)))
    xs, seen = SHORT.xs[36:52], jax.tree.map(lambda a: a[36:52], SHORT.seen)
    sizes = {"reach": 4, "emit": 8, "lookahead": 4}

    @jax.jit
    def run(key):
        params = net.init(jax.random.key(0), xs[0])
        return online_ctc(net, params, online_start(net, params, seen), xs, seen, key=key, **sizes)[0]

    first, again, other = (np.asarray(run(jax.random.key(n))) for n in (0, 0, 1))
    assert (first == again).all() and (first != other).all()


def test_utterances_end_to_end():
    found = utterances([[3, 1], [], [2]], [3, 1, 2], most=3)
    assert isinstance(found, Utterances)
    assert found.labels.tolist() == [[3, 1, 0]] * 3 + [[0, 0, 0]] + [[2, 0, 0]] * 2
    assert found.label_lengths.tolist() == [2, 2, 2, 0, 1, 1]
    assert found.begins.tolist() == [True, False, False, True, True, False]
    assert found.ends.tolist() == [False, False, True, True, False, True]
    np.testing.assert_allclose(found.progress, [1 / 3, 2 / 3, 1, 1, 0.5, 1])
    assert list(itertools.chain(*map(np.shape, utterances([], [])))) == [0, 0, 0, 0, 0, 0]


def test_float64(x64):
    seen = one_batch(utterances([[1, 2]], [6]))

    @jax.jit
    def compute(logits):
        states = online_start(rnn.lift(lambda x: x), (), seen, dtype=jnp.float64)
        return window(logits, seen, "prefixes", states)[0], ctc_loss(logits, [[1, 2]])

    loss, expected = compute(random(6, 3).astype("f8")[:, None])
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


# --- bad input -------------------------------------------------------------------------------------


def call(steps=16, states=None, **changes):
    xs, seen = jax.tree.map(lambda a: a[:steps], (SHORT.xs, SHORT.seen))
    states = online_start(SHORT.net, SHORT.params, seen) if states is None else states
    return online_ctc(SHORT.net, SHORT.params, states, xs, seen, **{"reach": 4, "emit": 8, "lookahead": 4} | changes)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: call(emit=0), r"online_ctc: emit must be a whole number of at least 1, got 0"),
        (lambda: call(reach=-1), r"reach must be a whole number of at least 0, got -1"),
        (lambda: call(partial="em"), r"partial must be one of 'prefixes', 'truncated', 'progress', got 'em'"),
        (lambda: call(steps=15), r"should have reach \+ emit \+ lookahead = 16 frames, got 15; cut one window"),
        (
            lambda: call(states=online_start(SHORT.net, SHORT.params, jax.tree.map(lambda a: a[:, :1], SHORT.seen))),
            r"utterances\.labels should be \[T, \*B, L\] .* \(1, 4\), got int32\[16,2,4\]; begin with online_start",
        ),
        (lambda: utterances([[1]], [2, 3]), r"must be equally many, .* got 1 and 2"),
        (lambda: utterances([[1]], [0]), r"each utterance of at least one frame .* at least 0 frames"),
        (lambda: utterances([[1, 2]], [4], most=1), r"at most 1 labels, got .* up to 2 labels"),
        (lambda: ctc_stream(-1), r"ctc_stream: labels must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_input_is_one_sentence(call, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)
