"""One step of training: the plain update, the carry, how the gradient is found, the optimizer."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from tests.training.problems import CELL, SERIES, bits, recurrent, recurrent_loss, tiny, tiny_loss

QUADRATIC = {"w": jnp.arange(1.0, 4.0), "frozen": jnp.float32(2)}


def quadratic(params, batch, key):
    del key
    return jnp.sum((params["w"] * params["frozen"] - batch) ** 2), {"sum": jnp.sum(params["w"])}


def stepped(loss_fn, params, batch, *, steps=1, optimizer=None, carry=None, **options):
    """(the last state, the metrics of the last step)"""
    optimizer = optimizer or optax.sgd(0.1)
    step = rnn.training.make_train_step(loss_fn, optimizer, **options)
    state = rnn.training.create(params, optimizer, jax.random.key(0), carry)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def test_the_train_step_is_the_plain_update():
    given, optimizer = tiny(), optax.sgd(0.1)
    state = rnn.training.create(given["params"], optimizer, given["key"], given["carry"])
    batch, key = given["batches"](0), jax.random.fold_in(given["key"], 0)
    grads = jax.jit(jax.grad(lambda p: tiny_loss(p, batch, key, given["carry"])[0]))(given["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, given["params"], grads)
    new, metrics = rnn.training.make_train_step(tiny_loss, optimizer)(state, batch)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-7)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))  # donated
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given["params"]))  # but not what the caller holds


def test_the_carry_of_one_window_starts_the_next():
    """Two windows of 10 with SGD at rate 0 end in the state of one pass over 20 steps."""
    given = recurrent()
    step = rnn.training.make_train_step(lambda p, b, k, c: recurrent_loss(p, b, None, c), optax.sgd(0.0))
    state = rnn.training.create(given["params"], optax.sgd(0.0), given["key"], given["carry"])
    for n in range(2):
        state, _ = step(state, given["batches"](n))
    (xs, _), _ = rnn.training.Streams((SERIES[:-1], SERIES[1:]), batch=4, window=20)(0)
    expected, _ = rnn.unroll(CELL, given["params"], xs)
    chex.assert_trees_all_close(state.carry, expected, rtol=1e-5, atol=1e-6)


def test_a_step_is_traced_once():
    given = tiny()
    loss = chex.assert_max_traces(tiny_loss, n=1)
    state, _ = stepped(loss, given["params"], given["batches"](0), steps=3, carry=given["carry"])
    assert int(state.step) == 3


def test_a_carry_that_changes_type_is_named():
    with pytest.raises(ValueError, match=r"train step: carry should have the structure"):
        stepped(lambda p, b, k, c: (jnp.zeros(()), (c, c)), QUADRATIC, jnp.zeros(3), carry=jnp.zeros(2))


# --- how the gradient is found


def of_subset(trainable, fn, has_aux):
    """jax.value_and_grad by the named parameters alone; zeros for the others."""

    def value_and_grad(params, *args):
        frozen = {name: leaf for name, leaf in params.items() if name not in trainable}
        chosen = {name: params[name] for name in trainable}
        value, grads = jax.value_and_grad(lambda chosen: fn({**frozen, **chosen}, *args), has_aux=has_aux)(chosen)
        return value, {**jax.tree.map(jnp.zeros_like, frozen), **grads}

    return value_and_grad


def forward_gradient(fn, has_aux, directions=1):
    """The mean of (dL/dv) v over random directions v: unbiased, and in forward mode. Baydin et al. 2022."""
    assert has_aux

    def value_and_grad(params, batch, key, *carry):
        loss = lambda params: fn(params, batch, key, *carry)

        def along(key):
            keys = jax.random.split(key, len(jax.tree.leaves(params)))
            keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
            v = jax.tree.map(lambda p, k: jax.random.normal(k, p.shape, p.dtype), params, keys)
            _, slope, _ = jax.jvp(loss, (params,), (v,), has_aux=True)
            return jax.tree.map(lambda v: slope * v, v)

        each = jax.vmap(along)(jax.random.split(jax.random.fold_in(key, 1), directions))
        return loss(params), jax.tree.map(lambda g: jnp.mean(g, axis=0), each)

    return value_and_grad


def test_the_default_is_jax_s_own():
    batch = jnp.ones(3)
    plain, metrics = stepped(quadratic, QUADRATIC, batch, steps=3)
    same, _ = stepped(quadratic, QUADRATIC, batch, steps=3, value_and_grad=jax.value_and_grad)
    chex.assert_trees_all_equal(same.params, plain.params)
    grads = jax.grad(lambda p: quadratic(p, batch, None)[0])(QUADRATIC)
    first, _ = stepped(quadratic, QUADRATIC, batch)
    chex.assert_trees_all_close(first.params, jax.tree.map(lambda p, g: p - 0.1 * g, QUADRATIC, grads), rtol=1e-6)
    assert metrics.keys() == {"loss", "grad_norm", "sum"}


def test_frozen_parameters_stay_to_the_bit_and_the_others_learn():
    state, metrics = stepped(
        quadratic, QUADRATIC, jnp.ones(3), steps=100, optimizer=rnn.training.adam(0.1, steps=100, warmup=1),
        value_and_grad=partial(of_subset, ["w"]),
    )  # fmt: skip
    assert bits(state.params["frozen"]) == bits(QUADRATIC["frozen"])
    np.testing.assert_allclose(state.params["w"], 0.5, atol=0.05)
    assert metrics["loss"] < 0.05


def test_the_gradient_of_a_subset_is_that_part_of_the_whole():
    whole, _ = stepped(quadratic, QUADRATIC, jnp.ones(3))
    part, metrics = stepped(quadratic, QUADRATIC, jnp.ones(3), value_and_grad=partial(of_subset, ["w"]))
    chex.assert_trees_all_close(part.params["w"], whole.params["w"], rtol=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(jnp.linalg.norm(2 * 2 * (2 * QUADRATIC["w"] - 1))))


def test_a_forward_gradient_is_unbiased_and_draws_anew_at_every_step():
    estimate = partial(forward_gradient, directions=20_000)
    state, metrics = stepped(quadratic, QUADRATIC, jnp.ones(3), value_and_grad=estimate)
    exact, exact_metrics = stepped(quadratic, QUADRATIC, jnp.ones(3))
    assert float(metrics["loss"]) == float(exact_metrics["loss"])
    moved = jax.tree.map(lambda new, old: new - old, state.params, QUADRATIC)
    expected = jax.tree.map(lambda new, old: new - old, exact.params, QUADRATIC)
    chex.assert_trees_all_close(moved, expected, atol=0.05 * float(optax.tree.norm(expected)))

    step = rnn.training.make_train_step(quadratic, optax.sgd(0.0), value_and_grad=forward_gradient)
    state, norms = rnn.training.create(QUADRATIC, optax.sgd(0.0), jax.random.key(0)), set()
    for _ in range(3):
        state, metrics = step(state, jnp.ones(3))
        norms.add(float(metrics["grad_norm"]))
    assert len(norms) == 3


@pytest.mark.parametrize("how", [forward_gradient, partial(of_subset, ["w"])])
def test_fit_takes_another_way_to_the_gradient_too(how):
    """Through an unrolled net with a carry: the same as the train step's loop, and it learns."""
    given = tiny(steps=10, value_and_grad=how)
    fitted = rnn.training.fit(**given)
    step = rnn.training.make_train_step(tiny_loss, given["optimizer"], value_and_grad=how)
    state = rnn.training.create(given["params"], given["optimizer"], given["key"], given["carry"])
    for n in range(10):
        state, _ = step(state, given["batches"](n))
    chex.assert_trees_all_close(fitted.params, state.params, rtol=1e-5)
    chex.assert_trees_all_close(fitted.carry, state.carry, rtol=1e-5)
    assert not np.array_equal(fitted.params["w"], given["params"]["w"])


