"""A cell that was written and read is the cell: values, states, draws, gradients, under every batch shape."""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.combinators.noise import Drawn
from jaxrnn.serving import Model, export, load
from tests import zoo
from tests.choice import slow_but_for

TOKEN = jax.ShapeDtypeStruct((), jnp.int32)


def same(got, wanted, atol=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), atol=atol)


def whole_net():
    """Symbols in, logits out; one layer draws a mask for the whole sequence, one at every step."""
    recurrent = [rnn.dropout(rnn.lstm(6), 0.3, mask="sequence"), rnn.dropout(rnn.gru(5), 0.3)]
    return rnn.stack(rnn.layer(nn.Embed(10, 8)), *recurrent, rnn.layer(nn.Dense(10)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(net, its parameters, the same as loaded)"""
    net = whole_net()
    params = net.init(jax.random.key(0), TOKEN)
    folder = export(net, params, tmp_path_factory.mktemp("net") / "saved", TOKEN, steps="T", lengths=True)
    return net, params, load(folder)


def tokens(*shape):
    return jax.random.randint(jax.random.key(1), shape, 0, 10)


@pytest.mark.parametrize(
    ("batch", "draws"), slow_but_for([((2, 2), True)], [((3,), False), ((2, 2), True), ((), False)])
)
def test_a_loaded_net_unrolls_as_the_net_itself(saved, batch, draws):
    net, params, model = saved
    key = jax.random.key(4) if draws else None
    xs = tokens(4, *batch)
    same(model.params, params, atol=0)
    same(rnn.unroll(model.cell, model.params, xs, key=key), rnn.unroll(net, params, xs, key=key))


def test_a_loaded_net_meets_lengths_resets_vmap_and_generate(saved):
    net, params, model = saved
    xs, lengths, resets = tokens(5, 3), jnp.array([2, 5, 0]), jnp.arange(15).reshape(5, 3) % 4 == 3
    padded = lambda cell, p: rnn.unroll(cell, p, xs, lengths=lengths, resets=resets)
    same(padded(model.cell, model.params), padded(net, params))
    one = lambda cell: jax.vmap(lambda p, x: rnn.unroll(cell, p, x), (None, 1))
    same(one(model.cell)(model.params, xs), one(net)(params, xs))
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)  # other weights for each
    own = lambda cell: jax.vmap(lambda p: rnn.unroll(cell, p, xs[:2]))(many)
    same(own(model.cell), own(net))
    draw = lambda cell, p: rnn.generate(
        cell, p, cell.initial_state(p, ()), jnp.int32(3), 6, rnn.temperature(), key=jax.random.key(3)
    )
    same(draw(model.cell, model.params), draw(net, params))
    within = rnn.stack(model.cell, rnn.layer(nn.Dense(2)))  # a pretrained part of a larger net
    pair = within.init(jax.random.key(5), TOKEN)
    same(pair[0], params, atol=0)
    assert rnn.unroll(within, pair, xs)[1].shape == (5, 3, 2)


@pytest.mark.slow
def test_the_sequence_at_once_has_a_free_number_of_steps(saved):
    net, params, model = saved
    for steps, batch in ((5, 3), (2, 1)):
        xs, lengths = tokens(steps, batch), jnp.arange(batch) % steps
        same(rnn.unroll(model.layer, model.params, xs, lengths=lengths), rnn.unroll(net, params, xs, lengths=lengths))
        same(rnn.unroll(model.layer, model.params, xs), rnn.unroll(net, params, xs))
    with pytest.raises(ValueError, match="unroll: the saved model's program takes no resets; leave it out"):
        rnn.unroll(model.layer, model.params, tokens(5, 3), resets=jnp.zeros((5, 3), bool))


QUICK = [("stack", "bfloat16"), ("running_mean", "float32")]
EVERY = [(name, dtype) for name in zoo.CELLS for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), slow_but_for(QUICK, EVERY))
def test_every_cell_comes_back(name, dtype, tmp_path):
    dtype = jnp.dtype(dtype)
    cell, x = zoo.CELLS[name](dtype), jax.ShapeDtypeStruct((zoo.D,), dtype)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((2, zoo.D), dtype))
    model = load(export(cell, params, tmp_path / "cell", x, platforms=["cpu"]))
    same(model.params, params, atol=0)
    xs, key = zoo.sequence(1, (2, 3), dtype), jax.random.key(2)
    run = lambda cell, key: jax.jit(lambda p, xs: rnn.unroll(cell, p, xs, key=key, scan=jax.lax.scan))
    near = 1e-6 if dtype == jnp.float32 else 0.05  # XLA rounds fused 16-bit operations otherwise
    for given in (None, key):
        same(run(model.cell, given)(model.params, xs), run(cell, given)(params, xs), near)


class Walk(NamedTuple):
    steps: jax.Array
    key: jax.Array
    seen: dict


def walker():
    """A state of our own: an integer, a key, a dict, an empty tuple and a None; numbers of a dict for names."""

    def step(params, state, x, *, key=None):
        here, seen = jax.random.split(state.key), state.seen
        noise = jax.random.normal(here[0], x["a"].shape)
        seen = {**seen, 7: (seen[7][0] + noise + x["a"] * params, (), None)}
        y = {"out": seen[7][0], "pair": (x["b"], [state.steps])}
        return Walk(state.steps + 1, here[1], seen), y

    start = lambda params, batch: Walk(jnp.int32(0), jax.random.key(5), {7: (jnp.zeros((*batch, 2)), (), None)})
    return rnn.Cell(lambda key, x: jnp.float32(0.5), start, step)


def test_any_pytree_of_any_types_comes_back(tmp_path):
    cell, x = walker(), {"a": jnp.ones(2), "b": jnp.zeros((), jnp.uint8)}
    folder = export(cell, jnp.float32(0.5), tmp_path / "walk", x)
    xs = {"a": jnp.ones((4, 3, 2)), "b": jnp.arange(12, dtype=jnp.uint8).reshape(4, 3)}
    state, ys = rnn.unroll(cell, jnp.float32(0.5), xs, cell.initial_state(None, (3,)))
    model = load(folder, classes=[Walk])
    got, out = rnn.unroll(model.cell, model.params, xs, model.cell.initial_state(model.params, (3,)))
    same((got, out), (state, ys))
    assert type(got) is Walk
    stranger = [load(folder).cell.initial_state(model.params, (3,)) for _ in range(2)]
    assert type(stranger[0]).__name__ == "Walk" and stranger[0]._fields == Walk._fields
    assert type(stranger[0]) is type(stranger[1]) is not Walk and int(stranger[0].steps) == 0


def test_named_tuples_of_ours_are_themselves(saved):
    _, _, model = saved
    assert type(model.cell.initial_state(model.params, (2,))[1]) is rnn.LSTMState
    assert any(type(part) is Drawn for part in model.cell.begin(model.params, jax.random.key(0)))


@pytest.mark.slow
def test_sizes_may_be_numbers(tmp_path):
    cell, x = rnn.lstm(4), jnp.zeros(3)
    params = cell.init(jax.random.key(0), x)
    for batch, shape in ((("A", 3), (2, 3)), ((), ()), (2, (2,))):
        steps = None if batch == () else 4
        model = load(export(cell, params, tmp_path / "fixed", x, batch=batch, steps=steps, overwrite=True))
        xs = jax.random.normal(jax.random.key(1), (4, *shape, 3))
        for found in [model.cell, *([model.layer] if steps else [])]:
            same(rnn.unroll(found, model.params, xs), rnn.unroll(cell, params, xs))
    with pytest.raises(ValueError, match=r"initial_state: the model was exported for a batch of \[2\], got \(5,\)"):
        model.cell.initial_state(model.params, (5,))
    with pytest.raises(ValueError, match=r"step: x should be float32\[2,3\], got float32\[5,3\]"):
        model.cell.step(model.params, model.cell.initial_state(model.params, (2,)), jnp.zeros((5, 3)))


@pytest.mark.parametrize("lengths", [pytest.param(None, marks=pytest.mark.slow), (5, 0, 4)], ids=["full", "padded"])
def test_a_layer_of_both_directions_comes_back(lengths, tmp_path):
    layer = rnn.chain(rnn.bidirectional(rnn.gru(3), rnn.lstm(2)), rnn.sequence.every(2))
    params = layer.init(jax.random.key(0), jnp.zeros(4))
    model = load(export(layer, params, tmp_path / "layer", jnp.zeros(4), lengths=lengths is not None))
    xs = jax.random.normal(jax.random.key(1), (6, 3, 4))
    given = None if lengths is None else jnp.array(lengths)
    same(rnn.unroll(model.layer, model.params, xs, lengths=given), rnn.unroll(layer, params, xs, lengths=given))
    if lengths is not None:
        assert model.layer.shortened(given).tolist() == [3, 0, 2]
    with pytest.raises(rnn.serving.ModelError, match="is a layer, which has no single step; use .layer"):
        _ = model.cell


@pytest.mark.slow
def test_derivatives_go_along_where_asked_for(tmp_path):
    cell, x = rnn.lstm(4), jnp.zeros(3)
    params = cell.init(jax.random.key(0), x)
    model = load(export(cell, params, tmp_path / "net", x, vjp_order=1))
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
    loss = lambda cell: jax.grad(lambda p: jnp.sum(rnn.unroll(cell, p, xs, scan=jax.lax.scan)[1] ** 2))
    same(loss(model.cell)(model.params), loss(cell)(params), atol=1e-5)
    fixed = load(export(cell, params, tmp_path / "fixed", x))
    with pytest.raises(Exception, match="does not support reverse-mode"):
        loss(fixed.cell)(params)


def test_64_bits_need_64_bit_mode(tmp_path, x64):
    cell, x = rnn.gru(4, dtype=jnp.float64), jnp.zeros(3, jnp.float64)
    params = cell.init(jax.random.key(0), x)
    folder = export(cell, params, tmp_path / "net", x)
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3), jnp.float64)
    model = load(folder)
    same(rnn.unroll(model.cell, model.params, xs), rnn.unroll(cell, params, xs), atol=1e-12)
    with jax.enable_x64(False), pytest.raises(rnn.serving.ModelError, match="needs 64-bit mode; call jax.config"):
        load(folder)


def test_weights_are_there_once_and_a_program_knows_only_their_types(tmp_path):
    cell, x = rnn.lstm(128), jnp.zeros(64)
    params = cell.init(jax.random.key(0), x)
    folder = export(cell, params, tmp_path / "net", x, steps="T")
    assert isinstance(load(folder), Model)
    size = {f.name: f.stat().st_size for f in folder.iterdir()}
    weights = 4 * sum(a.size for a in jax.tree.leaves(params))
    assert weights < size.pop("weights.npz") < 1.01 * weights
    assert sum(size.values()) < 60_000 < weights / 5
    other = export(cell, cell.init(jax.random.key(9), x), tmp_path / "other", x, steps="T")
    for name in ("start.jax", "step.jax", "unroll.jax"):
        program = (folder / name).read_bytes()
        assert program == (other / name).read_bytes()  # the same for the same cell, and of no machine's folders
        assert str(Path(rnn.__file__).parent).encode() not in program
