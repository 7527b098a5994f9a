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
Copies = float | Tree | Callable[[Tree], float | Tree] | None  # of each weight: a number, or numbers like the params

# fn(params, batch, key[, carry]) -> (loss, (carry, metrics)), all loss functions brought into one form.
# value_and_grad(fn, has_aux=True)(params, batch, key[, carry]) -> ((loss, (carry, metrics)), gradient)
ValueAndGrad = Callable[..., Callable[..., tuple[tuple[jax.Array, tuple[State, Metrics]], Params]]]


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


def _averaged(grads: Tree, copies: Copies, batch: Tree) -> Tree:
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


class Found(NamedTuple):
    """What one look at a batch gives."""

    loss: jax.Array
    carry: State
    metrics: Metrics
    grads: Params


Gradient = Callable[[TrainState, Tree], Found]
TrainStep = Callable[[TrainState, Tree], tuple[TrainState, Metrics]]


def gradient_of(loss_fn: LossFn, value_and_grad: ValueAndGrad) -> Gradient:
    """The loss and its gradient at a state and a batch; checked, for an estimator may return anything."""

    def gradient(state: TrainState, batch: Tree) -> Found:
        carries = state.carry is not None
        args = (batch, jax.random.fold_in(state.key, state.step), *((state.carry,) if carries else ()))

        def loss_and_more(params: Params, *args: Any) -> tuple[jax.Array, tuple[State, Metrics]]:
            return _normal_form(loss_fn(params, *args), carries)

        (loss, (carry, metrics)), grads = value_and_grad(loss_and_more, has_aux=True)(state.params, *args)
        checks.same_type("train step", "carry", state.carry, carry, "return the carry in the type in which it came")
        remedy = "value_and_grad must return one like the parameters, with zeros for those that are frozen"
        checks.same_type("train step", "gradient", state.params, grads, remedy)
        return Found(loss, carry, metrics, grads)

    return gradient


def _same_types(*functions: Callable[[], TrainState]) -> bool:
    """False where an optimizer changes the type of its state in its first step, which a `cond` does not allow."""
    structs = map(jax.eval_shape, functions)
    one, other = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree) for tree in structs)
    return bool(one == other)


def step_by(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    *,
    combine: str = "sum",
    copies: Copies = None,
    only_if_finite: bool = False,
) -> TrainStep:
    """The train step with this gradient, not yet compiled; see `make_train_step`.

    `only_if_finite`: where the loss or the gradient is not finite, the state comes back as it was. By a
    `cond` around the update, which costs no memory: to select between two states holds both.
    """
    mean = checks.one_of("make_train_step", "combine", combine, ("sum", "mean")) == "mean"
    if copies is not None and not mean:
        raise ValueError('make_train_step: copies only matter to combine="mean"; leave copies out, or ask for the mean')

    def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, Metrics]:
        loss, carry, metrics, grads = gradient(state, batch)
        grads = _averaged(grads, copies, batch) if mean else grads
        norm = optax.tree.norm(grads)

        def updated() -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, opt_state, state.key, carry)

        guarded = only_if_finite and _same_types(updated, lambda: state)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = jax.lax.cond(finite, updated, lambda: state) if guarded else updated()
        return new, {**metrics, "loss": loss, "grad_norm": norm}

    return train_step


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    combine: str = "sum",
    copies: Copies = None,
    value_and_grad: ValueAndGrad = jax.value_and_grad,
) -> TrainStep:
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

    `value_and_grad` is how the gradient is found, and is called as `jax.value_and_grad` is:

        (loss, (carry, metrics)), grads = value_and_grad(fn, has_aux=True)(params, batch, key, carry)

    where `fn` takes the same arguments (no carry where there is none) and returns (loss, (carry,
    metrics)). It must return what `fn` does, and `grads` in the structure, shapes and dtypes of params:
    zeros for those that are frozen. It may differentiate `fn` as it likes (in part, in forward mode,
    several times), or leave `fn` alone and find the gradient from batch and carry in its own way, as
    online methods do. It is traced with the step; what it draws, it draws from `key`, split or folded.
    An update that is not proportional to the gradient (weight decay, say) moves frozen parameters too:
    put `optax.masked` around it.
    Raises: ValueError where the carry or the gradient comes back with another structure, shape or dtype,
    for an unknown combine, and for combine="mean" where T cannot be told from the batch or `copies` fits
    no params.
    """
    train_step = step_by(gradient_of(loss_fn, value_and_grad), optimizer, combine=combine, copies=copies)
    return jax.jit(train_step, donate_argnums=0)
