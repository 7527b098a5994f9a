"""A cell that is fed its own predictions now and then: `scheduled_sampling`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, meshes
from jaxrnn.combinators.masking import choose
from jaxrnn.combinators.stacking import Around, split_key
from jaxrnn.types import Cell, Key, Params, State, Tree


class Predicting(NamedTuple):
    """A cell's state, and what it predicted last."""

    cell: State
    predicted: Tree  # as an input, [*B, ...]
    any: jax.Array  # [*B] booleans: whether there was a prediction yet


def scheduled_sampling(
    cell: Cell,
    rate: float | jax.Array,
    *,
    sample: Callable[[Key | None, Tree], Tree],
    like: Tree = 0,
) -> Cell:
    """A net that reads its own last prediction in place of the input with probability `rate`, by sequence and step.

        x_t      = xhat_t if u_t < rate and there is one, else what was given,   u_t uniform, [*B]
        s_t, y_t = cell(s_tm1, x_t)
        xhat_tp1 = sample(key, y_t)                                              the next step's input

    So in training it meets what it will meet when it generates. `rate` is a number, also a traced one: a
    schedule of the update's number, which a batch can bring along. Build the cell within the loss then:

        rates = optax.linear_schedule(0.0, 0.25, 10_000)
        def loss_fn(params, batch, key):
            (xs, targets), update = batch                   # batches=lambda step: (read(step), np.int32(step))
            cell = scheduled_sampling(net, rates(update), sample=rnn.temperature())

    `sample(key, y)` makes an input of an output, as in `generate`: `greedy()`, `temperature()`, or any function.
    `like` is one input without batch dimensions, of which type and shape count: 0 stands for int32 classes.
    Parameters are the cell's own. The step's key is split in three: for u_t, for `sample`, for the cell. Without
    a key (evaluation) inputs are what was given. No gradient flows through a class; through an input of
    numbers it does, unless `sample` stops it.
    Cost: a draw and a sample per step; outputs must be computed within the loop, for the next step reads them.
    Raises: ValueError for a rate outside [0, 1] where it is known; at the step, for a sample that is not of the
    input's type. Bengio et al. 2015, "Scheduled sampling for sequence prediction with recurrent neural networks".
    """
    checks.a_cell("scheduled_sampling", cell)
    if checks.is_known(rate) and not 0 <= checks.number(rate) <= 1:
        raise ValueError(f"scheduled_sampling: rate must be a number from 0 to 1, got {rate!r}")
    if not callable(sample):
        raise TypeError(f"scheduled_sampling: sample must be a function (key, y) -> next input, got {sample!r}")
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), _dtype(a)), like)
    around = ScheduledSampling(cell, rate, sample, like)
    return cell._replace(initial_state=around.initial_state, step=around.step)


def _dtype(leaf: Any) -> Any:
    """That of an array; of a Python number the one that indices and features usually have."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.int32 if isinstance(leaf, int) else jnp.float32


@dataclass(frozen=True)
class ScheduledSampling(Around):
    rate: float | jax.Array
    sample: Callable[[Key | None, Tree], Tree]
    like: Tree

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        nothing = jax.tree.map(lambda a: jnp.zeros((*batch_shape, *a.shape), a.dtype), self.like)
        return Predicting(self.inner.initial_state(params, batch_shape), nothing, jnp.zeros(batch_shape, jnp.bool_))

    def step(self, params: Params, state: Any, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        k_choose, k_sample, k_cell = split_key(key, 3)
        remedy = "give `like` the type of one input, and let `sample` return such"
        checks.same_type("scheduled_sampling", "x", state.predicted, x, remedy)
        if k_choose is not None:
            drawn = jax.random.uniform(k_choose, state.any.shape) < self.rate
            own = meshes.placed(drawn, state.any) & state.any
            x = choose("scheduled_sampling", "x", own, state.predicted, x)
        s_out, y = self.inner.step(params, state.cell, x, key=k_cell)
        if k_sample is None:  # what nobody will read is not drawn
            return Predicting(s_out, state.predicted, state.any), y
        predicted = self.sample(k_sample, y)
        checks.same_type("scheduled_sampling", "sample's result", state.predicted, predicted, remedy)
        return Predicting(s_out, predicted, jnp.ones_like(state.any)), y
