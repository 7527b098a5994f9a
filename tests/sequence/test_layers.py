"""Layers of whole sequences: each beside what it gives a sequence alone, a plain loop, and PyTorch."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import sequence
from tests import zoo
from tests.reference import assert_close, scalar

T, B, D, H = 7, 3, 3, 4
LENGTHS = jnp.array([7, 0, 4])
POSITION = lambda f, b: f + jnp.exp(b)  # no merge of zeros is zero here

LAYERS = {
    "over_time": lambda: sequence.over_time(rnn.lstm(H)),
    "bidirectional": lambda: sequence.bidirectional(rnn.lstm(H), rnn.gru(2)),
    "bidirectional, merged": lambda: sequence.bidirectional(rnn.gru(H), rnn.gru(H), merge=POSITION),
    "every": lambda: sequence.every(3),
    "convolution": lambda: sequence.convolution(5, 4),
    "convolution, strided": lambda: sequence.convolution(5, 3, stride=2, use_bias=True),
    "convolution, causal": lambda: sequence.convolution(5, 3, causal=True),
    "chain": lambda: sequence.chain(
        sequence.convolution(5, 3),
        rnn.gru(H),
        rnn.layer(nn.Dense(3)),
        sequence.bidirectional(rnn.elman(2), rnn.elman(2)),
        sequence.every(2),
        sequence.over_time(rnn.gru(3)),
    ),
}
FEW = ("checkpointed(2)", "fissioned")  # the others are in the slow set
BIASED = lambda params: jax.tree.map(lambda a: a + 0.1, params)  # a bias of zero hides much


def made(name):
    layer = LAYERS[name]()
    xs = zoo.sequence(0, (T, B), jnp.float32)
    return layer, BIASED(jax.jit(layer.init)(jax.random.key(1), xs[0])), xs


SINGLE = (
    "over_time",
    "bidirectional",
    "bidirectional, merged",
    "convolution, causal",
)  # of which another like it is in the fast set


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SINGLE else n for n in LAYERS])
def test_padded_is_alone_whatever_the_padding_holds(name):
    layer, params, xs = made(name)
    dirty = jnp.where(jnp.arange(T)[:, None, None] < LENGTHS[None, :, None], xs, jnp.nan)

    def outcome(params, xs):
        state, ys = rnn.unroll(layer, params, xs, lengths=LENGTHS)
        return scalar(state, ys), (state, ys)

    (_, (state, ys)), (grads, by_xs) = jax.jit(jax.value_and_grad(outcome, (0, 1), has_aux=True))(params, dirty)
    shorter = layer.shortened(LENGTHS)
    for b, n in enumerate(shorter.tolist()):
        assert not np.any(ys[n:, b]), "not zero from its end on"

    def alone(params):
        """The same from sequences that are alone, put beside each other by hand."""
        states, total = jax.tree.map(jnp.zeros_like, (state, ys))
        for b, n in enumerate(LENGTHS.tolist()):
            if n:
                s, y = layer.apply(params, xs[:n, b])
                total = total.at[: len(y), b].set(y)
                states = jax.tree.map(lambda a, leaf, b=b: a.at[b].set(leaf), states, s)
        return scalar(states, total), (states, total)

    (_, want), want_grads = jax.jit(jax.value_and_grad(alone, has_aux=True))(params)
    assert_close((state, ys), want, 1e-5)
    assert_close(grads, want_grads, 1e-4)
    assert np.isfinite(by_xs).all() and not np.any(by_xs[:, 1]) and not np.any(by_xs[4:, 2])


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in zoo.SCANS])
def test_every_scan_runs_a_layer(name):
    layer, params, xs = made("chain")
    loss = lambda params, scan: scalar(*rnn.unroll(layer, params, xs, lengths=LENGTHS, scan=scan))
    want = jax.jit(jax.value_and_grad(lambda p: loss(p, jax.lax.scan)))(params)
    got = jax.jit(jax.value_and_grad(lambda p: loss(p, zoo.SCANS[name])))(params)
    assert_close(got, want, 1e-4)


def test_neighbouring_cells_are_one_cell():
    cells = rnn.gru(H), rnn.layer(nn.Dense(2)), rnn.lift(jnp.tanh)
    xs = zoo.sequence(0, (T, B), jnp.float32)
    one, many = rnn.stack(*cells), sequence.chain(*cells)
    params = one.init(jax.random.key(0), xs[0])
    assert_close(many.init(jax.random.key(0), xs[0]), params, 0)
    assert_close(rnn.unroll(many, params, xs), rnn.unroll(one, params, xs), 0)
    text = str(jax.make_jaxpr(lambda p: rnn.unroll(many, p, xs, scan=jax.lax.scan))(params))
    assert text.count(" scan[") == 1


def test_merge_and_directions_by_a_plain_loop():
    layer = rnn.bidirectional(rnn.gru(H), rnn.gru(H), merge=jnp.add)
    assert isinstance(layer, rnn.SequenceLayer)
    xs = zoo.sequence(3, (T, B), jnp.float32)
    params = layer.init(jax.random.key(1), xs[0])
    (s_f, s_b), ys = layer.apply(params, xs)
    cell, want = rnn.gru(H), [0.0] * T
    for name, order, last in (("forward", range(T), s_f), ("backward", reversed(range(T)), s_b)):
        state = cell.initial_state(params[name], (B,))
        for t in order:
            state, y = cell.step(params[name], state, xs[t])
            want[t] = want[t] + y
        assert_close(last, state, 1e-6)
    assert_close(ys, jnp.stack(want), 1e-6)


def test_convolution_is_a_sum_over_its_window():
    layer = sequence.convolution(2, 3, stride=2)
    xs = zoo.sequence(3, (6, B), jnp.float32)
    params = layer.init(jax.random.key(1), xs[0])
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    _, ys = layer.apply(params, xs)
    padded = np.concatenate([np.zeros((1, B, D)), xs, np.zeros((1, B, D))])
    want = [sum(padded[t + k] @ kernel[k] for k in range(3)) + bias for t in (0, 2, 4)]
    np.testing.assert_allclose(ys, np.stack(want), rtol=1e-5, atol=1e-6)
    causal = sequence.convolution(2, 3, causal=True)
    later = xs.at[4:].set(7.0)
    assert_close(causal.apply(params, later)[1][:4], causal.apply(params, xs)[1][:4], 0)


def test_a_pyramid_puts_neighbours_side_by_side():
    xs = jnp.arange(2 * 5 * 2 * 3, dtype=jnp.float32).reshape(5, 2, 2, 3)
    _, ys = sequence.every(2).apply((), xs, lengths=jnp.array([[5, 3], [0, 4]]))
    assert ys.shape == (3, 2, 2, 6) and sequence.every(2).shortened(jnp.array([5, 3, 0, 4])).tolist() == [3, 2, 0, 2]
    assert ys[0, 0, 1].tolist() == [*xs[0, 0, 1].tolist(), *xs[1, 0, 1].tolist()]
    assert ys[1, 0, 1].tolist() == [*xs[2, 0, 1].tolist(), 0.0, 0.0, 0.0] and not ys[:, 1, 0].any()


def test_outputs_of_layers_are_kept_summed_or_dropped():
    layer, params, xs = made("bidirectional")
    _, ys = rnn.unroll(layer, params, xs, lengths=LENGTHS)
    _, total = rnn.unroll(layer, params, xs, lengths=LENGTHS, outputs="sum")
    assert_close(total, ys.sum(0), 1e-6)
    assert rnn.unroll(layer, params, xs, outputs="none")[1] == ()


def test_layers_draw_by_one_key_and_run_under_vmap():
    layer = sequence.chain(
        sequence.bidirectional(rnn.dropout(rnn.gru(H), 0.5), rnn.dropout(rnn.gru(H), 0.5)), rnn.dropout(rnn.gru(2), 0.5)
    )
    xs = zoo.sequence(0, (T, B), jnp.float32)
    params = layer.init(jax.random.key(1), xs[0])
    run = jax.jit(lambda key: rnn.unroll(layer, params, xs, key=key)[1])
    plain = jax.jit(lambda key: rnn.unroll(layer, params, xs, key=key, scan=jax.lax.scan)[1])
    assert_close(run(jax.random.key(0)), plain(jax.random.key(0)), 1e-5)
    assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 0.01
    whole = jax.jit(lambda xs: rnn.unroll(layer, params, xs)[1])
    assert_close(jax.jit(jax.vmap(whole, in_axes=1, out_axes=1))(xs), whole(xs), 1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_bidirectional_lstm_equals_packed_pytorch(layers):
    torch = pytest.importorskip("torch")
    lengths = jnp.array([T, 2, 5])
    xs = zoo.sequence(5, (T, B), jnp.float32)
    net = sequence.chain(*[sequence.bidirectional(rnn.lstm(H), rnn.lstm(H)) for _ in range(layers)])
    params = net.init(jax.random.key(2), xs[0])
    theirs = torch.nn.LSTM(D, H, num_layers=layers, bidirectional=True)
    sides = [(n, d, f"l{n}{s}") for n in range(layers) for d, s in (("forward", ""), ("backward", "_reverse"))]
    with torch.no_grad():
        for n, direction, suffix in sides:
            ours = {name: torch.tensor(np.asarray(value)) for name, value in params[n][direction].items()}
            getattr(theirs, f"weight_ih_{suffix}").copy_(ours["U"].T)
            getattr(theirs, f"weight_hh_{suffix}").copy_(ours["W"].T)
            getattr(theirs, f"bias_ih_{suffix}").copy_(ours["b"])
            getattr(theirs, f"bias_hh_{suffix}").zero_()
    pack_them = torch.nn.utils.rnn.pack_padded_sequence
    x = torch.tensor(np.asarray(xs), requires_grad=True)
    packed, (h, c) = theirs(pack_them(x, torch.tensor(np.asarray(lengths)), enforce_sorted=False))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=T)
    torch.sin(y).sum().backward()

    def loss(params, xs):
        states, ys = rnn.unroll(net, params, xs, lengths=lengths)
        return jnp.sum(jnp.sin(ys)), (states, ys)

    (_, (states, ys)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, xs)
    np.testing.assert_allclose(ys, y.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(grads[1], x.grad.numpy(), atol=1e-6)
    for k, (n, direction, suffix) in enumerate(sides):
        last = states[n][0 if direction == "forward" else 1]
        np.testing.assert_allclose(last.h, h[k].detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(last.c, c[k].detach().numpy(), atol=1e-6)
        for name, theirs_name in (("U", "weight_ih"), ("W", "weight_hh")):
            want = getattr(theirs, f"{theirs_name}_{suffix}").grad.numpy().T
            np.testing.assert_allclose(grads[0][n][direction][name], want, atol=2e-6)


def test_layers_are_pickled_compared_and_static():
    for name in set(LAYERS) - {"bidirectional, merged"}:  # whose merge is a lambda
        layer = LAYERS[name]()
        again = pickle.loads(pickle.dumps(layer))
        assert again == layer and hash(again) == hash(layer) and layer == LAYERS[name]()
    assert sequence.every(2) != sequence.every(3)


def test_bad_input():
    layer, params, xs = made("bidirectional")
    with pytest.raises(ValueError, match="state has no meaning for a SequenceLayer"):
        rnn.unroll(layer, params, xs, state=jnp.zeros((B, H)))
    with pytest.raises(ValueError, match="reverse has no meaning"):
        rnn.unroll(layer, params, xs, reverse=True)
    with pytest.raises(ValueError, match="every: resets cannot be kept"):
        rnn.unroll(sequence.every(2), (), xs, resets=jnp.zeros((T, B), bool))
    with pytest.raises(ValueError, match="every: n must be a whole number"):
        sequence.every(0)
    with pytest.raises(ValueError, match="every: xs must be features"):
        sequence.every(2).apply((), jnp.arange(5))
    with pytest.raises(ValueError, match="convolution: stride"):
        sequence.convolution(2, 3, stride=0)
    with pytest.raises(ValueError, match="chain: needs at least one"):
        sequence.chain()
    with pytest.raises(TypeError, match="chain: a part must be a Cell or a SequenceLayer, got Dense"):
        sequence.chain(nn.Dense(3))
    with pytest.raises(TypeError, match="bidirectional: cell must be a Cell"):
        sequence.bidirectional(rnn.gru(2), layer)
    with pytest.raises(ValueError, match="lengths must lie in 0..7"):
        rnn.unroll(layer, params, xs, lengths=jnp.array([8, 1, 1]))
    with pytest.raises(TypeError, match="over_time: cell must be a Cell, got SequenceLayer; .* chain"):
        sequence.over_time(layer)
    with pytest.raises(ValueError, match="params should be a dict of 'forward' and 'backward', got \\['a'\\]"):
        rnn.unroll(layer, {"a": 1}, xs)
    with pytest.raises(ValueError, match=r"every: xs should be features \[T, \*B, D\] with \*B = \(3,\)"):
        rnn.unroll(sequence.every(2), (), xs[..., 0], lengths=LENGTHS)
    with pytest.raises(ValueError, match="convolution: x must have 3 features"):
        rnn.unroll(LAYERS["convolution"](), made("convolution")[1], xs[..., :2])


def test_a_given_state_is_all_that_is_asked_for():
    """A cell that was written for a state that is handed over need not know how to make one."""
    step = lambda params, state, x, *, key=None: (state + x, state)
    cell = rnn.Cell(init=None, initial_state=None, step=step)
    state, ys = rnn.unroll(cell, (), jnp.ones((3, 2)), jnp.zeros(2), lengths=jnp.array([3, 1]))
    assert state.tolist() == [3, 1] and ys.tolist() == [[0, 0], [1, 0], [2, 0]]
