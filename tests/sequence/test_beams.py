"""Beam search beside the enumeration of everything that could be said."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import sequence

V, STEPS, END = 3, 4, 2
MEMORY = jax.random.normal(jax.random.key(9), (5, 2, 4))


def model(memory=MEMORY):
    attending = sequence.attending(rnn.gru(6), memory)
    return rnn.stack(rnn.layer(nn.Embed(V, 4)), attending, rnn.layer(nn.Dense(V)))


PARAMS = jax.tree.map(lambda a: 3 * a, model().init(jax.random.key(0), jnp.zeros(2, jnp.int32)))
X = jnp.array([0, 1])


def started(batch=2):
    return model().initial_state(PARAMS, (batch,))


@functools.cache
def everything():
    """[sequence, tokens], and log p of every token of every sequence in both batches: [B, sequence, STEPS]."""
    said = np.array(list(itertools.product(range(V), repeat=STEPS)), np.int32)
    log_p = []
    for b in range(2):
        net = model(jnp.repeat(MEMORY[:, b : b + 1], len(said), axis=1))
        first = jnp.full((1, len(said)), X[b], jnp.int32)
        _, logits = rnn.unroll(net, PARAMS, jnp.concatenate([first, said.T[:-1]]))
        log_p.append(np.take_along_axis(jax.nn.log_softmax(logits), said.T[..., None], -1)[..., 0].T)
    return said, np.array(log_p)


SEARCHES = [(None, 0.0), (END, 1.0), *(pytest.param(*s, marks=pytest.mark.slow) for s in [(None, 1.0), (END, 0.0)])]


@pytest.mark.parametrize(("end", "penalty"), SEARCHES)
def test_wide_enough_it_equals_enumeration(end, penalty):
    options = {"width": V ** (STEPS - 1), "end": end, "length_penalty": penalty}
    if penalty and end is not None:  # a short beam may drop out before a long one overtakes it
        options["width"] = V**STEPS
    found = jax.jit(lambda s: sequence.beam_search(model(), PARAMS, s, X, STEPS, **options))(started())
    said, log_p = everything()
    for b in range(2):
        scores = {}
        for tokens, p in zip(said.tolist(), log_p[b], strict=True):
            n = tokens.index(end) + 1 if end in tokens else STEPS
            scores[tuple(tokens[:n])] = p[:n].sum()
        best = sorted(scores, key=lambda tokens: -scores[tokens] / len(tokens) ** penalty)[:5]
        for k, tokens in enumerate(best):
            n = len(tokens)
            assert tuple(found.tokens[:n, b, k].tolist()) == tokens
            assert (np.asarray(found.tokens[n:, b, k]) == END).all()
            np.testing.assert_allclose(found.scores[b, k], scores[tokens], rtol=1e-5)
            assert found.lengths[b, k] == n - (tokens[-1] == end)


def test_one_beam_is_greedy_and_types_are_kept():
    x = X.astype(jnp.int16)
    found = sequence.beam_search(model(), PARAMS, started(), x, 6, width=1)
    _, said = rnn.generate(model(), PARAMS, started(), x, 6, rnn.greedy())
    assert (
        isinstance(found, sequence.Beams) and found.tokens.dtype == jnp.int16 and (found.tokens[..., 0] == said).all()
    )


def test_any_batch_dimensions_and_no_steps():
    whole = sequence.beam_search(model(), PARAMS, started(), X, STEPS, width=4)
    alone = sequence.beam_search(
        model(MEMORY[:, 1]), PARAMS, model(MEMORY[:, 1]).initial_state(PARAMS, ()), X[1], STEPS, width=4
    )
    assert (alone.tokens == whole.tokens[:, 1]).all() and alone.scores.shape == (4,)
    none = sequence.beam_search(model(), PARAMS, started(), X, 0, width=2)
    assert none.tokens.shape == (0, 2, 2) and none.scores.tolist() == [[0, -np.inf]] * 2


def test_more_beams_than_there_are_sequences():
    found = sequence.beam_search(model(), PARAMS, started(), X, 1, width=5)
    assert np.isfinite(found.scores[:, :V]).all() and (np.asarray(found.scores[:, V:]) == -np.inf).all()


def test_the_encoder_s_memory_is_not_copied_per_beam():
    memory = jnp.ones((400, 2, 64))
    net = rnn.stack(rnn.layer(nn.Embed(V, 4)), sequence.attending(rnn.gru(8), memory), rnn.layer(nn.Dense(V)))
    params = net.init(jax.random.key(0), X)
    run = lambda s: sequence.beam_search(net, params, s, X, 10, width=16).scores
    assert rnn.analysis.temp_bytes(run, net.initial_state(params, (2,))) < 2 * memory.size * 4


def test_bad_input():
    def search(cell=None, state=None, x=X, **options):
        cell, params, state = (model(), PARAMS, started()) if cell is None else (cell, (), ())
        return sequence.beam_search(cell, params, state, x, 3, **options)

    with pytest.raises(ValueError, match="beam_search: width must be a whole number"):
        search(width=0)
    with pytest.raises(ValueError, match=r"beam_search: end must be a class in 0\.\.2, got 3"):
        search(width=2, end=3)
    with pytest.raises(ValueError, match="length_penalty must be a number of at least 0"):
        search(width=2, length_penalty=-1)
    with pytest.raises(TypeError, match="beam_search: x must be integer tokens"):
        search(width=2, cell=rnn.lift(lambda x: x), x=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="the cell's y must be logits"):
        search(width=2, cell=rnn.lift(lambda x: x))
