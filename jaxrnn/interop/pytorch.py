"""From and to PyTorch: `torch.nn.RNN`, `LSTM`, `GRU`, and the cells of these names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.cells.gated import GRU, LSTM, gru, lstm
from jaxrnn.cells.simple import Elman, elman
from jaxrnn.interop.files import load
from jaxrnn.interop.nets import TANH, Imported, Layer, Part, both_ways, one_upon_another, refuse_peepholes, taken_apart
from jaxrnn.interop.tensors import Array, Tensors, added, shown, to_jax
from jaxrnn.sequence.directions import concatenate
from jaxrnn.types import Cell, Params, SequenceLayer

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
_REMEDY = "hand over the state_dict of a whole torch.nn.RNN, LSTM or GRU, with its prefix if it is part of a larger one"


def from_pytorch(
    source: Any, *, prefix: str = "", kind: str | None = None, nonlinearity: str = "tanh", dtype: Any = None
) -> Imported:
    """A net that computes what PyTorch's does, from its weights.

        net, params = from_pytorch(torch_module.state_dict())
        state, ys = unroll(net, params, xs)             y, h_n = torch_module(x), x [T, B, D] as xs

    for `torch.nn.RNN`, `LSTM` (also with `proj_size`) and `GRU`, of any number of layers, in one direction or two, with
    biases or without, and for `RNNCell`, `LSTMCell`, `GRUCell`. `source` is a state_dict (names to arrays of PyTorch,
    NumPy or JAX), a path of a `.safetensors` or `.pt` file, or the module itself. `prefix` says where in a larger
    state_dict the net is: "encoder.lstm" for "encoder.lstm.weight_ih_l0"; what does not begin so is passed over.
    A state_dict does not say everything: `nonlinearity` is "tanh" or "relu" of an `nn.RNN`; `kind`, one of "rnn",
    "lstm", "gru", is read from the shapes where it is not given. `dtype` casts; else it stays what theirs is.

    One layer becomes `elman`, `lstm` or `gru(reset="after")`, two directions a `bidirectional` of two such, several
    layers a `stack`, or a `chain` of bidirectional ones with a tuple of parameters. Gates are in PyTorch's order here;
    matrices are transposed, U [D, 4H] of weight_ih [4H, D]; the two biases, which only ever are added up, are one (of
    a GRU that of the candidate's product stays, c_n). h_n of layer n is `state[n]`, of an LSTM `state[n].h`.
    Arrays are time-major here whatever `batch_first` was; dropout between layers is not taken over.
    Raises: ValueError, naming the tensor, for one that is missing, of another shape or dtype, or left over, and for
    what `load_safetensors` and `load_pytorch` refuse.

    >>> import jaxrnn as rnn
    >>> shapes = {"weight_ih_l0": (12, 5), "weight_hh_l0": (12, 4), "bias_ih_l0": (12,), "bias_hh_l0": (12,)}
    >>> net, params = from_pytorch({name: np.ones(shape, "float32") for name, shape in shapes.items()})
    >>> net == rnn.gru(4), rnn.unroll(net, params, jnp.ones((7, 2, 5)))[1].shape
    (True, (7, 2, 4))
    """
    if isinstance(source, (str, os.PathLike)):
        source = load("from_pytorch", source)
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    if callable(getattr(source, "state_dict", None)):
        kind, nonlinearity = _said_by(source, prefix, kind, nonlinearity)
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            f"from_pytorch: source should be a state_dict, a path or a torch.nn module, got a {type(source).__name__}"
        )
    checks.one_of("from_pytorch", "kind", kind, (None, *GATES))
    checks.one_of("from_pytorch", "nonlinearity", nonlinearity, tuple(ACTIVATIONS))
    tensors = Tensors("from_pytorch", {str(name): t for name, t in source.items()}, _REMEDY, prefix, dtype)
    names = _Names.found(tensors)
    if names is None:
        raise ValueError(f"from_pytorch: {_nothing_there(source, prefix)}; {_REMEDY}")
    sizes = _Sizes.read(tensors, names, kind or _kind(tensors, names.first))
    layers = [
        [_direction(tensors, names, sizes, sizes.inputs(n), suffix, ACTIVATIONS[nonlinearity]) for suffix in suffixes]
        for n, suffixes in enumerate(names.suffixes())
    ]
    tensors.finish(f"a torch.nn net of kind {sizes.kind!r} of {len(layers)} layers")
    return one_upon_another([both_ways(*sides) if len(sides) == 2 else sides[0] for sides in layers])


def _said_by(module: Any, prefix: str, kind: str | None, nonlinearity: str) -> tuple[str | None, str]:
    """What a module says of itself that its state_dict does not."""
    for name in filter(None, prefix.split(".")):
        module = getattr(module, name, None)
    mode = getattr(module, "mode", None)  # "LSTM", "GRU", "RNN_TANH", "RNN_RELU"
    if isinstance(mode, str):
        return kind or mode.lower().partition("_")[0], "relu" if mode == "RNN_RELU" else "tanh"
    return kind, getattr(module, "nonlinearity", nonlinearity)


class _Names(NamedTuple):
    """What the names of a net's tensors say: "weight_ih_l0", "weight_ih_l0_reverse"; of a single cell "weight_ih"."""

    layers: int
    bidirectional: bool
    bias: bool
    projection: bool
    is_cell: bool

    @classmethod
    def found(cls, tensors: Tensors) -> _Names | None:
        matches = [re.fullmatch(r"(weight|bias)_(ih|hh|hr)(?:_l(\d{1,6})(_reverse)?)?", name) for name in tensors.rest]
        parts = [match.groups() for match in matches if match]
        if not parts:
            return None
        numbers = [int(layer) for _, _, layer, _ in parts if layer]
        return cls(
            layers=max(numbers, default=0) + 1,
            bidirectional=any(reverse for *_, reverse in parts),
            bias=any(what == "bias" for what, *_ in parts),
            projection=any(which == "hr" for _, which, *_ in parts),
            is_cell=not numbers,
        )

    @property
    def first(self) -> str:
        return "" if self.is_cell else "_l0"

    def suffixes(self) -> Iterator[list[str]]:
        """Of each layer's directions."""
        for layer in range(self.layers):
            forward = "" if self.is_cell else f"_l{layer}"
            yield [forward, forward + "_reverse"] if self.bidirectional else [forward]


def _nothing_there(source: Mapping[str, Any], prefix: str) -> str:
    where = f"under the prefix {prefix.removesuffix('.')!r}" if prefix else "at its top"
    found = sorted({m[1] for m in (re.fullmatch(r"(.*?)\.?weight_hh(_l0)?", str(name)) for name in source) if m})
    others = f", but under {', '.join(map(shown, found[:5]))}" if found else ", nor anywhere else in it"
    return f"source has no recurrent net {where}{others}"


def _kind(tensors: Tensors, suffix: str) -> str:
    """By how many gates there are to a unit; only LSTMs have projections."""
    if "weight_hr" + suffix in tensors:
        return "lstm"
    rows, columns = tensors.shape("weight_hh" + suffix, "[G*H, H]")
    for kind, gates in GATES.items():
        if rows == gates * columns:
            return kind
    raise ValueError(
        f"from_pytorch: tensor {tensors.prefix + 'weight_hh' + suffix!r} should be [G*H, H] with G = 1 (RNN), 3 (GRU) "
        f"or 4 (LSTM), got [{rows}, {columns}]; {_REMEDY}"
    )


class _Sizes(NamedTuple):
    kind: str
    units: int  # H
    outputs: int  # P, or H
    features: int  # D, of the first layer
    directions: int

    @classmethod
    def read(cls, tensors: Tensors, names: _Names, kind: str) -> _Sizes:
        """Off the first layer; the others must be as it is."""
        features = tensors.shape("weight_ih" + names.first, f"{_rows(kind)}, D]")[1]
        outputs = tensors.shape("weight_hh" + names.first, f"{_rows(kind)}, {'P' if names.projection else 'H'}]")[1]
        units = tensors.shape("weight_hr" + names.first, "[P, H]")[1] if names.projection else outputs
        return cls(kind, units, outputs, features, 2 if names.bidirectional else 1)

    def inputs(self, layer: int) -> int:
        return self.features if layer == 0 else self.outputs * self.directions


def _rows(kind: str) -> str:
    return f"[{GATES[kind]}H" if GATES[kind] > 1 else "[H"


def _direction(tensors: Tensors, names: _Names, sizes: _Sizes, features: int, suffix: str, activation: Any) -> Imported:
    """One direction of one layer, in our cells' terms."""
    rows, letters = GATES[sizes.kind] * sizes.units, _rows(sizes.kind)
    take = lambda name, sizes, shape: tensors.take(name + suffix, sizes, shape)
    params = {
        "U": take("weight_ih", f"{letters}, D]", (rows, features)).T,
        "W": take("weight_hh", f"{letters}, {'P' if names.projection else 'H'}]", (rows, sizes.outputs)).T,
    }
    if names.projection:
        params["R"] = take("weight_hr", "[P, H]", (sizes.outputs, sizes.units)).T
    if names.bias:
        b_x, b_h = (take(name, f"{letters}]", (rows,)) for name in ("bias_ih", "bias_hh"))
        params |= _biases(sizes, b_x, b_h)
    return Imported(_cell(names, sizes, params["U"].dtype, activation), to_jax(params))


def _biases(sizes: _Sizes, b_x: Array, b_h: Array) -> dict[str, Array]:
    """b, the sum; of a GRU the second one's last third stands within the product with the reset gate."""
    if sizes.kind != "gru":
        return {"b": added(b_x, b_h)}
    gates = 2 * sizes.units
    return {"b": np.concatenate([added(b_x[:gates], b_h[:gates]), b_x[gates:]]), "c_n": b_h[gates:]}


def _cell(names: _Names, sizes: _Sizes, dtype: Any, activation: Any) -> Cell:
    if sizes.kind == "rnn":
        return elman(sizes.units, activation=activation, bias=names.bias, dtype=dtype)
    if sizes.kind == "gru":
        return gru(sizes.units, bias=names.bias, dtype=dtype)
    projection = sizes.outputs if names.projection else None
    return lstm(sizes.units, projection=projection, bias=names.bias, dtype=dtype)


def to_pytorch(
    net: Cell | SequenceLayer, params: Params, *, prefix: str = "", is_cell: bool = False, tensors: bool = True
) -> dict[str, Any]:
    """The state_dict of the PyTorch net that computes what this one does: `from_pytorch` the other way round.

        torch_module.load_state_dict(to_pytorch(net, params))           strictly: nothing missing, nothing left over

    for `elman` (tanh or relu), `lstm` (also with a projection) and `gru(reset="after")`, one or several alike as
    `stack`, and `bidirectional` ones as `chain`. Our one bias becomes `bias_ih`, and `bias_hh` is zero but for c_n.
    `prefix` is put in front of the names; `is_cell` gives those of `torch.nn.LSTMCell` and the like, without "_l0".
    `tensors=False`: arrays of NumPy in place of tensors, for `save_safetensors`; then PyTorch is not needed.
    Raises: ValueError for a net that PyTorch has no module for (peepholes, reset before the product, a learned first
    state, another activation or merge, layers of unequal size), and for parameters that are not the net's;
    ImportError without PyTorch.
    """
    layers = taken_apart("to_pytorch", net, params)
    _check_alike(layers)
    if is_cell and (len(layers) > 1 or len(layers[0].parts) > 1):
        raise ValueError(
            f"to_pytorch: is_cell is for one layer of one direction, got {len(layers)} layers; leave it out"
        )
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    arrays: dict[str, Array] = {}
    for n, layer in enumerate(layers):
        for part, reverse in zip(layer.parts, ("", "_reverse"), strict=False):
            suffix = "" if is_cell else f"_l{n}{reverse}"
            arrays |= {f"{prefix}{name}{suffix}": np.array(a, order="C") for name, a in _theirs(part).items()}
    return {name: _tensor(array) for name, array in arrays.items()} if tensors else arrays


def _theirs(part: Part) -> dict[str, Array]:
    """One direction of one layer, by PyTorch's names."""
    params = part.params
    arrays = {"weight_ih": params["U"].T, "weight_hh": params["W"].T}
    if part.cell.bias:
        arrays |= {"bias_ih": params["b"], "bias_hh": np.zeros_like(params["b"])}
    if "c_n" in params:
        arrays["bias_hh"][-len(params["c_n"]) :] = params["c_n"]
    if "R" in params:
        arrays["weight_hr"] = params["R"].T
    return arrays


def _check_alike(layers: Sequence[Layer]) -> None:
    """PyTorch's nets are layers of one kind and size."""
    first = layers[0].parts[0]
    directions = len(layers[0].parts)
    for n, layer in enumerate(layers):
        for part in layer.parts:
            _check_has_counterpart(part)
            inputs = first.features if n == 0 else _outputs(first) * directions
            if part.cell != first.cell or part.features != inputs or len(layer.parts) != directions:
                raise ValueError(
                    f"to_pytorch: {part.path} is of {part.cell} of {part.features} features, {first.path} of "
                    f"{first.cell} of {first.features}; a torch.nn net has layers of one kind, so convert "
                    "each by itself"
                )
        if directions == 2 and layer.merge is not concatenate:
            raise ValueError("to_pytorch: two directions should be merged by concatenation, as PyTorch does it")


def _outputs(part: Part) -> int:
    return part.cell.outputs if isinstance(part.cell, LSTM) else part.cell.size


def _check_has_counterpart(part: Part) -> None:
    refuse_peepholes("to_pytorch", part)
    if isinstance(part.cell, GRU) and part.cell.reset == "before":
        raise ValueError(
            f"to_pytorch: {part.path} is a gru that resets before the product, PyTorch's after it; use "
            "gru(reset='after')"
        )
    if isinstance(part.cell, Elman) and part.cell.activation not in (*TANH, jax.nn.relu):
        raise ValueError(f"to_pytorch: {part.path} should have activation tanh or relu, got {part.cell.activation!r}")


def _tensor(array: Array) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("to_pytorch: needs PyTorch; pip install torch, or pass tensors=False for arrays") from error
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
