"""What theirs becomes here, and ours as they need it: nets put together from layers, and taken apart into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.cells.base import RecurrentCell
from jaxrnn.cells.gated import GRU, LSTM
from jaxrnn.cells.simple import Elman
from jaxrnn.combinators.stacking import Stack, stack
from jaxrnn.sequence.directions import Bidirectional, bidirectional, concatenate
from jaxrnn.sequence.layers import Chain, OverTime, chain
from jaxrnn.types import Cell, Params, SequenceLayer

Ours = (Elman, LSTM, GRU)
TANH = (jnp.tanh, jax.nn.tanh, jax.lax.tanh)


class Imported(NamedTuple):
    """A net with its parameters: `unroll(net, params, xs)` computes what theirs did."""

    net: Cell | SequenceLayer
    params: Params


def one_upon_another(layers: Sequence[Imported]) -> Imported:
    """One layer is itself; several are a `stack`, or a `chain` where some read both ways; a tuple of parameters."""
    if len(layers) == 1:
        return layers[0]
    nets, params = zip(*layers, strict=True)
    return Imported(stack(*nets) if all(isinstance(net, Cell) for net in nets) else chain(*nets), params)


def both_ways(forward: Imported, backward: Imported, merge: Any = concatenate) -> Imported:
    """A `bidirectional` of two cells."""
    cells: Any = (forward.net, backward.net)
    return Imported(bidirectional(cells[0], cells[1], merge), {"forward": forward.params, "backward": backward.params})


class Part(NamedTuple):
    """One direction of one layer."""

    cell: Any  # Elman, LSTM or GRU
    params: dict[str, np.ndarray[Any, Any]]
    path: str  # where its parameters are among the net's

    @property
    def features(self) -> int:
        """D"""
        return int(self.params["U"].shape[0])


class Layer(NamedTuple):
    parts: list[Part]  # one direction, or two
    merge: Any = None  # of two


def taken_apart(where: str, net: Any, params: Params, path: str = "params") -> list[Layer]:
    """The layers of a net that are `elman`, `lstm`, `gru`, and `bidirectional`, `stack` and `chain` of those.

    Raises: ValueError for other nets, and for parameters that are not the net's.
    """
    made = getattr(net[1], "__self__", None) if isinstance(net, (Cell, SequenceLayer)) else None
    if isinstance(made, Stack | Chain):
        inner = made.cells if isinstance(made, Stack) else made.parts
        if not isinstance(params, (tuple, list)) or len(params) != len(inner):
            got = len(params) if isinstance(params, (tuple, list)) else type(params).__name__
            raise ValueError(f"{where}: {path} should be a tuple of {len(inner)}, one per layer, got {got}")
        layers = [taken_apart(where, n, p, f"{path}[{i}]") for i, (n, p) in enumerate(zip(inner, params, strict=True))]
        return [layer for several in layers for layer in several]
    if isinstance(made, OverTime):
        return taken_apart(where, made.cell, params, path)
    if isinstance(made, Bidirectional):
        if not isinstance(params, dict) or set(params) != {"forward", "backward"}:
            raise ValueError(f"{where}: {path} should be a dict of 'forward' and 'backward'; use the net's parameters")
        forward = taken_apart(where, made.forward, params["forward"], f"{path}['forward']")
        backward = taken_apart(where, made.backward, params["backward"], f"{path}['backward']")
        if len(forward) == len(backward) == 1:
            return [Layer([*forward[0].parts, *backward[0].parts], made.merge)]
    if not isinstance(made, Ours):
        what = type(net if made is None else made).__name__
        raise ValueError(
            f"{where}: what {path} belongs to should be an elman, lstm or gru, or a stack, chain or bidirectional of "
            f"those, got {what}; convert the layers that are by themselves"
        )
    return [Layer([Part(made, _checked(where, made, params, path), path)])]


def _checked(where: str, cell: RecurrentCell, params: Any, path: str) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters in NumPy, if they are those of this cell."""
    if cell.learn_initial_state:
        raise ValueError(
            f"{where}: {path}['initial_state'] is learned, for which they have no place; hand it over yourself, and "
            f"convert {cell.name}({cell.size}) without learn_initial_state"
        )
    remedy = "use the parameters of this net"
    if not isinstance(params, dict) or getattr(params.get("U"), "ndim", 0) != 2:
        raise ValueError(f"{where}: {path} should be a dict with 'U', [D, {cell.columns}]; {remedy}")
    x = jax.ShapeDtypeStruct((int(params["U"].shape[0]),), cell.dtype)
    expected = jax.eval_shape(cell.init, jax.random.key(0), x)
    if set(expected) != set(params):
        raise ValueError(f"{where}: {path} should have {sorted(expected)}, got {sorted(params)}; {remedy}")
    for name, leaf in expected.items():
        if np.shape(params[name]) != leaf.shape:
            raise ValueError(
                f"{where}: {path}[{name!r}] should be {list(leaf.shape)}, got {checks.describe(params[name])}; {remedy}"
            )
    return {name: np.asarray(leaf) for name, leaf in params.items()}


def refuse_peepholes(where: str, part: Part) -> None:
    if isinstance(part.cell, LSTM) and part.cell.peephole:
        raise ValueError(f"{where}: {part.path} has peepholes, for which they have no place; use an lstm without")


def refuse_projection(where: str, part: Part) -> None:
    if isinstance(part.cell, LSTM) and part.cell.projection is not None:
        raise ValueError(f"{where}: {part.path} has a projection, for which they have no place; use an lstm without")


def only_part(where: str, net: Any, params: Params) -> Part:
    """The one cell that a net is, for libraries whose modules are single cells."""
    layers = taken_apart(where, net, params)
    if len(layers) != 1 or len(layers[0].parts) != 1:
        raise ValueError(f"{where}: net should be one cell, got {len(layers)} layers; convert each by itself")
    (part,) = layers[0].parts
    refuse_peepholes(where, part)
    refuse_projection(where, part)
    return part
