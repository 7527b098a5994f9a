"""What of a training lies where on a mesh of devices: batches and carry in parts, weights as they were placed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrnn import checks, meshes, trees
from jaxrnn.meshes import axes_of
from jaxrnn.training import processes
from jaxrnn.training.sharding import alongside, automatic, described, name_of, placed
from jaxrnn.training.step import Gradient, TrainState, TrainStep
from jaxrnn.types import Key, Params, State, Tree


class Part(NamedTuple):
    """Of every batch of B examples those from B * start // of up to B * stop // of."""

    start: int
    stop: int
    of: int

    def slice(self, where: str, examples: int) -> slice:
        """Raises: ValueError where so many examples cannot be divided."""
        if examples % self.of:
            raise ValueError(
                f"{where}: a batch of {examples} cannot be divided among {self.of} devices; "
                f"take a multiple of {self.of}, or fewer devices"
            )
        return slice(examples * self.start // self.of, examples * self.stop // self.of)


@runtime_checkable
class InParts(Protocol):
    """Batches that know how they are divided, such as `Streams` and `Bucketed`."""

    def part(self, part: Part) -> Any:
        """The same batches, of which only this part of the examples is read."""

    def specs(self, axis: str) -> Tree:
        """PartitionSpecs of a batch whose examples lie along this axis of a mesh, for leaves or whole subtrees."""


def part_of(mesh: Mesh, axis: str | None = "data") -> Part:
    """The part of every batch that this process's devices hold, batches being divided along `axis` of the mesh.

        rows = part_of(mesh).slice("mine", 64)      which of 64 examples this process has to read

    All of it where there is one process, or no axis. Raises: ValueError where the mesh has no such axis, or where
    this process's devices do not lie beside each other along it.
    """
    if axis is None:
        return Part(0, 1, 1)
    size = known_axis(mesh, axis)
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(size, -1)
    own = [n for n, row in enumerate(along) if any(d.process_index == jax.process_index() for d in row)]
    if not own or own != list(range(own[0], own[-1] + 1)):
        raise ValueError(
            f"part_of: the devices of process {jax.process_index()} should lie beside each other along {axis!r}, "
            f"got places {own} of {size}; make the mesh with jax.make_mesh, in the order of jax.devices()"
        )
    return Part(own[0], own[-1] + 1, size)


def known_axis(mesh: Mesh, axis: str) -> int:
    """How many devices there are along it. Raises: ValueError."""
    if axis not in mesh.shape:
        raise ValueError(
            f"fit: batches are to be divided along the mesh axis {axis!r}, but {described(mesh)}; "
            "give batch_axis= one of these, or None to have every batch whole on every device"
        )
    return int(mesh.shape[axis])


def on_mesh(
    batch: Tree, mesh: Mesh, axis: str | None = "data", *, specs: Tree = None, part: Part | None = None
) -> Tree:
    """A batch on the devices of a mesh, of which each process gives its own part (see `part_of`).

    `specs`: PartitionSpecs, for the leaves or for whole subtrees. Without them leaves [T, B, ...] are divided in their
    second axis, leaves [B] in their only one, and numbers are the same everywhere. Leaves that lie on the mesh stay.
    Raises: ValueError for examples that the devices do not divide, naming the leaf.
    """
    mesh = automatic(mesh)
    part = part_of(mesh, axis) if part is None else part
    if specs is None:
        specs = jax.tree.map(lambda leaf: _usual(leaf, axis), batch)
    is_spec = lambda node: isinstance(node, PartitionSpec)
    try:
        specs = jax.tree.broadcast(specs, batch, is_leaf=is_spec)
    except ValueError:
        raise ValueError(
            "fit: batch_specs should be PartitionSpecs in the structure of a batch (or of its upper levels), "
            f"{checks.describe_tree(batch)}, got {specs}"
        ) from None

    def laid_out(path: Any, leaf: Any, spec: PartitionSpec) -> jax.Array:
        if lies_on(leaf, mesh):
            return leaf
        name = checks.leaf_name("batch", path)
        return _assembled(name, leaf, NamedSharding(mesh, _fitting(name, leaf, spec, mesh, axis, part)))

    return jax.tree_util.tree_map_with_path(laid_out, batch, specs)


def _usual(leaf: Any, axis: str | None) -> PartitionSpec:
    if axis is None or not jnp.ndim(leaf):
        return PartitionSpec()
    return PartitionSpec(axis) if jnp.ndim(leaf) == 1 else PartitionSpec(None, axis)


def _fitting(name: str, leaf: Any, spec: PartitionSpec, mesh: Mesh, axis: str | None, part: Part) -> PartitionSpec:
    """The spec, if the devices divide the leaf. Raises: ValueError."""
    shape = jnp.shape(leaf)
    if len(spec) > len(shape):
        raise ValueError(f"fit: {name} ({checks.describe(leaf)}) has too few axes for {spec}; give its batch_specs")
    for place, entry in enumerate(spec):
        for other in axes_of(entry):
            known_axis(mesh, other)
        devices = math.prod(mesh.shape[other] for other in axes_of(entry))
        here = devices * (part.stop - part.start) // part.of if axis in axes_of(entry) else devices
        if shape[place] % here:
            own = " of this process" if here < devices else ""
            raise ValueError(
                f"fit: {name} ({checks.describe(leaf)}) has {shape[place]} examples in axis {place}, which cannot be "
                f"divided among the {here} devices{own} along {entry!r}; take a multiple of {here}, fewer devices, "
                "or say by batch_specs what lies where"
            )
    return spec


def _assembled(name: str, leaf: Any, sharding: NamedSharding) -> jax.Array:
    if trees.is_key(leaf):
        return placed(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"fit: {name} lies on other devices than those of the mesh; give this process's part as numpy")
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf, jnp.result_type(leaf)))


