"""CTC: against enumeration of all paths, PyTorch in float64, every scan, and what may stand in padding."""

import functools
import itertools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.losses import CTCState, ctc, ctc_loss, ctc_nll, ctc_prefix_nll


def log_softmax(logits):
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def collapsed(path, blank=0):
    return tuple(k for t, k in enumerate(path) if k != blank and (t == 0 or path[t - 1] != k))


def by_enumeration(logits, blank=0):
    """The probability of every labelling: the sum over all paths that read it."""
    log_p, found = log_softmax(logits), {}
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        read = collapsed(path, blank)
        found[read] = found.get(read, 0.0) + np.exp(sum(log_p[t, k] for t, k in enumerate(path)))
    return found


def random(*shape, seed=0, scale=1.5):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype("f4")


def value_and_grad(loss):
    """Losses [B] and the gradient of their sum, in one program."""

    def total(x):
        losses = loss(x)
        return losses.sum(), losses

    def run(x):
        grads, losses = jax.grad(total, has_aux=True)(x)
        return losses, grads

    compiled = jax.jit(run)
    return lambda x: tuple(map(np.asarray, compiled(x)))


# --- by enumeration ------------------------------------------------------------------------------

LABELLINGS = [(), (1,), (2,), (1, 1), (1, 2), (2, 1, 2), (1, 1, 1), (2, 2, 1), (1, 2, 1, 2)]


@pytest.mark.parametrize("blank", [0, 2])
def test_loss_is_the_sum_over_all_paths(blank):
    """All labellings at once: repeats, none at all, more labels than frames, at lengths from 0 to T."""
    classes = [k for k in range(3) if k != blank]
    labellings = [tuple(classes[k - 1] for k in z) for z in LABELLINGS]
    logits, steps = random(4, 3), 4
    cases = [(z, n) for z in labellings for n in range(steps + 1)]
    labels = np.array([z + (blank,) * (4 - len(z)) for z, _ in cases])
    lengths, counts = np.array([n for _, n in cases]), np.array([len(z) for z, _ in cases])
    batch = np.broadcast_to(logits[:, None], (steps, len(cases), 3))
    got = jax.jit(lambda x: ctc_loss(x, labels, lengths=lengths, label_lengths=counts, blank=blank))(batch)
    tables = [by_enumeration(logits[:n], blank) for n in range(steps + 1)]
    with np.errstate(divide="ignore"):
        expected = [-np.log(tables[n].get(z, 0.0)) for z, n in cases]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert np.isinf(expected).sum() > 10


def test_gradient_is_that_of_the_sum_over_all_paths():
    """d -log p(z) / d logits by finite differences of the enumeration, in float64."""
    logits, z = random(4, 3).astype("f8"), (1, 1)
    got = np.asarray(jax.jit(jax.grad(lambda x: ctc_loss(x[:, None], [z])[0]))(logits.astype("f4")))
    for at in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[at] = 1e-5
        up, down = (-np.log(by_enumeration(logits + s)[z]) for s in (step, -step))
        assert float(got[at]) == pytest.approx((up - down) / 2e-5, abs=2e-6)


def test_prefixes_are_all_beginnings():
    logits, z = random(4, 3, seed=1), (2, 1, 1)
    got = jax.jit(lambda x: ctc_prefix_nll(rnn.unroll(ctc([z]), (), x, outputs="none")[0]))(logits[:, None])
    expected = sum(by_enumeration(logits).get(z[:n], 0.0) for n in range(4))
    assert float(got[0]) == pytest.approx(-np.log(expected), rel=1e-6)


def test_no_frames():
    of_none = lambda x: ctc_loss(x, [[1, 2], [1, 2]], label_lengths=np.array([0, 1]))
    losses, of_no_labels = jax.jit(lambda x, y: (of_none(x), ctc_loss(y, [[]])))(
        np.zeros((0, 2, 3), "f4"), np.zeros((2, 1, 3), "f4")
    )
    assert losses[0] == 0 and np.isinf(losses[1])
    assert float(of_no_labels[0]) == pytest.approx(2 * np.log(3))


# --- against PyTorch -----------------------------------------------------------------------------


