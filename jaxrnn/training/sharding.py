"""`shardings`: which part of each parameter lies on which device of a mesh, by a rule or leaf by leaf."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxrnn import checks, trees
from jaxrnn.meshes import axes_of
from jaxrnn.types import Cell, Params, SequenceLayer, Tree

# "replicated", "fsdp", "tensor"; {pattern of paths: spec}; or (path, leaf) -> spec. A spec of None is PartitionSpec().
Rule = str | Mapping[str, Any] | Callable[[str, Any], Any]
_USUAL_AXIS = {"fsdp": "data", "tensor": "model"}


def shardings(
    cell: Cell | SequenceLayer,
    params: Params,
    mesh: Mesh | AbstractMesh,
    rule: Rule = "replicated",
    *,
    axis: str | None = None,
) -> Shardings:
    """Where each parameter of a cell lies on a mesh. Prints as a table; `put` places the parameters so.

        layout = shardings(cell, params, mesh, "fsdp")
        print(layout)                                       leaf, shape, spec, bytes on each device
        fit(loss_fn, layout.put(params), batches, mesh=mesh, ...)

    Rules, where n is the number of devices along `axis` of the mesh:

    - "replicated": all of every weight on every device.
    - "fsdp": of every leaf the largest axis that n divides is split; a leaf without one is whole everywhere. `axis` is
      "data" by default, so that the devices which share a batch share the weights too.
    - "tensor": the hidden units are split; `axis` is "model" by default. Of every weight the first axis that has
      the size of a state of the cell is split: the rows of W [H, 4H], of a readout [H, V], of the next layer's U. The
      columns are not: gates lie side by side in them, and a split into n parts would put a unit's four gates on
      different devices. So a step's product is a sum over devices, [B, 4H].
    - {pattern: PartitionSpec}: by the leaf's path, as in "1/W" or "*/kernel"; the first pattern that fits, `*` standing
      for anything. What none fits is replicated.
    - a function (path, leaf) -> PartitionSpec, or None for replicated.

    On a mesh of several axes the others are left to the batch: data x tensor is `make_mesh((2, 2), ("data", "model"))`
    with "tensor". Layouts change where numbers lie and what is communicated, never the result but for rounding.

    Params may be arrays or their types, the mesh an `AbstractMesh` of devices that are not there: the table can be had
    beforehand. Cost: shapes only; nothing is placed or moved.
    Raises: ValueError for an unknown rule, an axis that the mesh does not have, a dimension that the devices do
    not divide, and a pattern that fits no leaf. Each names the leaf.
    Rajbhandari et al. 2020 (ZeRO: weights and optimizer state in parts); Shoeybi et al. 2019 (Megatron: in rows).

    >>> import jaxrnn as rnn
    >>> cell = rnn.lstm(4)
    >>> params = cell.init(jax.random.key(0), jnp.zeros(3))
    >>> print(shardings(cell, params, jax.make_mesh((1,), ("data",)), {"W": PartitionSpec("data")}))
     leaf           shape   spec        bytes per device
     ───────────────────────────────────────────────────
     U      float32[3,16]   P()                      192
     W      float32[4,16]   P('data')                256
     b        float32[16]   P()                       64
     all              128                            512
    """
    mesh = automatic(mesh)
    leaves = [_Leaf(name_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(trees.struct(params))]
    specs = _specs(cell, params, mesh, rule, axis, leaves)
    found = [NamedSharding(mesh, _checked(leaf, spec, mesh)) for leaf, spec in zip(leaves, specs, strict=True)]
    return Shardings(mesh, jax.tree.unflatten(jax.tree.structure(params), found), tuple(leaves))


class _Leaf(NamedTuple):
    path: str  # "net/0/W"
    type: Any  # jax.ShapeDtypeStruct

    @property
    def text(self) -> str:
        return f"params {self.path or 'itself'} ({checks.describe(self.type)})"


class Shardings:
    """Where each leaf of the parameters lies. `str` gives the table."""

    def __init__(self, mesh: Any, tree: Tree, leaves: tuple[_Leaf, ...]) -> None:
        self.mesh = mesh
        self.tree = (
            tree  # NamedShardings in the structure of the parameters: for jax.device_put, jit's in_shardings, ...
        )
        self._leaves = leaves

    def put(self, params: Params) -> Params:
        """The parameters, placed so. In several processes all give the same ones."""
        return jax.tree.map(placed, params, self.tree)

    def like(self, state: Tree) -> Tree:
        """NamedShardings for what holds numbers for each parameter, such as an optimizer's state (or its types).

        What has a parameter's path at its end and its shape lies where that lies; all else is replicated.
        """
        return alongside(state, dict(zip(self._paths(), self._known(), strict=True)), self.mesh)

    def _known(self) -> list[tuple[tuple[int, ...], NamedSharding]]:
        return [(leaf.type.shape, s) for leaf, s in zip(self._leaves, jax.tree.leaves(self.tree), strict=True)]

    def _paths(self) -> list[str]:
        return [leaf.path for leaf in self._leaves]

    def __str__(self) -> str:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name, justify in (("leaf", "left"), ("shape", "right"), ("spec", "left"), ("bytes per device", "right")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        total, numbers = 0, 0
        for leaf, sharding in zip(self._leaves, jax.tree.leaves(self.tree), strict=True):
            count = trees.leaf_bytes(leaf.type) // _parts(sharding, leaf.type.shape)
            total, numbers = total + count, numbers + math.prod(leaf.type.shape)
            table.add_row(leaf.path, checks.describe(leaf.type), _text(sharding.spec), f"{count:,}")
        table.add_row("all", f"{numbers:,}", "", f"{total:,}")
        out = io.StringIO()
        Console(file=out, width=200, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines() if line.strip())

    __repr__ = __str__


def _text(spec: PartitionSpec) -> str:
    return f"P({', '.join(map(repr, spec))})"


def _parts(sharding: NamedSharding, shape: tuple[int, ...]) -> int:
    """In how many parts an array lies on the devices."""
    return math.prod(shape) // max(1, math.prod(sharding.shard_shape(shape))) if math.prod(shape) else 1


# --- the rules


def _specs(cell: Any, params: Params, mesh: Any, rule: Rule, axis: str | None, leaves: list[_Leaf]) -> Iterator[Any]:
    if isinstance(rule, Mapping):
        return _by_pattern(rule, leaves)
    if callable(rule):
        return (rule(leaf.path, leaf.type) for leaf in leaves)
    checks.one_of("shardings", "rule", rule, ("replicated", "fsdp", "tensor"))
    if rule == "replicated":
        return (PartitionSpec() for _ in leaves)
    axis = _axis(mesh, rule, axis)
    size = mesh.shape[axis]
    if rule == "fsdp":
        return (_split(_largest(leaf.type.shape, size), axis) for leaf in leaves)
    hidden = _hidden_sizes(cell, params)
    places = [_first_of(leaf.type.shape, hidden) for leaf in leaves]
    if all(place is None for place in places):
        raise ValueError(
            f"shardings: no weight has an axis of the size of a state ({sorted(hidden)}); "
            "give {path pattern: PartitionSpec} instead"
        )
    return (_split(place, axis) for place in places)


def _by_pattern(rule: Mapping[str, Any], leaves: list[_Leaf]) -> Iterator[Any]:
    for pattern in rule:
        if not any(fnmatchcase(leaf.path, pattern) for leaf in leaves):
            known = ", ".join(repr(leaf.path) for leaf in leaves[:6]) + (", ..." if len(leaves) > 6 else "")
            raise ValueError(f"shardings: the pattern {pattern!r} fits no leaf of params; there are {known}")
    for leaf in leaves:
        yield next((spec for pattern, spec in rule.items() if fnmatchcase(leaf.path, pattern)), None)


def _axis(mesh: Any, rule: str, axis: str | None) -> str:
    """The mesh axis of a rule: the one that was asked for, the usual one, or the only one."""
    names = tuple(mesh.axis_names)
    if axis is None:
        axis = _USUAL_AXIS[rule] if len(names) != 1 else names[0]
    if axis not in names:
        raise ValueError(
            f"shardings: {rule!r} splits weights over the mesh axis {axis!r}, but {described(mesh)}; "
            "give axis= one of these, or make a mesh that has it"
        )
    return axis


def _largest(shape: tuple[int, ...], size: int) -> int | None:
    """The largest axis that `size` divides, the first of several."""
    fitting = [place for place, n in enumerate(shape) if n and n % size == 0]
    return max(fitting, key=lambda place: shape[place], default=None)


def _first_of(shape: tuple[int, ...], sizes: set[int]) -> int | None:
    return next((place for place, n in enumerate(shape) if n in sizes), None)


def _split(place: int | None, axis: str) -> PartitionSpec:
    return PartitionSpec() if place is None else PartitionSpec(*[None] * place, axis)


def _hidden_sizes(cell: Any, params: Params) -> set[int]:
    """The sizes of a cell's states."""
    if not isinstance(cell, Cell):
        raise ValueError(
            f"shardings: 'tensor' reads the hidden sizes off a Cell's state, got a {type(cell).__name__}; "
            "give {path pattern: PartitionSpec} instead"
        )
    state = jax.eval_shape(lambda params: cell.initial_state(params, ()), params)
    return {leaf.shape[-1] for leaf in jax.tree.leaves(state) if leaf.ndim and trees.is_float(leaf)}


