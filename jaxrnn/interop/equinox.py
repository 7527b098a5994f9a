"""From and to Equinox: `eqx.nn.LSTMCell` and `eqx.nn.GRUCell`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells import equinox_modules
from jaxrnn.cells.gated import GRU, LSTM, gru, lstm
from jaxrnn.interop.nets import Imported, only_part
from jaxrnn.interop.tensors import Tensors, to_jax
from jaxrnn.types import Cell, Params

_REMEDY = "hand over a whole eqx.nn.LSTMCell or eqx.nn.GRUCell"


def from_equinox(module: Any, *, dtype: Any = None) -> Imported:
    """A cell that computes what an `eqx.nn.LSTMCell` or `eqx.nn.GRUCell` does, from its weights.

        net, params = from_equinox(module)              state = module(x, state)

    They are `lstm` and `gru(reset="after")` with the same gates, transposed: U [D, 4H] of weight_ih [4H, D].
    `recurrent(module)` keeps the module as it is; ours takes any batch in one product.
    Raises: TypeError for anything else; ValueError for weights of other shapes than the module's sizes say.
    """
    if not equinox_modules.is_cell(module):
        raise TypeError(f"from_equinox: module should be an eqx.nn.LSTMCell or GRUCell, got {type(module).__name__}")
    is_lstm = hasattr(module, "bias") and not hasattr(module, "bias_n")
    gates, size = 4 if is_lstm else 3, module.hidden_size
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    arrays = {name: getattr(module, name) for name in names if getattr(module, name, None) is not None}
    tensors = Tensors("from_equinox", arrays, _REMEDY, dtype=dtype)
    params = {
        "U": tensors.take("weight_ih", f"[{gates}H, D]", (gates * size, module.input_size)).T,
        "W": tensors.take("weight_hh", f"[{gates}H, H]", (gates * size, size)).T,
    }
    if module.use_bias:
        params["b"] = tensors.take("bias", f"[{gates}H]", (gates * size,))
    if module.use_bias and not is_lstm:
        params["c_n"] = tensors.take("bias_n", "[H]", (size,))
    tensors.finish(type(module).__name__)
    make = lstm if is_lstm else gru
    return Imported(make(size, bias=module.use_bias, dtype=params["U"].dtype), to_jax(params))


def to_equinox(net: Cell, params: Params) -> Any:
    """The `eqx.nn.LSTMCell` or `eqx.nn.GRUCell` that computes what this `lstm` or `gru(reset="after")` does.

    Raises: ValueError for a net that Equinox has no cell for, and for parameters that are not the net's; ImportError
    without Equinox.
    """
    try:
        import equinox
    except ImportError as error:
        raise ImportError("to_equinox: needs the package equinox; pip install equinox") from error
    part = only_part("to_equinox", net, params)
    if not isinstance(part.cell, (LSTM, GRU)) or getattr(part.cell, "reset", "after") != "after":
        raise ValueError(f"to_equinox: net should be an lstm or a gru(reset='after'), got {part.cell}")
    kind = equinox.nn.LSTMCell if isinstance(part.cell, LSTM) else equinox.nn.GRUCell
    size, bias, dtype = part.cell.size, part.cell.bias, part.params["U"].dtype
    module = kind(part.features, size, use_bias=bias, dtype=dtype, key=jax.random.key(0))
    theirs = {"weight_ih": part.params["U"].T, "weight_hh": part.params["W"].T}
    theirs |= {name: part.params[ours] for name, ours in (("bias", "b"), ("bias_n", "c_n")) if ours in part.params}
    where = lambda module: [getattr(module, name) for name in theirs]
    return equinox.tree_at(where, module, list(map(jnp.asarray, theirs.values())))
