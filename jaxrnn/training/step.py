"""One step of training: the state, the gradient, the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrnn import checks
from jaxrnn.types import Key, Params, State, Tree

# loss_fn(params, batch, key)        -> loss | (loss, metrics)
# loss_fn(params, batch, key, carry) -> (loss, carry) | (loss, carry, metrics)     where there is a carry
LossFn = Callable[..., Any]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run is made of between two steps. A pytree: it is saved and restored whole."""

    step: jax.Array  # int32: steps done
    params: Params
    opt_state: optax.OptState
    key: Key  # the same for the whole run; a step's key is fold_in(key, step)
    carry: State | None = None  # the state that one window hands to the next; None where windows are independent


def create(params: Params, optimizer: optax.GradientTransformation, key: Key, carry: State | None = None) -> TrainState:
    """The state before the first step. Copies what it is given, because steps donate their input's buffers."""
    copy = lambda tree: jax.tree.map(jnp.array, tree)
    # Some optimizers keep the parameters themselves: each holder gets its own copy, or one buffer is donated twice.
    return TrainState(jnp.zeros((), jnp.int32), copy(params), copy(optimizer.init(params)), jnp.array(key), copy(carry))


def _normal_form(result: Any, carries: bool) -> tuple[jax.Array, tuple[State, Metrics]]:
    """(loss, (carry, metrics)) of what a loss_fn returned."""
    parts = result if isinstance(result, tuple) else (result,)
    expected = "(loss, carry) or (loss, carry, metrics)" if carries else "loss or (loss, metrics)"
    if len(parts) not in ((2, 3) if carries else (1, 2)):
        raise ValueError(f"fit: loss_fn must return {expected}, got {len(parts)} value(s)")
    loss, carry = parts[0], parts[1] if carries else None
    metrics = parts[1 + carries] if len(parts) > 1 + carries else {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"fit: loss_fn must return {expected}; metrics must be a dict, got {type(metrics).__name__}")
    for name, value in {"loss": loss, **metrics}.items():
        if jnp.shape(value) != ():
            raise ValueError(f"fit: {name} must be a single number, got {checks.describe(value)}; reduce it in loss_fn")
    reserved = sorted({"loss", "grad_norm", "step", "seconds"} & metrics.keys())
    if reserved:
        raise ValueError(f"fit: metrics {reserved} have names that fit uses itself; rename them in loss_fn")
    return loss, (carry, dict(metrics))


def _averaged(grads: Tree, copies: Any, batch: Tree) -> Tree:
    """Each weight's gradient divided by the number of its copies."""
    counts = copies(batch) if callable(copies) else copies
    if counts is None:
        try:
            counts = checks.steps("make_train_step", batch, name="batch")
        except ValueError as error:
            remedy = "or say how many copies of the weights there are: copies=T, or copies=lambda batch: ..."
            raise ValueError(f'{error}; combine="mean" takes T from the batch. Give it so, {remedy}') from None
    try:
        counts = jax.tree.broadcast(counts, grads)
    except ValueError as error:
        raise ValueError(
            "make_train_step: copies should be a number of steps, or numbers in the structure of params "
            f"(or of its upper levels), e.g. {{'net': T, 'readout': 1}}; {error}"
        ) from None
    known = [n for n in jax.tree.leaves(counts) if checks.is_known(n)]
    if not all(checks.number(n) >= 1 for n in known):
        raise ValueError(f"make_train_step: copies must be numbers of at least 1, got {copies if known else counts}")
    return jax.tree.map(lambda g, n: g / jnp.asarray(n, g.dtype), grads, counts)


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, combine: str = "sum", copies: Any = None
) -> Callable[[TrainState, Tree], tuple[TrainState, Metrics]]:
    """One jitted step: gradient, update, and the carry for the next window.

        loss, carry = loss_fn(params, batch, fold_in(key, step), carry)
        params, opt_state = optimizer's update of them by d loss / d params

    The gradient does not flow into the carry it was given: that is truncated BPTT, the window being
    the reach. The state's buffers are donated (reused for the result), so keep only the new one.
    Metrics are those of loss_fn with "loss" and "grad_norm" added. Cost: one value and gradient.

    An unrolled net has a copy of its weights per step, and their gradients add up: `combine="sum"`.
    `combine="mean"` divides each weight's gradient by the number of its copies, which is T, the leading
    dimension that all arrays of the (time-major) batch share; or else `copies`: a number, numbers in
    the structure of params (`{"net": T, "readout": 1}` for a readout of the last state alone), or a
    function of the batch that gives either. With plain SGD the mean at rate T r is the sum at rate r;
    with T that varies, long sequences weigh no more than short ones. Adam scales each gradient to its
    own size, so the mean changes little for it but what a clipped norm is compared with.
    Raises: ValueError where the carry comes back with another structure, shape or dtype, for an unknown
    combine, and for combine="mean" where T cannot be told from the batch or `copies` fits no params.
    """
    mean = checks.one_of("make_train_step", "combine", combine, ("sum", "mean")) == "mean"
    if copies is not None and not mean:
        raise ValueError('make_train_step: copies only matter to combine="mean"; leave copies out, or ask for the mean')

    def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        carries = state.carry is not None

        def loss_and_more(params: Params) -> tuple[jax.Array, tuple[State, Metrics]]:
            args = (params, batch, key, state.carry) if carries else (params, batch, key)
            return _normal_form(loss_fn(*args), carries)

        (loss, (carry, metrics)), grads = jax.value_and_grad(loss_and_more, has_aux=True)(state.params)
        checks.same_type("train step", "carry", state.carry, carry, "return the carry in the type in which it came")
        grads = _averaged(grads, copies, batch) if mean else grads
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, state.key, carry), metrics

    return jax.jit(train_step, donate_argnums=0)
