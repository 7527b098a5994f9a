"""A decoder's look at what an encoder returned: `attending`; and targets as inputs: `shifted`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference, trees
from jaxrnn.cells.base import Definition
from jaxrnn.sequence.layers import live, zero_where_not
from jaxrnn.types import Cell, Key, Params, State, Tree

_lecun = jax.nn.initializers.lecun_normal()
_vector = jax.nn.initializers.normal(1.0)
SCORES = ("dot", "additive")


class AttendingState(NamedTuple):
    cell: State
    context: jax.Array  # [*B, E]


def attending(
    cell: Cell,
    memory: jax.Array,
    lengths: Any = None,
    *,
    score: str = "dot",
    size: int = 128,
    weights: bool = False,
) -> Cell:
    """A cell that looks at a memory, such as all outputs of an encoder, at every step.

        h_t       = cell(x_t, context_tm1 side by side)
        e_s       = (h_t W) . memory_s / sqrt(E)                     score="dot"
                    v . tanh(h_t W + memory_s U)                     score="additive", `size` units
        a         = softmax of e over s < lengths
        context_t = sum over s of a_s memory_s
        y_t       = (h_t, context_t) side by side                with weights=True the pair of this and a, [*B, S]

    Shapes: x [*B, D], memory [S, *B, E], lengths [*B]; state (cell's own, context [*B, E]); y [*B, H + E]. The memory
    past its lengths may hold anything, NaN included; a sequence of length 0 is seen as zeros. The state that an
    encoder of the same cell ended in is handed over by `state._replace(cell=encoder_state)`.
    The memory is closed over, as weights are: it has a gradient, and no copy per step or per beam. `memory_s U` is
    computed once for all steps. Make the cell anew for each batch, inside the function that is differentiated;
    its parameters do not depend on the memory, only on E.
    Cost per step: the cell's and 2 S E + H E multiplications per sequence; kept for the backward pass: a, [S, *B]
    (additive: nothing more; tanh is redone).
    Raises: ValueError for a memory that is not [S, *B, E] with the input's batch dimensions, for lengths outside
    0..S, an unknown score, or a cell whose x or y is not one array.
    Luong et al. 2015 (dot product, input feeding); Bahdanau et al. 2015 (additive).
    """
    checks.a_cell("attending", cell)
    checks.one_of("attending", "score", score, SCORES)
    memory = jnp.asarray(memory)
    if memory.ndim < 2 or not jnp.issubdtype(memory.dtype, jnp.floating):
        raise ValueError(f"attending: memory must be numbers [S, *B, E], got {checks.describe(memory)}")
    size = checks.positive_int("attending", "size", size)
    if lengths is None:
        return Attending(cell, memory, None, score, size, weights).cell
    lengths = checks.lengths("attending", lengths, memory.shape[0])
    batch = memory.shape[1:-1]
    if lengths.shape != batch:
        raise ValueError(
            f"attending: lengths must be [*B] = {list(batch)} as in memory, got {checks.describe(lengths)}"
        )
    within = live(memory.shape[0], lengths)
    return Attending(cell, zero_where_not(within, memory), within, score, size, weights).cell


@dataclass(frozen=True, eq=False)  # arrays have no equality that is one boolean
class Attending(Definition):
    inner: Cell
    memory: jax.Array  # [S, *B, E]
    live: jax.Array | None  # [S, *B]
    score: str
    size: int
    weights: bool

    def init(self, key: Key, x: Any) -> Params:
        k_cell, k_query, k_key, k_vector = jax.random.split(key, 4)
        entries, dtype = self.memory.shape[-1], self.memory.dtype
        side_by_side = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] + entries), x.dtype)
        params = self.inner.init(k_cell, side_by_side)
        h = inference.output("attending", self.inner, params, side_by_side)
        if not hasattr(h, "shape"):
            raise ValueError(f"attending: the cell's y must be one array [*B, H], got {checks.describe_tree(h)}")
        if self.score == "dot":
            return {"cell": params, "W": _lecun(k_query, (h.shape[-1], entries), dtype)}
        return {
            "cell": params,
            "W": _lecun(k_query, (h.shape[-1], self.size), dtype),
            "U": _lecun(k_key, (entries, self.size), dtype),
            "v": _vector(k_vector, (self.size,), dtype) / jnp.sqrt(self.size).astype(dtype),
        }

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        if tuple(batch_shape) != self.memory.shape[1:-1]:
            raise ValueError(
                f"attending: memory must be [S, *B, E] with the input's batch dimensions {tuple(batch_shape)}, got "
                f"{checks.describe(self.memory)}; give each sequence its own memory, in the same order"
            )
        context = jnp.zeros((*batch_shape, self.memory.shape[-1]), self.memory.dtype)
        return AttendingState(self.inner.initial_state(params["cell"], batch_shape), context)

    def begin(self, params: Params, key: Key) -> Params:
        return {**params, "cell": self.inner.begin(params["cell"], key)}

    def step(self, params: Params, state: State, x: jax.Array, *, key: Key | None = None) -> tuple[State, Tree]:
        x = jnp.concatenate([x, state.context.astype(x.dtype)], axis=-1)
        inner, h = self.inner.step(params["cell"], state.cell, x, key=key)
        scores = self.scores(params, h.astype(self.memory.dtype))
        if self.live is not None:
            scores = jnp.where(self.live, scores, jnp.full_like(scores, jnp.finfo(scores.dtype).min))
        weights = jax.nn.softmax(scores, axis=0)
        context = jnp.einsum("s...,s...e->...e", weights, self.memory)
        y = jnp.concatenate([h, context.astype(h.dtype)], axis=-1)
        if not self.weights:
            return AttendingState(inner, context), y
        if self.live is not None:  # where there is nothing to look at
            weights = jnp.where(self.live, weights, jnp.zeros_like(weights))
        return AttendingState(inner, context), (y, jnp.moveaxis(weights, 0, -1))

    def scores(self, params: Params, h: jax.Array) -> jax.Array:
        """[S, *B]"""
        query = jnp.dot(h, params["W"])
        if self.score == "dot":
            found = jnp.einsum("...e,s...e->s...", query, self.memory)
            return found / jnp.sqrt(self.memory.shape[-1]).astype(found.dtype)
        keys = jnp.dot(self.memory, params["U"])
        units = jnp.tanh(jnp.broadcast_to(query, keys.shape) + keys)
        return jnp.dot(units, params["v"])


def shifted(targets: Tree, first: Tree) -> Tree:
    """What a decoder reads when it is told the targets ("teacher forcing"): first, targets_0, ..., targets_{T-2}.

    Shapes: targets [T, *B, ...], first one step's, [*B, ...] or anything that broadcasts to it: a symbol for the
    beginning, say. Raises: ValueError for targets of unequal lengths.

    >>> shifted(jnp.array([[5, 6], [7, 8]]), 1).tolist()
    [[1, 1], [5, 6]]
    """
    checks.steps("shifted", targets, name="targets")

    def shift(leaf: jax.Array, begin: Any) -> jax.Array:
        row = jnp.broadcast_to(jnp.asarray(begin, leaf.dtype), (1, *leaf.shape[1:]))
        return jnp.concatenate([row, leaf[:-1]])

    targets = jax.tree.map(jnp.asarray, targets)
    if not trees.same_structure(first, targets):
        first = jax.tree.map(lambda leaf: first, targets)
    return jax.tree.map(shift, targets, first)
