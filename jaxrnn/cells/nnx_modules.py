"""NNX modules as cells: what `layer` and `recurrent` make of `flax.nnx` modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from jaxrnn.cells.base import Stateless
from jaxrnn.cells.held import FromModule, Held
from jaxrnn.pickling import packed
from jaxrnn.types import Cell, Key, Params, State, Tree


def is_module(value: Any) -> bool:
    return isinstance(value, nnx.Module)


def is_cell(value: Any) -> bool:
    return isinstance(value, nnx.RNNCellBase)


def layer(module: nnx.Module, options: tuple[tuple[str, Any], ...]) -> Cell:
    return NNXLayer(*_taken("layer", module), options).cell


def recurrent(module: nnx.Module, input_shape: tuple[int, ...]) -> Cell:
    return NNXRecurrent(*_taken("recurrent", module), input_shape).cell


def _arrays(state: Any) -> dict[Any, Any]:
    """The variables of a module as a nested dict of their arrays."""
    return unflatten_dict({path: variable.get_value() for path, variable in nnx.to_flat_state(state)})


def _taken(where: str, module: nnx.Module) -> tuple[Any, Held, tuple[Any, ...]]:
    """What a module is, its weights, and where it keeps its random streams: (path, shape), without those of counts."""
    graph, params, streams, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
    kinds = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(others)})
    if kinds:
        raise ValueError(
            f"{where}: {type(module).__name__} keeps variables of its own in {kinds}; a step must be pure, "
            "so use a module whose variables are all parameters (LayerNorm instead of BatchNorm, say)"
        )
    drawn = nnx.to_flat_state(streams)
    places = tuple((path, v.get_value().shape, isinstance(v, nnx.RngKey)) for path, v in drawn)
    return graph, Held(_arrays(params)), places


@dataclass(frozen=True)
class NNXModule(FromModule):
    graph: Any  # the module without its arrays
    weights: Held
    streams: tuple[Any, ...]  # (path, shape, is a key and not a count) of each variable that draws

    @property
    def first(self) -> Params:
        return self.weights.tree

    def __reduce__(self) -> tuple[Any, ...]:
        kind, (_, *others) = super().__reduce__()
        return kind, (packed(self.graph), *others)

    def module(self, params: Params, key: Key | None) -> Any:
        """The module with these weights, to be called once: in evaluation without a key, in training with one."""
        streams = [self._streams(key)] if self.streams else []
        module = nnx.merge(self.graph, params, *streams)
        if key is None:
            module.eval()
        else:
            module.train()
        return module

    def _streams(self, key: Key | None) -> dict[Any, Any]:
        """Every stream starts anew, from a key of its own."""
        key = jax.random.key(0) if key is None else key
        keys = jax.random.split(key, len(self.streams))
        fresh = {
            path: jax.random.split(k, shape) if is_key else jnp.zeros(shape, jnp.uint32)
            for (path, shape, is_key), k in zip(self.streams, keys, strict=True)
        }
        return unflatten_dict(fresh)


@dataclass(frozen=True)
class NNXLayer(NNXModule, Stateless):
    options: tuple[tuple[str, Any], ...]

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        return state, self.module(params, key)(x, **dict(self.options))


@dataclass(frozen=True)
class NNXRecurrent(NNXModule):
    input_shape: tuple[int, ...]

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        return self.module(params, None).initialize_carry((*batch_shape, *self.input_shape), nnx.Rngs(carry=0))

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        state_out, y = self.module(params, key)(state, x)
        return state_out, y
