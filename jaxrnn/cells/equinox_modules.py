"""Equinox modules as cells: what `layer` and `recurrent` make of them. Equinox itself is never imported here.

Whoever has an Equinox module has imported Equinox, so it is found among what Python has loaded.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.base import Stateless
from jaxrnn.cells.held import FromModule, Held, for_each
from jaxrnn.types import Cell, Key, Params, State, Tree


def is_module(value: Any) -> bool:
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(value, equinox.Module)


def is_cell(value: Any) -> bool:
    return is_module(value) and isinstance(value, (_equinox().nn.GRUCell, _equinox().nn.LSTMCell))


def layer(module: Any, options: tuple[tuple[str, Any], ...]) -> Cell:
    return EquinoxLayer(_taken("layer", module), options).cell


def recurrent(module: Any) -> Cell:
    return EquinoxRecurrent(_taken("recurrent", module)).cell


def _equinox() -> Any:
    """That of the user; a cell that was pickled imports it, as its module does."""
    return sys.modules["equinox"]


def _taken(where: str, module: Any) -> Held:
    for path, leaf in jax.tree_util.tree_leaves_with_path(module):
        if hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{where}: {type(module).__name__} keeps {leaf.dtype}{list(leaf.shape)} in {_name(path)}; a step must "
                "be pure, so use a module whose arrays are all floating-point parameters"
            )
    return Held(module)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


@dataclass(frozen=True)
class EquinoxModule(FromModule):
    held: Held  # the module

    @property
    def first(self) -> Params:
        params, _ = _equinox().partition(self.held.tree, _equinox().is_inexact_array)
        return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def module(self, params: Params, key: Key | None) -> Any:
        """The module with these weights: in evaluation without a key, in training with one."""
        ours, rest = _equinox().partition(self.held.tree, _equinox().is_inexact_array)
        placed = jax.tree_util.tree_map_with_path(lambda path, _: params[_name(path)], ours)
        return _equinox().nn.inference_mode(_equinox().combine(placed, rest), value=key is None)


@dataclass(frozen=True)
class EquinoxLayer(EquinoxModule, Stateless):
    options: tuple[tuple[str, Any], ...]

    def step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        module = self.module(params, key)
        batch = x.shape if isinstance(module, _equinox().nn.Embedding) else x.shape[:-1]
        if key is None or "key" not in inspect.signature(type(module).__call__).parameters:
            return state, for_each(len(batch), lambda x: module(x, **dict(self.options)))(x)
        keys = jax.random.split(key, batch)
        return state, for_each(len(batch), lambda x, k: module(x, key=k, **dict(self.options)))(x, keys)


@dataclass(frozen=True)
class EquinoxRecurrent(EquinoxModule):
    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        zeros = jnp.zeros((*batch_shape, self.held.tree.hidden_size), params["weight_hh"].dtype)
        return (zeros, zeros) if isinstance(self.held.tree, _equinox().nn.LSTMCell) else zeros

    def step(self, params: Params, state: State, x: jax.Array, *, key: Key | None = None) -> tuple[State, Any]:
        module = self.module(params, key)
        state = for_each(x.ndim - 1, module)(x, state)
        return state, state[0] if isinstance(state, tuple) else state
