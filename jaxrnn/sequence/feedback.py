"""The loop in which a cell reads what was made of its own output: the frame of `generate` and `beam_search`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, inference, meshes, trees
from jaxrnn.types import Cell, Key, Params, State, Tree

Step = Callable[[State, Tree], tuple[State, Tree]]  # (state, x) -> (state, y)
# (key_t, what is remembered, state, y) -> (what is remembered, state, the next x), what is emitted
Choice = Callable[[Key | None, Tree, State, Tree], tuple[tuple[Tree, State, Tree], Tree]]


def checked(where: str, cell: Cell, params: Params, state: State, x: Tree, steps: Any) -> tuple[State, Tree, int, Tree]:
    """The state, x and number of steps to start with, and the type of y; errors name what does not fit."""
    steps = checks.positive_int(where, "steps", steps, least=0)
    checks.a_cell(where, cell)
    state, x = jax.tree.map(jnp.asarray, (state, x))
    look = inference.step_from_given(where, cell, params, state, trees.struct(x), None)
    checks.same_type(where, "state", look.state, look.state_out, "start from a state of that type")
    return state, x, steps, look.y


def fed_back(
    step: Step, choose: Choice, memory: Tree, state: State, x: Tree, steps: int, keys: Key | None, *, like: Tree = ()
) -> tuple[tuple[Tree, State, Tree], Tree]:
    """A cell that goes on by itself.

        for t in range(steps):
            state, y = step(state, x)
            (memory, state, x), out[t] = choose(keys[t], memory, state, y)
        return (memory, state, x), out

    `like` is whatever else the step reads, for on a mesh of devices the start gets the types that come back.
    """

    def body(carry: Tree, key: Key | None) -> tuple[Tree, Tree]:
        memory, state, x = carry
        state, y = step(state, x)
        return choose(key, memory, state, y)

    start = (memory, state, x)
    if meshes.on_mesh(like, start):
        start = meshes.settled(body, start, trees.first_step(keys))
    return lax.scan(body, start, keys, length=steps)
