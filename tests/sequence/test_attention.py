"""Attention beside a loop written out in numpy; its memory, its cost, its padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn import sequence, training
from tests import zoo
from tests.reference import assert_close, scalar

S, T, B, E, D, H = 6, 5, 3, 4, 3, 4
MEMORY = jax.random.normal(jax.random.key(9), (S, B, E))
LENGTHS = jnp.array([6, 2, 0])


def decoder(score, memory=MEMORY, lengths=LENGTHS, **options):
    return sequence.attending(rnn.gru(H), memory, lengths, score=score, size=5, **options)


def made(score):
    xs = zoo.sequence(0, (T, B), jnp.float32)
    return jax.jit(decoder(score).init)(jax.random.key(1), xs[0]), xs


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_attention_by_hand(score):
    params, xs = made(score)
    state, ys = rnn.unroll(decoder(score), params, xs)
    memory, p, cell = np.asarray(MEMORY), jax.tree.map(np.asarray, params), rnn.gru(H)
    for b, n in enumerate(LENGTHS.tolist()):
        context, h = np.zeros(E), cell.initial_state(params["cell"], ())
        for t in range(T):
            h, out = cell.step(params["cell"], h, jnp.concatenate([xs[t, b], jnp.asarray(context, jnp.float32)]))
            query = np.asarray(out) @ p["W"]
            score_of = {
                "dot": lambda m, query=query: query @ m / np.sqrt(E),
                "additive": lambda m, query=query: np.tanh(query + m @ p["U"]) @ p["v"],
            }[score]
            scores = np.array([score_of(memory[s, b]) for s in range(n)])
            weights = np.exp(scores) / np.exp(scores).sum() if n else scores
            context = sum((w * memory[s, b] for s, w in enumerate(weights)), np.zeros(E))
            np.testing.assert_allclose(ys[t, b], np.concatenate([out, context]), rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(state.context[b], context, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_the_weights_are_those_that_the_contexts_are_made_with(score):
    params, xs = made(score)
    _, plain = rnn.unroll(decoder(score), params, xs)
    _, (ys, weights) = rnn.unroll(decoder(score, weights=True), params, xs)
    assert_close(ys, plain, 1e-6)
    assert_close(jnp.einsum("tbs,sbe->tbe", weights, MEMORY), ys[..., H:], 1e-6)
    assert_close(jnp.sum(weights, axis=-1), jnp.broadcast_to(jnp.array([1.0, 1, 0]), (T, B)), 1e-6)
    assert weights.shape == (T, B, S) and not weights[:, 1, 2:].any()


SCANS = {"scan": rnn.scan, "segments": rnn.checkpointed(2), "revolve": rnn.revolve(2, 1)}
FAST = [("additive", "scan"), ("dot", "segments")]
ALL = [(score, name) for score in ("dot", "additive") for name in SCANS]


@pytest.mark.parametrize(
    ("score", "scan"), [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in ALL]
)
def test_every_scan_attends_alike(score, scan):
    params, xs = made(score)
    dirty = jnp.where((jnp.arange(S)[:, None] < LENGTHS[None])[..., None], MEMORY, jnp.nan)

    def loss(params, memory, scan):
        return scalar(*rnn.unroll(decoder(score, memory), params, xs, scan=scan))

    want = jax.jit(jax.value_and_grad(lambda *a: loss(*a, jax.lax.scan), argnums=(0, 1)))(params, MEMORY)
    got = jax.jit(jax.value_and_grad(lambda *a: loss(*a, SCANS[scan]), argnums=(0, 1)))(params, dirty)
    assert_close(got, want, 1e-5)
    assert not np.any(got[1][1][2:, 1]) and not np.any(got[1][1][:, 2]), "padding has a gradient"


def test_the_memory_is_not_copied_per_step():
    steps, size, memory = 60, 64, jnp.ones((100, 2, 64))
    net = lambda memory: rnn.stack(sequence.attending(rnn.gru(size), memory), rnn.layer(nn.Dense(3)))
    xs = jnp.ones((steps, 2, 8))
    params = net(memory).init(jax.random.key(0), xs[0])

    def taken(scan):
        loss = lambda params, memory: jnp.sum(rnn.unroll(net(memory), params, xs, scan=scan)[1] ** 2)
        return rnn.analysis.temp_bytes(jax.grad(loss, argnums=(0, 1)), params, memory)

    assert taken(rnn.scan) < steps * memory.size * 4 / 4 and taken(rnn.scan) < 1.5 * taken(jax.lax.scan)


def test_an_encoder_s_state_is_handed_over_and_a_decoder_learns_to_copy(lenient):
    classes, length = 5, 4
    encoder = rnn.stack(rnn.layer(nn.Embed(classes, 12)), rnn.gru(16))
    readout = rnn.layer(nn.Dense(classes))

    def decoder(memory):
        return rnn.stack(rnn.layer(nn.Embed(classes, 12)), sequence.attending(rnn.gru(16), memory), readout)

    def first(params, encoded, state):
        start = decoder(encoded).initial_state(params, encoded.shape[1:-1])
        return start[0], start[1]._replace(cell=state[1]), start[2]

    def loss(params, batch, key):
        del key
        state, encoded = rnn.unroll(encoder, params["encoder"], batch)
        before = sequence.shifted(batch, 0)
        start = first(params["decoder"], encoded, state)
        _, logits = rnn.unroll(decoder(encoded), params["decoder"], before, start)
        return rnn.cross_entropy(logits, batch)

    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.integers(1, classes, (length, n)), jnp.int32)
    tokens = draw(2)
    k_encoder, k_decoder = jax.random.split(jax.random.key(0))
    params = {"encoder": encoder.init(k_encoder, tokens[0])}
    _, encoded = rnn.unroll(encoder, params["encoder"], tokens)
    params["decoder"] = decoder(encoded).init(k_decoder, tokens[0])
    optimizer = optax.adam(1e-2)
    state, step = training.create(params, optimizer, jax.random.key(1)), training.make_train_step(loss, optimizer)
    for _ in range(150):
        state, _ = step(state, draw(64))
    unseen = draw(50)
    last, encoded = rnn.unroll(encoder, state.params["encoder"], unseen)
    start = first(state.params["decoder"], encoded, last)
    _, said = rnn.generate(
        decoder(encoded), state.params["decoder"], start, jnp.zeros(50, jnp.int32), length, rnn.greedy()
    )
    assert np.mean(np.asarray(said) == np.asarray(unseen)) > 0.95


def test_bad_input():
    params, xs = made("dot")
    with pytest.raises(ValueError, match=r"attending: memory must be \[S, \*B, E\] with the input's batch"):
        rnn.unroll(decoder("dot", MEMORY[:, :2], LENGTHS[:2]), params, xs)
    with pytest.raises(ValueError, match="attending: lengths must be"):
        decoder("dot", MEMORY, jnp.array([1, 2]))
    with pytest.raises(ValueError, match="attending: lengths must lie in 0..6"):
        decoder("dot", MEMORY, jnp.array([7, 2, 1]))
    with pytest.raises(ValueError, match="attending: score must be one of 'dot', 'additive'"):
        decoder("cosine")
    with pytest.raises(ValueError, match="attending: memory must be numbers"):
        decoder("dot", jnp.arange(3), None)
