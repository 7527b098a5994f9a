"""A loss or gradient that is not finite: the message says which leaves broke, and what broke them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from tests.training.problems import bits, tiny, tiny_batches, tiny_loss

fit, NotFinite = rnn.training.fit, rnn.training.NotFinite


def broken(step, batch):
    """tiny_batches, but for one step's."""
    return lambda n: batch if n == step else tiny_batches(n)


def test_a_batch_that_is_not_finite_is_named_and_nothing_of_it_is_kept(tmp_path):
    bad = np.array([1, np.nan], "f4")
    with pytest.raises(NotFinite) as found:
        fit(**tiny(batches=broken(11, bad)), run=tmp_path / "run")
    assert str(found.value) == (
        "the loss of step 12 is nan and its gradient's norm nan; batch (float32[2]) has NaN or Inf in it, "
        "the gradient is not finite in params['w']; mend the data; nothing of this step was saved"
    )
    assert found.value.batch is bad
    with rnn.training.Run(tmp_path / "run") as run:
        assert run.steps() == [10]
    assert bits(found.value.state) == bits(fit(**tiny(steps=11)))  # as if the step had not been
    assert bits(fit(**tiny(params=found.value.state))) == bits(fit(**tiny()))


NET = rnn.stack(rnn.layer(nn.Embed(7, 4)), rnn.layer(nn.Dense(7)))


def reading(params, batch, key):
    _, logits = NET.step(params, NET.initial_state(params, (6, 2)), batch["letters"])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1))


def letters(**changed):
    batch = {"letters": np.arange(12).reshape(6, 2) % 7, "targets": np.arange(12).reshape(6, 2) % 5}
    for name, (place, value) in changed.items():
        batch[name][place] = value
    return batch


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"letters": ((3, 1), 9)},
            r"batch\['letters'\] \(int32\[6,2\]\) holds numbers from 0 to 9 and the loss is finite up to 6: larger "
            r"ones index past the end of an array of 7, such as params\[0\]\['embedding'\], the gradient",
        ),
        (
            {"targets": ((0, 0), 300)},
            r"batch\['targets'\] .* from 0 to 300 and the loss is finite up to 6: larger ",
        ),
        (
            {"letters": ((5, 0), -8)},
            r"batch\['letters'\] .* from -8 to 6 and .* without the negative ones: they index before an array's",
        ),
    ],
)
def test_an_index_past_the_end_names_the_leaf_and_the_array(changed, complaint):
    params = NET.init(jax.random.key(0), jnp.zeros(2, int))
    given = tiny(loss_fn=reading, params=params, carry=None, batches=lambda step: letters(**changed), steps=1)
    with pytest.raises(NotFinite, match=rf"the loss of step 1 is nan .*; {complaint}.*; mend the data, or enlarge"):
        fit(**given)


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        (
            lambda p, b, k: jnp.sum(jnp.sqrt(p["a"])) + p["b"] + p["c"],
            r"loss of step 1 is 3.0 and its gradient's norm inf; parameters, carry and batch were finite, the gradient "
            r"is not finite in params\['a'\]; lower the learning rate, or clip more, or look for a division",
        ),
        (lambda p, b, k: jnp.sum(jnp.log(p["a"])) - p["b"], r"loss of step 1 is -inf .* not finite in params\['a'\];"),
        (
            lambda p, b, k: jnp.sum(p["a"]) + p["b"] * jnp.float32(1e25) * 1,
            r"every gradient is finite but so large that their norm is not \(in params\['b'\] 1e\+25\)",
        ),
        (
            lambda p, b, k: jnp.nan * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(p)),
            r"not finite in params\['a'\], params\['b'\], params\['c'\] and 1 more;",
        ),
        (lambda p, b, k: p["b"] + jnp.inf, r"loss of step 1 is inf and .* were finite, and so is every gradient;"),
    ],
)
def test_what_breaks_inside_names_the_gradient_s_leaves(loss, complaint):
    params = {"a": jnp.zeros(2), "b": jnp.float32(1), "c": jnp.float32(2), "d": jnp.ones(1)}
    with pytest.raises(NotFinite, match=complaint):
        fit(**tiny(loss_fn=loss, params=params, carry=None, steps=1))


def test_parameters_that_were_not_finite_before_are_blamed_first():
    """The update of step 1 overflows, though its loss and gradient are finite."""
    given = tiny(optimizer=optax.sgd(1e38, momentum=0.9), params={"w": jnp.full(2, 1e4)})
    with pytest.raises(
        NotFinite, match=r"loss of step 2 is .*; params\['w'\] \(float32\[2\]\) had NaN or Inf before it"
    ):
        fit(**given)
    carried = lambda p, b, k, c: (tiny_loss(p, b, k, jnp.where(jnp.isfinite(c), c, 0))[0] + c[0], c / 0)
    with pytest.raises(
        NotFinite, match=r"loss of step 2 is .*; carry \(float32\[2\]\) had NaN or Inf before it; lower"
    ):
        fit(**tiny(loss_fn=carried, carry=jnp.ones(2), batches=lambda step: np.ones(2, "f4") * 1))


def test_it_is_a_floating_point_error():
    assert issubclass(NotFinite, FloatingPointError)
