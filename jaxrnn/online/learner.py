"""What makes a learner of a cell and a method: the carry, keys and windows, the same for all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn import checks, inference, trees
from jaxrnn.engine.evaluate import trace
from jaxrnn.engine.ir import is_float, is_var, reached
from jaxrnn.online.step import Given, OnlineStep
from jaxrnn.pickling import Picklable
from jaxrnn.types import Cell, Key, Learner, Params, State, Tree


class Carry(NamedTuple):
    """What an online learner hands from one update to the next."""

    state: State  # the cell's own
    memory: Tree  # what the method remembers
    steps: jax.Array  # int32: how many steps there were
    key: Key | None  # of the stream, where there is one
    fresh: jax.Array | None  # whether the first step, from a learned first state, is still to come


class Window(NamedTuple):
    """What a method is given of K steps."""

    params: Params
    begin: Key | None
    given: Given  # [K, ...]
    signs: Key | None  # [K] keys for what the method itself draws


# What a method makes of a window: (state, memory) after it, the loss, the gradient by the parameters' real parts.
Found = tuple[State, Tree, jax.Array, list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to find a gradient while time runs; a value. Called with a cell it is a `Learner`."""

    draws: ClassVar[bool] = False
    is_cut: ClassVar[bool] = False

    def memory(self, step: OnlineStep) -> Tree:
        """What is remembered before the first step."""
        raise NotImplementedError

    def over(self, step: OnlineStep, state: State, memory: Tree, window: Window) -> Found:
        """The window's loss and gradient, by default step by step."""
        one = lambda state, memory, now: self.one(step, state, memory, now)
        return by_steps(one, state, memory, window, step.nothing(window.params))

    def one(self, step: OnlineStep, state: State, memory: Tree, now: Window) -> Found:
        """The loss and gradient of a single step."""
        raise NotImplementedError

    def __call__(self, cell: Cell) -> Learner:
        return online(cell, self)


def by_steps(one: Callable[..., Found], state: State, memory: Tree, window: Window, nothing: Tree) -> Found:
    """A method for a step, over a window's, whose losses and gradients are added to `nothing`."""
    now = lambda each: window._replace(given=each[0], signs=each[1])
    steps = (window.given, window.signs)
    if checks.steps("update", steps) == 1:
        return one(state, memory, now(jax.tree.map(lambda a: a[0], steps)))

    def body(carry: Any, each: Any) -> Any:
        state, memory, total = carry
        state, memory, *found = one(state, memory, now(each))
        return (state, memory, jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, tuple(found))), None

    (state, memory, (loss, grads)), _ = lax.scan(body, (state, memory, nothing), steps)
    return state, memory, loss, grads


def online(cell: Cell, method: Method) -> Learner:
    """A cell and a way to find its gradient while time runs, as a `Learner`.

        learner = online(with_loss(net, loss), rtrl())
        carry = learner.init(params, x)
        carry, loss, grads = learner.update(params, carry, xs)          xs [K, *B, ...]: as many steps as you like

    The cell ends in its loss, one number per example: `with_loss(net, loss)`. How often to update is the caller's
    choice, how far credit reaches back in time is the method's: `rtrl`, `snap`, `layerwise`, `eprop`, `uoro`,
    `kf_rtrl`, `tbptt`, `immediate`. Resets and lengths are the cell's: `resettable(cell)`, `masked(cell)`.
    Cost: each method says, under `jax.jit`, where the step is taken apart once; memory does not grow with the stream.
    Raises: TypeError for what is no cell or no method. At the first call, ValueError for a cell that does not end in
    a loss, an empty window, inputs of another batch than the carry's, a step with side effects or one whose examples
    are seen to depend on one another, a `custom_vjp` on the way to the state, a carry of another cell or method, and
    for a method that draws without a key.
    """
    checks.a_cell("online", cell)
    if isinstance(method, type) or not isinstance(method, Method):
        name = method.__name__ if isinstance(method, type) else repr(method)
        raise TypeError(f"online: method must be a value such as rtrl() or snap(1), got {name}")
    making = Making(cell, method)
    return Learner(making.init, making.update)


