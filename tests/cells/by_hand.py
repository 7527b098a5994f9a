"""What tests of cells share: parameters away from their first values, and the functions of numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as rnn
from tests.zoo import D

F64 = jnp.float64


def made(cell, features=D, seed=0, scale=0.3):
    """float64 parameters, none of them at a special value (zero biases)."""
    params = cell.init(jax.random.key(seed), jax.ShapeDtypeStruct((features,), F64))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 99))
    return jax.tree.map(lambda a: a + scale * jax.random.normal(next(keys), a.shape, a.dtype), params)


def problem(cell, steps=9, features=D):
    """(parameters, the same in numpy, xs, the outputs, the last state), for a batch of two."""
    params = made(cell, features)
    xs = jax.random.normal(jax.random.key(3), (steps, 2, features), F64)
    state, ys = jax.jit(lambda p, xs: rnn.unroll(cell, p, xs))(params, xs)
    return params, jax.tree.map(np.asarray, params), np.asarray(xs), np.asarray(ys), jax.tree.map(np.asarray, state)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softplus(a):
    return np.log1p(np.exp(a))


def parts(matrix, n):
    return np.split(matrix, n, axis=-1)


def same(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
