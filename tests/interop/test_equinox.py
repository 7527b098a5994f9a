"""Weights of Equinox: its cells beside ours, values and gradients, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import interop

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(1).normal(size=(T, B, D)).astype("float32")


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox", reason="Equinox is not installed")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_cells_of_equinox_values_and_gradients_there_and_back(kind, bias, eqx):
    module = getattr(eqx.nn, kind)(D, H, use_bias=bias, key=jax.random.key(0))
    net, params = interop.from_equinox(module)
    assert net == (rnn.lstm if kind == "LSTMCell" else rnn.gru)(H, bias=bias)
    kept = rnn.recurrent(module)
    loss = lambda cell: lambda params: jnp.sum(jnp.sin(rnn.unroll(cell, params, XS, scan=jax.lax.scan)[1]))
    value, grads = jax.jit(jax.value_and_grad(loss(kept)))(kept.init(None, XS[0]))
    ours, found = jax.jit(jax.value_and_grad(loss(net)))(params)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    back = interop.to_equinox(net, found)
    for name, grad in grads.items():
        np.testing.assert_allclose(getattr(back, name), grad, rtol=1e-5, atol=1e-5)
    assert eqx.tree_equal(interop.to_equinox(net, params), module)


def test_what_does_not_fit_is_one_clear_sentence(eqx):
    module = eqx.nn.GRUCell(D, H, key=jax.random.key(0))
    broken = eqx.tree_at(lambda m: m.weight_hh, module, jnp.zeros((2, 2)))
    with pytest.raises(
        ValueError, match=r"from_equinox: tensor 'weight_hh' should be \[3H, H\] = \[12, 4\], got float32\[2,2\]"
    ):
        interop.from_equinox(broken)
    with pytest.raises(TypeError, match="from_equinox: module should be an eqx.nn.LSTMCell or GRUCell, got Linear"):
        interop.from_equinox(eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"to_equinox: net should be an lstm or a gru\(reset='after'\)"):
        interop.to_equinox(rnn.elman(H), rnn.elman(H).init(jax.random.key(0), XS[0]))


def test_without_equinox_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "equinox", None)
    with pytest.raises(ImportError, match="to_equinox: needs the package equinox; pip install equinox"):
        interop.to_equinox(rnn.gru(H), rnn.gru(H).init(jax.random.key(0), XS[0]))
    with pytest.raises(TypeError, match="from_equinox: module should be"):
        interop.from_equinox(object())
