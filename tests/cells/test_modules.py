"""Modules of NNX and Equinox as cells, beside the modules themselves in a plain Python loop."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn as rnn
from tests.reference import assert_close

D, H, T, B = 3, 4, 5, 2
XS = np.random.default_rng(0).normal(size=(T, B, D)).astype("float32")


def nnx_cell(kind, seed=0, **options):
    return kind(D, H, rngs=nnx.Rngs(seed), **options)


def by_hand(cell, xs):
    """Their own loop, outside any transformation."""
    carry, ys = cell.initialize_carry(xs[0].shape, nnx.Rngs(0)), []
    for x in xs:
        carry, y = cell(carry, jnp.asarray(x))
        ys.append(y)
    return carry, jnp.stack(ys)


@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_an_nnx_cell_computes_what_it_did(kind):
    module = nnx_cell(kind)
    cell = rnn.recurrent(module)
    params = cell.init(jax.random.key(7), XS[0])
    assert_close(rnn.unroll(cell, params, XS), by_hand(module, XS), 1e-6)


def test_gradients_of_an_nnx_cell_are_those_that_nnx_finds():
    module = nnx_cell(nnx.LSTMCell)
    cell = rnn.recurrent(module)
    params = cell.init(None, XS[0])
    loss = lambda ys: jnp.mean(jnp.sin(ys))
    ours = jax.grad(lambda p: loss(rnn.unroll(cell, p, XS)[1]))(params)
    theirs = nnx.jit(nnx.grad(lambda module: loss(by_hand(module, XS)[1])))(module)
    for path, variable in nnx.to_flat_state(theirs):
        node = ours
        for name in path:
            node = node[name]
        np.testing.assert_allclose(node, variable.get_value(), rtol=1e-5, atol=1e-5)


def test_nnx_layers_within_a_net():
    net = rnn.stack(rnn.recurrent(nnx_cell(nnx.GRUCell)), rnn.layer(nnx.Linear(H, 2, rngs=nnx.Rngs(1))))
    params = net.init(jax.random.key(0), XS[0])
    ys = rnn.unroll(net, params, XS, lengths=[5, 3])[1]
    hidden = by_hand(nnx_cell(nnx.GRUCell), XS)[1]
    expected = nnx.Linear(H, 2, rngs=nnx.Rngs(1))(hidden)
    np.testing.assert_allclose(ys[:, 0], expected[:, 0], rtol=1e-5, atol=1e-6)
    assert not ys[3:, 1].any()


def test_an_nnx_module_draws_from_the_step_s_key_alone():
    module = nnx.Sequential(nnx.Linear(D, 50, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)), nnx.relu)
    cell = rnn.layer(module)
    params = cell.init(None, XS[0])
    step = lambda key: np.asarray(cell.step(params, (), XS[0], key=key)[1])
    np.testing.assert_array_equal(step(None), nnx.relu(module.layers[0](XS[0])))
    a, b = step(jax.random.key(1)), step(jax.random.key(2))
    assert (a != b).any() and (a == step(jax.random.key(1))).all()
    np.testing.assert_allclose(a[a != 0], 2 * step(None)[a != 0], rtol=1e-6)  # what is kept counts twice


def test_cells_of_equal_modules_are_the_same_and_of_others_not():
    a, b, c = (rnn.recurrent(nnx_cell(nnx.GRUCell, seed)) for seed in (0, 0, 1))
    assert a == b and hash(a) == hash(b) and a != c and rnn.layer(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) != a


def test_a_pickled_cell_is_the_same():
    for cell in (
        rnn.recurrent(nnx_cell(nnx.LSTMCell)),
        rnn.layer(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)), nnx.relu)),
    ):
        assert pickle.loads(pickle.dumps(cell)) == cell


def test_what_is_changed_in_the_module_later_does_not_change_the_cell():
    module = nnx_cell(nnx.GRUCell)
    cell = rnn.recurrent(module)
    before = cell.init(None, XS[0])["dense_i"]["kernel"]
    module.dense_i.kernel[...] = jnp.zeros((D, 3 * H))
    np.testing.assert_array_equal(cell.init(None, XS[0])["dense_i"]["kernel"], before)


def test_a_graph_takes_nnx_modules_too():
    linear = nnx.Linear(D + 2, 2, rngs=nnx.Rngs(0))
    net = rnn.graph({"h": (linear, ["x", rnn.prev("h", start=jnp.zeros(2))])}, output="h")
    _, ys = rnn.unroll(net, net.init(jax.random.key(0), XS[0]), XS)
    h = jnp.zeros((B, 2))
    for x, y in zip(XS, ys, strict=True):
        h = linear(jnp.concatenate([x, h], -1))
        np.testing.assert_allclose(y, h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnn.layer(nnx_cell(nnx.GRUCell)), r"layer: GRUCell has a state; use recurrent\(GRUCell"),
        (lambda: rnn.recurrent(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), r"recurrent: cell must be a flax.linen RNN cell"),
        (
            lambda: rnn.layer(nnx.BatchNorm(3, rngs=nnx.Rngs(0))),
            r"layer: BatchNorm keeps variables of its own in \['BatchStat'\]",
        ),
        (lambda: rnn.recurrent(nnx_cell(nnx.GRUCell), input_shape=(2, 2)), r"inputs of 1 dimensions per example"),
    ],
)
def test_what_is_no_cell_is_one_clear_sentence(make, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        make()


def test_no_optional_library_is_imported_by_ours():
    optional = ("equinox", "torch", "keras", "haiku", "safetensors")
    code = f"import sys, jaxrnn; print([name for name in {optional} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- Equinox, where it is installed ---------------------------------------------------------------


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox", reason="Equinox is not installed")


def by_equinox(module, state, xs):
    """One example after another, one step after another."""
    ends, outputs = [], []
    for b in range(xs.shape[1]):
        carry, ys = jax.tree.map(lambda a: a[0], state), []
        for x in xs[:, b]:
            carry = module(jnp.asarray(x), carry)
            ys.append(carry[0] if isinstance(carry, tuple) else carry)
        ends.append(carry)
        outputs.append(jnp.stack(ys))
    return jax.tree.map(lambda *a: jnp.stack(a), *ends), jnp.stack(outputs, axis=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_an_equinox_cell_computes_what_it_did(kind, bias, eqx):
    module = getattr(eqx.nn, kind)(D, H, use_bias=bias, key=jax.random.key(0))
    cell = rnn.recurrent(module)
    params = cell.init(None, XS[0])
    expected = eqx.filter_jit(by_equinox)(module, cell.initial_state(params, (B,)), XS)
    assert_close(rnn.unroll(cell, params, XS), expected, 1e-6)
    loss = lambda ys: jnp.mean(jnp.sin(ys))
    ours = jax.grad(lambda p: loss(rnn.unroll(cell, p, XS)[1]))(params)
    zeros = cell.initial_state(params, (B,))
    theirs = eqx.filter_jit(eqx.filter_grad(lambda module: loss(by_equinox(module, zeros, XS)[1])))(module)
    for name, grad in ours.items():
        np.testing.assert_allclose(grad, getattr(theirs, name), rtol=1e-5, atol=1e-5)
    assert cell == rnn.recurrent(module) and hash(cell) == hash(rnn.recurrent(module))
    assert pickle.loads(pickle.dumps(cell)) == cell


def test_equinox_layers_draw_for_each_example(eqx):
    module = eqx.nn.Sequential([eqx.nn.Linear(D, 50, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])
    cell = rnn.layer(module)
    params = cell.init(None, XS[0])
    x = np.broadcast_to(XS[0, 0], (B, D))
    quiet = np.asarray(cell.step(params, (), x)[1])
    np.testing.assert_allclose(quiet[0], module[0](jnp.asarray(x[0])), rtol=1e-6)
    drawn = np.asarray(cell.step(params, (), x, key=jax.random.key(1))[1])
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_allclose(drawn[drawn != 0], 2 * quiet[drawn != 0], rtol=1e-6)


def test_equinox_s_embedding_takes_numbers(eqx):
    module = eqx.nn.Embedding(7, 2, key=jax.random.key(0))
    cell = rnn.layer(module)
    x = jnp.array([[1, 2, 6], [0, 3, 3]])
    np.testing.assert_array_equal(cell.step(cell.init(None, x), (), x)[1], module.weight[x])


def test_equinox_modules_with_other_arrays_are_refused(eqx):
    class Counter(eqx.Module):
        count: jax.Array

    with pytest.raises(ValueError, match=r"layer: Counter keeps int32\[\] in count; a step must be pure"):
        rnn.layer(Counter(jnp.array(3)))
    with pytest.raises(TypeError, match="recurrent: cell must be"):
        rnn.recurrent(eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    with pytest.raises(TypeError, match="layer: GRUCell has a state"):
        rnn.layer(eqx.nn.GRUCell(2, 2, key=jax.random.key(0)))