@dataclasses.dataclass(frozen=True)
class Making(Picklable):
    """The two functions of a learner."""

    cell: Cell
    method: Method

    def init(self, params: Params, x: Tree, state: State | None = None, *, key: Key | None = None) -> Carry:
        batch = inference.batch_shape("online", self.cell, params, x)
        begin = None if key is None else jax.random.split(key)[0]
        begun = params if begin is None else self.cell.begin(params, begin)
        if state is None:
            fresh = jnp.ones((), bool) if _is_learned(self.cell, params, begin, batch) else None
            start = self.cell.initial_state(begun, batch)
        else:
            fresh, start = None, jax.tree.map(jnp.asarray, state)
            look = inference.step_from_given("init", self.cell, begun, start, trees.struct(x), key)
            remedy = f"start from cell.initial_state(params, {batch}), or a state of that type"
            checks.same_type("init", "state", look.state_out, look.state, remedy)
            checks.same_type("init", "state", self._first_state(begun, batch), trees.struct(start), remedy)
        start = jax.tree.map(lambda a: trees.of_type(a, jax.ShapeDtypeStruct(a.shape, a.dtype)), start)
        step = self.step(params, start, trees.struct(x), key, batch, fresh, key)
        return Carry(start, self.method.memory(step), jnp.zeros((), jnp.int32), key, fresh)

    def update(
        self, params: Params, carry: Carry, xs: Tree, *, key: Key | None = None
    ) -> tuple[Carry, jax.Array, Params]:
        if not isinstance(carry, Carry):
            raise TypeError(f"update: carry must be what init or update returned, got {type(carry).__name__}")
        steps = checks.steps("update", xs)
        if steps == 0:
            raise ValueError("update: xs has no time steps; a window needs at least one")
        x = trees.first_step(xs)
        batch = inference.batch_shape("online", self.cell, params, x)
        begin = None if carry.key is None else jax.random.split(carry.key)[0]
        begun = params if begin is None else self.cell.begin(params, begin)
        remedy = f"xs has the batch dimensions {list(batch)}; start anew with init for another batch, cell or method"
        checks.same_type("update", "carry.state", self._first_state(begun, batch), trees.struct(carry.state), remedy)
        step = self.step(params, carry.state, x, carry.key if key is None else key, batch, carry.fresh, carry.key)
        begun_as = step if key is None or carry.key is not None else self._without_key(step)
        memory = jax.eval_shape(lambda: self.method.memory(begun_as))
        checks.same_type("update", "carry.memory", memory, trees.struct(carry.memory), remedy)
        window = self._window(params, begin, carry, xs, key, steps)
        state, memory, loss, grads = self.method.over(step, carry.state, carry.memory, window)
        fresh = None if carry.fresh is None else jnp.zeros_like(carry.fresh)
        return Carry(state, memory, carry.steps + steps, carry.key, fresh), loss, step.gradient(params, grads)

    def step(
        self,
        params: Params,
        state: State,
        x: Tree,
        key: Key | None,
        batch: tuple[int, ...],
        fresh: jax.Array | None,
        begin: Key | None,
    ) -> OnlineStep:
        """The cell's step for these types; `key` and `begin` stand for a key of any step and of the sequence."""
        if self.method.draws and key is None:
            name = type(self.method).__name__
            raise ValueError(f"online: {name} draws random signs; give a key, init(params, x, key=jax.random.key(0))")
        kinds = trees.struct((params, state, Given(x, key, fresh), begin))
        kind_of_params, kind_of_state, given, kind_of_begin = kinds
        cut = self.method.is_cut
        return OnlineStep(self.cell, batch, kind_of_params, kind_of_state, given, kind_of_begin, cut)

    def _without_key(self, step: OnlineStep) -> OnlineStep:
        """The step as `init` saw it, which was given no key."""
        return dataclasses.replace(step, given=step.given._replace(key=None))

    def _first_state(self, begun: Params, batch: tuple[int, ...]) -> State:
        """Its types."""
        return jax.eval_shape(lambda p: self.cell.initial_state(p, batch), begun)

    def _window(self, params: Params, begin: Key | None, carry: Carry, xs: Tree, key: Key | None, steps: int) -> Window:
        base, first = (carry.key, carry.steps) if key is None else (key, jnp.zeros((), jnp.int32))
        keys = signs = None
        if base is not None:  # those of `unroll`, and others for the method
            times = (first + jnp.arange(steps, dtype=jnp.int32)).astype(jnp.uint32)
            fold = lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(times)
            keys, signs = fold(jax.random.split(base)[1]), fold(jax.random.fold_in(base, 2))
        fresh = None if carry.fresh is None else carry.fresh & (jnp.arange(steps) == 0)
        return Window(params, begin, Given(jax.tree.map(jnp.asarray, xs), keys, fresh), signs)


