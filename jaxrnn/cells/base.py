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
    return _lecun(key, (feature_count(where, x), outputs), dtype)


def feature_count(where: str, x: Any) -> int:
    """D, from one step's input."""
    if not hasattr(x, "shape") or len(x.shape) == 0:
        raise ValueError(f"{where}: init needs an x of shape [..., D] to know the input size, got {x!r}")
    checks.features(where, x, x.shape[-1])
    return int(x.shape[-1])


def recurrent_weights(key: Key, size: int, gates: int, dtype: Any, rows: int | None = None) -> jax.Array:
    """[rows or size, gates * size]: one orthogonal matrix per gate (Saxe et al. 2014).

    All singular values are 1, so that a linear net neither shrinks nor grows what it carries.
    """
    # The QR decomposition behind it exists from float32 upwards.
    wide = trees.wide(dtype)
    blocks = [_orthogonal(k, (rows or size, size), wide) for k in jax.random.split(key, gates)]
    return jnp.concatenate(blocks, axis=-1).astype(dtype)


def affine(x: jax.Array, weights: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x W + b, or x W, for any leading dimensions of x; computed in the dtype of the weights."""
    product = jnp.dot(x.astype(weights.dtype), weights)
    return product if bias is None else product + jnp.broadcast_to(bias, product.shape)


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


class Stateless(Definition):
    """What all cells without memory have in common."""

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        del params, batch_shape
        return ()


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
    A cell whose state is not made of such vectors in that dtype says so in `zeros` and `as_state`.
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

    def zeros(self, dtype: Any) -> Tree:
        """What is learned of one example's first state where it is learned, and is zero otherwise."""
        return jax.tree.map(lambda n: jnp.zeros((n,), dtype), self.sizes)

    def as_state(self, start: Tree) -> State:
        """One example's first state from that."""
        return start

    def init(self, key: Key, x: Any) -> Params:
        params = self.weights(key, x)
        if self.learn_initial_state:
            params["initial_state"] = self.zeros(self.dtype)
        return params

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        if self.learn_initial_state and "initial_state" not in params:
            raise ValueError(
                f"{self.name}: params have no 'initial_state'; use parameters made by this cell's own init"
            )
        start = params["initial_state"] if self.learn_initial_state else self.zeros(params["U"].dtype)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch_shape, *a.shape)), self.as_state(start))

    def check(self, params: Params, x: Any) -> None:
        """Whether these parameters are this cell's, and this input theirs."""
        if params["U"].shape[1:] != (self.columns,):
            raise ValueError(
                f"{self.name}: params['U'] should be [D, {self.columns}], got {checks.describe(params['U'])}; "
                f"use parameters made by this cell's own init"
            )
        checks.features(self.name, x, params["U"].shape[0])

    def step(self, params: Params, state: State, x: jax.Array, *, key: Key | None = None) -> tuple[State, jax.Array]:
        del key
        self.check(params, x)
        return self.equations(params, state, x)


def same_width(where: str, x: Any, size: int) -> None:
    """For cells whose input, state and output belong together feature by feature."""
    if feature_count(where, x) != size:
        raise ValueError(
            f"{where}: x must have as many features as the cell has units, {size}, got {checks.describe(x)}; "
            f"make it so by stack(layer(nn.Dense({size})), ...)"
        )


def uniform(key: Key, shape: tuple[int, ...], dtype: Any, low: float, high: float) -> jax.Array:
    """Drawn in 32 bits at least: in 16 the ends of the range come up too often."""
    return jax.random.uniform(key, shape, trees.wide(dtype), low, high).astype(dtype)


def per_feature(values: jax.Array, like: jax.Array) -> jax.Array:
    """A vector of one number per feature (or a tensor of one per cell of the state) along the batch of another."""
    return jnp.broadcast_to(values, like.shape)


def widened(a: jax.Array) -> jax.Array:
    """In float32 if it has 16 bits."""
    return a.astype(trees.wide(a.dtype))
