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
    np.testing.assert_allclose(rnn.cross_entropy(logits, targets, reduction="sum", **options), total, rtol=1e-5)
    np.testing.assert_allclose(rnn.cross_entropy(logits, targets, **options), total / max(n, 1), rtol=1e-5)
    each = rnn.cross_entropy(logits, targets, reduction="none", **options)
    assert each.shape == targets.shape and (np.asarray(each)[~counted] == 0).all()


def test_nothing_counts():
    assert rnn.cross_entropy(jnp.zeros((3, 2, 5)), jnp.zeros((3, 2), int), lengths=jnp.zeros(2, int)) == 0


def test_padding_reaches_no_gradient():
    logits = jnp.ones((3, 2, 4)).at[2, 0].set(jnp.nan)
    targets = jnp.zeros((3, 2), int).at[2, 0].set(-99)
    grads = jax.grad(lambda z: rnn.cross_entropy(z, targets, lengths=jnp.array([2, 3])))(logits)
    assert bool(jnp.isfinite(grads).all()) and bool((grads[2, 0] == 0).all()) and bool((grads[1, 0] != 0).all())


def test_sixteen_bits_do_not_overflow():
    loss = rnn.cross_entropy(jnp.zeros((100, 700, 10), jnp.float16), jnp.zeros((100, 700), jnp.int32))
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(np.log(10), rel=1e-3)


def test_targets_out_of_range_never_pass_for_a_class():
    logits = jnp.zeros((2, 1, 3))
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2, got -1 at \[1, 0\]; .*mask=targets >= 0"):
        rnn.cross_entropy(logits, jnp.array([[0], [-1]]))
    assert np.isnan(jax.jit(rnn.cross_entropy)(logits, jnp.array([[0], [-1]])))
    masked = rnn.cross_entropy(logits, jnp.array([[0], [-1]]), mask=jnp.array([[True], [False]]))
    assert float(masked) == pytest.approx(np.log(3))


def test_a_loss_in_the_cell_equals_a_loss_after_it():
    import flax.linen as nn
    import optax

    net = rnn.stack(rnn.gru(4), rnn.layer(nn.Dense(5)))
    whole = rnn.with_loss(net, optax.softmax_cross_entropy_with_integer_labels)
    xs, targets = jax.random.normal(jax.random.key(0), (6, 2, 3)), jnp.arange(12).reshape(6, 2) % 5
    params = whole.init(jax.random.key(1), (xs[0], targets[0]))
    inside = lambda p: rnn.losses.reduced(
        rnn.unroll(whole, p, (xs, targets), lengths=jnp.array([3, 6]))[1], lengths=jnp.array([3, 6])
    )
    after = lambda p: rnn.cross_entropy(rnn.unroll(net, p, xs)[1], targets, lengths=jnp.array([3, 6]))
    got, expected = jax.value_and_grad(inside)(params), jax.value_and_grad(after)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_bits_per_character():
    assert rnn.losses.bits_per_character(np.log(256.0)) == pytest.approx(8)
    text = "naïve naïve " * 50
    nats = 8 * len(gzip.compress(text.encode())) * np.log(2)
    assert rnn.losses.bits_per_character(nats, len(text)) == pytest.approx(
        8 * len(gzip.compress(text.encode())) / len(text)
    )


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
    ],
)
def test_bad_input(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
