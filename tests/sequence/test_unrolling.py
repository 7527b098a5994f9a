"""unroll: lengths, resets, batch dimensions, keys, extreme T, and what it says about bad input."""

import functools
import itertools

import chex
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
from tests.choice import slow_but_for
from tests.reference import assert_close, scalar
from tests.zoo import SCANS, D, H, sequence


def small_lstm(dtype=jnp.float32):
    cell = rnn.lstm(H, dtype=dtype, learn_initial_state=True)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), dtype))
    return cell, jax.tree.map(lambda a: a + jnp.asarray(0.1, a.dtype), params)


def gradient_of(run):
    """Value and gradients by (params, xs), compiled."""
    return jax.jit(jax.value_and_grad(run, argnums=(0, 1)))


# Batch dimensions and scans know nothing of each other: each kind of the one meets a few of the other.
LENGTHS = {(): 3, (1,): (0,), (4,): (0, 1, 7, 4), (2, 2): ((0, 7), (1, 5))}
FEW = ["lax.scan", "fissioned"]


FOUR = ["fissioned", "checkpointed(2)", "revolve(2, 1, kept=1)", "parallel(2)"]  # fast in what all are tried in


BATCHES = [(batch, scan) for batch in LENGTHS for scan in FEW] + [((4,), scan) for scan in SCANS if scan not in FEW]
FAST_BATCHES = [((), "lax.scan", False), ((1,), "fissioned", True), ((2, 2), "fissioned", False)]
FAST_BATCHES += [((4,), scan, bool(n % 2)) for n, scan in enumerate(FOUR)]


@pytest.mark.parametrize(
    ("batch", "scan", "reverse"),
    slow_but_for(FAST_BATCHES, [(*case, reverse) for case in BATCHES for reverse in (False, True)]),
)
def test_lengths_in_any_number_of_batch_dimensions(batch, scan, reverse, x64):
    cell, params = small_lstm(jnp.float64)
    xs, lengths = sequence(2, (7, *batch), jnp.float64), jnp.asarray(LENGTHS[batch])
    got = gradient_of(
        lambda p, xs: scalar(*rnn.unroll(cell, p, xs, lengths=lengths, reverse=reverse, scan=SCANS[scan]))
    )(params, xs)
    assert_close(got, one_by_one(batch, reverse), 1e-10)


@functools.cache
def one_by_one(batch, reverse):
    """Each sequence alone, cut to its own length, run by the reference without lengths."""
    cell, params = small_lstm(jnp.float64)
    lengths = np.asarray(LENGTHS[batch])

    def run(params, xs):
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

    return gradient_of(run)(params, sequence(2, (7, *batch), jnp.float64))


@functools.cache
def with_lengths():
    """Compiled once for each shape."""
    return jax.jit(lambda params, xs, lengths: rnn.unroll(small_lstm()[0], params, xs, lengths=lengths))


@functools.cache
def alone(steps):
    """The first steps of the sequence that all are cut from, for each batch element."""
    cell, params = small_lstm()
    return rnn.unroll(cell, params, sequence(1, (6, 3), jnp.float32)[:steps])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.sampled_from([0, 1, 6]), batch=st.sampled_from([1, 3]))
def test_padding_holds_state_and_silences_outputs(data, steps, batch):
    _, params = small_lstm()
    lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
    xs = np.asarray(sequence(1, (6, 3), jnp.float32))[:steps, :batch]
    (h, c), ys = with_lengths()(params, xs, lengths)
    for b, n in enumerate(lengths):
        (h_b, c_b), y_b = jax.tree.map(np.asarray, alone(int(n)))
        np.testing.assert_allclose(h[b], h_b[b], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(c[b], c_b[b], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ys[:n, b], y_b[:, b], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ys[n:, b], 0)


def small_elman():
    cell = rnn.elman(H, dtype=jnp.float64, learn_initial_state=True)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), jnp.float64))
    return cell, jax.tree.map(lambda a: a + 0.1, params)


@pytest.mark.parametrize(
    ("steps", "scan"),
    slow_but_for(
        [(steps, scan) for m, steps in enumerate((0, 1, 2, 7)) for n, scan in enumerate(FOUR) if (m + n) % 2 == 0],
        [(steps, scan) for steps in (0, 1, 2, 7) for scan in SCANS],
    ),
)
def test_any_number_of_steps(steps, scan, x64):
    cell, params = small_elman()
    xs = sequence(2, (steps, 2), jnp.float64)
    got = gradient_of(lambda p, xs: scalar(*rnn.unroll(cell, p, xs, scan=SCANS[scan])))(params, xs)
    if steps == 0:
        state, ys = rnn.unroll(cell, params, xs, scan=SCANS[scan])
        assert ys.shape == (0, 2, H) and ys.dtype == jnp.float64
        assert_close(state, cell.initial_state(params, (2,)), 0)
        return
    assert_close(got, step_by_step(steps), 1e-10)


