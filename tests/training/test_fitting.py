"""`fit`: what it trains, shows, logs and saves, and what it refuses."""

import json
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.combinators import scheduled_sampling
from tests.training.problems import bits, tiny, tiny_batches, tiny_loss


def test_fit_learns_and_writes_what_it_says(tmp_path):
    given = tiny(evaluate=lambda p: {"size": 3.0}, evaluate_every=15)
    state = rnn.training.fit(**given, run=tmp_path / "run")
    records = rnn.training.read_metrics(tmp_path / "run")
    assert [r["step"] for r in records] == [7, 14, 15, 21, 28, 30]
    assert {"loss", "grad_norm", "largest", "seconds"} <= records[0].keys()
    assert [r["step"] for r in records if "size" in r] == [15, 30]
    assert records[-1]["loss"] < records[0]["loss"]
    assert int(state.step) == 30
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line).get("loss", 0)) for line in lines)
    with rnn.training.Run(tmp_path / "run") as run:
        assert run.steps() == [10, 20, 30]


def test_a_loss_is_traced_once(tmp_path):
    loss = chex.assert_max_traces(tiny_loss, n=1)
    assert int(rnn.training.fit(**tiny(loss_fn=loss), run=tmp_path / "run").step) == 30


def test_several_trainings_with_one_loss_and_optimizer_are_traced_once():
    """As over seeds and folds; they share the program and nothing else."""
    given = tiny(loss_fn=chex.assert_max_traces(tiny_loss, n=1))
    one, again = rnn.training.fit(**given), rnn.training.fit(**given)
    assert bits(one) == bits(again)
    other = rnn.training.fit(**given | {"params": jax.tree.map(lambda p: p + 1, given["params"])})
    assert bits(other.params) != bits(one.params)
    slower = optax.sgd(1e-3)  # another optimizer is another program
    assert bits(rnn.training.fit(**tiny(optimizer=slower)).params) != bits(one.params)
    halved = rnn.training.fit(**tiny(combine="mean", copies={"w": 2.0}))  # a dict has no hash
    assert bits(halved.params) != bits(one.params)


def test_equal_is_not_the_same():
    """A method of an object that has changed since is equal to what it was."""

    class Problem:
        scale = 1.0

        def loss(self, params, batch, key, carry):
            loss, carry, _ = tiny_loss(params, batch, key, carry)
            return self.scale * loss, carry

    problem = Problem()
    given = tiny(optimizer=optax.sgd(1e-2))
    one = rnn.training.fit(**given | {"loss_fn": problem.loss})
    problem.scale = 0.0
    none = rnn.training.fit(**given | {"loss_fn": problem.loss})
    assert bits(none.params) == bits(given["params"]) != bits(one.params)


def test_scheduled_sampling_by_the_number_of_the_update(tmp_path):
    """A batch brings its number along: the rate grows within one program, and a run that goes on has the same bits."""
    net = rnn.stack(rnn.layer(nn.Embed(3, 2)), rnn.elman(4), rnn.layer(nn.Dense(3)))
    tokens = np.arange(24, dtype=np.int32).reshape(8, 3) % 3
    rates = optax.linear_schedule(0.0, 1.0, 8)

    def loss(params, batch, key):
        xs, update = batch
        cell = scheduled_sampling(net, rates(update), sample=rnn.temperature())
        return rnn.cross_entropy(rnn.unroll(cell, params, xs, key=key, scan=lax.scan)[1], xs), {"rate": rates(update)}

    params = net.init(jax.random.key(0), tokens[0])
    batches = lambda step: (tokens, np.int32(step))
    given = tiny(params=params, loss_fn=loss, carry=None, batches=batches, steps=12, log_every=1)
    traced_once = chex.assert_max_traces(loss, n=1)
    whole = rnn.training.fit(**given | {"loss_fn": traced_once}, run=tmp_path / "whole")
    assert [r["rate"] for r in rnn.training.read_metrics(tmp_path / "whole")] == [min(n / 8, 1) for n in range(12)]
    rnn.training.fit(**given | {"steps": 5}, run=tmp_path / "cut")
    assert bits(rnn.training.fit(**given, run=tmp_path / "cut")) == bits(whole)
    constant = rnn.training.fit(**given | {"batches": lambda step: (tokens, np.int32(0))})
    assert bits(constant.params) != bits(whole.params)


