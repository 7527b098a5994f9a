"""Weights of Flax: Linen's and NNX's cells beside ours, values and gradients, there and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn as rnn
from jaxrnn import interop
from tests.cells.by_hand import moved
from tests.reference import assert_close

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(1).normal(size=(T, B, D)).astype("float32")
LINEN = {
    "LSTMCell": nn.LSTMCell(H),
    "OptimizedLSTMCell": nn.OptimizedLSTMCell(H),
    "GRUCell": nn.GRUCell(H),
    "SimpleCell": nn.SimpleCell(H),
}
OURS = {"LSTMCell": rnn.lstm(H), "OptimizedLSTMCell": rnn.lstm(H), "GRUCell": rnn.gru(H), "SimpleCell": rnn.elman(H)}


def their_gradient(cell, params):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(rnn.unroll(cell, p, XS, scan=jax.lax.scan)[1]))))(
        params
    )


@pytest.mark.parametrize("name", LINEN)
def test_linen_cells_values_and_gradients_there_and_back(name):
    theirs = moved(
        LINEN[name].init(jax.random.key(0), LINEN[name].initialize_carry(jax.random.key(0), (B, D)), XS[0])["params"]
    )
    net, params = interop.from_flax(theirs)
    assert net == OURS[name]
    run = nn.RNN(LINEN[name], time_major=True)
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(run.apply({"params": {"cell": p}}, XS)))))
    value, grads = loss(theirs)
    ours, found = their_gradient(net, params)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    assert_close(jax.tree.map(jnp.asarray, interop.to_flax(net, found)), grads, 1e-5)
    assert_close(jax.tree.map(jnp.asarray, interop.to_flax(net, params)), theirs, 0)


@pytest.mark.parametrize("name", LINEN)
def test_nnx_cells_values_and_gradients_there_and_back(name):
    graph, state = nnx.split(getattr(nnx, name)(D, H, rngs=nnx.Rngs(0)))
    module = nnx.merge(graph, moved(state))
    net, params = interop.from_nnx(module)
    assert net == OURS[name]
    kept = rnn.recurrent(module)
    value, _ = their_gradient(kept, kept.init(None, XS[0]))
    ours, found = their_gradient(net, params)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    if name == "GRUCell":
        found["c_n"] = 0 * found["c_n"]  # of which NNX's has none
    again = interop.to_nnx(net, params)
    assert_close(interop.from_nnx(again).params, params, 0)
    back = interop.to_nnx(net, found)
    their_grads = nnx.grad(lambda m: jnp.sum(jnp.sin(nnx.RNN(m, time_major=True)(jnp.asarray(XS)))))(again)
    for (_, a), (_, b) in zip(nnx.to_flat_state(nnx.state(back)), nnx.to_flat_state(their_grads), strict=True):
        np.testing.assert_allclose(a.get_value(), b.get_value(), rtol=1e-5, atol=1e-5)


def test_other_dtypes_and_activations():
    cell = rnn.elman(H, activation=jax.nn.relu, bias=False, dtype=jnp.bfloat16)
    module = interop.to_nnx(cell, cell.init(jax.random.key(0), jnp.zeros(D)))
    net, params = interop.from_nnx(module)
    assert net == rnn.elman(H, activation=jax.nn.relu, dtype=jnp.bfloat16) and not params["b"].any()
    assert interop.from_nnx(module, dtype=jnp.float32).net == rnn.elman(H, activation=jax.nn.relu)


LSTM = interop.to_flax(rnn.lstm(H), rnn.lstm(H).init(jax.random.key(0), jnp.zeros(D)))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda: interop.from_flax({**LSTM, "hg": {"kernel": LSTM["hg"]["kernel"]}}),
            r"'hg/bias', \[H\] = \[4\], is missing",
        ),
        (
            lambda: interop.from_flax({**LSTM, "ig": {"kernel": np.ones((2, 4), "float32")}}),
            r"'ig/kernel' should be \[D, H\] = \[3, 4\]",
        ),
        (
            lambda: interop.from_flax({**LSTM, "more": {"bias": np.ones(4, "float32")}}),
            r"'more/bias', float32\[4\], is no tensor of",
        ),
        (
            lambda: interop.from_flax({"params": LSTM}),
            r"params should be those of a known RNN cell, got \['params'\]; hand over",
        ),
        (
            lambda: interop.from_flax(nn.LSTMCell(H)),
            r"from_flax: params should be a dict of arrays by name, got a LSTMCell",
        ),
        (
            lambda: interop.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
            r"from_nnx: module should be a known RNN cell of NNX, got Linear",
        ),
        (
            lambda: interop.from_nnx(nnx.SimpleCell(2, 2, residual=True, rngs=nnx.Rngs(0))),
            r"SimpleCell has residual=True.*use recurrent",
        ),
        (
            lambda: interop.from_nnx(nnx.GRUCell(2, 2, gate_fn=nnx.relu, rngs=nnx.Rngs(0))),
            r"GRUCell should have the gates sigmoid and tanh",
        ),
        (
            lambda: interop.to_nnx(rnn.gru(H), {**rnn.gru(H).init(jax.random.key(0), XS[0]), "c_n": jnp.ones(H)}),
            r"params\['c_n'\] should be 0",
        ),
        (
            lambda: interop.to_flax(
                rnn.gru(H, reset="before"), rnn.gru(H, reset="before").init(jax.random.key(0), XS[0])
            ),
            r"should reset after",
        ),
        (
            lambda: interop.to_flax(
                rnn.lstm(H, projection=2), rnn.lstm(H, projection=2).init(jax.random.key(0), XS[0])
            ),
            r"has a projection",
        ),
        (
            lambda: interop.to_flax(
                rnn.stack(rnn.gru(D), rnn.gru(D)), rnn.stack(rnn.gru(D), rnn.gru(D)).init(jax.random.key(0), XS[0])
            ),
            r"net should be one cell, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
