"""What the cells share: weights, the affine map, and how a cell is put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import checks, trees
from jaxrnn.pickling import Picklable
from jaxrnn.types import Cell, Key, Params, State, Tree, nothing_to_draw

_lecun = jax.nn.initializers.lecun_normal()
_orthogonal = jax.nn.initializers.orthogonal()


def input_weights(key: Key, x: Any, outputs: int, dtype: Any, where: str) -> jax.Array:
    """[D, outputs], variance 1/D (LeCun et al. 1998)."""
    if not hasattr(x, "shape") or len(x.shape) == 0:
        raise ValueError(f"{where}: init needs an x of shape [..., D] to know the input size, got {x!r}")
    checks.features(where, x, x.shape[-1])
    return _lecun(key, (x.shape[-1], outputs), dtype)


def recurrent_weights(key: Key, size: int, gates: int, dtype: Any, rows: int | None = None) -> jax.Array:
    """[rows or size, gates * size]: one orthogonal matrix per gate (Saxe et al. 2014).

    All singular values are 1, so that a linear net neither shrinks nor grows what it carries.
    """
    # The QR decomposition behind it exists from float32 upwards.
    wide = trees.wide(dtype)
    blocks = [_orthogonal(k, (rows or size, size), wide) for k in jax.random.split(key, gates)]
    return jnp.concatenate(blocks, axis=-1).astype(dtype)


def affine(x: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """x W + b for any leading dimensions of x; computed in the dtype of the weights."""
    product = jnp.dot(x.astype(weights.dtype), weights)
    return product + jnp.broadcast_to(bias, product.shape)


def blocks(values: jax.Array, count: int) -> list[jax.Array]:
    """Equal blocks side by side in the last dimension, one per gate.

    Cells split both products first and add then: the other way round XLA computes every gate anew
    in each operation that reads it (on a CPU, half of a forward step).
    """
    return jnp.split(values, count, axis=-1)


class Definition(Picklable, ABC):
    """A cell as it is written here: a frozen dataclass, the options its fields, the cell's functions its methods.

    So cells can be pickled and compared, and say what they are. What users hold is the Cell, `definition.cell`.
    """

    @property
    def cell(self) -> Cell:
        return Cell(self.init, self.initial_state, self.step, self.begin)

    @abstractmethod
    def init(self, key: Key, x: Any) -> Params: ...

    @abstractmethod
    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State: ...

    @abstractmethod
    def step(self, params: Params, state: State, x: Any, *, key: Key | None = None) -> tuple[State, Any]: ...

    def begin(self, params: Params, key: Key) -> Params:
        return nothing_to_draw(params, key)


class WithoutParameters(Definition):
    """A cell with nothing to learn."""

    def init(self, key: Key, x: Any) -> Params:
        del key, x
        return ()


@dataclass(frozen=True)
class RecurrentCell(Definition):
    """A cell from its weights and its equations.

    `sizes` is the state's structure with a feature size in place of each leaf. The weights of the
    input must be called U, [D, columns]: they say how many features x has, and in which dtype to compute.
    """

    size: int
    dtype: Any
    learn_initial_state: bool
    name: ClassVar[str]

    @property
    def sizes(self) -> Tree:
        return self.size

    @property
    def columns(self) -> int:
        return self.size

    @abstractmethod
    def weights(self, key: Key, x: Any) -> dict[str, Any]: ...

    @abstractmethod
    def equations(self, params: Params, state: Any, x: jax.Array) -> tuple[State, jax.Array]: ...

    def init(self, key: Key, x: Any) -> Params:
        params = self.weights(key, x)
        if self.learn_initial_state:
            params["initial_state"] = jax.tree.map(lambda n: jnp.zeros((n,), self.dtype), self.sizes)
        return params

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        if not self.learn_initial_state:
            return jax.tree.map(lambda n: jnp.zeros((*batch_shape, n), params["U"].dtype), self.sizes)
        if "initial_state" not in params:
            raise ValueError(
                f"{self.name}: params have no 'initial_state'; use parameters made by this cell's own init"
            )
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch_shape, *a.shape)), params["initial_state"])

    def step(self, params: Params, state: State, x: jax.Array, *, key: Key | None = None) -> tuple[State, jax.Array]:
        del key
        if params["U"].shape[1:] != (self.columns,):
            raise ValueError(
                f"{self.name}: params['U'] should be [D, {self.columns}], got {checks.describe(params['U'])}; "
                f"use parameters made by this cell's own init"
            )
        checks.features(self.name, x, params["U"].shape[0])
        return self.equations(params, state, x)