def test_an_online_method_may_leave_the_loss_alone():
    """What it needs it finds among the arguments; the carry it returns is the next window's."""

    def online(fn, has_aux):
        del fn, has_aux

        def value_and_grad(params, batch, key, carry):
            return (jnp.sum(batch), (carry + 1, {"seen": carry})), jax.tree.map(jnp.ones_like, params)

        return value_and_grad

    state, metrics = stepped(
        None, QUADRATIC, jnp.ones(3), steps=4, carry=jnp.zeros(()), value_and_grad=online, optimizer=optax.sgd(1.0)
    )
    assert float(state.carry) == 4 and float(metrics["seen"]) == 3 and float(metrics["loss"]) == 3
    chex.assert_trees_all_equal(state.params, jax.tree.map(lambda p: p - 4, QUADRATIC))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda grads: {"w": grads["w"]}, "gradient should have the structure"),
        (lambda grads: grads | {"w": grads["w"][:2]}, r"gradient\['w'\] should be float32\[3\], got float32\[2\]"),
        (lambda grads: grads | {"frozen": None}, "gradient should have the structure"),
    ],
)
def test_a_gradient_unlike_the_parameters_is_named(wrong, complaint):
    def value_and_grad(fn, has_aux):
        def found(*args):
            value, grads = jax.value_and_grad(fn, has_aux=has_aux)(*args)
            return value, wrong(grads)

        return found

    with pytest.raises(ValueError, match=rf"train step: {complaint}.*zeros for those that are frozen"):
        stepped(quadratic, QUADRATIC, jnp.ones(3), value_and_grad=value_and_grad)


# --- the optimizer


def test_adam_warms_up_clips_and_decays():
    optimizer = rnn.training.adam(0.1, steps=100, warmup=10, clip=1.0, final=0.0)
    params = {"w": jnp.ones(3)}
    update = jax.jit(optimizer.update)
    state, sizes = optimizer.init(params), []
    for _ in range(100):
        updates, state = update({"w": jnp.full(3, 1e6)}, state, params)
        sizes.append(float(jnp.abs(updates["w"]).max()))
    assert sizes[0] == 0 and max(sizes) == pytest.approx(0.1, rel=0.05) and sizes[-1] < 0.01
    assert sizes.index(max(sizes)) in range(8, 14)