def _is_learned(cell: Cell, params: Params, begin: Key | None, batch: tuple[int, ...]) -> bool:
    """Whether the first state depends on the parameters."""
    tree: Any
    leaves, tree = jax.tree.flatten(trees.struct(params))

    def start(*args: Any) -> list[Any]:
        given = tree.unflatten(args)
        return jax.tree.leaves(cell.initial_state(given if begin is None else cell.begin(given, begin), batch))

    flat = trace(start, *leaves)
    found = reached(flat.equations, filter(is_float, flat.inputs))
    return any(is_var(a) and is_float(a) and a in found for a in flat.outputs)


def window_loss(learner: Learner) -> Callable[..., tuple[jax.Array, Carry]]:
    """A learner as a loss function: what `jax.grad` and `fit` take.

        (params, batch, key, carry) -> (loss, carry)             batch: the next window, [K, *B, ...]

        fit(window_loss(learner), params, windows, carry=learner.init(params, x), ...)

    Its gradient by params is what `update` returns, times what the loss is multiplied with afterwards; there is none by
    anything else. One pass finds the loss and the gradient both, so without `jax.grad` it costs the same.
    """

    @jax.custom_vjp
    def loss(params: Params, batch: Tree, key: Key | None, carry: Carry) -> tuple[jax.Array, Carry]:
        carry, value, _ = learner.update(params, carry, batch, key=key)
        return value, carry

    def forward(params: Params, batch: Tree, key: Key | None, carry: Carry) -> tuple[Any, Params]:
        carry, value, grads = learner.update(params, carry, batch, key=key)
        return (value, carry), grads

    def backward(grads: Params, cotangents: tuple[jax.Array, Carry]) -> tuple[Params, None, None, None]:
        scale = lambda g: g * cotangents[0].astype(g.dtype) if trees.is_float(g) else _float0(g)
        return jax.tree.map(scale, grads), None, None, None

    loss.defvjp(forward, backward)
    return lambda params, batch, key, carry: loss(params, batch, key, lax.stop_gradient(carry))


def _float0(leaf: jax.Array) -> Any:
    return trees.with_float0([], [leaf])[0]


def learn(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    carry: Carry,
    xs: Tree,
    window: int = 1,
) -> tuple[tuple[Params, optax.OptState, Carry], jax.Array]:
    """Learns from a stream as it comes, with an update of the parameters every `window` steps.

        for n in range(ceil(T / window)):
            carry, loss, grads = learner.update(params, carry, xs[n * window : (n + 1) * window])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            losses[n] = loss / (steps in the window)
        return (params, opt_state, carry), losses

    Shapes: xs [T, *B, ...]; losses [ceil(T / window)], the mean loss of a step. The last window may be shorter. What it
    returns goes in again for the next stretch of the stream. Two compiled bodies at most, whatever T.
    Raises: ValueError for a window that is no whole number of at least 1, or a stream without steps.
    """
    window = checks.positive_int("learn", "window", window)
    steps = checks.steps("learn", xs)
    if steps == 0:
        raise ValueError("learn: xs has no time steps; a stream needs at least one")
    whole = steps // window

    def body(now: Any, xs: Tree) -> Any:
        params, opt_state, carry = now
        carry, loss, grads = learner.update(params, carry, xs)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss / checks.steps("learn", xs)

    now, losses = (params, opt_state, carry), []
    if whole:
        cut = lambda a: a[: whole * window].reshape(whole, window, *a.shape[1:])
        now, found = lax.scan(body, now, jax.tree.map(cut, xs))
        losses.append(found)
    if steps % window:
        now, found = body(now, jax.tree.map(lambda a: a[whole * window :], xs))
        losses.append(found[None])
    return now, jnp.concatenate(losses)
