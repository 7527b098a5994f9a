"""Backpropagation through time is right: against the closed form, and against central differences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from tests.choice import slow_but_for
from tests.zoo import SCANS

T, D, H, O = 11, 3, 4, 5  # noqa: E741  steps, inputs, hidden units, classes


def problem():
    rng = np.random.default_rng(0)
    shapes = {"U": (D, H), "W": (H, H), "b": (H,), "V": (H, O), "c": (O,)}
    weights = {name: 0.7 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return weights, rng.standard_normal((T, D)), rng.integers(0, O, T), 0.3 * rng.standard_normal(H)


def closed_form(weights, xs, targets, h):
    """The loss and its gradients by the equations of BPTT, in numpy, one step after the other.

    a_t = b + W h_tm1 + U x_t,  h_t = tanh(a_t),  o_t = c + V h_t,  y_t = softmax(o_t),  L = sum_t -log y_t[target_t]
    dL/do_t = y_t - onehot(target_t)
    dL/dh_t = V^T dL/do_t + W^T diag(1 - h_tp1^2) dL/dh_tp1
    """
    U, W, b, V, c = (weights[k] for k in "UWbVc")
    hs, ys, loss = [h], [], 0.0
    for x, target in zip(xs, targets, strict=True):
        hs.append(np.tanh(b + hs[-1] @ W + x @ U))
        o = c + hs[-1] @ V
        ys.append(np.exp(o - o.max()) / np.exp(o - o.max()).sum())
        loss -= np.log(ys[-1][target])
    grads = {name: np.zeros_like(w) for name, w in weights.items()}
    dh = np.zeros(H)
    for t in reversed(range(T)):
        do = ys[t] - np.eye(O)[targets[t]]
        dh = dh + do @ V.T
        da = (1 - hs[t + 1] ** 2) * dh
        grads["V"] += np.outer(hs[t + 1], do)
        grads["c"] += do
        grads["U"] += np.outer(xs[t], da)
        grads["W"] += np.outer(hs[t], da)
        grads["b"] += da
        dh = da @ W.T
    return loss, grads


def by_unroll(scan, targets):
    cell = rnn.stack(rnn.elman(H, dtype=jnp.float64), rnn.layer(nn.Dense(O, param_dtype=jnp.float64)))

    def loss(weights, xs, h):
        elman = {k: weights[k] for k in "UWb"}
        params = (elman, {"kernel": weights["V"], "bias": weights["c"]})
        _, logits = rnn.unroll(cell, params, xs, (h, ()), scan=scan)
        return rnn.cross_entropy(logits, targets, reduction="sum")

    return loss


@functools.cache
def compiled(scan):
    """(weights, xs, h) -> the loss and its gradients in all of them."""
    return jax.jit(jax.value_and_grad(by_unroll(SCANS[scan], problem()[2]), argnums=(0, 1, 2)))


FAST = ("lax.scan", "checkpointed(2)", "fissioned", "fissioned(2, separate)", "revolve(2, 1, kept=1)", "parallel")
EVERY = slow_but_for(FAST, SCANS)


@pytest.mark.parametrize("scan", EVERY)
def test_gradients_equal_the_closed_form(scan, x64):
    weights, xs, targets, h = problem()
    loss, grads = closed_form(weights, xs, targets, h)
    got_loss, (got, _, _) = compiled(scan)(weights, xs, h)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-12)
    for name in grads:
        np.testing.assert_allclose(got[name], grads[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("scan", EVERY)
def test_gradients_equal_central_differences(scan, x64):
    weights, xs, _, h = problem()
    loss, grads = lambda *args: compiled(scan)(*args)[0], compiled(scan)(weights, xs, h)[1]
    rng, eps = np.random.default_rng(1), 1e-6
    for _ in range(3):
        direction = jax.tree.map(lambda a: rng.standard_normal(np.shape(a)), (weights, xs, h))
        ahead, behind = (
            loss(*jax.tree.map(lambda a, d, s=sign: a + s * eps * d, (weights, xs, h), direction)) for sign in (1, -1)
        )
        along = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose((ahead - behind) / (2 * eps), along, rtol=1e-6)


def test_truncation_cuts_the_closed_form(x64):
    """truncated(k): the same equations with dL/dh set to zero wherever a segment begins."""
    weights, xs, targets, h = problem()
    got = jax.jit(jax.grad(by_unroll(rnn.truncated(4), targets)))(weights, xs, h)
    total = {name: np.zeros_like(w) for name, w in weights.items()}
    carry = np.asarray(h)
    cell = rnn.elman(H, dtype=jnp.float64)
    for start in range(0, T, 4):
        part = slice(start, min(start + 4, T))
        loss = by_unroll(rnn.python_loop(), targets[part])
        grads = jax.jit(jax.grad(loss))(weights, xs[part], carry)
        total = {name: total[name] + grads[name] for name in total}
        carry, _ = rnn.unroll(cell, {k: weights[k] for k in "UWb"}, xs[part], carry)
    for name in total:
        np.testing.assert_allclose(got[name], total[name], rtol=1e-12, atol=1e-14, err_msg=name)