def gathered(tree: Tree) -> Tree:
    """All of every array, on a device of this process's own: to generate from, say, or to hand to another library.

    In several processes all call it. Cost: each array whole, one after the other.
    """

    def whole(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return jnp.asarray(leaf)
        if trees.is_key(leaf):
            return jax.random.wrap_key_data(whole(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def lies_on(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array lies on all devices of a mesh, by its axes."""
    where = getattr(leaf, "sharding", None)
    return isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh) and automatic(where.mesh) == mesh


class Layout:
    """NamedShardings in the structure of a training's state. A key of caches: what was compiled is found again."""

    def __init__(self, tree: Any, axis: str | None) -> None:
        self.tree = tree  # a TrainState
        self.axis = axis
        self._key: Hashable = (tuple(jax.tree.leaves(tree)), jax.tree.structure(tree), axis, processes.count())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def gathered(self, gradient: Gradient) -> Gradient:
        """The gradient at weights that are whole along the batch's axis: gathered once, before any loop reads them.

        Every step of a loop reads all weights, so parts of them would be sent round at every step. And every loop of
        this library is told where the examples lie, so that it sums its weights' gradients once.
        """
        used = jax.tree.map(lambda s: NamedSharding(s.mesh, _without(s.spec, self.axis)), self.tree.params)

        def at_whole_weights(state: TrainState, batch: Tree) -> Any:
            params = jax.lax.with_sharding_constraint(state.params, used)
            with meshes.examples_spread(self.shards):
                found = gradient(state._replace(params=params), batch)
            return found._replace(grads=jax.lax.with_sharding_constraint(found.grads, self.tree.params))

        return at_whole_weights

    @property
    def shards(self) -> meshes.Shards | None:
        """How the examples of a batch are spread."""
        return None if self.axis is None else meshes.Shards((self.axis,), jax.tree.leaves(self.tree)[0].mesh)

    def step(self, train_step: TrainStep) -> Callable[..., Any]:
        """The compiled step, whose state stays where it lies. Of several processes each says (`OverMesh.word`) whether
        it was asked to stop, and hears in the metrics whether any was: all of them stop after the same step.
        """

        def heard_by_all(state: TrainState, batch: Tree, asked: jax.Array) -> Any:
            state, metrics = train_step(state, batch)
            return state, metrics | {ASKED: jnp.max(asked)}

        step = train_step if processes.count() == 1 else heard_by_all
        return jax.jit(step, donate_argnums=0, out_shardings=(self.tree, None))


ASKED = "asked to stop"  # beside the metrics: the number of a signal that any process heard, or 0


def _without(spec: PartitionSpec, axis: str | None) -> PartitionSpec:
    left = [tuple(name for name in axes_of(entry) if name != axis) or None for entry in spec]
    return PartitionSpec(*left)


class OverMesh(NamedTuple):
    """How `fit` spreads a training over a mesh."""

    mesh: Mesh
    axis: str | None
    specs: Tree
    part: Part

    @classmethod
    def checked(cls, mesh: Mesh | None, axis: str | None, specs: Tree, batches: Any) -> OverMesh | None:
        """None without a mesh. Raises: ValueError."""
        if mesh is None:
            if processes.count() > 1:
                raise ValueError(
                    f"fit: there are {processes.count()} processes but no mesh; give mesh=, over jax.devices(), "
                    "for one training by all of them"
                )
            return None
        if not isinstance(mesh, Mesh):
            raise TypeError(f"fit: mesh must be a jax.sharding.Mesh, as jax.make_mesh gives, got {type(mesh).__name__}")
        mesh = automatic(mesh)
        part = part_of(mesh, axis)
        if specs is None and axis is not None and isinstance(batches, InParts):
            specs = batches.specs(axis)
        return cls(mesh, axis, specs, part)

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """In which no other mesh is set: `jax.set_mesh` of one whose axes are explicit would be in the way."""
        here = jax.sharding.get_abstract_mesh()
        return contextlib.nullcontext() if here.empty else jax.set_mesh(self.mesh)

    def batches(self, batches: Any) -> Any:
        """Those of which this process reads its own part only."""
        return batches.part(self.part) if self.axis is not None and isinstance(batches, InParts) else batches

    def batch(self, batch: Tree) -> Tree:
        return on_mesh(batch, self.mesh, self.axis, specs=self.specs, part=self.part)

    def word(self, heard: list[int]) -> tuple[jax.Array, ...]:
        """The signal that this process heard, or 0, beside what the others did [devices]; nothing where it is alone."""
        if processes.count() == 1:
            return ()
        signum = heard[0] if heard else 0
        everywhere = NamedSharding(self.mesh, PartitionSpec(tuple(self.mesh.axis_names)))
        own = sum(d.process_index == jax.process_index() for d in self.mesh.devices.flat)
        return (jax.make_array_from_process_local_data(everywhere, np.full(own, signum, np.int32)),)

    def layout(self, params: Params, optimizer: optax.GradientTransformation, carry: State | None) -> Layout:
        """Weights lie as they were placed on this mesh, or are whole everywhere; the optimizer's state with them."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        stays = lambda leaf: NamedSharding(self.mesh, leaf.sharding.spec)
        at = jax.tree.map(lambda p: stays(p) if lies_on(p, self.mesh) else everywhere, params)
        paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shapes = map(jnp.shape, jax.tree.leaves(params))
        known = dict(zip(paths, zip(shapes, jax.tree.leaves(at), strict=True), strict=True))
        opt_state = alongside(jax.eval_shape(optimizer.init, trees.struct(params)), known, self.mesh)
        anywhere: Any = everywhere
        divided = lambda c: stays(c) if lies_on(c, self.mesh) else NamedSharding(self.mesh, self._leading(c))
        return Layout(TrainState(anywhere, at, opt_state, anywhere, jax.tree.map(divided, carry)), self.axis)

    def _leading(self, leaf: Any) -> PartitionSpec:
        """[B, ...] in parts; what the devices do not divide is no batch, and whole everywhere."""
        if self.axis is None or not jnp.ndim(leaf) or jnp.shape(leaf)[0] % self.mesh.shape[self.axis]:
            return PartitionSpec()
        return PartitionSpec(self.axis)

    def first(
        self, layout: Layout, params: Params, optimizer: optax.GradientTransformation, key: Key, carry: State | None
    ) -> TrainState:
        """The state before the first step: a copy, as `create` makes it."""

        def copied(params: Params, key: Key, carry: State | None) -> TrainState:
            copy = lambda tree: jax.tree.map(jnp.copy, tree)
            return TrainState(
                jnp.zeros((), jnp.int32), copy(params), copy(optimizer.init(params)), copy(key), copy(carry)
            )

        at = layout.tree
        given = [jax.tree.map(placed, tree, where) for tree, where in ((params, at.params), (carry, at.carry))]
        return jax.jit(copied, out_shardings=at)(given[0], placed(key, at.key), given[1])

    def again(self, layout: Layout, state: TrainState) -> TrainState:
        """A copy of a state that is gone on from."""
        given = jax.tree.map(placed, state, layout.tree)
        return jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=layout.tree)(given)
