"""`export`: a cell and its parameters as a folder that steps without jaxrnn."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks, meshes, trees
from jaxrnn.scans import scan as fissioned_scan
from jaxrnn.serving import folders, programs, weights
from jaxrnn.serving.functions import Sizes, functions_of
from jaxrnn.serving.layouts import layout
from jaxrnn.training.files import reason
from jaxrnn.types import Cell, Params, Scan, SequenceLayer, Tree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
Size = int | str


def export(
    model: Cell | SequenceLayer,
    params: Params,
    path: str | os.PathLike[str],
    x: Tree,
    *,
    batch: Size | Sequence[Size] = "B",
    steps: Size | None = None,
    lengths: bool = False,
    scan: Scan = fissioned_scan,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    vjp_order: int = 0,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder from which the model runs with jax and numpy alone, and returns its path.

        weights.npz    the weights by name, once: programs take them as an argument
        start.jax      (weights, x) -> state               the first state, of as many examples as x has
        step.jax       (weights, state, x) -> (state, y)   one step, without randomness
        unroll.jax     (weights, state, xs) -> (state, ys)    if `steps` are given; with `lengths` a fourth argument
        about.json     what these take and give, leaf by leaf; platforms; `config`, whatever it says; digests

    A program is StableHLO by `jax.export`: `jax.export.deserialize(bytearray(Path("step.jax").read_bytes())).call`.
    There a tree is a dict of arrays by name, a bare array is itself. `load` gives back a cell in the trees that
    it had. A cell that draws has more programs, with a key (begin, start_drawing, step_drawing), for `load`. A
    SequenceLayer has unroll.jax alone, (weights, xs) -> (state, ys).

    Shapes: x is one step's input of one example, without batch dimensions, or its type. `batch` and `steps` are
    letters, for sizes that are free, or numbers; `batch` several of them, or () for none. With a free batch of one
    letter `load` gives a cell that takes any batch dimensions.
    `platforms` are where it is to run: of "cpu", "cuda", "rocm", "tpu". `vjp_order` is how many times a program can
    be differentiated; each adds its size. `scan` runs the unroll.
    Limits: weights on this process's devices, a program for one of them. A program is read by JAX of at least the next
    half year, says JAX, and by older ones often not.
    Cost: a trace and a lowering of each program. The folder is complete or not there: it is put together beside its
    place and renamed.
    Raises: ModelError where it cannot be written or something is there (with `overwrite=True` a saved model is
    replaced, anything else is not); ValueError or TypeError for an x that the step does not take, sizes and
    platforms that are none, a config that is not JSON, a step that `jax.export` cannot write (such as one that
    calls back into Python), a call within `jit` or `jax.set_mesh`; ModuleNotFoundError where `flatbuffers` is not
    installed.
    """
    check_installed()
    checks.a_scan("export", "scan", scan)
    checks.one_of("export", "vjp_order", vjp_order, tuple(range(10)))
    for name in platforms:
        checks.one_of("export", "platforms", name, PLATFORMS)
    place = Path(path).expanduser().absolute()
    folders.check_free(place, overwrite)
    settings = _as_json(config or {})
    steps = "T" if steps is None and isinstance(model, SequenceLayer) else steps
    sizes = _sizes(batch, steps)
    _check_outside(params)
    params = jax.tree.map(_on_one_device, params)
    types, functions = functions_of(model, params, x, sizes, lengths, scan)
    layouts = {name: layout(tree, name) for name, tree in types.items()}
    files = {"weights.npz": weights.to_bytes(weights.stored(layouts["params"], params))}
    for name, (signature, fn) in functions.items():
        raw = _written(name, partial(programs.exported, fn, signature, types, layouts, tuple(platforms)))
        files[f"{name}.jax"] = bytes(_written(name, partial(raw.serialize, vjp_order=vjp_order)))
    about = {
        "batch": [batch] if isinstance(batch, (str, int)) else list(batch),
        "platforms": list(platforms),
        "jax": jax.__version__,
        "config": settings,
        "programs": {name: dataclasses.asdict(signature) for name, (signature, _) in functions.items()},
        "trees": {name: each.as_json for name, each in layouts.items()},
    }
    folders.write(place, files, about, overwrite)
    return place


def _check_outside(params: Params) -> None:
    if not checks.is_known(params):
        raise TypeError("export: params must be arrays, got tracers; call it outside of jit, grad and vmap")
    if meshes.on_mesh():
        raise ValueError("export: a program is for one device; call it outside of jax.set_mesh")


def _on_one_device(leaf: Any) -> jax.Array:
    """The array without the devices that it was spread over: a program for one."""
    array = jnp.asarray(np.asarray(trees.without_key(leaf)))
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if trees.is_key(leaf) else array


def check_installed() -> None:
    """Raises: ModuleNotFoundError where what `jax.export` writes and reads with is missing."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "a saved model is written and read by jax.export, which needs the package flatbuffers: "
            "pip install flatbuffers"
        )


def _as_json(config: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"export: config must be what JSON can hold ({error}); leave the rest out") from error


def _sizes(batch: Size | Sequence[Size], steps: Size | None) -> Sizes:
    """Numbers, and in place of letters JAX's own free sizes, all of one scope."""
    given = [batch] if isinstance(batch, (str, int)) else list(batch)
    every = given if steps is None else [*given, steps]
    for size in every:
        if isinstance(size, str) and not (size.isidentifier() and every.count(size) == 1):
            raise ValueError(f"export: each free size needs a letter of its own, such as 'B', got {every!r}")
        if not isinstance(size, str):
            checks.positive_int("export", "each size that is not a letter", size)
    dims = tuple(jax.export.symbolic_shape(", ".join(map(str, every)))) if every else ()
    return Sizes(dims, None) if steps is None else Sizes(dims[:-1], dims[-1])


def _written(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # noqa: BLE001  whatever lowering raises
        raise ValueError(
            f"export: the program {name!r} cannot be written ({reason(error)}); leave out what only this "
            "process can do, and where a free size is the trouble give a number for it"
        ) from error