def by_torch(logits, labels, lengths, counts):
    """Losses [B] and the gradient of their sum, in float64."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    arrays = [torch.tensor(np.asarray(a)) for a in (labels, lengths, counts)]
    losses = torch.nn.functional.ctc_loss(x.log_softmax(-1), *arrays, reduction="none")
    losses.sum().backward()
    return losses.detach().numpy(), x.grad.numpy()


def problem(steps, batch, classes, count, seed=0, scale=2.0):
    """Logits, labels with repeats, and lengths that hold them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, classes, (batch, count))
    labels[0] = 1
    counts = rng.integers(0, count + 1, batch)
    counts[0] = count
    lengths = np.maximum(rng.integers(1, steps + 1, batch), np.minimum(2 * counts, steps))
    logits = scale * rng.standard_normal((steps, batch, classes))
    return logits, labels, lengths, counts


def test_float64_equals_pytorch(x64):
    logits, labels, lengths, counts = problem(60, 5, 6, 12)
    expected = by_torch(logits, labels, lengths, counts)
    got = value_and_grad(lambda x: ctc_loss(x, labels, lengths=lengths, label_lengths=counts))(logits)
    assert got[0].dtype == jnp.float64
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-11)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-11)


def test_float32_gradient_over_200_frames():
    logits, labels, lengths, counts = problem(200, 3, 8, 20, scale=3.0)
    lengths[:] = 200
    expected = by_torch(logits, labels, lengths, counts)
    loss = lambda x: ctc_loss(x, labels, lengths=lengths, label_lengths=counts)
    got = value_and_grad(loss)(logits.astype("f4"))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], atol=2e-5)


# --- what exists of it no alignment, and what may stand in padding ---------------------------------


def test_no_alignment_means_infinity_and_no_gradient():
    # 1, 1 needs three frames, and has two.
    loss = lambda x: ctc_loss(x, [[1, 1], [1, 2]], lengths=np.array([2, 3]))
    losses, grads = value_and_grad(loss)(random(3, 2, 3))
    assert np.isinf(losses[0]) and np.isfinite(losses[1])
    assert (grads[:, 0] == 0).all() and np.isfinite(grads).all() and (grads[:, 1] != 0).all()


def test_classes_that_cannot_be():
    """Logits of -inf, as from a mask: paths through them do not count, and no gradient is NaN."""
    logits = random(4, 1, 3)
    logits[1, 0, 0] = logits[2, 0, 1] = -np.inf
    expected = -np.log(by_enumeration(logits[:, 0])[(1, 2)])
    run = jax.jit(jax.value_and_grad(lambda x: ctc_loss(x, [[1, 2]])[0]))
    value, grads = run(logits)
    assert float(value) == pytest.approx(expected, rel=1e-6) and np.isfinite(grads).all()
    never = logits.copy()
    never[:, 0, 1] = -np.inf
    value, grads = map(np.asarray, run(never))
    assert np.isinf(value) and (grads == 0).all()


def test_nan_in_padding_reaches_nothing():
    logits, labels, lengths, counts = problem(8, 4, 4, 3, seed=3)
    lengths[:2] = 6
    clean = logits.astype("f4")
    dirty = np.where(np.arange(8)[:, None, None] < lengths[None, :, None], clean, np.float32(np.nan))
    labels_dirty = np.where(np.arange(3) < counts[:, None], labels, -7)
    run = jax.jit(jax.value_and_grad(lambda x, z: ctc_loss(x, z, lengths=lengths, label_lengths=counts).sum()))
    for a, b in zip(run(clean, labels), run(dirty, labels_dirty), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sixteen_bits_are_computed_in_float32():
    logits = jnp.asarray(random(6, 1, 4), jnp.bfloat16)
    loss = ctc_loss(logits, [[1, 2]])
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, ctc_loss(logits.astype(jnp.float32), [[1, 2]]), rtol=1e-6)


