"""unroll: lengths, resets, batch dimensions, keys, extreme T, and what it says about bad input."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxrnn as rnn
from tests import reference
from tests.reference import assert_close, scalar
from tests.zoo import SCANS, D, H, sequence


def small_lstm(dtype=jnp.float32):
    cell = rnn.lstm(H, dtype=dtype, learn_initial_state=True)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), dtype))
    return cell, jax.tree.map(lambda a: a + jnp.asarray(0.1, a.dtype), params)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(("batch", "lengths"), [((), 3), ((), 0), ((4,), [0, 1, 7, 4]), ((2, 2), [[0, 7], [1, 5]])])
def test_lengths_in_any_number_of_batch_dimensions(batch, lengths, scan, reverse, x64):
    cell, params = small_lstm(jnp.float64)
    xs, lengths = sequence(2, (7, *batch), jnp.float64), jnp.asarray(lengths)
    run = lambda p, xs: scalar(*rnn.unroll(cell, p, xs, lengths=lengths, reverse=reverse, scan=SCANS[scan]))
    got = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(params, xs)

    def one_by_one(params, xs):
        """Each sequence alone, cut to its own length, run by the reference without lengths."""
        state = jax.tree.map(lambda a: a.copy(), cell.initial_state(params, batch))
        ys = jnp.zeros((7, *batch, H), jnp.float64)
        for at in itertools.product(*map(range, batch)):
            n = int(lengths[at])
            if n:
                start = jax.tree.map(lambda a: a[at], cell.initial_state(params, batch))  # noqa: B023
                part = xs[(slice(0, n), *at)]
                s, y = reference.unroll(cell, params, part, start, batch=(), reverse=reverse)
                state = jax.tree.map(lambda a, v: a.at[at].set(v), state, s)  # noqa: B023
                ys = ys.at[(slice(0, n), *at)].set(y)
        return scalar(state, ys)

    assert_close(got, jax.value_and_grad(one_by_one, argnums=(0, 1))(params, xs), 1e-10)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.integers(0, 6), batch=st.integers(1, 3))
def test_padding_holds_state_and_silences_outputs(data, steps, batch):
    cell, params = small_lstm()
    lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
    xs = np.asarray(sequence(1, (steps, batch), jnp.float32))
    (h, c), ys = rnn.unroll(cell, params, xs, lengths=lengths)
    for b, n in enumerate(lengths):
        (h_b, c_b), y_b = rnn.unroll(cell, params, xs[:n, b])
        np.testing.assert_allclose(h[b], h_b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(c[b], c_b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ys[:n, b], y_b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ys[n:, b], 0)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_any_number_of_steps(steps, scan, x64):
    cell, params = small_lstm(jnp.float64)
    xs = sequence(2, (steps, 2), jnp.float64)
    run = lambda p, xs: scalar(*rnn.unroll(cell, p, xs, scan=SCANS[scan]))
    got = jax.value_and_grad(run, argnums=(0, 1))(params, xs)
    if steps == 0:
        state, ys = rnn.unroll(cell, params, xs, scan=SCANS[scan])
        assert ys.shape == (0, 2, H) and ys.dtype == jnp.float64
        assert_close(state, cell.initial_state(params, (2,)), 0)
        return
    plain = lambda p, xs: scalar(*reference.unroll(cell, p, xs, cell.initial_state(p, (2,)), batch=(2,)))
    assert_close(got, jax.value_and_grad(plain, argnums=(0, 1))(params, xs), 1e-10)


POISONS = {
    "padding": {"lengths": jnp.array([2, 5])},
    "before a reset": {"resets": jnp.zeros((5, 2), bool).at[3, 0].set(True)},
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("where", POISONS)
@pytest.mark.parametrize("kind", ["lstm", "stack"])
def test_nan_reaches_neither_values_nor_gradients(kind, where, scan):
    """Sequence 0 has NaN inputs in its padding, or before its reset, and a loss that does not look there."""
    cell = rnn.gru(H) if kind == "lstm" else rnn.stack(rnn.layer(nn.Dense(H)), rnn.lstm(H), rnn.layer(nn.Dense(2)))
    clean = sequence(1, (5, 2), jnp.float32)
    params = cell.init(jax.random.key(0), clean[0])
    bad = slice(2, 5) if where == "padding" else slice(0, 3)
    dirty = clean.at[bad, 0].set(jnp.nan)
    seen = jnp.ones((5, 2), bool).at[bad, 0].set(False)

    def loss(params, xs):
        state, ys = rnn.unroll(cell, params, xs, scan=SCANS[scan], **POISONS[where])
        ys = jnp.where(jnp.broadcast_to(seen[..., None], ys.shape), ys, jnp.zeros_like(ys))
        return scalar(state, ys)

    got, got_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, dirty)
    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, clean)
    assert_close(got, value, 1e-6)
    # What the hidden inputs did to the parameters' gradient must be nothing, with or without NaN.
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(got_grads))
    if where == "padding":
        assert_close(got_grads, grads, 1e-6)
    else:
        assert_close(got_grads[1][3:], grads[1][3:], 1e-6)
        alone = jax.grad(lambda p: scalar(*_without_the_past(cell, p, clean, bad)))(params)
        assert_close(got_grads[0], alone, 2e-5)


def _without_the_past(cell, params, xs, bad):
    """Sequence 0 from its reset on, sequence 1 whole; outputs laid out as the full run's."""
    first, y_first = rnn.unroll(cell, params, xs[bad.stop :, 0])
    second, y_second = rnn.unroll(cell, params, xs[:, 1])
    y_first = jnp.concatenate([jnp.zeros((bad.stop, *y_first.shape[1:])), y_first])
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second), jnp.stack([y_first, y_second], axis=1)


