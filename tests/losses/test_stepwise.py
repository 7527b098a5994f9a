"""Masked sequence losses."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn


def by_hand(logits, targets, counted):
    total, n = 0.0, 0
    for at in np.ndindex(*targets.shape):
        if counted[at]:
            z = np.asarray(logits[at], np.float64)
            total += np.log(np.exp(z - z.max()).sum()) - (z - z.max())[targets[at]]
            n += 1
    return total, n


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_cross_entropy_is_the_sum_of_the_equations(batch):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, *batch, 5)).astype("f4")
    targets = rng.integers(0, 5, (4, *batch))
    lengths = rng.integers(0, 5, batch)
    mask = rng.random((4, *batch)) < 0.8
    counted = mask & (np.arange(4).reshape(-1, *[1] * len(batch)) < lengths)
    total, n = by_hand(logits, targets, counted)
    options = {"lengths": lengths, "mask": mask}
    loss = lambda x, **more: rnn.cross_entropy(x, targets, **options, **more)
    summed, mean, each = jax.jit(lambda x: (loss(x, reduction="sum"), loss(x), loss(x, reduction="none")))(logits)
    np.testing.assert_allclose(summed, total, rtol=1e-5)
    np.testing.assert_allclose(mean, total / max(n, 1), rtol=1e-5)
    assert each.shape == targets.shape and (np.asarray(each)[~counted] == 0).all()


def test_nothing_counts():
    loss = lambda x: rnn.cross_entropy(x, np.zeros((3, 2), int), lengths=np.zeros(2, int))
    assert jax.jit(loss)(np.zeros((3, 2, 5), "f4")) == 0


def test_padding_reaches_no_gradient():
    logits, targets = with_nan_in_padding()
    grads = np.asarray(jax.jit(jax.grad(lambda z: rnn.cross_entropy(z, targets, lengths=np.array([2, 3]))))(logits))
    assert np.isfinite(grads).all() and (grads[2, 0] == 0).all() and (grads[1, 0] != 0).all()


def with_nan_in_padding():
    """Logits [3, 2, 4] and targets; the first sequence ends after two steps."""
    logits, targets = np.ones((3, 2, 4), "f4"), np.zeros((3, 2), int)
    logits[2, 0], targets[2, 0] = np.nan, -99
    return logits, targets


def test_sixteen_bits_do_not_overflow():
    loss = jax.jit(rnn.cross_entropy)(np.zeros((100, 700, 10), np.float16), np.zeros((100, 700), np.int32))
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(np.log(10), rel=1e-3)


def test_targets_out_of_range_never_pass_for_a_class():
    logits = np.zeros((2, 1, 3), "f4")
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2, got -1 at \[1, 0\]; .*mask=targets >= 0"):
        rnn.cross_entropy(logits, jnp.array([[0], [-1]]))
    assert np.isnan(jax.jit(rnn.cross_entropy)(logits, jnp.array([[0], [-1]])))
    for counted in ({"mask": jnp.array([[True], [False]])}, {"lengths": jnp.array([1])}):
        assert float(rnn.cross_entropy(logits, jnp.array([[0], [-1]]), **counted)) == pytest.approx(np.log(3))


def test_a_loss_in_the_cell_equals_a_loss_after_it():
    import flax.linen as nn
    import optax

    net = rnn.stack(rnn.gru(4), rnn.layer(nn.Dense(5)))
    whole = rnn.with_loss(net, optax.softmax_cross_entropy_with_integer_labels)
    xs, targets = np.random.default_rng(0).standard_normal((6, 2, 3)).astype("f4"), np.arange(12).reshape(6, 2) % 5
    params = jax.jit(whole.init)(jax.random.key(1), (xs[0], targets[0]))
    inside = lambda p: rnn.losses.reduced(
        rnn.unroll(whole, p, (xs, targets), lengths=jnp.array([3, 6]))[1], lengths=jnp.array([3, 6])
    )
    after = lambda p: rnn.cross_entropy(rnn.unroll(net, p, xs)[1], targets, lengths=jnp.array([3, 6]))
    got, expected = jax.jit(lambda p: (jax.value_and_grad(inside)(p), jax.value_and_grad(after)(p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_bits_per_character():
    assert rnn.losses.bits_per_character(np.log(256.0)) == pytest.approx(8)
    text = "naïve naïve " * 50
    nats = 8 * len(gzip.compress(text.encode())) * np.log(2)
    assert rnn.losses.bits_per_character(nats, len(text)) == pytest.approx(
        8 * len(gzip.compress(text.encode())) / len(text)
    )


def classified(batch=(3,), classes=5, steps=4):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((steps, *batch, classes))
    return logits, rng.integers(0, classes, (steps, *batch)), rng.random((steps, *batch)) < 0.7


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_and_label_smoothing_by_hand(weighted, smoothing, reduction, x64):
    logits, targets, mask = classified()
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0]) if weighted else np.ones(5)
    each, weight = np.zeros(targets.shape), 0.0
    for at in np.argwhere(mask):
        z, y = logits[tuple(at)], targets[tuple(at)]
        logs = z - np.log(np.exp(z).sum())
        for v in range(5):
            each[tuple(at)] -= weights[v] * ((1 - smoothing) * (v == y) + smoothing / 5) * logs[v]
        weight += weights[y]
    options = {"class_weights": weights if weighted else None, "label_smoothing": smoothing}
    got = jax.jit(lambda z: rnn.cross_entropy(z, targets, mask=mask, reduction=reduction, **options))(logits)
    expected = {"sum": each.sum(), "mean": each.sum() / weight, "none": each}[reduction]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_class_weights_and_label_smoothing_are_pytorch_s(x64):
    torch = pytest.importorskip("torch")
    logits, targets, mask = classified(batch=(), steps=9)
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    options = {"class_weights": jnp.asarray(weights), "label_smoothing": 0.1}
    loss = lambda z: rnn.cross_entropy(z, targets, mask=mask, **options)
    theirs = torch.tensor(logits, requires_grad=True)
    ignored = torch.tensor(np.where(mask, targets, -100))
    of_torch = torch.nn.functional.cross_entropy(theirs, ignored, torch.tensor(weights), label_smoothing=0.1)
    of_torch.backward()
    value, grads = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, of_torch.item(), rtol=1e-12)
    np.testing.assert_allclose(grads, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_padding_reaches_no_gradient_of_a_smoothed_and_weighted_loss():
    logits, targets = with_nan_in_padding()
    options = {"lengths": np.array([2, 3]), "label_smoothing": 0.1, "class_weights": jnp.arange(4.0) + 1}

    @jax.jit
    def compute(logits, z, y):
        grads = jax.grad(lambda z: rnn.cross_entropy(z, targets, **options))(logits)
        return grads, rnn.cross_entropy(z, y, label_smoothing=0.1)

    grads, wrong = map(np.asarray, compute(logits, np.zeros((2, 3), "f4"), np.array([0, 3])))
    assert np.isfinite(grads).all() and (grads[2, 0] == 0).all() and (grads[1, 0] != 0).any()
    nothing = rnn.cross_entropy(np.zeros((1, 4), "f4"), np.zeros(1, int), class_weights=np.zeros(4, "f4"))
    assert nothing == 0  # no class that weighs anything
    assert np.isnan(wrong)


def test_token_accuracy_counts_one_by_one():
    logits, targets, mask = classified(batch=(2, 3))
    right = [int(np.argmax(logits[tuple(at)]) == targets[tuple(at)]) for at in np.argwhere(mask)]
    accuracy = rnn.losses.token_accuracy

    @jax.jit
    def compute(logits, nans):
        of = lambda **options: accuracy(logits, targets, **{"mask": mask, **options})
        of_nan = lambda **options: accuracy(nans, np.zeros(2, int), **options)
        return (
            of(),
            of(reduction="sum"),
            of(reduction="none"),
            of(mask=np.zeros_like(mask)),
            of_nan(),
            of_nan(lengths=0),
        )

    mean, summed, each, of_none, of_nan, of_no_steps = compute(logits.astype("f4"), np.full((2, 3), np.nan, "f4"))
    assert float(mean) == pytest.approx(sum(right) / len(right))
    assert summed == sum(right) > 0
    assert each.shape == targets.shape
    assert of_none == of_nan == of_no_steps == 0


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: rnn.cross_entropy(jnp.zeros((3, 5)), jnp.zeros((3, 1), int)), r"logits must be \[T, \*B, V\]"),
        (
            lambda: rnn.cross_entropy(jnp.zeros((3, 5)), jnp.zeros(3)),
            r"targets must be integer classes, got float32\[3\]",
        ),
        (lambda: rnn.cross_entropy(jnp.zeros((3, 5)), jnp.zeros(3, int), reduction="avg"), r"reduction must be one of"),
        (
            lambda: rnn.losses.reduced(jnp.zeros((3, 2)), mask=jnp.ones((3, 2))),
            r"mask must be bool\[3, 2\], got float32\[3,2\]",
        ),
        (lambda: rnn.losses.reduced(jnp.zeros((3, 2)), lengths=jnp.ones(3, int)), r"lengths must be \[\*B\] = \[2\]"),
        (lambda: rnn.losses.reduced(jnp.zeros((3, 2)), lengths=jnp.array([1, 4])), r"lengths must lie in 0\.\.3"),
        (
            lambda: rnn.cross_entropy(jnp.zeros((3, 5)), jnp.zeros(3, int), label_smoothing=1.0),
            r"label_smoothing is the share that is spread over all classes, from 0 up to but not 1, got 1.0",
        ),
        (
            lambda: rnn.cross_entropy(jnp.zeros((3, 5)), jnp.zeros(3, int), class_weights=[1.0, 2.0]),
            r"class_weights must be one number per class, \[5\], got float32\[2\]",
        ),
        (
            lambda: rnn.cross_entropy(jnp.zeros((3, 2)), jnp.zeros(3, int), class_weights=[1.0, -2.0]),
            r"class_weights must be numbers of at least 0, got \[ 1\. -2\.\]",
        ),
        (
            lambda: rnn.losses.token_accuracy(jnp.zeros((3, 5)), jnp.zeros((2, 5), int)),
            r"token_accuracy: logits must be \[T, \*B, V\] and targets \[T, \*B\]",
        ),
    ],
)
def test_bad_input(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
