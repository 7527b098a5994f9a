"""Pooling over time, beside each sequence alone; padding, gradients, and what is said to bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import sequence

LENGTHS = np.array([[4, 0], [1, 3]])
YS = -1 - jax.random.uniform(jax.random.key(0), (4, 2, 2, 3))  # all below zero, so that a zero would be the largest
ALONE = {"mean": lambda y: y.mean(0), "max": lambda y: y.max(0), "last": lambda y: y[-1]}


@pytest.mark.parametrize("how", ALONE)
def test_each_sequence_as_alone(how):
    dirty = jnp.where((np.arange(4)[:, None, None] < LENGTHS)[..., None], YS, jnp.nan)
    found = {"y": sequence.pooled({"y": dirty}, how, lengths=LENGTHS)["y"], "all": sequence.pooled(YS, how)}
    np.testing.assert_allclose(found["all"], ALONE[how](np.asarray(YS)), rtol=1e-6)
    for b in np.ndindex(2, 2):
        alone = ALONE[how](np.asarray(YS)[: LENGTHS[b], *b]) if LENGTHS[b] else np.zeros(3)
        np.testing.assert_allclose(found["y"][b], alone, rtol=1e-6)

    whole = lambda ys: jnp.sum(jnp.sin(sequence.pooled(ys, how, lengths=LENGTHS)))
    one = lambda y: jnp.sum(jnp.sin(ALONE[how](y)))
    gradient = jax.grad(whole)(dirty)
    for b in np.ndindex(2, 2):
        n = LENGTHS[b]
        assert not gradient[n:, *b].any()
        if n:
            np.testing.assert_allclose(gradient[:n, *b], jax.grad(one)(YS[:n, *b]), rtol=1e-5)


@pytest.mark.parametrize(("ys", "largest"), [([[-3], [-2], [9]], [-2]), ([[False], [False], [True]], [False])])
def test_the_largest_of_whole_numbers_and_of_truths(ys, largest):
    assert sequence.pooled(jnp.array(ys), "max", lengths=np.array([2])).tolist() == largest


@pytest.mark.parametrize(
    ("ys", "how", "lengths", "complaint"),
    [
        (YS, "median", None, "how must be one of"),
        (YS[:0], "mean", None, "has no steps"),
        (YS, "mean", [[5, 0], [1, 3]], "lengths"),
        (YS, "mean", [1, 2, 3], r"should be \[T, \*B, ...\] with \*B = \(3,\)"),
    ],
)
def test_bad_input_is_one_sentence(ys, how, lengths, complaint):
    with pytest.raises(ValueError, match=complaint):
        sequence.pooled(ys, how, lengths=lengths)
