"""From and to Flax: the parameters of Linen's RNN cells, and NNX's RNN cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from jaxrnn.cells.gated import GRU, LSTM, gru, lstm
from jaxrnn.cells.simple import elman
from jaxrnn.interop.nets import TANH, Imported, Part, only_part
from jaxrnn.interop.tensors import Array, Tensors, flattened, to_jax
from jaxrnn.types import Cell, Params

_LINEN = "hand over the parameters of one nn.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, such as params['cell']"
_NNX = "hand over a whole nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell"


def from_flax(params: Mapping[str, Any], *, activation: Any = jnp.tanh, dtype: Any = None) -> Imported:
    """A cell that computes what a `flax.linen` RNN cell does, from its parameters.

        net, ours = from_flax(variables["params"])      carry, y = nn.LSTMCell(H).apply(variables, carry, x)

    for `nn.LSTMCell` and `OptimizedLSTMCell` ({"ii": {"kernel": ...}, ...}), which is `lstm`, `nn.GRUCell`, which is
    `gru(reset="after")`, and `nn.SimpleCell`, which is `elman(activation=activation)`. The gates' small matrices stand
    side by side here. Flax's other options, such as `gate_fn`, do not show in parameters: where they are not the
    default, `recurrent(module)` keeps the module as it is.
    Raises: ValueError, naming the array, for one that is missing, of another shape or dtype, or left over.
    """
    tensors = Tensors("from_flax", flattened("from_flax", params), _LINEN, dtype=dtype)
    if "hf/kernel" in tensors and "hi/kernel" in tensors:
        kernels, biases = ("ifgo", "i"), "h"
    elif "hr/kernel" in tensors:
        kernels, biases = ("rzn", "i"), "i"
    elif "h/kernel" in tensors:
        return _simple(tensors, "i", "h", activation)
    else:
        raise ValueError(f"from_flax: params should be those of a known RNN cell, got {sorted(params)[:8]}; {_LINEN}")
    gates = kernels[0]
    features, size = tensors.shape(f"i{gates[0]}/kernel", "[D, H]")
    ours = {
        "U": _side_by_side(tensors, [f"i{gate}/kernel" for gate in gates], "[D, H]", (features, size)),
        "W": _side_by_side(tensors, [f"h{gate}/kernel" for gate in gates], "[H, H]", (size, size)),
        "b": _side_by_side(tensors, [f"{biases}{gate}/bias" for gate in gates], "[H]", (size,)),
    }
    if gates == "rzn":
        ours["c_n"] = tensors.take("hn/bias", "[H]", (size,))
    tensors.finish("such a cell")
    return Imported((lstm if gates == "ifgo" else gru)(size, dtype=ours["U"].dtype), to_jax(ours))


def _side_by_side(tensors: Tensors, names: list[str], letters: str, shape: tuple[int, ...]) -> Array:
    return np.concatenate([tensors.take(name, letters, shape) for name in names], axis=-1)


def _simple(tensors: Tensors, of_x: str, of_h: str, activation: Any) -> Imported:
    features, size = tensors.shape(f"{of_x}/kernel", "[D, H]")
    ours = {
        "U": tensors.take(f"{of_x}/kernel", "[D, H]", (features, size)),
        "W": tensors.take(f"{of_h}/kernel", "[H, H]", (size, size)),
        "b": tensors.take(f"{of_x}/bias", "[H]", (size,)),
    }
    tensors.finish("a SimpleCell")
    return Imported(elman(size, activation=activation, dtype=ours["U"].dtype), to_jax(ours))


def to_flax(net: Cell, params: Params) -> dict[str, dict[str, Array]]:
    """The parameters with which a `flax.linen` cell computes what this one does: `from_flax` the other way round.

    `lstm` for `nn.LSTMCell(H)` and `OptimizedLSTMCell(H)`, `gru(reset="after")` for `nn.GRUCell(H)`, `elman` for
    `nn.SimpleCell(H, activation_fn=...)`. Where the cell has no bias, theirs is zero.
    Raises: ValueError for a net that Flax has no cell for, and for parameters that are not the net's.
    """
    part = _with_biases("to_flax", net, params)
    ours = part.params
    if not isinstance(part.cell, (LSTM, GRU)):
        return {"i": {"kernel": ours["U"], "bias": ours["b"]}, "h": {"kernel": ours["W"]}}
    gates, biases = ("ifgo", "h") if isinstance(part.cell, LSTM) else ("rzn", "i")
    theirs: dict[str, dict[str, Array]] = {}
    for side, name in (("i", "U"), ("h", "W")):
        kernels = np.split(ours[name], len(gates), axis=-1)
        theirs |= {f"{side}{gate}": {"kernel": kernel} for gate, kernel in zip(gates, kernels, strict=True)}
    for gate, bias in zip(gates, np.split(ours["b"], len(gates)), strict=True):
        theirs[f"{biases}{gate}"]["bias"] = bias
    if isinstance(part.cell, GRU):
        theirs["hn"]["bias"] = ours["c_n"]
    return theirs


def _with_biases(where: str, net: Cell, params: Params) -> Part:
    """The one cell, with biases of zero where it has none."""
    part = only_part(where, net, params)
    if isinstance(part.cell, GRU) and part.cell.reset == "before":
        raise ValueError(f"{where}: the gru should reset after the product, as Flax's does; use gru(reset='after')")
    zeros = np.zeros(part.params["U"].shape[1], part.params["U"].dtype)
    missing = {"b": zeros} | ({"c_n": zeros[: part.cell.size]} if isinstance(part.cell, GRU) else {})
    return part._replace(params=missing | part.params)


def from_nnx(module: nnx.Module, *, dtype: Any = None) -> Imported:
    """A cell that computes what a `flax.nnx` RNN cell does, from the weights in it.

        net, params = from_nnx(nnx.GRUCell(D, H, rngs=rngs))

    for `nnx.LSTMCell` and `OptimizedLSTMCell` (`lstm`), `GRUCell` (`gru(reset="after")`, whose c_n is 0: NNX has none)
    and `SimpleCell` (`elman`). `recurrent(module)` keeps any NNX cell as it is.
    Raises: TypeError for anything else; ValueError for options that ours have not (`gate_fn`, `residual`).
    """
    kinds = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
    if not isinstance(module, kinds):
        raise TypeError(f"from_nnx: module should be a known RNN cell of NNX, got {type(module).__name__}; {_NNX}")
    _check_options(module)
    params = nnx.to_flat_state(nnx.state(module, nnx.Param))
    arrays = {"/".join(map(str, path)): variable.get_value() for path, variable in params}
    tensors = Tensors("from_nnx", arrays, _NNX, dtype=dtype)
    features, size = module.in_features, module.hidden_features
    if isinstance(module, nnx.SimpleCell):
        return _simple(tensors, "dense_i", "dense_h", module.activation_fn)
    if isinstance(module, nnx.LSTMCell):
        ours = {
            "U": _side_by_side(tensors, [f"{n}/kernel" for n in ("ii", "if_", "ig", "io")], "[D, H]", (features, size)),
            "W": _side_by_side(tensors, [f"h{n}/kernel" for n in "ifgo"], "[H, H]", (size, size)),
            "b": _side_by_side(tensors, [f"h{n}/bias" for n in "ifgo"], "[H]", (size,)),
        }
    else:
        gates, biased = (3, "dense_i") if isinstance(module, nnx.GRUCell) else (4, "dense_h")
        ours = {
            "U": tensors.take("dense_i/kernel", f"[D, {gates}H]", (features, gates * size)),
            "W": tensors.take("dense_h/kernel", f"[H, {gates}H]", (size, gates * size)),
            "b": tensors.take(f"{biased}/bias", f"[{gates}H]", (gates * size,)),
        }
    tensors.finish(type(module).__name__)
    if isinstance(module, nnx.GRUCell):
        return Imported(gru(size, dtype=ours["U"].dtype), to_jax(ours | {"c_n": np.zeros_like(ours["b"][:size])}))
    return Imported(lstm(size, dtype=ours["U"].dtype), to_jax(ours))


def _check_options(module: Any) -> None:
    kind = type(module).__name__
    if getattr(module, "residual", False):
        raise ValueError(f"from_nnx: {kind} has residual=True, which ours has not; use recurrent(module)")
    if not isinstance(module, nnx.SimpleCell) and (
        module.gate_fn is not nnx.sigmoid or module.activation_fn not in (*TANH, nnx.tanh)
    ):
        raise ValueError(f"from_nnx: {kind} should have the gates sigmoid and tanh, as ours has; use recurrent(module)")


def to_nnx(net: Cell, params: Params) -> Any:
    """The `flax.nnx` cell that computes what this one does: `from_nnx` the other way round.

    An `nnx.OptimizedLSTMCell` for `lstm`, a `GRUCell` for `gru(reset="after")` with c_n = 0, a `SimpleCell` for
    `elman`.
    Raises: ValueError for a net that NNX has no cell for, and for parameters that are not the net's.
    """
    part = _with_biases("to_nnx", net, params)
    ours, size = part.params, part.cell.size
    if isinstance(part.cell, GRU) and np.any(ours["c_n"]):
        raise ValueError(
            "to_nnx: params['c_n'] should be 0, as nnx.GRUCell has no such bias; use to_flax, or keep it at 0"
        )
    options: dict[str, Any] = {"activation_fn": part.cell.activation} if not isinstance(part.cell, (LSTM, GRU)) else {}
    kinds: dict[Any, Any] = {LSTM: nnx.OptimizedLSTMCell, GRU: nnx.GRUCell}
    kind = kinds.get(type(part.cell), nnx.SimpleCell)
    biased = "dense_h" if isinstance(part.cell, LSTM) else "dense_i"
    theirs = {("dense_i", "kernel"): ours["U"], ("dense_h", "kernel"): ours["W"], (biased, "bias"): ours["b"]}
    # Its first weights are thrown away; orthogonal ones could not be made in 16 bits.
    zeros = nnx.initializers.zeros_init()
    options |= {"recurrent_kernel_init": zeros, "param_dtype": ours["U"].dtype, "dtype": ours["U"].dtype}
    graph, _ = nnx.split(kind(part.features, size, **options, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, unflatten_dict({path: jnp.asarray(array) for path, array in theirs.items()}))