def test_a_nan_shows_in_values_until_the_reset():
    cell, params = small_lstm()
    xs = sequence(1, (6, 1), jnp.float32).at[1, 0, 0].set(jnp.nan)
    resets = jnp.zeros((6, 1), bool).at[4].set(True)
    _, ys = rnn.unroll(cell, params, xs, resets=resets)
    assert np.isnan(ys[:, 0]).any(axis=-1).tolist() == [False, True, True, True, False, False]


def test_a_reset_restarts_from_the_initial_state_not_the_given_one():
    cell, params = small_lstm()
    xs = sequence(1, (6, 2), jnp.float32)
    given_state = jax.tree.map(lambda a: a + 5, cell.initial_state(params, (2,)))
    resets = jnp.zeros((6, 2), bool).at[2].set(True)
    got, ys = rnn.unroll(cell, params, xs, given_state, resets=resets)
    state, later = rnn.unroll(cell, params, xs[2:])
    assert_close((got, ys[2:]), (state, later), 1e-6)


def test_resets_leave_a_cell_that_makes_sense_of_nan_alone():
    """A cell that takes NaN for "missing": resets change nothing where none is set, values and gradients."""
    fill = lambda p, s, x, key=None: ((n := jnp.where(jnp.isnan(x), s * p, x)), n)
    cell = rnn.Cell(lambda key, x: jnp.float32(0.5), lambda p, batch: jnp.zeros((*batch, 1)), fill)
    xs = jnp.array([jnp.nan, 1, jnp.nan, 3, jnp.nan]).reshape(5, 1, 1)
    run = lambda p, **options: rnn.unroll(cell, p, xs, **options)[1][1:]
    never, p = jnp.zeros((5, 1), bool), jnp.float32(0.5)
    assert_close(run(p, resets=never), run(p), 0)
    assert run(p).ravel().tolist() == [1, 0.5, 3, 1.5]
    slope = lambda **options: jax.grad(lambda p: jnp.sum(run(p, **options)))(p)
    assert float(slope(resets=never)) == float(slope()) == 4


def test_narrow_lengths_do_not_wrap_round():
    cell = rnn.Cell(
        lambda key, x: (), lambda p, batch: jnp.zeros(batch, jnp.int32), lambda p, s, x, key=None: (s + 1, s)
    )
    for dtype in (np.int8, np.uint8, np.int16):
        state, _ = rnn.unroll(cell, (), jnp.ones((300, 2, 2)), lengths=np.array([5, 100], dtype))
        assert state.tolist() == [5, 100]


def test_what_begin_draws_reaches_the_initial_state():
    cell = rnn.Cell(
        lambda key, x: {"a": jnp.zeros(())},
        lambda p, batch: jnp.full((*batch, D), p.get("drawn", 0.0)),
        lambda p, s, x, key=None: (s + 0 * x, s),
        lambda p, key: {**p, "drawn": 7.0},
    )
    resets = jnp.zeros((3, 2), bool).at[1].set(True)
    xs = jnp.zeros((3, 2, D))
    assert float(rnn.unroll(cell, {"a": 0.0}, xs, key=jax.random.key(0), resets=resets)[1].min()) == 7
    assert float(rnn.unroll(cell, {"a": 0.0}, xs, resets=resets)[1].max()) == 0