@functools.cache
def step_by_step(steps):
    cell, params = small_elman()
    plain = lambda p, xs: scalar(*reference.unroll(cell, p, xs, cell.initial_state(p, (2,)), batch=(2,)))
    return gradient_of(plain)(params, sequence(2, (steps, 2), jnp.float64))


POISONS = {
    "padding": {"lengths": jnp.array([2, 5])},
    "before a reset": {"resets": jnp.zeros((5, 2), bool).at[3, 0].set(True)},
}
HIDDEN = {"padding": slice(2, 5), "before a reset": slice(0, 3)}  # steps of sequence 0


def poisoned_net(kind):
    cell = rnn.gru(H) if kind == "gru" else rnn.stack(rnn.layer(nn.Dense(H)), rnn.lstm(H), rnn.layer(nn.Dense(2)))
    clean = sequence(1, (5, 2), jnp.float32)
    return cell, cell.init(jax.random.key(0), clean[0]), clean


PAST, PADDING = "before a reset", "padding"
POISONED = [("gru", scan) for scan in SCANS] + [("stack", scan) for scan in (*FEW, *FOUR[1:3])]
FAST_POISONED = [("gru", "fissioned", PADDING), ("gru", "fissioned", PAST), ("stack", "fissioned", PAST)]
FAST_POISONED += [("gru", scan, PAST) for scan in FOUR[1:]]


@pytest.mark.parametrize(
    ("kind", "scan", "where"), slow_but_for(FAST_POISONED, [(*case, where) for case in POISONED for where in POISONS])
)
def test_nan_reaches_neither_values_nor_gradients(kind, where, scan):
    """Sequence 0 has NaN inputs in its padding, or before its reset, and a loss that does not look there."""
    cell, params, clean = poisoned_net(kind)
    bad = HIDDEN[where]
    seen = jnp.ones((5, 2), bool).at[bad, 0].set(False)

    @gradient_of
    def find(params, xs):
        state, ys = rnn.unroll(cell, params, xs, scan=SCANS[scan], **POISONS[where])
        ys = jnp.where(jnp.broadcast_to(seen[..., None], ys.shape), ys, jnp.zeros_like(ys))
        return scalar(state, ys)

    (got, got_grads), (value, grads) = find(params, clean.at[bad, 0].set(jnp.nan)), find(params, clean)
    assert_close(got, value, 1e-6)
    # What the hidden inputs did to the parameters' gradient must be nothing, with or without NaN.
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(got_grads))
    if where == "padding":
        assert_close(got_grads, grads, 1e-6)
    else:
        assert_close(got_grads[1][3:], grads[1][3:], 1e-6)
        assert_close(got_grads[0], gradient_without_the_past(kind), 2e-5)


@functools.cache
def gradient_without_the_past(kind):
    cell, params, clean = poisoned_net(kind)
    return jax.jit(jax.grad(lambda p: scalar(*_without_the_past(cell, p, clean, HIDDEN["before a reset"]))))(params)


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


def drawing_net():
    cell = rnn.stack(rnn.dropout(rnn.gru(H), 0.5), rnn.dropout(rnn.elman(H), 0.5, mask="sequence"))
    return cell, cell.init(jax.random.key(0), jnp.zeros((2, D)))


@functools.cache
def drawn(scan):
    cell, params = drawing_net()
    run = jax.jit(lambda key: rnn.unroll(cell, params, sequence(1, (7, 2), jnp.float32), key=key, scan=SCANS[scan])[1])
    return run(jax.random.key(1)), run(jax.random.key(2))


@pytest.mark.parametrize("scan", slow_but_for(FOUR, SCANS))
def test_the_same_key_draws_the_same_under_every_scan(scan):
    plain, (same, other) = drawn("lax.scan")[0], drawn(scan)
    assert_close(same, plain, 1e-6)
    assert float(jnp.abs(other - plain).max()) > 0.01


def test_raw_keys_work_too():
    cell = rnn.dropout(rnn.gru(H), 0.5)
    xs = sequence(1, (7, 2), jnp.float32)
    params = cell.init(jax.random.PRNGKey(0), xs[0])
    run = lambda key: jax.jit(lambda: rnn.unroll(cell, params, xs, key=key, scan=lax.scan))()
    assert_close(run(jax.random.PRNGKey(3)), run(jax.random.key(3)), 0)


def counting(traces):
    def step(params, state, x, *, key=None):
        traces.append(x.shape)
        return state + x, state

    return rnn.Cell(lambda key, x: (), lambda p, batch: jnp.zeros((*batch, D)), step)


