"""Exponential moving averages of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from tests.training.problems import bits, tiny

averaged, averaging, to_evaluate = rnn.training.averaged, rnn.training.averaging, rnn.training.to_evaluate
fit = rnn.training.fit


def trained(decay, steps, **changed):
    given = tiny(**changed)
    return fit(**given | {"optimizer": averaging(given["optimizer"], decay), "steps": steps})


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_the_weighted_mean_of_all_parameters(decay):
    seen = []
    plain = tiny(evaluate=lambda p: seen.append(np.asarray(p["w"])) or {}, evaluate_every=1, steps=6)
    last = fit(**plain)
    weights = decay ** np.arange(5, -1, -1)
    expected = np.tensordot(weights / weights.sum(), np.array(seen), 1)
    state = trained(decay, 6)
    np.testing.assert_allclose(averaged(state)["w"], expected, rtol=1e-6)
    assert bits(state.params) == bits(last.params)  # the training is the same


def test_evaluate_reads_the_average():
    seen = []
    state = trained(0.9, 6, evaluate=lambda p: seen.append(np.asarray(p["w"])) or {})
    assert seen[-1].tolist() == averaged(state)["w"].tolist() != state.params["w"].tolist()
    assert to_evaluate(state)["w"].tolist() == seen[-1].tolist()
    plain = fit(**tiny(steps=3))
    assert to_evaluate(plain) is plain.params


def test_an_average_is_saved_and_gone_on_from(tmp_path):
    trained(0.9, 11, run=tmp_path / "run")
    assert bits(trained(0.9, 30, run=tmp_path / "run")) == bits(trained(0.9, 30))


def test_averages_of_sixteen_bits_are_not_rounded_away():
    optimizer = averaging(optax.sgd(1.0), 0.999)
    params = {"w": jnp.zeros(2, jnp.bfloat16)}
    state = optimizer.init(params)
    for step in range(50):
        updates, state = optimizer.update({"w": jnp.full(2, -(step < 1), jnp.bfloat16)}, state, params)
        params = optax.apply_updates(params, updates)
    assert state.average["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.average["w"], 1.0, rtol=1e-5)  # every parameter since the first was 1
    whole = rnn.training.TrainState(jnp.int32(50), params, (optax.EmptyState(), (state,)), jax.random.key(0))
    assert averaged(whole)["w"].dtype == jnp.bfloat16


def test_bad_averages_are_refused():
    with pytest.raises(ValueError, match=r"decay must be a number from 0 up to but not 1, got 1"):
        averaging(optax.sgd(1.0), 1)
    with pytest.raises(
        ValueError, match=r"averaged: the optimizer keeps no average .*; put averaging\(...\) around it"
    ):
        averaged(fit(**tiny(steps=1)))
    optimizer = averaging(optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"averaging: the update needs the parameters"):
        optimizer.update({"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(2)}))
