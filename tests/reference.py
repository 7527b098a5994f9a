"""The meaning of `unroll`, written as the plain Python loop of its docstring; shares no code with it."""

import jax
import jax.numpy as jnp
import numpy as np


def unroll(cell, params, xs, state, *, batch, lengths=None, resets=None, key=None, reverse=False):
    steps = jax.tree.leaves(xs)[0].shape[0]
    keys = [None] * steps
    start_params = params
    if key is not None:
        k_begin, k_steps = jax.random.split(key)
        params = cell.begin(params, k_begin)
        keys = [jax.random.fold_in(k_steps, t) for t in range(steps)]
    ys = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x = jax.tree.map(lambda a, t=t: a[t], xs)
        if resets is not None:
            state = _where(resets[t], cell.initial_state(start_params, batch), state)
        new, y = cell.step(params, state, x, key=keys[t])
        if lengths is not None:
            new = _where(t < lengths, new, state)
            y = _where(t < lengths, y, jax.tree.map(jnp.zeros_like, y))
        state, ys[t] = new, y
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def _where(mask, a, b):
    widen = lambda leaf: jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim)), leaf.shape)
    return jax.tree.map(lambda p, q: jnp.where(widen(p), p, q), a, b)


def scalar(state, ys):
    """A number that depends on every floating output in a way that is neither linear nor symmetric."""
    total = jnp.zeros((), jnp.float32)
    for n, leaf in enumerate(_real(jax.tree.leaves((state, ys)))):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
            leaf = leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)
            weights = jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype) + n).reshape(leaf.shape)
            total = total.astype(leaf.dtype) + jnp.sum(jnp.sin(leaf) * weights)
    return total


def _real(leaves):
    """The leaves, with both parts of those that are complex."""
    for leaf in leaves:
        yield from (leaf.real, leaf.imag) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else (leaf,)


def assert_close(got, expected, tolerance, what=""):
    got_leaves, expected_leaves = (
        jax.tree_util.tree_leaves_with_path(got),
        jax.tree_util.tree_leaves_with_path(expected),
    )
    assert len(got_leaves) == len(expected_leaves)
    for (path, a), (_, b) in zip(got_leaves, expected_leaves, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (what, path, a.shape, b.shape, a.dtype, b.dtype)
        if a.dtype == jax.dtypes.float0:
            continue
        wide = np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        np.testing.assert_allclose(
            np.asarray(a).astype(wide),
            np.asarray(b).astype(wide),
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{what}{path}",
        )
