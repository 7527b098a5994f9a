"""A model that was loaded: its programs as the functions of a cell, or of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks, trees
from jaxrnn.serving.folders import ModelError
from jaxrnn.serving.layouts import Layout, LeafType
from jaxrnn.serving.programs import Program
from jaxrnn.types import Cell, Key, Params, Scan, SequenceLayer, State, Tree


def zeros(layout: Layout, batch: Mapping[str, tuple[int, ...]]) -> Tree:
    """A tree of zeros, its letters having these sizes."""

    def of(leaf: LeafType) -> jax.Array:
        shape = [n for size in leaf.shape for n in (batch[size] if isinstance(size, str) else (size,))]
        if leaf.key is not None:
            return jnp.broadcast_to(jax.random.key(0, impl=leaf.key), shape)
        return jnp.zeros(shape, leaf.dtype)

    return jax.tree.unflatten(layout.structure, list(map(of, layout.leaves)))


class Model:
    """A model that was loaded.

    cell        a Cell: to step, `unroll`, `generate`, or stack with others; it takes any batch dimensions if it was
                exported with a free batch of one letter
    layer       the sequence at once, a SequenceLayer, where steps were exported
    params      the parameters, in the trees that they had; `cell.init` gives them too
    config      what `export` was told to keep
    programs    what is called without jaxrnn, by name, on dicts of arrays: programs["step"](weights, state, x)
    weights     what they take first
    """

    def __init__(
        self,
        path: Path,
        batch: Sequence[int | str],
        config: dict[str, Any],
        layouts: Mapping[str, Layout],
        programs: Mapping[str, Program],
        params: Params,
        arrays: dict[str, jax.Array],
    ) -> None:
        self.path, self._layouts, self._programs = path, layouts, programs
        self._batch, self.config = list(batch), config
        self.params, self.weights = params, arrays

    def __repr__(self) -> str:
        return f"<saved model {self.path}: {', '.join(self._programs)}; batch {self._batch}>"

    @property
    def programs(self) -> dict[str, Callable[..., Any]]:
        return {name: program.raw.call for name, program in self._programs.items()}

    @property
    def cell(self) -> Cell:
        if "step" not in self._programs:
            raise ModelError(f"the saved model {self.path} is a layer, which has no single step; use .layer")
        return Cell(self._init, self._initial_state, self._step, self._begin)

    @property
    def layer(self) -> SequenceLayer:
        if "unroll" not in self._programs:
            raise ModelError(
                f"the saved model {self.path} was exported without steps; use .cell, or export with steps='T'"
            )
        return SequenceLayer(self._init, self._apply, self._shortened)

    # The functions of the cell.

    def _init(self, key: Key, x: Tree) -> Params:
        del key, x
        return self.params

    def _begin(self, params: Params, key: Key) -> Params:
        return self._programs["begin"](params, key)[0] if "begin" in self._programs else params

    def _initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> State:
        x = zeros(self._layouts["x"], self._letters(tuple(batch_shape)))
        begun = jax.tree.structure(params) != self._layouts["params"].structure
        return self._programs["start_drawing" if begun and "begin" in self._programs else "start"](params, x)[0]

    def _letters(self, batch_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """What the letters of the batch stand for, where it has this shape."""
        if len(self._batch) == 1 and isinstance(self._batch[0], str):
            return {self._batch[0]: batch_shape}
        pairs = list(zip(self._batch, batch_shape, strict=False))
        if len(self._batch) != len(batch_shape) or any(isinstance(w, int) and w != n for w, n in pairs):
            raise ValueError(f"initial_state: the model was exported for a batch of {self._batch}, got {batch_shape}")
        return {w: (n,) for w, n in pairs if isinstance(w, str)}

    def _step(self, params: Params, state: State, x: Tree, *, key: Key | None = None) -> tuple[State, Tree]:
        if key is None or "step_drawing" not in self._programs:
            state, y = self._programs["step"](params, state, x)
        else:
            state, y = self._programs["step_drawing"](params, state, x, key)
        return state, y

    # The functions of the layer.

    def _apply(
        self,
        params: Params,
        xs: Tree,
        *,
        lengths: Any = None,
        resets: Any = None,
        key: Key | None = None,
        scan: Scan | None = None,
    ) -> tuple[State, Tree]:
        del scan  # the program has its own loop
        unroll = self._programs["unroll"]
        steps = checks.steps("unroll", xs)
        takes_lengths = "lengths" in unroll.signature.takes
        for name, given in (("resets", resets), ("key", key), ("lengths", None if takes_lengths else lengths)):
            if given is not None:
                raise ValueError(f"unroll: the saved model's program takes no {name}; leave it out, or unroll the cell")
        more = [self._full(xs, steps) if lengths is None else lengths] if takes_lengths else []
        if "start" not in self._programs:
            state, ys = unroll(params, xs, *more)
            return state, ys
        first = self._programs["start"](params, trees.zeros_of(trees.first_step(xs)))[0]
        state, ys = unroll(params, first, xs, *more)
        return state, ys

    def _full(self, xs: Tree, steps: int) -> jax.Array:
        """Lengths of sequences that have all steps."""
        batch = self._programs["unroll"].batch_of("xs", xs)
        return jnp.full(batch, steps, jnp.int32)

    def _shortened(self, lengths: jax.Array) -> jax.Array:
        if "shortened" not in self._programs:
            return lengths
        found: jax.Array = self._programs["shortened"](lengths)[0]
        return found
