"""Weights of Haiku: by its equations in NumPy, and beside Haiku itself where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import interop
from tests.cells.by_hand import moved
from tests.interop.by_hand import sigmoid, unrolled
from tests.reference import assert_close

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(1).normal(size=(T, B, D))


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [0.6 * rng.normal(size=shape) for shape in shapes]


def test_an_lstm_of_haiku_s_adds_one_to_its_forget_gate(x64):
    w, b = draw((D + H, 4 * H), (4 * H,))
    net, params = interop.from_haiku({"net/~/lstm/linear": {"w": w, "b": b}, "linear": {"w": w}}, "net/~/lstm")
    assert net == rnn.lstm(H, dtype=jnp.float64)
    h = c = np.zeros((B, H))
    for x, y in zip(XS, unrolled(net, params, XS)[1], strict=True):
        i, g, f, o = np.split(np.concatenate([x, h], -1) @ w + b, 4, -1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(y, h, rtol=1e-12)
    back = interop.to_haiku(net, params, "lstm")["lstm/linear"]
    np.testing.assert_allclose(back["w"], w, rtol=0)
    np.testing.assert_allclose(back["b"], b, rtol=1e-14, atol=1e-14)


def test_a_gru_of_haiku_s_has_the_other_gate(x64):
    theirs = dict(zip(("w_i", "w_h", "b"), draw((D, 3 * H), (H, 3 * H), (3 * H,)), strict=True))
    net, params = interop.from_haiku({"gru": theirs}, "gru")
    assert net == rnn.gru(H, reset="before", dtype=jnp.float64)
    (z_x, r_x, a_x), (W_z, W_r, W_a) = np.split(XS @ theirs["w_i"] + theirs["b"], 3, -1), np.split(theirs["w_h"], 3, -1)
    h = np.zeros((B, H))
    for t, y in enumerate(unrolled(net, params, XS)[1]):
        z, r = sigmoid(z_x[t] + h @ W_z), sigmoid(r_x[t] + h @ W_r)
        h = (1 - z) * h + z * np.tanh(a_x[t] + (r * h) @ W_a)
        np.testing.assert_allclose(y, h, rtol=1e-12)
    assert_close(interop.to_haiku(net, params, "gru")["gru"], theirs, 0)


def test_a_vanilla_rnn_of_haiku_s_is_relu_with_one_bias_or_two(x64):
    w_x, w_h, b_x, b_h = draw((D, H), (H, H), (H,), (H,))
    theirs = {"rnn/linear": {"w": w_x, "b": b_x}, "rnn/linear_1": {"w": w_h, "b": b_h}}
    net, params = interop.from_haiku(theirs, "rnn/")
    h = np.zeros((B, H))
    for x, y in zip(XS, unrolled(net, params, XS)[1], strict=True):
        h = np.maximum(x @ w_x + b_x + h @ w_h + b_h, 0)
        np.testing.assert_allclose(y, h, rtol=1e-12)
    single = interop.to_haiku(net, params, "rnn")
    assert set(single["rnn/linear_1"]) == {"w"}
    assert_close(interop.from_haiku(single, "rnn").params, params, 0)


@pytest.mark.parametrize(
    ("params", "prefix", "complaint"),
    [
        (
            {"a/lstm/linear": {"w": np.ones((7, 16), "float32")}},
            "a/lstm",
            r"'a/lstm/linear/b', \[4H\] = \[16\], is missing",
        ),
        (
            {"a/linear": {"w": np.ones((7, 15), "float32")}},
            "a",
            r"'a/linear/w' should be \[D\+H, 4H\] = \[7, 12\], got float32\[7,15\]",
        ),
        ({"a/linear": {"w": np.ones((3, 16), "float32")}}, "a", r"'a/linear/w' should be \[D\+H, 4H\] = \[5, 16\]"),
        (
            {"lstm/linear": {"w": np.ones(3)}},
            "gru",
            r"no recurrent core under the prefix 'gru'; there is 'lstm'; hand over",
        ),
        ({}, "gru", r"no recurrent core under the prefix 'gru'; nor is there one"),
        (
            {"g": {"w_i": np.ones((3, 12), "float32"), "w_h": np.ones((4, 12), "float16"), "b": np.ones(12)}},
            "g",
            r"'g/w_h' should be float32 as tensor 'g/w_i' is, got float16\[4,12\]",
        ),
    ],
)
def test_bad_arrays_are_one_clear_sentence(params, prefix, complaint):
    with pytest.raises(ValueError, match=complaint):
        interop.from_haiku(params, prefix)


def test_the_kind_can_be_said_where_its_name_is_missing():
    half = {"a/linear": {"w": np.ones((3, 4), "float32"), "b": np.ones(4, "float32")}}
    with pytest.raises(ValueError, match=r"'a/linear_1/w', \[H, H\] = \[4, 4\], is missing"):
        interop.from_haiku(half, "a", kind="vanilla_rnn")
    with pytest.raises(ValueError, match="from_haiku: kind must be one of 'vanilla_rnn', 'lstm', 'gru', got 'rnn'"):
        interop.from_haiku(half, "a", kind="rnn")


@pytest.mark.parametrize(
    ("net", "complaint"),
    [
        (rnn.gru(H), r"to_haiku: the gru should reset before the product"),
        (rnn.elman(H), r"to_haiku: the activation should be relu"),
        (rnn.lstm(H, peephole=True), r"params has peepholes"),
    ],
)
def test_cells_without_counterpart_are_one_clear_sentence(net, complaint):
    with pytest.raises(ValueError, match=complaint):
        interop.to_haiku(net, net.init(jax.random.key(0), jnp.zeros(D)), "net")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "VanillaRNN"])
def test_cores_of_haiku_values_and_gradients_there_and_back(kind, lenient):
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")

    def run(xs):
        core = getattr(hk, kind)(H, name="core")
        return hk.dynamic_unroll(core, xs, core.initial_state(B))[0]

    xs = XS.astype("float32")
    fn = hk.without_apply_rng(hk.transform(run))
    theirs = moved(fn.init(jax.random.key(0), xs))
    net, params = interop.from_haiku(theirs, "core")
    value, grads = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(fn.apply(p, xs)))))(theirs)

    def loss(theirs):  # through the conversion, which is made of numpy for numbers and of this for gradients
        return jnp.sum(jnp.sin(rnn.unroll(net, theirs, xs, scan=jax.lax.scan)[1]))

    ours, found = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    # The conversion is linear but for the 1, so the difference of two conversions moves as a gradient does.
    back, zero = (interop.to_haiku(net, p, "core") for p in (found, jax.tree.map(jnp.zeros_like, found)))
    moved_by = jax.tree.map(lambda a, b: a - b, back, zero)
    for module, arrays in moved_by.items():
        for name, grad in arrays.items():
            np.testing.assert_allclose(grad, grads[module][name], rtol=1e-5, atol=1e-5, err_msg=f"{module}/{name}")
    again = interop.from_haiku(interop.to_haiku(net, params, "core"), "core").params
    assert_close(again, params, 1e-6)
