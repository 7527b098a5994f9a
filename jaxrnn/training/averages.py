"""Averages of the parameters over a training: `averaging`, and `averaged` to read them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrnn import checks, trees
from jaxrnn.training.step import TrainState
from jaxrnn.types import Params, Tree


class Averaging(NamedTuple):
    """The state of an optimizer that averages what it makes of the parameters."""

    steps: jax.Array  # int32: updates done
    average: Params  # in float32 at least: a small share of 16 bits would be rounded away
    inner: optax.OptState


def averaging(optimizer: optax.GradientTransformation, decay: float = 0.999) -> optax.GradientTransformation:
    """The optimizer, which also keeps an exponential moving average of the parameters.

        params_t  = the optimizer's update of params_tm1
        average_t = sum_i decay^(t - i) params_i / sum_i decay^(t - i),   i = 1 ... t

    The training is the same to the bit; `averaged(state)` gives the average. It is a part of the optimizer's
    state, so it is saved, restored and gone on from as that is, and `fit` hands it to `evaluate`. Put it
    around the whole optimizer: `averaging(optax.chain(...))`.
    Cost: the parameters once more, in float32 at least, and one `optax.incremental_update` of them per step.
    Raises: ValueError for a decay outside [0, 1), and at the update where the parameters are not given.
    Polyak and Juditsky 1992; the average forgets the initial parameters as `optax.ema(debias=True)` does.
    """
    if not 0 <= checks.number(decay) < 1:
        raise ValueError(f"averaging: decay must be a number from 0 up to but not 1, got {decay!r}")

    def init(params: Params) -> Averaging:
        return Averaging(jnp.zeros((), jnp.int32), jax.tree.map(_wide, params), optimizer.init(params))

    def update(grads: Tree, state: Any, params: Params | None = None, **more: Any) -> tuple[Tree, Averaging]:
        if params is None:
            raise ValueError("averaging: the update needs the parameters; call optimizer.update(grads, state, params)")
        updates, inner = extended.update(grads, state.inner, params, **more)
        steps = optax.safe_increment(state.steps)
        # With this share of the newest parameters the weights of all add up to one from the first step on.
        share = (1 - decay) / (1 - decay ** steps.astype(jnp.float32))

        def moved(new: jax.Array, old: jax.Array) -> jax.Array:
            new = _wide(new)
            return optax.incremental_update(new, old, share.astype(old.dtype)) if trees.is_float(old) else new

        average = jax.tree.map(moved, optax.apply_updates(params, updates), state.average)
        return updates, Averaging(steps, average, inner)

    extended = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(init, update)


def _wide(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    return array.astype(jnp.float32) if trees.is_float(array) and array.dtype.itemsize < 4 else array


def averaged(state: TrainState) -> Params:
    """The average of the parameters that `averaging` keeps, in their dtypes. Raises: ValueError where there is none."""
    found = _kept(state.opt_state)
    if found is None:
        raise ValueError("averaged: the optimizer keeps no average of the parameters; put averaging(...) around it")
    return jax.tree.map(lambda average, p: average.astype(p.dtype), found.average, state.params)


def to_evaluate(state: TrainState) -> Params:
    """The parameters by which a training is judged: their average where the optimizer keeps one."""
    return state.params if _kept(state.opt_state) is None else averaged(state)


def _kept(opt_state: optax.OptState) -> Averaging | None:
    """The first average within an optimizer's state, however deep."""
    is_one = lambda node: isinstance(node, Averaging)
    return next(filter(is_one, jax.tree.leaves(opt_state, is_leaf=is_one)), None)
