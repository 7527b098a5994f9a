"""Truncated BPTT as a learner, and no credit through time at all: `tbptt`, `immediate`."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.online.learner import Found, Method, Window
from jaxrnn.online.step import Given, OnlineStep, from_real, mean, real_leaves
from jaxrnn.scans import scan, truncated
from jaxrnn.types import Params, State, Tree


class Earlier(NamedTuple):
    """The last steps before a window, to be run again."""

    state: State  # before them
    given: Given  # [reach - every, ...]
    steps: jax.Array  # int32: how many of them there were


@dataclasses.dataclass(frozen=True)
class tbptt(Method):
    """Truncated backpropagation through time: every k1 steps, back over the last k2.

        g = d / dtheta sum_{t in window} L_t         from the state `reach` steps before the window's end, held fast

    `every` (k1) is how many steps each window has, and `reach` (k2) how far its errors go back; `tbptt(10)` updates at
    every step from the last ten. With `reach == every` it is `truncated(every)` of a whole sequence.
    Memory: the inputs of reach - every steps, the state before them, and what BPTT keeps of `reach` steps for the
    length of an update. Cost: reach / every times BPTT. Biased: what is further back has no credit.
    Raises: ValueError for numbers that are no whole ones of at least 1, a reach shorter than every, a window of
    another length; for a key given to update alone, where steps are run again (give it to init).
    Williams and Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", whose BPTT(h; h') this is, with h = reach and h' = every.
    """

    reach: int
    every: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("tbptt", "reach", self.reach)
        checks.positive_int("tbptt", "every", self.every)
        if self.reach < self.every:
            raise ValueError(f"tbptt: reach must be at least every ({self.every}), got {self.reach}")

    @property
    def back(self) -> int:
        return self.reach - self.every

    def memory(self, step: OnlineStep) -> Tree:
        if not self.back:
            return ()
        fill = lambda a: _filled((self.back, *a.shape), a)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), step.state)
        return Earlier(zeros, jax.tree.map(fill, step.given), jnp.zeros((), jnp.int32))

    def over(self, step: OnlineStep, state: State, memory: Tree, window: Window) -> Found:
        got = checks.steps("update", window.given)
        if got != self.every:
            raise ValueError(
                f"tbptt: a window must have every = {self.every} steps, got {got}; say tbptt(reach, every={got})"
            )
        if not self.back:
            (loss, state), grads = _value_and_grad(
                lambda p: step.total(p, window.begin, state, window.given, scan), window.params
            )
            return state, (), loss, grads
        if not trees.same_structure(memory.given, window.given):
            raise ValueError(
                "tbptt: steps are run again with their own keys; give the key to init, not to update alone"
            )
        before = jax.tree.map(lambda a, b: jnp.where(memory.steps == 0, a, b), state, memory.state)
        (loss, states), grads = _value_and_grad(
            lambda p: self._reaching_back(step, p, window, before, memory), window.params
        )
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), memory.given, window.given)
        next_before = jax.tree.map(lambda a: a[self.every - 1], states)
        kept = jax.tree.map(lambda a: a[self.every :], both)
        count = jnp.minimum(memory.steps + self.every, self.back)
        return jax.tree.map(lambda a: a[-1], states), Earlier(next_before, kept, count), loss, grads

    def _reaching_back(
        self, step: OnlineStep, params: Params, window: Window, before: State, memory: Earlier
    ) -> tuple[jax.Array, State]:
        """The window's loss from the state before the earlier steps; and the states after all of them."""

        def again(state: State, each: Any) -> tuple[State, State]:
            t, given = each
            run = lambda: step.run(params, window.begin, state, given)[0]
            state = lax.cond(t >= self.back - memory.steps, run, lambda: state)  # what was not there is not run
            return state, state

        def body(state: State, given: Given) -> tuple[State, Any]:
            state, loss = step.run(params, window.begin, state, given)
            return state, (state, mean(loss))

        state, earlier = lax.scan(again, before, (jnp.arange(self.back, dtype=jnp.int32), memory.given))
        _, (states, losses) = scan(body, state, window.given)
        return jnp.sum(losses), jax.tree.map(lambda a, b: jnp.concatenate([a, b]), earlier, states)


@dataclasses.dataclass(frozen=True)
class immediate(Method):
    """No credit through time: each step's loss is differentiated with the state before it held fast.

        g_t = dL_t(theta, stop_gradient(s_tm1)) / dtheta

    What every other method must beat. Memory: none. Cost: that of the step and its gradient. Biased: nothing learns
    what to remember. The same as `truncated(1)` of a whole sequence.
    """

    def memory(self, step: OnlineStep) -> Tree:
        return ()

    def over(self, step: OnlineStep, state: State, memory: Tree, window: Window) -> Found:
        one_by_one = truncated(1, inner=scan)
        (loss, state), grads = _value_and_grad(
            lambda p: step.total(p, window.begin, state, window.given, one_by_one), window.params
        )
        return state, (), loss, grads


def _value_and_grad(fn: Any, params: Params) -> tuple[Any, list[jax.Array]]:
    """((loss, aux), the gradient by the parameters' real parts)."""
    leaves = real_leaves(params)
    learned = [trees.is_float(leaf) for leaf in leaves]
    whole = lambda floats: from_real(trees.put(learned, floats, leaves), params)
    return jax.value_and_grad(lambda floats: fn(whole(floats)), has_aux=True)(trees.only(learned, leaves))


def _filled(shape: tuple[int, ...], kind: Any) -> jax.Array:
    """Zeros of a type, which may be that of keys."""
    if not trees.is_key(kind):
        return jnp.zeros(shape, kind.dtype)
    found: list[Any] = []

    def look(key: Any) -> Any:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    data = jax.eval_shape(look, kind)
    return jax.random.wrap_key_data(jnp.zeros((*shape, data.shape[-1]), data.dtype), impl=found[0])