@pytest.mark.parametrize("result", ["loss", "loss and metrics"])
def test_losses_without_a_carry(result):
    def loss(params, batch, key):
        value = jnp.sum((params["w"] - batch) ** 2)
        return value if result == "loss" else (value, {"w": jnp.sum(params["w"])})

    given = tiny(loss_fn=loss, carry=None, batches=lambda step: np.ones(2, "f4"), steps=50, optimizer=optax.sgd(0.1))
    np.testing.assert_allclose(rnn.training.fit(**given).params["w"], 1.0, atol=1e-3)


def test_a_stateless_carry_is_still_a_carry():
    loss = lambda p, b, k, c: (jnp.sum(p["w"] ** 2), c)
    assert rnn.training.fit(**tiny(steps=2, loss_fn=loss, carry=((), ()))).carry == ((), ())


@pytest.mark.parametrize("optimizer", [optax.contrib.prodigy(1.0), optax.sgd(0.1)])
def test_the_caller_s_parameters_survive(optimizer):
    mine = {"w": jnp.ones(3)}
    loss = lambda p, b, k: jnp.sum(p["w"] ** 2)
    rnn.training.fit(**tiny(steps=2, params=mine, loss_fn=loss, carry=None, optimizer=optimizer))
    assert mine["w"].tolist() == [1, 1, 1]


def test_a_state_is_gone_on_from_and_survives():
    whole = rnn.training.fit(**tiny())
    half = rnn.training.fit(**tiny(steps=11))
    before = bits(half)
    other = {"key": jax.random.key(9), "carry": None}  # those of the state are used
    assert bits(rnn.training.fit(**tiny(params=half, **other))) == bits(whole)
    assert bits(half) == before


def test_an_optimizer_that_changes_its_state_s_type_is_let():
    """In its first step: 16 bits become 32."""
    grow = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: p.astype(jnp.bfloat16), params),
        lambda grads, state, params=None: (jax.tree.map(lambda g: -0.1 * g, grads), grads),
    )
    state = rnn.training.fit(**tiny(steps=3, optimizer=grow))
    assert state.opt_state["w"].dtype == jnp.float32 and float(jnp.abs(state.params["w"]).sum()) > 0


@pytest.mark.parametrize("name", ["steps", "log_every", "save_every", "evaluate_every"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=rf"fit: {name} must be a whole number of at least 1, got 0"):
        rnn.training.fit(**tiny(**{name: 0}))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"loss_fn": lambda p, b, k, c: jnp.zeros(())}, r"loss_fn must return \(loss, carry\) or .*got 1 value"),
        ({"carry": None, "loss_fn": lambda p, b, k: (1.0, 2.0)}, r"metrics must be a dict, got float"),
        ({"carry": None, "loss_fn": lambda p, b, k: (1.0, {}, 2)}, r"loss_fn must return loss or .*got 3 value"),
        ({"loss_fn": lambda p, b, k, c: (jnp.zeros(3), c)}, r"fit: loss must be a single number, got float32\[3\]"),
        ({"loss_fn": lambda p, b, k, c: (0.0, c, {"m": jnp.zeros(2)})}, r"fit: m must be a single number"),
        (
            {"loss_fn": lambda p, b, k, c: (0.0, c, {"loss": 1.0})},
            r"metrics \['loss'\] have names that fit uses itself",
        ),
        ({"batches": [1, 2]}, r"batches must be a function of the step's number, got list"),
        ({"evaluate": lambda p: 3.0}, r"evaluate must return a dict of numbers, got float"),
    ],
)
def test_bad_functions_are_named(changed, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        rnn.training.fit(**tiny(steps=2, **changed))


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    rnn.training.fit(**tiny(steps=12), run=tmp_path / "run")
    with pytest.raises(rnn.training.RunError, match="the run has 12 steps already, more than the 11 asked for"):
        rnn.training.fit(**tiny(steps=11), run=tmp_path / "run")


def test_progress_is_shown_line_by_line_off_a_terminal(capsys):
    rnn.training.fit(**tiny(progress=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 7/30  ") and "loss" in lines[0] and lines[-1].startswith("step 30/30")


def test_a_batch_is_fetched_once():
    fetched = []
    rnn.training.fit(**tiny(steps=5, batches=lambda step: fetched.append(step) or tiny_batches(step)))
    assert fetched == [0, 1, 2, 3, 4]
