"""Estimators that are right in the mean: over all signs there are, not over samples. And e-prop against the cut net."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn.online import eprop, kf_rtrl, online, rtrl, snap, uoro
from tests.online.problems import F64, bptt, by_windows, error, first, lossy, problem

T = 4


def own_units(size, **dtype):
    return rnn.ind_rnn(size, activation=jnp.tanh, **dtype)


@pytest.mark.parametrize("method", [uoro, kf_rtrl])
@pytest.mark.parametrize("make", [rnn.elman, pytest.param(own_units, marks=pytest.mark.slow)])
def test_the_mean_over_all_signs_is_the_gradient(method, make, x64):
    """Two units: two signs a step for `uoro`, two for each tap that is a product for `kf_rtrl`: there is one."""
    net, params, xs = problem(make(2, **F64), T=T, batch=(1,))
    count = 2
    signs = jnp.array(list(itertools.product((-1.0, 1.0), repeat=count * (T - 1))))  # the last step's are never read

    def estimate(of_all):
        of_all, total, carry = of_all.reshape(T - 1, count), None, None
        for t in range(T):
            left = iter(of_all[t] if t < T - 1 else jnp.ones(count))

            def draw(key, shape, dtype, left=left):
                return jnp.stack([next(left) for _ in range(2)]).reshape(shape)

            learner = online(net, method(signs=draw))
            carry = learner.init(params, first(xs), key=jax.random.key(0)) if carry is None else carry
            carry, _, grads = learner.update(params, carry, jax.tree.map(lambda a, t=t: a[t : t + 1], xs))
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        return total

    found = jax.jit(lambda signs: jax.tree.map(lambda a: a.mean(0), jax.vmap(estimate)(signs)))(signs)
    assert error(found, bptt(net, params, xs)) < 1e-12


@pytest.mark.parametrize("method", [uoro(), kf_rtrl()])
def test_each_draw_is_another_and_each_key_the_same(method):
    net, params, xs = problem(rnn.gru(4), dtype=jnp.float32)
    one, other = (by_windows(net, method, params, xs, key=jax.random.key(n))[0] for n in (0, 1))
    assert error(one, other) > 1e-3
    again, _ = by_windows(net, method, params, xs, (2, 4), key=jax.random.key(0))
    assert error(again, one) < 1e-5
    with pytest.raises(ValueError, match=r"draws random signs; give a key"):
        online(net, method).init(params, first(xs))


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv * 0.3 * jnp.maximum(1 - jnp.abs(v), 0)


def adaptive_spikes(size, *, lateral=True):
    """Leaky integrate-and-fire units with an adaptive threshold, and the derivative of a triangle for the spike."""

    def init(key, x):
        a, b = jax.random.split(key)
        return {
            "U": jax.random.normal(a, (x.shape[-1], size), x.dtype),
            "W": jax.random.normal(b, (size, size), x.dtype),
        }

    def step(params, state, x, *, key=None):
        z, v, a = state
        sent = z if lateral else jax.lax.stop_gradient(z)
        v = 0.9 * v + x @ params["U"] + sent @ params["W"] / 2 - jax.lax.stop_gradient(z)
        a = 0.97 * a + z
        z = spike(v - 0.5 - 0.1 * a)
        return (z, v, a), z

    return rnn.Cell(init, lambda p, batch: tuple(jnp.zeros((*batch, size), p["U"].dtype) for _ in range(3)), step)


def cut_lstm(cell):
    """The same LSTM, with h held fast where it meets its weights."""

    def step(params, state, x, *, key=None):
        h, c = state
        b = jnp.broadcast_to(params["b"], (*x.shape[:-1], 16))
        i, f, g, o = jnp.split(x @ params["U"] + jax.lax.stop_gradient(h) @ params["W"] + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return type(state)(h, c), h

    return cell._replace(step=step)


@pytest.mark.parametrize("name", ["spikes", pytest.param("lstm", marks=pytest.mark.slow)])
def test_eprop_is_bptt_of_the_cut_net(name, x64):
    spikes = name == "spikes"
    cell = adaptive_spikes(6) if spikes else rnn.lstm(4, **F64)
    cut = adaptive_spikes(6, lateral=False) if spikes else cut_lstm(cell)
    net, params, xs = problem(cell, T=12)
    found, _ = by_windows(net, eprop(), params, xs)
    assert error(found, bptt(lossy(cut), params, xs)) < 1e-12
    whole = bptt(net, params, xs)
    assert error(found, whole) > 1e-3
    assert error(by_windows(net, rtrl(), params, xs, (5,))[0], whole) < 1e-12


def test_snap_is_nearer_than_its_first_step(x64):
    net, params, xs = problem(rnn.gru(5, **F64), T=12)
    whole = bptt(net, params, xs)
    near = [error(by_windows(net, snap(n), params, xs)[0], whole) for n in (1, 2)]
    assert near[1] < 1e-12 < near[0] < 0.5  # of a dense layer two steps reach all