def test_long_confident_sequences_lose_no_accuracy():
    """Probabilities of e^-20000 and below: float32 cannot hold one of them."""
    logits, z = random(2000, 1, 4, scale=20.0), np.random.default_rng(0).integers(1, 4, (1, 100))
    log_p, before = log_softmax(logits[:, 0]), np.full(201, -np.inf)
    extended = np.zeros(201, int)
    extended[1::2] = z[0]
    before[0] = 0.0
    skips = np.where((extended[2:] != 0) & (extended[2:] != extended[:-2]), 0.0, -np.inf)
    before[1] = 0.0
    for t, row in enumerate(log_p):  # the textbook's recurrence over blank, z_1, blank, ..., in float64
        ways = before.copy()
        if t:
            ways[1:] = np.logaddexp(ways[1:], before[:-1])
            ways[2:] = np.logaddexp(ways[2:], before[:-2] + skips)
        before = row[extended] + ways
    expected = -np.logaddexp(before[-1], before[-2])
    assert expected > 10_000
    assert float(jax.jit(ctc_loss)(logits, z)[0]) == pytest.approx(expected, rel=1e-6)


# --- one cell with its net, under every scan -------------------------------------------------------

STEPS, BATCH, CLASSES = 9, 2, 4
NET = rnn.stack(rnn.elman(3), rnn.layer(nn.Dense(CLASSES)))
XS = random(STEPS, BATCH, 2)
PARAMS = jax.jit(NET.init)(jax.random.key(1), XS[0])
LABELS, COUNTS, LENGTHS = jnp.array([[1, 1, 3], [2, 3, 0]]), jnp.array([3, 2]), jnp.array([9, 6])


def stacked_loss(params, labels=LABELS, scan=rnn.scan, xs=XS):
    cell = rnn.stack(NET, ctc(labels, label_lengths=COUNTS))
    state, _ = rnn.unroll(cell, (params, ()), xs, lengths=LENGTHS, outputs="none", scan=scan)
    return ctc_nll(state[-1], COUNTS).sum()


@functools.cache
def expected_of_the_loss_after():
    def loss_after(params):
        _, logits = rnn.unroll(NET, params, XS)
        return ctc_loss(logits, LABELS, lengths=LENGTHS, label_lengths=COUNTS).sum()

    return jax.jit(jax.value_and_grad(loss_after))(PARAMS)


def assert_same(a, b, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


SCANS = {
    "lax.scan": lax.scan,
    "jaxrnn.scan": rnn.scan,
    "separate": rnn.fissioned(separate=True),
    "python_loop": rnn.python_loop(),
    "checkpointed": rnn.checkpointed(4),
    "revolve": rnn.revolve(2),
    "within": rnn.within("1MiB"),
}


SLOW = "lax.scan", "separate", "python_loop", "revolve", "within"


@pytest.mark.parametrize("name", [n if n not in SLOW else pytest.param(n, marks=pytest.mark.slow) for n in SCANS])
def test_stacked_on_a_net_under_every_scan(name):
    got = jax.jit(jax.value_and_grad(lambda p: stacked_loss(p, scan=SCANS[name])))(PARAMS)
    assert_same(got, expected_of_the_loss_after())


def test_labels_may_be_traced():
    got = jax.jit(jax.value_and_grad(stacked_loss))(PARAMS, LABELS)
    assert_same(got, expected_of_the_loss_after())


def test_vmap_and_batch_dimensions():
    logits, labels, _, _ = problem(6, 4, 4, 2, seed=5)

    @jax.jit
    def compute(logits):
        one_by_one = jax.vmap(ctc_loss, in_axes=(1, 0))(logits, jnp.asarray(labels))
        square = ctc_loss(logits.reshape(6, 2, 2, 4), labels.reshape(2, 2, 2))
        return ctc_loss(logits, labels), one_by_one, square

    flat, one_by_one, square = map(np.asarray, compute(logits.astype("f4")))
    np.testing.assert_allclose(one_by_one, flat, rtol=1e-6)
    np.testing.assert_allclose(square.reshape(-1), flat, rtol=1e-6)


def test_frames_may_come_in_pieces():
    cell = ctc(LABELS, label_lengths=COUNTS)

    @jax.jit
    def compute(logits):
        first, _ = rnn.unroll(cell, (), logits[:4])
        assert isinstance(first, CTCState)
        return rnn.unroll(cell, (), logits[4:], first)[0], rnn.unroll(cell, (), logits)[0]

    assert_same(*compute(random(STEPS, BATCH, CLASSES)))


def test_the_cell_can_be_pickled_and_hashed():
    cell = ctc(LABELS, label_lengths=COUNTS)
    again = pickle.loads(pickle.dumps(cell))
    logits = jnp.asarray(random(3, BATCH, CLASSES))
    assert_same(rnn.unroll(again, (), logits)[0], rnn.unroll(cell, (), logits)[0])
    assert cell == cell and {cell: 1}[cell] == 1 and cell != again


# --- bytes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_at_2000_classes_a_twentieth_of_optax_on_logits():
    """T400 B8 L40 V2000, an LSTM of 64: compiling needs no memory, so the real sizes can be asserted."""
    steps, batch, classes, count = 400, 8, 2000, 40
    net = rnn.stack(rnn.lstm(64), rnn.layer(nn.Dense(classes)))
    xs = jax.ShapeDtypeStruct((steps, batch, 16), jnp.float32)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((batch, 16))))
    labels = 1 + jnp.arange(batch * count).reshape(batch, count) % (classes - 1)
    nothing = lambda *shape: jnp.zeros(shape)

    def on_logits(params, xs):
        _, logits = rnn.unroll(net, params, xs)
        padded = nothing(batch, steps), labels, nothing(batch, count)
        return optax.ctc_loss(jnp.swapaxes(logits, 0, 1), *padded).sum()

    def as_a_cell(params, xs):
        state, _ = rnn.unroll(rnn.stack(net, ctc(labels)), (params, ()), xs, outputs="none", scan=rnn.checkpointed())
        return ctc_nll(state[-1]).sum()

    theirs, ours = (rnn.analysis.temp_bytes(jax.grad(f), params, xs) for f in (on_logits, as_a_cell))
    assert ours <= 0.05 * theirs, (ours / 2**20, theirs / 2**20)


