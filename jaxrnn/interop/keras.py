"""From and to Keras 3: `SimpleRNN`, `LSTM`, `GRU` and `Bidirectional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.gated import GRU, LSTM, gru, lstm
from jaxrnn.cells.simple import elman
from jaxrnn.interop.nets import (
    TANH,
    Imported,
    Part,
    both_ways,
    one_upon_another,
    refuse_peepholes,
    refuse_projection,
    taken_apart,
)
from jaxrnn.interop.tensors import Array, Tensors, added, reordered, to_jax
from jaxrnn.sequence.directions import concatenate
from jaxrnn.types import Cell, Params, SequenceLayer

KINDS = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "linear": jax.nn.identity}
_REMEDY = "hand over a keras.layers.SimpleRNN, LSTM or GRU that is built, or what its get_weights() gives"


def _mean(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a + b) / 2


MERGES = {"concat": concatenate, "sum": jnp.add, "mul": jnp.multiply, "ave": _mean}


def from_keras(source: Any, *, activation: Any = jnp.tanh, reset_after: bool = True, dtype: Any = None) -> Imported:
    """A net that computes what Keras' does, from its layers or their weights.

        net, params = from_keras(keras_layer)
        state, ys = unroll(net, params, xs)             ys.swapaxes(0, 1) = keras_layer(xs.swapaxes(0, 1))

    for `SimpleRNN`, `LSTM`, `GRU` (`reset_after` or not), their cells, and `Bidirectional` of them, with `use_bias` or
    without. `source` is such a layer, a list of layers one upon another, a `Sequential` of nothing else, or the list of
    arrays that `get_weights()` of one layer gives (two or three; of a `Bidirectional` twice as many). Those do not say
    everything: then `activation` is that of a `SimpleRNN`, and `reset_after` that of a `GRU` without biases.
    They become `elman`, `lstm` and `gru(reset="after")` or `"before"`, `bidirectional`, and `stack` or `chain`. Keras'
    LSTM has our gates in our order, its GRU's come as z, r, n. Its 1 in the forget gate's bias is only a first value.
    Arrays are time-major here, and all outputs are given, as with `return_sequences=True`; dropout is not taken over.
    Raises: ValueError, naming the array, for one that is missing, of another shape or dtype, or left over, and for
    options that ours have not (other activations, `go_backwards`); TypeError for layers of other kinds.
    """
    if isinstance(source, (list, tuple)) and source and all(hasattr(a, "shape") for a in source):
        return _from_arrays(list(source), activation, reset_after, dtype)
    layers = source if isinstance(source, (list, tuple)) else getattr(source, "layers", None) or [source]
    if not layers:
        raise ValueError(f"from_keras: source should be layers or arrays, got an empty list; {_REMEDY}")
    return one_upon_another([_layer(layer, dtype) for layer in layers])


def _from_arrays(arrays: list[Any], activation: Any, reset_after: bool, dtype: Any) -> Imported:
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(f"from_keras: source should be 2 or 3 arrays, or twice as many, got {len(arrays)}; {_REMEDY}")
    half = len(arrays) // 2
    sides = [("", arrays)] if len(arrays) < 4 else [("forward ", arrays[:half]), ("backward ", arrays[half:])]
    read = [_cell(_named(part, name, dtype), None, activation, reset_after) for name, part in sides]
    return both_ways(*read) if len(read) == 2 else read[0]


def _named(arrays: Sequence[Any], prefix: str, dtype: Any) -> Tensors:
    """The weights of one layer of one direction, in the order in which Keras gives them."""
    named = {prefix + name: array for name, array in zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=False)}
    return Tensors("from_keras", named, _REMEDY, prefix, dtype)


def _layer(layer: Any, dtype: Any) -> Imported:
    if not hasattr(layer, "forward_layer"):
        return _one_way(layer, "", False, dtype)
    if layer.merge_mode not in MERGES:
        raise ValueError(
            f"from_keras: Bidirectional should have merge_mode {', '.join(MERGES)}, got {layer.merge_mode!r}; convert "
            "its forward_layer and backward_layer by themselves"
        )
    forward = _one_way(layer.forward_layer, "forward ", False, dtype)
    return both_ways(forward, _one_way(layer.backward_layer, "backward ", True, dtype), MERGES[layer.merge_mode])


def _one_way(layer: Any, prefix: str, backwards: bool, dtype: Any) -> Imported:
    cell = getattr(layer, "cell", layer)
    kind = type(cell).__name__.removesuffix("Cell")
    if kind not in KINDS or not callable(getattr(layer, "get_weights", None)):
        raise TypeError(
            f"from_keras: source should be made of SimpleRNN, LSTM, GRU and Bidirectional, got {type(layer).__name__}; "
            "convert the layers that are by themselves"
        )
    if bool(getattr(layer, "go_backwards", False)) != backwards:
        raise ValueError(
            f"from_keras: {layer.name} should read {'from the end' if backwards else 'forwards'}, but its go_backwards "
            f"is {not backwards}; use unroll(..., reverse=True) on one that reads forwards"
        )
    config = cell.get_config()
    arrays = layer.get_weights()
    if not arrays:
        raise ValueError(f"from_keras: {layer.name} has no weights yet; call it on an input, or build it, first")
    activation = _activation(layer, kind, config)
    return _cell(_named(arrays, prefix, dtype), kind, activation, bool(config.get("reset_after")))


def _activation(layer: Any, kind: str, config: dict[str, Any]) -> Any:
    """That of a SimpleRNN; the others' must be the usual ones."""
    name, gates = (config.get(n) for n in ("activation", "recurrent_activation"))  # of a user's own function, a dict
    if not isinstance(name, str):
        name = "a function of its own"
    if kind == "SimpleRNN" and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if kind == "SimpleRNN" or (name, gates) != ("tanh", "sigmoid"):
        wanted = f"one of {', '.join(ACTIVATIONS)}" if kind == "SimpleRNN" else "tanh, and sigmoid for its gates"
        raise ValueError(
            f"from_keras: {layer.name} should have the activation {wanted}, got {name!r}"
            f"{'' if kind == 'SimpleRNN' else f' and {gates!r}'}; ours has no other"
        )
    return jnp.tanh