# --- what is said of a spec


def described(mesh: Any) -> str:
    axes = ", ".join(f"{name!r} of {size}" for name, size in mesh.shape.items())
    return f"the mesh has {axes or 'no axes'}"


def _checked(leaf: _Leaf, spec: Any, mesh: Any) -> PartitionSpec:
    """The spec, if it can be. Raises: ValueError naming the leaf."""
    spec = PartitionSpec() if spec is None else spec
    if not isinstance(spec, PartitionSpec):
        raise ValueError(f"shardings: {leaf.text} needs a PartitionSpec (or None), got {type(spec).__name__} {spec!r}")
    shape = leaf.type.shape
    if len(spec) > len(shape):
        raise ValueError(f"shardings: {leaf.text} has {len(shape)} axes, got {_text(spec)} for {len(spec)}; use fewer")
    names = [name for entry in spec for name in axes_of(entry)]
    for name in names:
        if name not in mesh.shape:
            raise ValueError(
                f"shardings: {leaf.text} is to be split over the mesh axis {name!r}, but {described(mesh)}; "
                "name one of these, or make a mesh that has it"
            )
        if names.count(name) > 1:
            raise ValueError(f"shardings: {leaf.text} is split twice over {name!r} by {_text(spec)}; once is possible")
    for place, entry in enumerate(spec):
        devices = math.prod(mesh.shape[name] for name in axes_of(entry))
        if shape[place] % devices:
            raise ValueError(
                f"shardings: axis {place} of {leaf.text} should be a multiple of the {devices} devices along "
                f"{entry!r}, got {shape[place]}; split another axis, change the size, or leave the leaf whole"
            )
    return spec


# --- what others need of it


def automatic(mesh: Any) -> Any:
    """The mesh with axes over which the compiler splits the work: what a step is written for needs no word of them."""
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=kinds)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def name_of(path: Any) -> str:
    """net/0/W"""
    return str(jax.tree_util.keystr(path, simple=True, separator="/"))


def alongside(state: Tree, known: Mapping[str, tuple[tuple[int, ...], NamedSharding]], mesh: Mesh) -> Tree:
    """NamedShardings for a tree in which parameters' paths end longer ones: {path: (shape, sharding)} says where."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def of(path: Any, leaf: Any) -> NamedSharding:
        parts = name_of(path).split("/")
        for start in range(len(parts) + 1):  # the longest path first
            shape, sharding = known.get("/".join(parts[start:]), (None, everywhere))
            if shape == jnp.shape(leaf):
                return sharding
        return everywhere

    return jax.tree_util.tree_map_with_path(of, state)


def placed(leaf: Any, sharding: Any) -> jax.Array:
    """An array that all processes have, laid out; or one that lies on devices of several processes, moved."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
    if trees.is_key(leaf):
        data = placed(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)))(data)
    whole = jax.device_get(jnp.asarray(leaf))
    return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place])
