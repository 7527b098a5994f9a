"""Other people's layers as cells: `layer` (of Flax and Equinox), `recurrent` (RNN cells), `lift` (functions)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jaxrnn import trees
from jaxrnn.cells import equinox_modules, nnx_modules
from jaxrnn.cells.base import Definition, Stateless, WithoutParameters
from jaxrnn.types import Cell, Key, Params, State, Tree


def lift(fn: Callable[..., Tree]) -> Cell:
    """A function of one step's input as a cell without parameters, state or randomness: y_t = fn(x_t).

    x and y are whatever fn takes and gives. Raises TypeError if fn is not callable.

    >>> lift(lambda x: 2 * x).step((), (), 3)
    ((), 6)
    """
    if not callable(fn):
        raise TypeError(f"lift: fn must be a function of one step's input, got {fn!r}")

    return Lifted(fn).cell


@dataclass(frozen=True)
class Lifted(WithoutParameters, Stateless):
    fn: Callable[..., Tree]

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        del params, key
        return state, self.fn(x)


def _rngs(key: Key | None) -> dict[str, Key] | None:
    """Flax modules draw from the stream named "dropout"; without a key they must be deterministic."""
    return None if key is None else {"dropout": key}


def _only_params(where: str, module: Any, variables: Any) -> Params:
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"{where}: {type(module).__name__} keeps variables of its own in {others}; a step must be pure, "
            "so use a module whose variables are all parameters (LayerNorm instead of BatchNorm, say)"
        )
    return variables.get("params", {})


def layer(module: Any, **options: Any) -> Cell:
    """A feed-forward module of `flax.linen`, `flax.nnx` or Equinox as a cell without state: y_t = module(x_t).

    `options` go to the module's `__call__` each time. Where the step has a key, the module may draw
    from it (Linen: as its "dropout" stream); without one it is in evaluation (NNX: `eval()`, Equinox:
    `inference_mode`).
    Shapes, cost and dtype are the module's own; Equinox's modules of one vector (`Embedding`: of one number) are
    mapped over the batch.
    Parameters: Linen's as it makes them. A module of NNX or Equinox has its weights already: `init` returns those,
    whatever the key; NNX's as nested dicts, Equinox's as a dict by path ("weight", "layers.0.bias").
    Raises: TypeError for anything but such a module (a class, an RNN cell);
    ValueError if the module has variables other than parameters, for Linen's at init.

    >>> cell = layer(nn.Dense(5))
    >>> params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), "float32"))
    >>> cell.step(params, (), jax.numpy.ones((2, 3)))[1].shape
    (2, 5)
    """
    if not is_module(module):
        raise TypeError(
            f"layer: module must be a flax.linen module such as nn.Dense(64), or one of NNX or Equinox, got {module!r}"
        )
    if is_rnn_cell(module):
        raise TypeError(f"layer: {type(module).__name__} has a state; use recurrent({type(module).__name__}(...))")
    given = tuple(sorted(options.items()))
    if nnx_modules.is_module(module):
        return nnx_modules.layer(module, given)
    if equinox_modules.is_module(module):
        return equinox_modules.layer(module, given)
    return Layer(module, given).cell


def is_module(value: Any) -> bool:
    """Whether `layer` or `recurrent` takes it."""
    return isinstance(value, nn.Module) or nnx_modules.is_module(value) or equinox_modules.is_module(value)


def is_rnn_cell(value: Any) -> bool:
    """Whether `recurrent` takes it."""
    return isinstance(value, nn.RNNCellBase) or nnx_modules.is_cell(value) or equinox_modules.is_cell(value)


@dataclass(frozen=True)
class Layer(Stateless):
    module: nn.Module
    options: tuple[tuple[str, Any], ...]

    def init(self, key: Key, x: Tree) -> Params:
        k_params, k_dropout = jax.random.split(key)
        rngs = {"params": k_params, "dropout": k_dropout}
        return _only_params("layer", self.module, self.module.init(rngs, trees.zeros_of(x), **dict(self.options)))

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        return state, self.module.apply({"params": params}, x, rngs=_rngs(key), **dict(self.options))


def recurrent(cell: Any, *, input_shape: tuple[int, ...] = (1,)) -> Cell:
    """An RNN cell of `flax.linen`, `flax.nnx` or Equinox as a cell: carry, y = cell(carry, x).

    The state is Flax's carry (for its LSTMs a tuple (c, h)), made by the cell's own initialiser;
    should that draw, it draws the same each time (key 0). `input_shape` is the shape of one
    example's input without batch dimensions, where the carry's shape depends on it, as in
    `ConvLSTMCell` ([height, width, channels]). Shapes, cost and dtype are the cell's own.
    Equinox's `GRUCell` and `LSTMCell` are mapped over the batch; the state is theirs, h or (h, c), first zero.
    A cell of NNX or Equinox has its weights already: they are the parameters that `init` returns, as in `layer`.
    `interop.from_nnx` and `interop.from_equinox` make our own cells of them, which cost less.
    Raises: TypeError for anything but such a cell; ValueError (for Linen's at init) if the cell has
    variables other than parameters, or if input_shape lacks dimensions that the carry needs.
    """
    if not is_rnn_cell(cell):
        raise TypeError(
            "recurrent: cell must be a flax.linen RNN cell such as nn.GRUCell(64), or one of NNX or Equinox, "
            f"got {cell!r}"
        )
    if equinox_modules.is_cell(cell):
        return equinox_modules.recurrent(cell)
    if len(input_shape) != cell.num_feature_axes:
        raise ValueError(
            f"recurrent: {type(cell).__name__} has inputs of {cell.num_feature_axes} dimensions per example; "
            f"give all of them as input_shape, got {input_shape}"
        )

    if nnx_modules.is_cell(cell):
        return nnx_modules.recurrent(cell, tuple(input_shape))
    return Recurrent(cell, tuple(input_shape)).cell


@dataclass(frozen=True)
class Recurrent(Definition):
    module: nn.RNNCellBase
    input_shape: tuple[int, ...]

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        del params
        return self.module.initialize_carry(jax.random.key(0), (*batch_shape, *self.input_shape))

    def init(self, key: Key, x: Any) -> Params:
        k_params, k_dropout = jax.random.split(key)
        rngs = {"params": k_params, "dropout": k_dropout}
        x = trees.zeros_of(x)
        carry = self.initial_state(None, x.shape[: x.ndim - self.module.num_feature_axes])
        return _only_params("recurrent", self.module, self.module.init(rngs, carry, x))

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        state_out, y = self.module.apply({"params": params}, state, x, rngs=_rngs(key))
        return state_out, y
