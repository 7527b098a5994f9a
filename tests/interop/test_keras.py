"""Weights of Keras: by its equations in NumPy, and beside Keras 3 itself where it is installed."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import interop
from tests.choice import slow_but_for
from tests.interop.by_hand import sigmoid, unrolled
from tests.reference import assert_close

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(1).normal(size=(T, B, D))


def draw(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [(0.6 * rng.normal(size=shape)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_of_keras_by_hand(reset_after, x64):
    kernel, recurrent, bias = arrays = draw((D, 3 * H), (H, 3 * H), (2, 3 * H) if reset_after else (3 * H,))
    net, params = interop.from_keras(arrays)
    assert net == rnn.gru(H, reset="after" if reset_after else "before", dtype=jnp.float64)
    b_x, b_h = bias if reset_after else (bias, 0 * bias)
    h = np.zeros((B, H))
    for x, y in zip(XS, unrolled(net, params, XS)[1], strict=True):
        x_z, x_r, x_h = np.split(x @ kernel + b_x, 3, -1)
        h_z, h_r, h_h = np.split(h @ recurrent + b_h, 3, -1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        past = r * h_h if reset_after else (r * h) @ np.split(recurrent, 3, -1)[2]
        h = z * h + (1 - z) * np.tanh(x_h + past)
        np.testing.assert_allclose(y, h, rtol=1e-12)
    back = interop.to_keras(net, params)
    assert [a.shape for a in back] == [a.shape for a in arrays]
    assert_close(interop.from_keras(back).params, params, 0)


def test_an_lstm_and_a_simple_rnn_of_keras_by_hand(x64):
    kernel, recurrent, bias = arrays = draw((D, 4 * H), (H, 4 * H), (4 * H,))
    net, params = interop.from_keras(arrays)
    h = c = np.zeros((B, H))
    for x, y in zip(XS, unrolled(net, params, XS)[1], strict=True):
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(y, h, rtol=1e-12)
    for ours, theirs in zip(interop.to_keras(net, params), arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    two, params = interop.from_keras(draw((D, H), (H, H), (D, H), (H, H)), activation=jax.nn.relu)
    simple = rnn.elman(H, activation=jax.nn.relu, bias=False, dtype=jnp.float64)
    assert two == rnn.bidirectional(simple, simple) and set(params) == {"forward", "backward"}


f32 = lambda *shape: np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ([f32(3, 16)], r"source should be 2 or 3 arrays, or twice as many, got 1; hand over"),
        ([f32(3, 16), f32(4, 16), f32(4)], r"'bias' should be \[4H\] = \[16\], got float32\[4\]"),
        ([f32(3, 12), f32(4, 12), f32(2, 16)], r"'bias' should be \[2, 3H\] = \[2, 12\], got float32\[2,16\]"),
        ([f32(3, 8), f32(4, 8)], r"'recurrent_kernel' should be \[H, G\*H\] with G = 1 .* got \[4, 8\]"),
        ([f32(3, 12), f32(4, 16)], r"'kernel' should be \[D, 4H\] = \[3, 16\], got float32\[3,12\]"),
        (
            [f32(3, 16), f32(4, 16), f32(3, 16), f32(2, 2, 2)],
            r"'backward recurrent_kernel' should be \[H, G\*H\], got float32",
        ),
        ([f32(3, 16), f32(4, 16), np.zeros(16, int)], r"'bias' should hold floating-point numbers"),
    ],
)
def test_bad_arrays_are_one_clear_sentence(arrays, complaint):
    with pytest.raises(ValueError, match=complaint):
        interop.from_keras(arrays)


def test_what_is_no_layer_is_one_clear_sentence():
    with pytest.raises(TypeError, match="source should be made of SimpleRNN, LSTM, GRU and Bidirectional, got object"):
        interop.from_keras(object())
    with pytest.raises(ValueError, match="source should be layers or arrays, got an empty list"):
        interop.from_keras([])
    with pytest.raises(ValueError, match="params has a projection"):
        net = rnn.lstm(H, projection=2)
        interop.to_keras(net, net.init(jax.random.key(0), jnp.zeros(D)))


# --- beside Keras, where it is installed ----------------------------------------------------------

KINDS = {
    "SimpleRNN": {},
    "SimpleRNN relu": {"activation": "relu"},
    "LSTM": {},
    "GRU": {"reset_after": True},
    "GRU before": {"reset_after": False},
}
CASES = list(itertools.product(KINDS, (True, False), (None, "concat", "sum")))
FAST = [("SimpleRNN relu", True, None), ("LSTM", True, "sum"), ("GRU", True, None), ("GRU before", False, None)]
KERAS_S = pytest.mark.filterwarnings("default")  # its warnings are its own


@pytest.fixture
def keras(lenient):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras", reason="Keras is not installed")


def made(keras, kind, use_bias=True, merge_mode=None):
    layer = getattr(keras.layers, kind.split()[0])(H, use_bias=use_bias, return_sequences=True, **KINDS[kind])
    layer = keras.layers.Bidirectional(layer, merge_mode=merge_mode) if merge_mode else layer
    layer.build((B, T, D))
    rng = np.random.default_rng(0)
    layer.set_weights([(0.6 * rng.normal(size=w.shape)).astype("float32") for w in layer.get_weights()])
    return layer


def batch_major(xs):
    return jnp.asarray(np.swapaxes(xs, 0, 1).astype("float32"))


@KERAS_S
@pytest.mark.parametrize(("kind", "use_bias", "merge_mode"), slow_but_for(FAST, CASES))
def test_layers_of_keras_values_and_gradients_there_and_back(kind, use_bias, merge_mode, keras):
    layer = made(keras, kind, use_bias, merge_mode)
    net, params = interop.from_keras(layer)
    if keras.backend.backend() == "jax":
        weights = [v.value for v in layer.trainable_variables]
        frozen = [v.value for v in layer.non_trainable_variables]
        theirs = lambda w: jnp.sum(jnp.sin(layer.stateless_call(w, frozen, batch_major(XS))[0]))
        value, grads = jax.jit(jax.value_and_grad(theirs))(weights)
        loss = lambda p: jnp.sum(jnp.sin(rnn.unroll(net, p, XS.astype("float32"), scan=jax.lax.scan)[1]))
        ours, found = jax.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(ours, value, rtol=1e-5)
        for got, expected in zip(interop.to_keras(net, found), grads, strict=True):
            if got.ndim == 2 and len(got) == 2 and kind == "GRU":  # of two biases that are added up, ours is one
                expected, got = np.array(expected), np.array(got)
                expected[1, : 2 * H] = got[1, : 2 * H] = 0
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    ys = np.asarray(unrolled(net, params, XS.astype("float32"))[1])
    np.testing.assert_allclose(ys, np.swapaxes(layer(batch_major(XS)), 0, 1), rtol=1e-5, atol=1e-5)
    other = made(keras, kind, use_bias, merge_mode)
    other.set_weights(interop.to_keras(net, params))
    np.testing.assert_allclose(other(batch_major(XS)), layer(batch_major(XS)), rtol=1e-5, atol=1e-6)


@KERAS_S
def test_layers_of_keras_one_upon_another(keras):
    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(H, return_sequences=True)),
        keras.layers.GRU(H, return_sequences=True),
        keras.layers.RNN(keras.layers.SimpleRNNCell(2), return_sequences=True),
    ]
    model = keras.Sequential(layers)
    expected = model(batch_major(XS))
    net, params = interop.from_keras(model)
    assert net == rnn.chain(rnn.bidirectional(rnn.lstm(H), rnn.lstm(H)), rnn.gru(H), rnn.elman(2))
    np.testing.assert_allclose(
        np.swapaxes(unrolled(net, params, XS.astype("float32"))[1], 0, 1), expected, rtol=1e-5, atol=1e-5
    )
    model.set_weights(interop.to_keras(net, params))
    np.testing.assert_allclose(model(batch_major(XS)), expected, rtol=1e-5, atol=1e-6)


@KERAS_S
def test_options_of_keras_that_ours_have_not_are_one_clear_sentence(keras):
    layer = keras.layers
    for bad, complaint in (
        (layer.LSTM(2), r"from_keras: lstm\w* has no weights yet; call it on an input"),
        (layer.LSTM(2, activation="relu"), r"should have the activation tanh, and sigmoid for its gates, got 'relu'"),
        (layer.SimpleRNN(2, activation="softmax"), r"should have the activation one of tanh, relu, .* got 'softmax'"),
        (layer.SimpleRNN(2, activation=lambda a: a), r"one of tanh, relu, .* got 'a function of its own'; ours"),
        (layer.GRU(2, go_backwards=True), r"gru\w* should read forwards, but its go_backwards is True; use unroll"),
        (layer.Bidirectional(layer.GRU(2), merge_mode=None), r"merge_mode concat, sum, mul, ave, got None; convert"),
        (layer.Dense(2), r"source should be made of SimpleRNN, LSTM, GRU and Bidirectional, got Dense"),
    ):
        if "no weights" not in complaint:
            bad.build((B, T, D))
        with pytest.raises((ValueError, TypeError), match=complaint):
            interop.from_keras(bad)