def _cell(tensors: Tensors, kind: str | None, activation: Any, reset_after: bool) -> Imported:
    rows, columns = tensors.shape("recurrent_kernel", "[H, G*H]")
    gates = KINDS[kind] if kind else columns // max(rows, 1)
    if gates not in KINDS.values() or columns != gates * rows:
        wanted = f"[H, {gates}H]" if kind else "[H, G*H] with G = 1 (SimpleRNN), 3 (GRU) or 4 (LSTM)"
        raise ValueError(
            f"from_keras: tensor 'recurrent_kernel' should be {wanted}, got [{rows}, {columns}]; {_REMEDY}"
        )
    features = tensors.shape("kernel", f"[D, {gates}H]")[0]
    ours = {
        "U": tensors.take("kernel", f"[D, {gates}H]", (features, gates * rows)),
        "W": tensors.take("recurrent_kernel", f"[H, {gates}H]", (rows, gates * rows)),
    }
    bias = "bias" in tensors
    if gates == 3:
        net, ours = _gru(tensors, ours, rows, reset_after)
    else:
        ours |= {"b": tensors.take("bias", f"[{gates}H]", (gates * rows,))} if bias else {}
        options = {"bias": bias, "dtype": ours["U"].dtype}
        net = lstm(rows, **options) if gates == 4 else elman(rows, activation=activation, **options)
    tensors.finish("such a layer")
    return Imported(net, to_jax(ours))


def _gru(tensors: Tensors, ours: dict[str, Array], size: int, after: bool) -> tuple[Cell, dict[str, Array]]:
    """Gates in our order; with `reset_after` there are two biases, [2, 3H], and the candidate's second stays one."""
    bias = "bias" in tensors
    if bias:
        after = len(tensors.rest["bias"].shape) == 2
        letters, shape = ("[2, 3H]", (2, 3 * size)) if after else ("[3H]", (3 * size,))
        ours["b"] = tensors.take("bias", letters, shape)
    ours = {name: reordered(array, "zrn", "rzn") for name, array in ours.items()}
    if bias and after:
        b_x, b_h = ours["b"]
        gates = 2 * size
        ours |= {"b": np.concatenate([added(b_x[:gates], b_h[:gates]), b_x[gates:]]), "c_n": b_h[gates:]}
    if not after:
        ours |= {"W": ours["W"][:, : 2 * size], "W_n": ours["W"][:, 2 * size :]}
    return gru(size, reset="after" if after else "before", bias=bias, dtype=ours["U"].dtype), ours


def to_keras(net: Cell | SequenceLayer, params: Params) -> list[Array]:
    """The weights with which Keras' layers compute what this net does: `from_keras` the other way round.

        keras_layer.set_weights(to_keras(net, params))

    `elman` for `SimpleRNN`, `lstm` for `LSTM`, `gru` for `GRU(reset_after=...)` as its `reset` says, `bidirectional`
    for `Bidirectional`; of a `stack` or `chain` the weights of all layers one after another, for a `Sequential`.
    Without a bias here, `use_bias=False` there.
    Raises: ValueError for a net that Keras has no layers for, and for parameters that are not the net's.
    """
    layers = taken_apart("to_keras", net, params)
    return [array for layer in layers for part in layer.parts for array in _theirs(part)]


def _theirs(part: Part) -> list[Array]:
    refuse_peepholes("to_keras", part)
    refuse_projection("to_keras", part)
    ours = part.params
    if not isinstance(part.cell, GRU):
        if not isinstance(part.cell, LSTM) and part.cell.activation not in (*TANH, *ACTIVATIONS.values()):
            raise ValueError(f"to_keras: {part.path} should have an activation of {', '.join(ACTIVATIONS)}")
        return [ours[name] for name in ("U", "W", "b") if name in ours]
    after = part.cell.reset == "after"
    W = ours["W"] if after else np.concatenate([ours["W"], ours["W_n"]], axis=-1)
    arrays = [ours["U"], W]
    if part.cell.bias:
        second = np.zeros_like(ours["b"])
        second[2 * part.cell.size :] = ours.get("c_n", 0)
        arrays.append(np.stack([ours["b"], second]) if after else ours["b"])
    return [reordered(array, "rzn", "zrn") for array in arrays]
