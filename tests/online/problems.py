"""Cells that end in a loss, sequences for them, and gradients to compare: what the tests of online learning share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxrnn as rnn
from jaxrnn import online
from tests.zoo import D

F64 = {"dtype": jnp.float64}


def squares(y, target):
    """One number per example of whatever a cell puts out: squares of its floating leaves, [*B, features]."""
    rows = [
        leaf.reshape(*target.shape[:-1], -1) for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return sum(jnp.sum(jnp.abs(row - target[..., :1].astype(row.dtype)) ** 2, -1) for row in rows)


def lossy(cell):
    return rnn.with_loss(cell, squares)


def data(T=6, batch=(2,), dtype=jnp.float64, features=D):
    """(inputs, targets), [T, *B, D]."""
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(jax.random.normal(k, (T, *batch, features), dtype) for k in keys)


def problem(cell, **kinds):
    """(the cell with its loss, parameters, xs)"""
    net, xs = lossy(cell), data(**kinds)
    return net, net.init(jax.random.key(2), jax.tree.map(lambda a: a[0], xs)), xs


def first(xs):
    return jax.tree.map(lambda a: a[0], xs)


def bptt(net, params, xs, scan=lax.scan, **more):
    """The sum over time of the mean over the batch, differentiated by JAX."""

    def loss(params):
        losses = rnn.unroll(net, params, xs, scan=scan, **more)[1]
        return jnp.sum(losses) * (losses.shape[0] / losses.size)

    return jax.jit(jax.grad(loss))(params)


def by_windows(net, method, params, xs, cuts=(), state=None, key=None):
    """The sum of the gradients of windows that end at these steps, and the last carry."""
    init, update = _programs(net, method)
    xs = jax.tree.map(np.asarray, xs)  # of which a part takes no program
    T = len(jax.tree.leaves(xs)[0])
    carry, total = init(params, first(xs), state, key), None
    for a, b in zip((0, *cuts), (*cuts, T), strict=True):
        carry, _, grads = update(params, carry, jax.tree.map(lambda x, a=a, b=b: x[a:b], xs))
        total = grads if total is None else jax.tree.map(np.add, total, grads)
    return total, carry


@functools.lru_cache(maxsize=4)
def _programs(net, method):
    """A learner's init and update: compiled once for windows of the same length, whatever the key."""
    learner = online.online(net, method)
    return jax.jit(lambda p, x, state, key: learner.init(p, x, state, key=key)), jax.jit(learner.update)


def every(net, method, params, xs, steps, key=None):
    """The sum of the gradients of windows of so many steps, in one loop, and the last carry."""
    learner = online.online(net, method)
    windows = jax.tree.map(lambda a: a.reshape(-1, steps, *a.shape[1:]), xs)

    def body(params, both, window):
        carry, total = both
        carry, _, grads = learner.update(params, carry, window)
        return (carry, jax.tree.map(jnp.add, total, grads)), None

    def whole(params, x, key):
        start = learner.init(params, x, key=key), jax.tree.map(jnp.zeros_like, params)
        return lax.scan(functools.partial(body, params), start, windows)[0]

    carry, total = jax.jit(whole)(params, first(xs), key)
    return total, carry


def error(found, expected):
    """The distance of two gradients, relative to the second."""
    parts = lambda leaf: [leaf.real, leaf.imag] if np.iscomplexobj(leaf) else [leaf]
    leaves = lambda tree: map(np.asarray, jax.tree.leaves(tree))
    flat = lambda tree: np.concatenate([np.ravel(part) for leaf in leaves(tree) for part in parts(leaf)])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    a, b = flat(found), flat(expected)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
