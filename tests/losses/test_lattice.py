"""The transducer's loss against the enumeration of all ways through its lattice."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

import jaxrnn as rnn
from jaxrnn.losses import TransducerState, transducer, transducer_loss, transducer_nll
from tests.losses.test_alignment import log_softmax, random

STEPS, COUNT, CLASSES = 4, 3, 4


def by_enumeration(logits, z, blank=0):
    """-log of the sum over all ways to spread the labels over the frames: logits [T, L+1, V]."""
    log_p, ways = log_softmax(logits), []
    for frames in itertools.combinations_with_replacement(range(len(log_p)), len(z)):
        way = sum(log_p[t, n, k] for n, (t, k) in enumerate(zip(frames, z, strict=True)))
        way += sum(log_p[t, sum(frame <= t for frame in frames), blank] for t in range(len(log_p)))
        ways.append(way)
    return -np.logaddexp.reduce(ways) if ways else np.inf


@pytest.mark.parametrize("blank", [0, 2])
def test_loss_is_the_sum_over_all_ways(blank):
    """Labels that repeat, none at all, more than frames; lengths from 0 to T."""
    others = [k for k in range(CLASSES) if k != blank]
    labellings = [tuple(others[k] for k in z) for z in [(), (0,), (1, 1), (2, 0), (1, 0, 1), (2, 2, 2)]]
    cases = [(z, n) for z in labellings for n in range(STEPS + 1)]
    logits = random(STEPS, COUNT + 1, CLASSES)
    labels = np.array([z + (blank,) * (COUNT - len(z)) for z, _ in cases])
    lengths, counts = np.array([n for _, n in cases]), np.array([len(z) for z, _ in cases])
    batch = np.broadcast_to(logits[:, None], (STEPS, len(cases), *logits.shape[1:]))
    got = jax.jit(lambda x: transducer_loss(x, labels, lengths=lengths, label_lengths=counts, blank=blank))(batch)
    expected = [by_enumeration(logits[:n, : len(z) + 1], z, blank) for z, n in cases]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert np.isinf(expected).sum() == 5  # some labels, and no frame


def test_gradient_by_finite_differences(x64):
    logits = jnp.asarray(random(STEPS, 2, COUNT + 1, CLASSES), jnp.float64)
    options = {"lengths": np.array([4, 2]), "label_lengths": np.array([3, 1])}
    loss = jax.jit(lambda x: transducer_loss(x, [[1, 1, 2], [3, 0, 0]], **options))
    assert loss(logits).dtype == jnp.float64
    check_grads(loss, (logits,), order=1, modes=("rev",), atol=1e-7, rtol=1e-7)


def test_no_way_means_infinity_and_no_gradient():
    logits = random(2, 1, 2, 3)
    logits[..., 1] = -np.inf
    value, grads = jax.jit(jax.value_and_grad(lambda x: transducer_loss(x, [[1]])[0]))(logits)
    assert np.isinf(value) and (np.asarray(grads) == 0).all()


def test_nan_in_padding_reaches_nothing():
    logits = random(STEPS, 2, COUNT + 1, CLASSES, seed=1)
    lengths, counts = np.array([2, 4]), np.array([3, 1])
    live = np.arange(STEPS)[:, None, None, None] < lengths[:, None, None]
    live = live & (np.arange(COUNT + 1)[:, None] <= counts[:, None, None])
    loss = lambda x, z: transducer_loss(x, z, lengths=lengths, label_lengths=counts).sum()
    run = jax.jit(jax.value_and_grad(loss))
    expected = run(logits, np.array([[1, 2, 3], [2, 1, 1]]))
    dirty = np.where(np.arange(STEPS)[:, None, None, None] < lengths[:, None, None], logits, np.float32(np.nan))
    jax.tree.map(np.testing.assert_array_equal, run(dirty, np.array([[1, 2, 3], [2, -5, 99]])), expected)
    # Labels that can be looked at are: those that nobody reads are not refused.
    np.testing.assert_allclose(loss(dirty, [[1, 2, 3], [2, -5, 99]]), expected[0], rtol=1e-6)
    assert (np.asarray(expected[1])[np.broadcast_to(~live, logits.shape)] == 0).all()


@pytest.mark.parametrize(
    "scans", [[rnn.scan], pytest.param([lax.scan, rnn.checkpointed(2)], marks=pytest.mark.slow)], ids=["rnn", "others"]
)
def test_as_a_cell_behind_a_joint_that_closes_over_predictions(scans):
    """The logits of all frames never exist; values and gradients are those of the loss on them."""
    encoder, head = rnn.elman(3), nn.Dense(CLASSES)
    xs, labels = random(5, 2, 2), jnp.array([[1, 2], [3, 0]])
    predicted = random(2, 3, 3, seed=1)
    init = lambda k, n: (encoder.init(k, xs[0]), head.init(n, predicted))
    params = (*jax.jit(init)(jax.random.key(2), jax.random.key(3)), predicted)
    counts, lengths = np.array([2, 1]), np.array([5, 3])
    join = lambda head_params, e, p: head.apply(head_params, jnp.tanh(jnp.expand_dims(e, -2) + p))

    def whole(params):
        _, encoded = rnn.unroll(encoder, params[0], xs)
        logits = join(params[1], encoded, jnp.broadcast_to(params[2], (5, *predicted.shape)))
        return transducer_loss(logits, labels, lengths=lengths, label_lengths=counts).sum()

    def streamed(params, scan):
        joint = rnn.lift(lambda e: join(params[1], e, params[2]))
        cell = rnn.stack(encoder, joint, transducer(labels, label_lengths=counts))
        state, _ = rnn.unroll(cell, (params[0], (), ()), xs, lengths=lengths, outputs="none", scan=scan)
        assert isinstance(state[-1], TransducerState)
        return transducer_nll(state[-1], counts).sum()

    expected = jax.jit(jax.value_and_grad(whole))(params)
    for scan in scans:
        got = jax.jit(jax.value_and_grad(lambda p, scan=scan: streamed(p, scan)))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_vmap_no_batch_and_no_frames():
    labels = jnp.array([[1, 2, 3], [2, 2, 1]])

    @jax.jit
    def compute(logits):
        one_by_one = jax.vmap(transducer_loss, in_axes=(1, 0))(logits, labels)
        of_none = transducer_loss(logits[:0], labels, label_lengths=jnp.array([0, 1]))
        return one_by_one, transducer_loss(logits, labels), of_none

    one_by_one, flat, of_none = compute(random(STEPS, 2, COUNT + 1, CLASSES))
    np.testing.assert_allclose(one_by_one, flat, rtol=1e-6)
    assert of_none.tolist() == [0.0, np.inf]


@pytest.mark.slow
def test_all_logits_never_exist():
    """T200 B4 L40 V500: the joint's logits of all frames and labels would be 64 MiB, and so their gradient."""
    steps, batch, count, classes, hidden = 200, 4, 40, 500, 32
    xs = jax.ShapeDtypeStruct((steps, batch, hidden), jnp.float32)
    predicted = jax.ShapeDtypeStruct((batch, count + 1, hidden), jnp.float32)
    labels, weights = jnp.ones((batch, count), jnp.int32), jax.ShapeDtypeStruct((hidden, classes), jnp.float32)
    join = lambda e, p, w: jnp.tanh(jnp.expand_dims(e, -2) + p) @ w

    def whole(w, xs, p):
        return transducer_loss(join(xs, jnp.broadcast_to(p, (steps, *p.shape)), w), labels).sum()

    def streamed(w, xs, p):
        cell = rnn.stack(rnn.lift(lambda e: join(e, p, w)), transducer(labels))
        state, _ = rnn.unroll(cell, ((), ()), xs, outputs="none", scan=rnn.checkpointed())
        return transducer_nll(state[-1]).sum()

    theirs, ours = (rnn.analysis.temp_bytes(jax.grad(f, (0, 1, 2)), weights, xs, predicted) for f in (whole, streamed))
    assert ours <= 0.1 * theirs, (ours / 2**20, theirs / 2**20)


