"""What all methods share: windows, keys, `fit`, `learn`, transformations, dtypes, and errors that say what to do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn.online import (
    Carry,
    Method,
    eprop,
    immediate,
    kf_rtrl,
    layerwise,
    learn,
    online,
    rtrl,
    snap,
    tbptt,
    uoro,
    window_loss,
)
from tests.choice import slow_but_for
from tests.online.problems import bptt, by_windows, data, error, every, first, lossy, problem, squares

METHODS = {
    "rtrl": rtrl(),
    "snap": snap(1),
    "layerwise": layerwise(),
    "eprop": eprop(),
    "uoro": uoro(),
    "kf_rtrl": kf_rtrl(),
    "tbptt": tbptt(4, every=2),
    "immediate": immediate(),
}
KEY = jax.random.key(5)


def fast(*names):
    """All methods; the others are slow."""
    return slow_but_for(names, METHODS)


@pytest.fixture(scope="module")
def gru():
    return problem(rnn.gru(4), dtype=jnp.float32)


@pytest.mark.parametrize("name", fast("snap", "uoro"))
def test_fit_takes_every_method(name, gru, lenient):
    net, params, xs = gru
    learner = online(net, METHODS[name])
    carry = learner.init(params, first(xs), key=KEY)
    windows = lambda n: jax.tree.map(lambda a: a[2 * n % 6 : 2 * n % 6 + 2], xs)
    state = rnn.training.fit(
        window_loss(learner), params, windows, steps=5, optimizer=optax.sgd(1e-3), key=KEY, carry=carry, progress=False
    )
    assert isinstance(state.carry, Carry) and int(state.carry.steps) == 10
    # The first step by hand: the gradient is what update returns.
    _, _, grads = jax.jit(learner.update)(params, carry, windows(0), key=jax.random.fold_in(KEY, 0))
    one = rnn.training.fit(
        window_loss(learner), params, windows, steps=1, optimizer=optax.sgd(1.0), key=KEY, carry=carry, progress=False
    )
    assert error(jax.tree.map(jnp.subtract, params, one.params), grads) < 1e-5


def test_the_gradient_of_a_window_is_scaled_by_what_follows(gru):
    net, params, xs = gru
    learner = online(net, rtrl())
    loss, carry = window_loss(learner), learner.init(params, first(xs))
    value, grads = jax.jit(jax.value_and_grad(lambda p: 3 * loss(p, xs, None, carry)[0]))(params)
    _, expected, whole = jax.jit(learner.update)(params, carry, xs)
    assert jnp.allclose(value, 3 * expected) and error(grads, jax.tree.map(lambda g: 3 * g, whole)) < 1e-6


@pytest.mark.parametrize("window", [1, 4])
def test_learn_is_the_plain_loop(window, gru, lenient):
    net, params, xs = gru
    learner, optimizer = online(net, snap(1)), optax.adam(1e-2)
    carry = jax.jit(learner.init)(params, first(xs))
    (found, _, last), losses = jax.jit(lambda p, o, c: learn(learner, optimizer, p, o, c, xs, window))(
        params, optimizer.init(params), carry
    )
    opt_state, expected = optimizer.init(params), []

    @jax.jit
    def step(params, opt_state, carry, part):
        carry, loss, grads = learner.update(params, carry, part)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry, loss

    for n in range(0, 6, window):
        part = jax.tree.map(lambda a, n=n: np.asarray(a)[n : n + window], xs)
        params, opt_state, carry, loss = step(params, opt_state, carry, part)
        expected.append(loss / len(part[0]))
    assert error(found, params) < 1e-5 and np.allclose(losses, np.stack(expected), rtol=1e-5)
    assert losses.shape == (-(-6 // window),) and int(last.steps) == 6


@pytest.mark.parametrize("name", ["rtrl", "uoro", pytest.param("tbptt", marks=pytest.mark.slow)])
def test_many_learners_side_by_side(name, gru):
    """vmap over parameters and carries: the same numbers as one by one."""
    net, params, xs = gru
    learner = online(net, METHODS[name])
    part = jax.tree.map(lambda a: np.asarray(a)[:2], xs)
    both = jax.tree.map(lambda a: np.stack([a, a * 1.1]), params)
    start = lambda p: learner.init(p, first(xs), key=KEY)
    one = lambda p: learner.update(p, start(p), part)[1:]
    losses, grads = jax.jit(jax.vmap(one))(both)
    by_itself = jax.jit(one)
    for n in range(2):
        alone = jax.tree.map(lambda a, n=n: a[n], both)
        loss, expected = by_itself(alone)
        assert np.allclose(losses[n], loss, rtol=1e-5)
        assert error(jax.tree.map(lambda a, n=n: np.asarray(a)[n], grads), expected) < 1e-5


@pytest.mark.parametrize("name", fast("rtrl", "kf_rtrl"))
def test_bfloat16(name):
    """Influences in float32 whatever the cell's type; the gradient comes in the parameters' type."""
    net, params, xs = problem(rnn.lstm(4, dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    learner = online(net, METHODS[name])
    carry = jax.jit(lambda p: learner.init(p, first(xs), key=KEY))(params)
    carry, loss, grads = jax.jit(learner.update)(params, carry, jax.tree.map(lambda a: np.asarray(a)[:2], xs))
    assert loss.dtype == jnp.float32 and {g.dtype.name for g in jax.tree.leaves(grads)} == {"bfloat16"}
    if name in ("rtrl", "snap", "kf_rtrl"):
        assert {m.dtype.name for m in jax.tree.leaves(carry.memory)} == {"float32"}
    if name == "rtrl":
        whole, _ = by_windows(net, rtrl(), params, xs, (3,))
        up = lambda tree: jax.tree.map(lambda a: np.asarray(a).astype(np.float32), tree)
        exact = bptt(lossy(rnn.lstm(4)), up(params), up(xs))
        assert error(up(whole), exact) < 0.1


def test_integer_parameters_have_gradients_of_zero():
    cell = rnn.gru(4)
    both = cell._replace(
        init=lambda key, x: (cell.init(key, x), jnp.arange(3)),
        initial_state=lambda p, batch: cell.initial_state(p[0], batch),
        step=lambda p, s, x, key=None: cell.step(p[0], s, x, key=key),
    )
    net, params, xs = problem(both, dtype=jnp.float32)
    for method in (rtrl(), immediate()):
        grads, _ = by_windows(net, method, params, xs)
        assert grads[1].dtype == jnp.int32 and not grads[1].any()


@pytest.mark.parametrize("name", fast("rtrl", "uoro", "tbptt"))
def test_a_net_without_memory_learns_as_ever(name):
    net, params, xs = problem(rnn.layer(nn.Dense(3)), dtype=jnp.float32)
    found, _ = every(net, METHODS[name], params, xs, 2, key=KEY)
    losses = lambda p: jnp.sum(jax.vmap(lambda x: net.step(p, (), x)[1])(xs)) / 2
    assert error(found, jax.jit(jax.grad(losses))(params)) < 1e-5


def test_what_a_sequence_draws_once_it_draws_once(x64):
    """The keys of `unroll`, over any windows: one mask for the whole stream, others for every step."""
    for mask in ("sequence", "step"):
        net, params, xs = problem(rnn.dropout(rnn.gru(4, dtype=jnp.float64), 0.5, on="input", mask=mask))
        found, _ = by_windows(net, rtrl(), params, xs, (3,), key=KEY)
        assert error(found, bptt(net, params, xs, key=KEY)) < 1e-12


def test_one_compiled_program_and_a_carry_of_one_size(gru):
    net, params, xs = gru
    traces = []

    def step(p, s, x, key=None):
        traces.append(1)
        return net.step(p, s, x, key=key)

    learner = online(net._replace(step=step), rtrl())
    update = jax.jit(learner.update)
    carry = learner.init(params, first(xs))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(carry))]
    for n in range(3):
        carry, *_ = update(params, carry, jax.tree.map(lambda a, n=n: a[n : n + 1], xs))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(carry)))
        traces.append(0)
    assert len(set(sizes)) == 1 and update._cache_size() == 1
    before = sum(traces)
    update(params, carry, jax.tree.map(lambda a: a[:1], xs))
    assert sum(traces) == before


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda y, t: y, r"float32\[2,4\]"),
        (lambda y, t: (y, y), r"\(float32\[2,4\], float32\[2,4\]\)"),
        (lambda y, t: jnp.argmax(y, -1), r"int32\[2\]"),
    ],
)
def test_a_cell_that_does_not_end_in_a_loss(loss, what):
    cell, xs = rnn.with_loss(rnn.gru(4), loss), data(dtype=jnp.float32)
    params = cell.init(jax.random.key(0), first(xs))
    for method in (rtrl(), immediate()):
        learner = online(cell, method)
        with pytest.raises(ValueError, match=rf"must end in its loss.*its output is {what}; put with_loss"):
            learner.update(params, learner.init(params, first(xs)), xs)


def test_windows_and_batches_that_cannot_be(gru):
    net, params, xs = gru
    learner = online(net, rtrl())
    carry = learner.init(params, first(xs))
    with pytest.raises(ValueError, match=r"update: xs has no time steps"):
        learner.update(params, carry, jax.tree.map(lambda a: a[:0], xs))
    three = jax.tree.map(lambda a: jnp.concatenate([a, a[:, :1]], 1), xs)
    with pytest.raises(
        ValueError, match=r"carry\.state should be float32\[3,4\], got float32\[2,4\]; xs has the batch"
    ):
        learner.update(params, carry, three)
    with pytest.raises(
        TypeError, match=r"carry must be what init or update returned, got DynamicJaxprTracer|got Array"
    ):
        learner.update(params, carry.state, xs)
    for window in (0, 1.5):
        with pytest.raises(ValueError, match=r"learn: window must be a whole number"):
            learn(learner, optax.sgd(1.0), params, (), carry, xs, window)
    with pytest.raises(ValueError, match=r"learn: xs has no time steps"):
        learn(learner, optax.sgd(1.0), params, (), carry, jax.tree.map(lambda a: a[:0], xs))


def test_a_step_with_side_effects():
    def step(params, h, x, *, key=None):
        jax.debug.print("{}", h.sum())
        return h * params + x, h

    cell = rnn.Cell(lambda key, x: jnp.ones((), x.dtype), lambda p, batch: jnp.zeros((*batch, 3)), step)
    net, params, xs = problem(cell, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"side effect .* take that out of the step, or use tbptt"):
        online(net, rtrl()).init(params, first(xs))


def test_what_is_no_cell_or_method():
    net = rnn.with_loss(rnn.gru(4), squares)
    with pytest.raises(TypeError, match=r"online: cell must be a Cell, got str"):
        online("gru", rtrl())
    with pytest.raises(TypeError, match=r"online: method must be a value such as rtrl\(\) or snap\(1\), got rtrl"):
        online(net, rtrl)
    with pytest.raises(TypeError, match=r"online: method must be a value"):
        online(net, rnn.scan)
    with pytest.raises(ValueError, match=r"snap: order must be a whole number of at least 1, got 0"):
        snap(0)
    with pytest.raises(ValueError, match=r"rtrl: block must be one of None, True, False, got 3"):
        rtrl(block=3)
    assert isinstance(rtrl(), Method) and rtrl()(net) == online(net, rtrl())
    assert isinstance(online(net, rtrl()), rnn.Learner)