@pytest.mark.parametrize("scan", [s for s in SCANS if "python_loop" not in s])
def test_the_step_is_traced_a_fixed_number_of_times(scan):
    traces = []
    cell = counting(traces)

    def count(steps):
        traces.clear()
        jax.make_jaxpr(jax.grad(lambda xs: scalar(*rnn.unroll(cell, (), xs, scan=SCANS[scan]))))(
            jnp.zeros((steps, 2, D))
        )
        return len(traces)

    assert count(16) == count(160) == count(1600) <= 8


@pytest.mark.parametrize(
    ("given", "before"),
    [
        ({}, 2),  # of one example, which does not fit, and of the batch
        ({"lengths": jnp.array([1, 2])}, 1),
        ({"state": jnp.zeros((2, D))}, 1),
        ({"state": jnp.zeros((2, D)), "lengths": jnp.array([1, 2])}, 1),
    ],
)
@pytest.mark.parametrize("outputs", ["all", "sum", "none"])
def test_the_step_is_looked_at_once_or_twice_before_the_loop(given, before, outputs):
    """And then traced by the scan: once, as it is."""
    traces = []

    def scan(f, init, xs, length=None, reverse=False):
        assert len(traces) == before
        return lax.scan(f, init, xs, length=length, reverse=reverse)

    chex.clear_trace_counter()
    cell = counting(traces)._replace(step=chex.assert_max_traces(counting(traces).step, n=before + 1))
    jax.make_jaxpr(lambda xs: rnn.unroll(cell, (), xs, scan=scan, outputs=outputs, **given))(jnp.zeros((5, 2, D)))
    assert len(traces) == before + 1


@pytest.mark.parametrize("options", [{}, {"lengths": jnp.array([1, 3])}, {"outputs": "sum", "reverse": True}])
def test_a_given_state_is_all_that_is_needed(options):
    """A cell that has no state of its own to begin with is not asked for one."""

    def no_state(params, batch):
        raise NotImplementedError

    cell, params = small_lstm()
    state, xs = cell.initial_state(params, (2,)), sequence(1, (3, 2), jnp.float32)
    got = rnn.unroll(cell._replace(initial_state=no_state), params, xs, state, **options)
    assert_close(got, rnn.unroll(cell, params, xs, **options), 1e-6)


def counter():
    """A state of which one leaf is shared by all sequences: the step's number."""

    def step(params, state, x, *, key=None):
        t, total = state
        return (t + 1, total + x * t.astype(x.dtype)), jnp.broadcast_to(t.astype(x.dtype), x.shape)

    return rnn.Cell(lambda key, x: (), lambda p, batch: (jnp.int32(0), jnp.zeros(batch)), step)


@pytest.mark.parametrize("scan", FEW)
def test_what_all_sequences_share_goes_on_as_long_as_any_does(scan):
    state = (jnp.int32(0), jnp.zeros(3))
    (t, totals), ys = rnn.unroll(counter(), (), jnp.ones((6, 3)), state, lengths=[2, 4, 0], scan=SCANS[scan])
    assert int(t) == 4 and totals.tolist() == [0 + 1, 0 + 1 + 2 + 3, 0]
    assert ys.T.tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 0, 0], [0] * 6]


def test_what_cannot_be_shared():
    """In reverse sequences begin at different steps; a reset is of one sequence; an output would tell of padding."""
    xs, state = jnp.ones((6, 3)), (jnp.int32(0), jnp.zeros(3))
    with pytest.raises(
        ValueError, match=r"state\[0\] should start with .* \(3,\), got int32\[\]; in reverse sequences"
    ):
        rnn.unroll(counter(), (), xs, state, lengths=[2, 4, 0], reverse=True)
    with pytest.raises(ValueError, match=r"resettable: state\[0\] should start with the batch dimensions \(3,\)"):
        rnn.unroll(counter(), (), xs, state, resets=jnp.zeros((6, 3), bool))
    telling = rnn.Cell(lambda key, x: (), lambda p, batch: jnp.zeros(batch), lambda p, s, x, key=None: (s, jnp.sum(x)))
    with pytest.raises(ValueError, match=r"masked: y should start with the batch dimensions \(3,\)"):
        rnn.unroll(telling, (), xs, lengths=[2, 4, 0])


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
        (
            bad(cell=no_y(), params=(), lengths=jnp.array([1, 2])),
            r"the step must return \(state, y\), got float32\[2,3\]",
        ),
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
            bad(state=rnn.LSTMState(jnp.zeros((2, H)), jnp.zeros((2, H))), lengths=jnp.array([1, 2, 3])),
            r"lengths should be \[\*B\] with the batch dimensions of xs and state, got \(3,\)",
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