# --- bad input -------------------------------------------------------------------------------------

LOGITS = jnp.zeros((5, 2, 4))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: ctc_loss(LOGITS, [[1, 4], [1, 2]]), r"ctc: labels must lie in 0\.\.3, got 4 at \[0, 1\]"),
        (lambda: ctc_loss(LOGITS, [[1, -1], [1, 2]]), r"ctc: labels must lie in 0\.\.3, got -1 at \[0, 1\]"),
        (lambda: ctc_loss(LOGITS, [[1, 2], [1, 0]]), r"labels must not be the blank, 0, got it at \[1, 1\]; .*padding"),
        (lambda: ctc_loss(LOGITS, [[1, 2]]), r"ctc: labels are int32\[1,2\], .* so \*B must be \(1,\), got \(2,\)"),
        (lambda: ctc_loss(LOGITS, [[1.0, 2.0]] * 2), r"ctc: labels must be integers \[\*B, L\], got float32\[2,2\]"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, label_lengths=[2]), r"label_lengths must be integers \[\*B\] = \[2\]"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, label_lengths=[2, 3]), r"label_lengths must lie in 0\.\.2 .* 2 to 3"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, lengths=jnp.array([5, 6])), r"lengths must lie in 0\.\.5"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, lengths=jnp.array([5])), r"lengths should be \[\*B\]|batch dimensions"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, blank=4), r"blank must be one of the 4 classes of the logits, got 4"),
        (lambda: ctc_loss(LOGITS, [[1, 2]] * 2, blank=-1), r"blank must be a whole number of at least 0, got -1"),
        (lambda: ctc_loss(LOGITS[0, 0], [1]), r"logits must be floating-point \[T, \*B, V\], got float32\[4\]"),
        (lambda: ctc([[1]], dtype=jnp.float16), r"ctc: dtype must be float32 or float64, got float16"),
        (lambda: rnn.unroll(ctc([[1]] * 3), (), LOGITS), r"so \*B must be \(3,\), got \(2,\); give one row"),
    ],
)
def test_bad_input_is_one_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_labels_that_nobody_can_see_never_pass_for_others():
    run = jax.jit(lambda z: ctc_loss(LOGITS, z))
    losses = run(jnp.array([[1, 4], [1, 2]]))
    assert np.isnan(losses[0]) and np.isfinite(losses[1])
    assert np.isnan(run(jnp.array([[1, 0], [1, 2]]))[0])
