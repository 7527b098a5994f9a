"""Combinators and wrapped layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.combinators import alongside
from tests.reference import assert_close
from tests.zoo import D, H, sequence

KEY = jax.random.key(0)


def test_a_stack_is_its_cells_in_turn():
    cells = rnn.gru(4), rnn.layer(nn.Dense(3)), rnn.lstm(2)
    net, xs = rnn.stack(*cells), sequence(0, (5, 2), jnp.float32)
    params = net.init(KEY, xs[0])
    ys, states = xs, []
    for cell, p in zip(cells, params, strict=True):
        state, ys = rnn.unroll(cell, p, ys)
        states.append(state)
    assert_close(rnn.unroll(net, params, xs), (tuple(states), ys), 1e-6)


def test_alongside_hands_the_other_on():
    cell, xs, others = rnn.gru(3), sequence(0, (4, 2), jnp.float32), jnp.arange(8).reshape(4, 2)
    around = alongside(cell)
    params = around.init(KEY, (xs[0], others[0]))
    state, ys = rnn.unroll(cell, params, xs)
    assert_close(rnn.unroll(around, params, (xs, others)), (state, (ys, others)), 0)
    with pytest.raises(TypeError, match=r"alongside: cell must be a Cell"):
        alongside(jnp.tanh)


def test_residual_adds_the_input():
    cell, xs = rnn.gru(D), sequence(0, (5, 2), jnp.float32)
    params = cell.init(KEY, xs[0])
    state, ys = rnn.unroll(cell, params, xs)
    assert_close(rnn.unroll(rnn.residual(cell), params, xs), (state, ys + xs), 1e-6)
    with pytest.raises(ValueError, match=r"residual: y should be float32\[2,3\], got float32\[2,5\]"):
        wide = rnn.gru(5)
        rnn.unroll(rnn.residual(wide), wide.init(KEY, xs[0]), xs, wide.initial_state(wide.init(KEY, xs[0]), (2,)))


def test_dropout_drops_its_share_and_keeps_the_mean():
    cell = rnn.dropout(rnn.lift(lambda x: x), 0.25)
    _, ys = rnn.unroll(cell, (), jnp.ones((200, 100)), key=KEY)
    assert set(np.unique(ys)) <= {0.0, np.float32(1 / 0.75)}
    assert abs(float(jnp.mean(ys == 0)) - 0.25) < 0.01
    assert_close(rnn.unroll(cell, (), jnp.ones((4, 100)))[1], jnp.ones((4, 100)), 0)


def test_a_mask_for_the_sequence_or_for_each_step():
    for mask, distinct in (("sequence", 1), ("step", 20)):
        cell = rnn.dropout(rnn.lift(lambda x: x), 0.5, mask=mask)
        _, ys = rnn.unroll(cell, (), jnp.ones((20, 3, 10)), key=KEY)
        assert len({np.asarray(y).tobytes() for y in ys}) == distinct
        assert len({np.asarray(ys[0, b]).tobytes() for b in range(3)}) == 3  # each example has its own


def test_a_sequence_mask_needs_begin():
    cell = rnn.dropout(rnn.gru(H), 0.5, mask="sequence")
    params = cell.init(KEY, jnp.zeros(D))
    with pytest.raises(ValueError, match=r"mask='sequence' is drawn before the loop; call params = cell.begin"):
        cell.step(params, cell.initial_state(params, ()), jnp.zeros(D), key=KEY)
    begun = cell.begin(params, KEY)
    cell.step(begun, cell.initial_state(begun, ()), jnp.zeros(D), key=KEY)


def test_begin_reaches_through_every_combinator():
    inner = rnn.dropout(rnn.gru(D), 0.5, mask="sequence")
    pair = lambda x: (x, jnp.ones(x.shape[:-1], bool))
    wrapped = {
        "stack": rnn.stack(inner),
        "residual": rnn.residual(inner),
        "zoneout": rnn.zoneout(inner, 0.0),
        "dropout": rnn.dropout(inner, 0.0),
        "masked": rnn.masked(inner)._replace(
            init=inner.init, step=lambda p, s, x, key=None: rnn.masked(inner).step(p, s, pair(x), key=key)
        ),
    }
    xs = sequence(0, (5, 2), jnp.float32)
    for name, cell in wrapped.items():
        params = cell.init(KEY, xs[0])
        wet, dry = rnn.unroll(cell, params, xs, key=KEY)[1], rnn.unroll(cell, params, xs)[1]
        assert float(jnp.abs(wet - dry).max()) > 0.01, name
    resettable = rnn.unroll(inner, inner.init(KEY, xs[0]), xs, key=KEY, resets=jnp.zeros((5, 2), bool))[1]
    assert_close(resettable, rnn.unroll(inner, inner.init(KEY, xs[0]), xs, key=KEY)[1], 1e-6)


def test_zoneout_keeps_units_at_its_rate_and_mixes_without_a_key():
    counter = rnn.Cell(
        lambda key, x: (), lambda p, batch: jnp.zeros((*batch, 5000)), lambda p, s, x, key=None: (s + 1, x)
    )
    cell = rnn.zoneout(counter, 0.3)
    state, _ = rnn.unroll(cell, (), jnp.zeros((10, 1)), key=KEY)
    assert abs(float(state.mean()) - 7) < 0.1 and abs(float(state.var()) - 2.1) < 0.2
    state, _ = rnn.unroll(cell, (), jnp.zeros((10, 1)))
    np.testing.assert_allclose(state, 7.0, rtol=1e-6)


def test_zoneout_of_an_lstm_has_a_rate_per_state_and_the_output_follows():
    cell, xs = rnn.lstm(H), sequence(0, (1, 2), jnp.float32)
    params, start = cell.init(KEY, xs[0]), rnn.LSTMState(jnp.full((2, H), 9.0), jnp.full((2, H), -9.0))
    (h, c), _ = rnn.unroll(cell, params, xs, start)
    zoned = rnn.zoneout(cell, rnn.LSTMState(h=0.5, c=0.25))
    state, ys = rnn.unroll(zoned, params, xs, start)
    np.testing.assert_allclose(state.h, (h + 9) / 2, rtol=1e-6)
    np.testing.assert_allclose(state.c, 0.75 * c - 0.25 * 9, rtol=1e-6)
    np.testing.assert_array_equal(ys[0], state.h)
    with pytest.raises(ValueError, match=r"zoneout: rate should be one number or have the state's structure"):
        rnn.unroll(rnn.zoneout(cell, (0.5, 0.25)), params, xs, start)


def test_rates_may_be_numpy_numbers():
    rnn.dropout(rnn.gru(3), np.float32(0.1))
    rnn.zoneout(rnn.gru(3), np.float32(0.1))


def test_masked_and_resettable_by_hand():
    total = rnn.Cell(lambda key, x: (), lambda p, b: jnp.zeros((*b, 1)), lambda p, s, x, key=None: (s + x, s + x))
    xs, flags = jnp.arange(1.0, 6).reshape(5, 1), jnp.array([1, 0, 1, 0, 1], bool)
    state, ys = rnn.unroll(rnn.masked(total), (), (xs[:, None], flags[:, None]), jnp.zeros((1, 1)))
    assert ys.ravel().tolist() == [1, 0, 4, 0, 9] and state.item() == 9
    state, ys = rnn.unroll(rnn.resettable(total), (), (xs[:, None], flags[:, None]), jnp.full((1, 1), 99.0))
    assert ys.ravel().tolist() == [1, 3, 3, 7, 5] and state.item() == 5


def test_a_layer_with_a_dropout_of_its_own_draws_from_the_key():
    cell = rnn.layer(nn.Dropout(0.5), deterministic=False)
    params = cell.init(KEY, jnp.zeros(50))
    ys = rnn.unroll(cell, params, jnp.ones((2, 50)), key=KEY)[1]
    assert set(np.unique(ys)) == {0.0, 2.0} and float(jnp.abs(ys[0] - ys[1]).max()) > 0


def test_recurrent_equals_flax_rnn():
    module, xs = nn.OptimizedLSTMCell(H), sequence(0, (6, 2), jnp.float32)
    cell = rnn.recurrent(module)
    params = cell.init(KEY, xs[0])
    lengths = jnp.array([6, 4])
    carry, ys = nn.RNN(module, time_major=True, return_carry=True).apply(
        {"params": {"cell": params}}, xs, seq_lengths=lengths
    )
    state, got = rnn.unroll(cell, params, xs, lengths=lengths)
    assert_close(state, carry, 1e-6)
    np.testing.assert_allclose(got[:4], ys[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: rnn.stack(), r"stack: needs at least one cell"),
        (lambda: rnn.stack(nn.Dense(3)), r"stack: cell must be a Cell, got Dense; wrap a Flax module with layer"),
        (lambda: rnn.residual(jnp.tanh), r"residual: cell must be a Cell"),
        (lambda: rnn.dropout(rnn.gru(3), 1.0), r"dropout: rate is the share that is dropped.*got 1.0"),
        (lambda: rnn.dropout(rnn.gru(3), 0.5, mask="batch"), r"mask must be one of 'step', 'sequence'"),
        (lambda: rnn.dropout(rnn.gru(3), 0.5, on="state"), r"on must be one of 'output', 'input'"),
        (lambda: rnn.zoneout(rnn.gru(3), -0.1), r"zoneout: rate"),
        (lambda: rnn.with_loss("net", print), r"with_loss: cell must be a Cell"),
        (lambda: rnn.lift(3), r"lift: fn must be a function"),
        (lambda: rnn.layer(nn.Dense), r"layer: module must be a flax.linen module"),
        (lambda: rnn.layer(nn.GRUCell(3)), r"layer: GRUCell has a state; use recurrent\(GRUCell"),
        (lambda: rnn.recurrent(nn.Dense(3)), r"recurrent: cell must be a flax.linen RNN cell"),
        (lambda: rnn.recurrent(nn.ConvLSTMCell(4, (3, 3))), r"inputs of 3 dimensions per example; give all of them"),
        (
            lambda: rnn.layer(nn.BatchNorm(use_running_average=True)).init(KEY, jnp.zeros((2, 3))),
            r"layer: BatchNorm keeps variables of its own in \['batch_stats'\]",
        ),
        (
            lambda: rnn.masked(rnn.gru(3)).step(
                rnn.gru(3).init(KEY, jnp.zeros(2)), jnp.zeros(3), (jnp.zeros(2), jnp.int32(1))
            ),
            r"masked: mask must be boolean, got int32\[\]",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
