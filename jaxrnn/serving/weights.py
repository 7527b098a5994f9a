"""A model's weights in a file that numpy alone can read: an .npz, its arrays by the names of the leaves.

What numpy has no name for is kept in a type that holds the same values: bfloat16 in float32, int4 in int8.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import trees
from jaxrnn.serving.layouts import Layout, with_key
from jaxrnn.types import Params

Stored = dict[str, Any]


def stored_dtype(dtype: Any) -> Any:
    """The type in which numpy can keep these values."""
    if np.dtype(dtype).isbuiltin == 1:  # 2: of another package, as bfloat16
        return np.dtype(dtype)
    return np.dtype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else np.int8)


def stored(layout: Layout, params: Params) -> Stored:
    """The weights by name, as the file has them and as programs take them; differentiable."""
    plain = map(trees.without_key, jax.tree.leaves(params))
    return {name: _as(a, stored_dtype(a.dtype)) for name, a in zip(layout.names, plain, strict=True)}


def from_stored(layout: Layout, weights: Mapping[str, Any]) -> Params:
    """The inverse of `stored`."""
    leaves = [
        with_key(a, leaf.key) if leaf.key is not None else _as(a, jnp.dtype(leaf.dtype))
        for leaf, a in ((leaf, weights[leaf.name]) for leaf in layout.leaves)
    ]
    return jax.tree.unflatten(layout.structure, leaves)


def _as(array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else array.astype(dtype)


def to_bytes(weights: Mapping[str, Any]) -> bytes:
    """An .npz file; the same weights give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:  # not np.savez: a weight may be called "file"
        for name, array in weights.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return content.getvalue()


def from_bytes(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The inverse of `to_bytes`. Nothing is unpickled; nothing is unpacked: few bytes cannot become large arrays.

    Raises: whatever zipfile and numpy raise for what is no such file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
            raise ValueError("it is compressed")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