LOGITS = jnp.zeros((5, 2, 3, 4))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda: transducer_loss(LOGITS, [[1, 4], [1, 2]]),
            r"transducer: labels must lie in 0\.\.3, got 4 at \[0, 1\]",
        ),
        (lambda: transducer_loss(LOGITS, [[1, 2], [1, 0]]), r"transducer: labels must not be the blank, 0, .*\[1, 1\]"),
        (lambda: transducer_loss(LOGITS, [[1, 2, 3]] * 2), r"logits \[\*B, L\+1, V\] = \[2, 4\] \+ \[V\]"),
        (
            lambda: transducer_loss(LOGITS, [[1, 2]]),
            r"\[\*B, L\+1, V\] = \[1, 3\] \+ \[V\], as labels are int32\[1,2\], got",
        ),
        (lambda: transducer_loss(LOGITS[0, 0], [1, 2]), r"logits must be floating-point \[T, \*B, L\+1, V\]"),
        (lambda: transducer_loss(LOGITS, [[1, 2]] * 2, blank=4), r"blank must be one of the 4 classes, got 4"),
        (lambda: transducer_loss(LOGITS, [[1, 2]] * 2, label_lengths=[1, 3]), r"label_lengths must lie in 0\.\.2"),
        (lambda: transducer([[1]], dtype=jnp.float16), r"transducer: dtype must be float32 or float64, got float16"),
    ],
)
def test_bad_input_is_one_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_labels_that_nobody_can_see_never_pass_for_others():
    losses = jax.jit(lambda z: transducer_loss(LOGITS, z))(jnp.array([[1, 4], [1, 2]]))
    assert np.isnan(losses[0]) and np.isfinite(losses[1])
