"""`load`: a saved model as a cell again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from jaxrnn.serving import weights
from jaxrnn.serving.folders import ModelError, damaged, read
from jaxrnn.serving.layouts import Layout, layout_from
from jaxrnn.serving.models import Model, zeros
from jaxrnn.serving.programs import Program, Signature
from jaxrnn.serving.saving import check_installed
from jaxrnn.training.files import reason

_SYMPTOMS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of JSON that `export` did not write


def load(path: str | os.PathLike[str], *, classes: Sequence[type] = ()) -> Model:
    """Reads a folder that `export` wrote.

        model = load("net")
        state, ys = unroll(model.cell, model.params, xs)

    Trees are as they were. A NamedTuple of jaxrnn's is itself, and so is one of `classes`; another becomes a new one
    with its name and fields, and so does a dataclass. Nothing is unpickled and nothing imported. What a program does
    when it runs is up to who wrote it, within XLA.
    Cost: every file is read once and checked against its digest; programs are compiled when they are first called.
    Raises: ModelError for what is no saved model, is damaged, or is of another version; for one that this JAX cannot
    read, or which needs 64-bit mode; ModuleNotFoundError where `flatbuffers` is not installed.
    """
    check_installed()
    place = Path(path).expanduser().absolute()
    about, files = read(place)
    try:
        layouts = {name: layout_from(tree, classes) for name, tree in about["trees"].items()}
        signatures = {n: Signature(tuple(s["takes"]), tuple(s["gives"])) for n, s in about["programs"].items()}
        batch = [size if isinstance(size, str) else int(size) for size in about["batch"]]
        by, params = str(about["jax"]), layouts["params"]
        missing = ({f"{name}.jax" for name in signatures} | {"weights.npz"}) - files.keys()
    except _SYMPTOMS as error:
        raise damaged(place, "its file about.json is not one that export writes") from error
    for name in sorted(missing):
        raise damaged(place, f"its file {name} is missing")
    _check_64_bit(place, layouts)
    arrays = _weights(place, files["weights.npz"], params)
    raw = {name: _deserialized(place, name, files[f"{name}.jax"], by) for name in signatures}
    try:
        programs = {name: Program(name, raw[name], signatures[name], layouts, batch) for name in signatures}
    except _SYMPTOMS as error:
        raise damaged(place, "its programs are not those of its file about.json") from error
    return Model(place, batch, about["config"], layouts, programs, weights.from_stored(params, arrays), arrays)


def _check_64_bit(place: Path, layouts: Mapping[str, Layout]) -> None:
    for name, each in layouts.items():
        for leaf in each.leaves:
            if leaf.key is None and jax.dtypes.canonicalize_dtype(leaf.dtype) != jnp.dtype(leaf.dtype):
                raise ModelError(
                    f"the saved model {place} has {leaf} in its {name}, which needs 64-bit mode; "
                    "call jax.config.update('jax_enable_x64', True) first"
                )


def _weights(place: Path, content: bytes, params: Layout) -> dict[str, jax.Array]:
    try:
        found = weights.from_bytes(content)
    except Exception as error:  # noqa: BLE001  zipfile and numpy raise whatever their layers raise
        raise damaged(place, f"its file weights.npz is no plain .npz: {reason(error)}") from error
    wanted = jax.eval_shape(lambda: weights.stored(params, zeros(params, {})))
    for name, leaf in wanted.items():
        if name not in found or (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
            got = f"{found[name].dtype}{list(found[name].shape)}" if name in found else "missing"
            raise damaged(place, f"in weights.npz {name} should be {leaf.dtype}{list(leaf.shape)} and is {got}")
    return {name: jnp.asarray(found[name]) for name in wanted}


def _deserialized(place: Path, name: str, content: bytes, by: str) -> export.Exported:
    try:
        found = export.deserialize(bytearray(content))
        found.mlir_module()  # read here, or a StableHLO of later years would be found out at the first step
        return found
    except Exception as error:  # noqa: BLE001  struct.error, and what else flatbuffers raise
        raise ModelError(
            f"the program {name}.jax of the saved model {place}, written by JAX {by}, cannot be read by JAX "
            f"{jax.__version__} ({reason(error)}); use a JAX as new as the one that wrote it, or export it again"
        ) from error
