"""What tests of cells share: parameters away from their first values, and the functions of numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as rnn
from tests.zoo import D

F64 = jnp.float64


# One program per cell and shape, not one per operation.
run = jax.jit(rnn.unroll, static_argnums=0)


def moved(params, seed=1, scale=0.3):
    """Parameters away from their special first values (zero biases), each by noise of its own; a dtype stays."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray((a + scale * noise.normal(size=a.shape)).astype(a.dtype)), params)


def made(cell, features=D, seed=0, scale=0.3):
    """float64 parameters, none of them at a special value (zero biases)."""
    params = cell.init(jax.random.key(seed), jax.ShapeDtypeStruct((features,), F64))
    return moved(jax.tree.map(np.asarray, params), seed + 1, scale)


def problem(cell, steps=9, features=D):
    """(parameters, the same in numpy, xs, the outputs, the last state), for a batch of two."""
    params = made(cell, features)
    xs = np.random.default_rng(3).normal(size=(steps, 2, features))
    state, ys = run(cell, params, xs)
    return params, jax.tree.map(np.asarray, params), xs, np.asarray(ys), jax.tree.map(np.asarray, state)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softplus(a):
    return np.log1p(np.exp(a))


def parts(matrix, n):
    return np.split(matrix, n, axis=-1)


def same(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