def test_lengths_may_be_traced_or_a_list_with_traced_numbers():
    cell, params = small_lstm()
    xs = sequence(1, (5, 2), jnp.float32)
    expected = rnn.unroll(cell, params, xs, lengths=jnp.array([2, 4]))
    assert_close(jax.jit(lambda n: rnn.unroll(cell, params, xs, lengths=[n, 4]))(2), expected, 1e-6)
    each = jax.vmap(lambda n, x: rnn.unroll(cell, params, x, lengths=n), (0, 1), (0, 1))
    (states, _), ys = each(jnp.array([2, 4]), xs)
    assert_close((states, ys), (expected[0].h, expected[1]), 1e-6)


def test_windows_with_a_carried_state_equal_one_long_run():
    cell, params = small_lstm()
    xs = sequence(1, (10, 2), jnp.float32)
    state, first = rnn.unroll(cell, params, xs[:4])
    state, second = rnn.unroll(cell, params, xs[4:], state)
    assert_close((state, jnp.concatenate([first, second])), rnn.unroll(cell, params, xs), 1e-6)


@pytest.mark.parametrize(
    ("cell", "x", "batch"),
    [
        (rnn.elman(4), jnp.zeros((3, 2, D)), (2,)),
        (rnn.elman(4), jnp.zeros((3, D)), ()),
        (rnn.elman(4), jnp.zeros((3, 2, 5, D)), (2, 5)),
        (rnn.stack(rnn.layer(nn.Embed(9, 4)), rnn.gru(4)), jnp.zeros((3, 2), jnp.int32), (2,)),
        (rnn.stack(rnn.layer(nn.Embed(9, 4)), rnn.gru(4)), jnp.zeros((3,), jnp.int32), ()),
        (rnn.recurrent(nn.LSTMCell(4)), jnp.zeros((3, 1, D)), (1,)),
        (rnn.recurrent(nn.ConvLSTMCell(4, (3, 3)), input_shape=(5, 6, D)), jnp.zeros((3, 2, 5, 6, D)), (2,)),
        (rnn.lift(jnp.tanh), jnp.zeros((3, 2, D)), ()),
    ],
)
def test_the_batch_shape_is_found_from_the_step(cell, x, batch):
    params = cell.init(jax.random.key(0), x[0])
    state, _ = rnn.unroll(cell, params, x)
    expected = cell.initial_state(params, batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("scan", SCANS)
def test_the_same_key_draws_the_same_under_every_scan(scan):
    cell = rnn.stack(rnn.dropout(rnn.gru(H), 0.5), rnn.dropout(rnn.gru(H), 0.5, mask="sequence"))
    xs = sequence(1, (7, 2), jnp.float32)
    params = cell.init(jax.random.key(0), xs[0])
    run = lambda key, scan: rnn.unroll(cell, params, xs, key=key, scan=scan)[1]
    plain = run(jax.random.key(1), lax.scan)
    assert_close(run(jax.random.key(1), SCANS[scan]), plain, 1e-6)
    assert float(jnp.abs(run(jax.random.key(2), SCANS[scan]) - plain).max()) > 0.01


def test_raw_keys_work_too():
    cell = rnn.dropout(rnn.gru(H), 0.5)
    xs = sequence(1, (7, 2), jnp.float32)
    params = cell.init(jax.random.PRNGKey(0), xs[0])
    raw = rnn.unroll(cell, params, xs, key=jax.random.PRNGKey(3))
    assert_close(raw, rnn.unroll(cell, params, xs, key=jax.random.key(3)), 0)


@pytest.mark.parametrize("scan", [s for s in SCANS if "python_loop" not in s])
def test_the_step_is_traced_a_fixed_number_of_times(scan):
    traces = []

    def step(params, state, x, *, key=None):
        traces.append(x.shape)
        return state + x, state

    cell = rnn.Cell(lambda key, x: (), lambda p, batch: jnp.zeros((*batch, D)), step)

    def count(steps):
        traces.clear()
        jax.clear_caches()
        jax.make_jaxpr(jax.grad(lambda xs: scalar(*rnn.unroll(cell, (), xs, scan=SCANS[scan]))))(
            jnp.zeros((steps, 2, D))
        )
        return len(traces)

    assert count(16) == count(160) == count(1600) <= 8


def test_pytrees_go_in_and_out():
    cell = rnn.lift(lambda x: {"sum": x["a"] + x["b"][0], "flag": x["a"] > 0})
    xs = {"a": jnp.arange(6.0).reshape(3, 2), "b": (jnp.ones((3, 2)),)}
    _, ys = rnn.unroll(cell, (), xs, lengths=jnp.array([1, 3]))
    assert ys["flag"].dtype == bool and ys["sum"].tolist() == [[1, 2], [0, 4], [0, 6]]


def bad(**changed):
    cell, params = small_lstm()
    arguments = {"cell": cell, "params": params, "xs": jnp.zeros((5, 2, D))} | changed
    return lambda: rnn.unroll(arguments.pop("cell"), arguments.pop("params"), arguments.pop("xs"), **arguments)


def no_y():
    return rnn.Cell(lambda key, x: (), lambda p, batch: jnp.zeros((*batch, D)), lambda p, s, x, key=None: s)


def promoting_cell():
    def step(params, state, x, *, key=None):
        return {"h": state["h"].astype(jnp.float32)}, x

    return rnn.Cell(lambda key, x: (), lambda p, batch: {"h": jnp.zeros((*batch, D), jnp.bfloat16)}, step)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (bad(xs={"a": jnp.zeros((5, 2)), "b": jnp.zeros((4, 2))}), r"xs\['b'\] has 4 time steps but xs\['a'\] has 5"),
        (bad(xs=jnp.zeros(())), r"unroll: xs is a scalar"),
        (bad(xs=()), r"unroll: xs has no arrays; a cell needs an input at every step"),
        (bad(lengths=3), r"lengths should be \[\*B\] with the batch dimensions \(2,\) of xs, got \(\)"),
        (
            bad(resets=jnp.zeros(5, bool)),
            r"resets should be \[T, \*B\] with the batch dimensions \(2,\) of xs, got \(\)",
        ),
        (
            bad(state=rnn.LSTMState(jnp.zeros((3, H)), jnp.zeros((3, H)))),
            r"unroll: state\.h should be float32\[2,4\], got float32\[3,4\]; start from",
        ),
        (
            bad(cell=rnn.lstm(H), params=rnn.gru(H).init(jax.random.key(0), jnp.zeros(D))),
            r"lstm: params\['U'\] should be \[D, 16\]",
        ),
        (bad(cell=no_y(), params=(), lengths=jnp.array([1, 2])), r"check that the step returns \(state, y\)"),
        (bad(lengths=jnp.array([1, 6])), r"lengths must lie in 0\.\.5 .*from 1 to 6"),
        (bad(lengths=jnp.array([-1, 2])), r"lengths must lie in 0\.\.5 .*from -1 to 2"),
        (bad(lengths=jnp.array([1.0, 2.0])), r"lengths must be integers, got float32\[2\]"),
        (bad(lengths=jnp.array([1, 2, 3])), r"lengths should be .* batch dimensions \(2,\) of xs, got \(3,\)"),
        (bad(resets=jnp.zeros((5, 2))), r"resets must be booleans, got float32\[5,2\]"),
        (bad(resets=jnp.zeros((4, 2), bool)), r"resets must be \[T, \*B\] with T = 5, got bool\[4,2\]"),
        (bad(lengths=jnp.array([1, 2]), resets=jnp.zeros((5, 3), bool)), r"must have the same batch dimensions"),
        (bad(state=jnp.zeros((2, H))), r"unroll: state should have the structure .*LSTMState.*start from"),
        (
            bad(state=rnn.LSTMState(jnp.zeros((2, H)), jnp.zeros((2, 9))), lengths=jnp.array([1, 2])),
            r"unroll: state\.c should be float32\[2,4\], got float32\[2,9\]; start from cell.initial_state",
        ),
        (
            bad(cell=promoting_cell(), params=()),
            r"unroll: state\['h'\] should be bfloat16\[3\], got float32\[3\]; the step must",
        ),
        (bad(cell=nn.Dense(3)), r"cell must be a Cell, got Dense"),
        (bad(scan="lax.scan"), r"scan must be a scan such as jax.lax.scan"),
        (bad(scan=rnn.checkpointed), r"scan is the class checkpointed; make a value of it: checkpointed\(...\)"),
        (bad(xs=jnp.zeros((5, 2), jnp.int32)), r"lstm: x must be floating-point features.*embed integers first"),
        (bad(xs=jnp.zeros((5, 2, D + 1))), r"lstm: x must have 3 features"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
