"""From and to Haiku: the parameters of `hk.LSTM`, `hk.GRU` and `hk.VanillaRNN`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.cells.gated import GRU, LSTM, gru, lstm
from jaxrnn.cells.simple import elman
from jaxrnn.interop.nets import Imported, Part, only_part
from jaxrnn.interop.tensors import Array, Tensors, added, flattened, reordered, to_jax
from jaxrnn.types import Cell, Params

_MARKS = {"vanilla_rnn": "linear_1/w", "lstm": "linear/w", "gru": "w_i"}  # by what each is known
_REMEDY = "hand over the parameters of a whole hk.LSTM, hk.GRU or hk.VanillaRNN, and its name as prefix"


def from_haiku(params: Mapping[str, Any], prefix: str, *, kind: str | None = None, dtype: Any = None) -> Imported:
    """A cell that computes what Haiku's does, from its parameters.

        net, ours = from_haiku(params, "lstm")              y, state = hk.LSTM(H)(x, state), called "lstm"

    for `hk.LSTM`, `hk.GRU` and `hk.VanillaRNN`. `params` is what `hk.transform`'s init gives, {"lstm/linear": {"w":
    ..., "b": ...}}; `prefix` is the name of the module in question within it, "encoder/~/lstm" say.

    Haiku's LSTM is `lstm`: its one matrix [D + H, 4H] is cut in two, its gates i, g, f, o come into our order, and
    the 1 that it adds to its forget gate becomes part of the bias. Its GRU is `gru(reset="before")`: its gate z says
    how much is new, ours how much is old, so what belongs to it changes its sign. `VanillaRNN` is `elman` with relu.
    Which of them it is, its names tell; `kind`, one of "lstm", "gru", "vanilla_rnn", says what they must.
    Raises: ValueError, naming the array, for one that is missing, of another shape or dtype, or left over.
    """
    prefix = f"{prefix.removesuffix('/')}/"
    flat = flattened("from_haiku", params)
    tensors = Tensors("from_haiku", flat, _REMEDY, prefix, dtype)
    kind = kind or next((kind for kind, mark in _MARKS.items() if mark in tensors), None)
    if kind is None:
        marks = (re.fullmatch(r"(.*)/(linear/w|w_i)", name) for name in flat)
        found = sorted({mark[1] for mark in marks if mark})
        others = f"there is {', '.join(map(repr, found[:5]))}" if found else "nor is there one elsewhere in them"
        raise ValueError(
            f"from_haiku: params have no recurrent core under the prefix {prefix[:-1]!r}; {others}; {_REMEDY}"
        )
    checks.one_of("from_haiku", "kind", kind, tuple(_MARKS))
    net, ours = {"lstm": _lstm, "gru": _gru, "vanilla_rnn": _vanilla}[kind](tensors)
    tensors.finish(f"the {kind} {prefix[:-1]!r}")
    return Imported(net, to_jax(ours))


def _lstm(tensors: Tensors) -> tuple[Cell, Any]:
    rows, columns = tensors.shape("linear/w", "[D+H, 4H]")
    size = columns // 4
    matrix = tensors.take("linear/w", "[D+H, 4H]", (max(rows, size + 1), 4 * size))
    bias = tensors.take("linear/b", "[4H]", (4 * size,))
    U, W = (reordered(part, "igfo", "ifgo") for part in np.split(matrix, [rows - size]))
    b = reordered(bias, "igfo", "ifgo")
    return lstm(size, dtype=U.dtype), {"U": U, "W": W, "b": _with_forget(b, 1)}


def _with_forget(bias: Array, added_to_it: int) -> Array:
    """b [4H] with a number added to the forget gate's."""
    forget = np.arange(len(bias)) // (len(bias) // 4) == 1
    return added(bias, (added_to_it * forget).astype(bias.dtype))


def _gru(tensors: Tensors) -> tuple[Cell, Any]:
    features, columns = tensors.shape("w_i", "[D, 3H]")
    size = columns // 3
    U = tensors.take("w_i", "[D, 3H]", (features, 3 * size))
    W = tensors.take("w_h", "[H, 3H]", (size, 3 * size))
    b = tensors.take("b", "[3H]", (3 * size,))
    U, W, b = (_complement(array, "zrn", "rzn") for array in (U, W, b))
    return gru(size, reset="before", dtype=U.dtype), {"U": U, "W": W[:, : 2 * size], "W_n": W[:, 2 * size :], "b": b}


def _complement(array: Array, have: str, want: str) -> Array:
    """The gates in another order, and z for 1 - z: s(-a) = 1 - s(a)."""
    signs = np.repeat([-1 if gate == "z" else 1 for gate in want], array.shape[-1] // 3)
    return reordered(array, have, want) * signs.astype(array.dtype)


def _vanilla(tensors: Tensors) -> tuple[Cell, Any]:
    features, size = tensors.shape("linear/w", "[D, H]")
    ours = {
        "U": tensors.take("linear/w", "[D, H]", (features, size)),
        "W": tensors.take("linear_1/w", "[H, H]", (size, size)),
        "b": tensors.take("linear/b", "[H]", (size,)),
    }
    if "linear_1/b" in tensors:
        ours["b"] = added(ours["b"], tensors.take("linear_1/b", "[H]", (size,)))
    return elman(size, activation=jax.nn.relu, dtype=ours["U"].dtype), ours


def to_haiku(net: Cell, params: Params, prefix: str) -> dict[str, dict[str, Array]]:
    """The parameters with which the Haiku core called `prefix` computes what this cell does.

    `lstm` for `hk.LSTM`, `gru(reset="before")` for `hk.GRU`, `elman` with relu for
    `hk.VanillaRNN(H, double_bias=False)`: `from_haiku` the other way round, {"lstm/linear": {"w": ..., "b": ...}}.
    Where the cell has no bias, theirs is one that changes nothing.
    Raises: ValueError for a net that Haiku has no core for, and for parameters that are not the net's.
    """
    part = only_part("to_haiku", net, params)
    prefix = prefix.removesuffix("/")
    bias = part.params.get("b", np.zeros(part.params["U"].shape[1], part.params["U"].dtype))
    if isinstance(part.cell, LSTM):
        whole = np.concatenate([part.params["U"], part.params["W"]])
        w, b = (reordered(array, "ifgo", "igfo") for array in (whole, _with_forget(bias, -1)))
        return {f"{prefix}/linear": {"w": w, "b": b}}
    if isinstance(part.cell, GRU):
        return {prefix: _their_gru(part, bias)}
    if part.cell.activation is not jax.nn.relu:
        raise ValueError(f"to_haiku: the activation should be relu, as hk.VanillaRNN's, got {part.cell.activation!r}")
    return {
        f"{prefix}/linear": {"w": part.params["U"], "b": bias},
        f"{prefix}/linear_1": {"w": part.params["W"]},
    }


def _their_gru(part: Part, bias: Array) -> dict[str, Array]:
    if part.cell.reset != "before":
        raise ValueError("to_haiku: the gru should reset before the product, as hk.GRU does; use gru(reset='before')")
    W = np.concatenate([part.params["W"], part.params["W_n"]], axis=-1)
    U, W, b = (reordered(_complement(array, "rzn", "rzn"), "rzn", "zrn") for array in (part.params["U"], W, bias))
    return {"w_i": U, "w_h": W, "b": b}
