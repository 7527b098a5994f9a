"""`sharded`: a loop whose examples, or whose units, are spread over the devices of a mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn import checks
from jaxrnn.engine.copies import with_copies
from jaxrnn.engine.rewrites import gates_apart
from jaxrnn.meshes import Shards
from jaxrnn.scans.base import LoopProblem, Strategy
from jaxrnn.scans.fission import fissioned
from jaxrnn.types import Scan, Tree


@dataclass(frozen=True)
class sharded(Strategy):  # noqa: N801
    """A scan that sends weights and their gradients between devices once, not at every step.

        W_i = W  for each device, before the loop;   dW = sum_i dW_i  once, after it       `batch`
        W [D, g H] as [D, g, H], the units H spread over devices                           `units`

    For automatic partitioning (`jit` with sharded arguments, axes of the mesh of type Auto), where nothing in a
    program says how arrays lie: `batch` names the axes of the mesh over which the examples are spread, `units` the one
    over which the hidden units are. The mesh is the one that is set: `with jax.set_mesh(mesh)`. On an explicit mesh
    the types say where examples lie, and every scan of this library does the same without being told; inside
    `jax.shard_map` each device has its own examples and weights, and nothing has to be said either.

        data parallel            batch="data",  parameters anywhere: replicated, or sharded over the same axis (FSDP)
        tensor parallel          units="model", weights [.., g H] sharded by columns or replicated
        both                     batch="data", units="model"

    Communication, for a gradient: with `batch` each weight is gathered once if it was not whole, and its gradient
    summed (or summed and scattered) once, whatever T and whatever `inner` recomputes; with `units` the state is
    gathered once per step, forward and backward, and its gradient summed once per step. `lax.scan` sums the gradient of
    every weight at every step. Memory: as `inner`, each device with its own examples; one copy of the weights.
    Exact. Limits: a step with effects runs as under `inner`; a weight is copied where it meets examples in a product,
    a repetition (a bias), a look-up, a convolution or as a single number, and the first axis of what it meets is the
    examples'. `analysis.collectives` shows what is left.
    Raises: ValueError where no mesh is set, for an axis that it does not have or that is not automatic, for a batch
    that it does not divide; what `inner` raises.
    """

    batch: str | tuple[str, ...] | None = None
    units: str | None = None
    inner: Scan = fissioned()
    name: ClassVar[str] = "sharded"

    def __post_init__(self) -> None:
        if self.batch is None and self.units is None:
            raise ValueError("sharded: batch or units should name an axis of the mesh, got neither; say batch='data'")
        checks.a_scan("sharded", "inner", self.inner)

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.batch,) if isinstance(self.batch, str) else tuple(self.batch or ())

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        mesh = self._mesh()
        found = problem.traced
        if found.leaves_jax:
            return problem.as_given(self.inner)
        flat = found.flat
        if self.units is not None:
            flat = gates_apart(flat, lambda weights: _spread_by_units(weights, mesh, self.units))
        if self.axes:
            shards = Shards(self.axes, mesh)
            self._check_batch(problem, shards.parts)
            flat = with_copies(flat, shards)
        return problem.whole(self.inner, found._replace(flat=flat).at(flat.consts))

    def _mesh(self) -> Any:
        """The mesh that is set. Raises: ValueError where it has not the axes that were named."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            raise ValueError(
                "sharded: a mesh should be set, and none is; put the call inside `with jax.set_mesh(mesh):`"
            )
        for name, axes in (("batch", self.axes), ("units", (self.units,) if self.units else ())):
            for axis in axes:
                if axis not in mesh.axis_names:
                    known = ", ".join(map(repr, mesh.axis_names))
                    raise ValueError(f"sharded: {name} should name axes of the mesh, {known}, got {axis!r}")
                if axis not in mesh.auto_axes:
                    raise ValueError(
                        f"sharded: {name} should name an automatic axis, got {axis!r}, which is explicit or inside of "
                        f"shard_map; there a plain scan knows how arrays lie, leave `sharded` out"
                    )
        return mesh

    def _check_batch(self, problem: LoopProblem, parts: int) -> None:
        """One of the carry's and the inputs' first axes is the batch's."""
        leading = {a.shape[0] for a in (*problem.carry_types, *problem.x_types) if getattr(a, "ndim", 0)}
        if leading and not any(n % parts == 0 for n in leading):
            raise ValueError(
                f"sharded: the batch should be a multiple of {parts}, the devices along batch={self.batch!r}, got "
                f"{', '.join(map(str, sorted(leading)))}; pad it, or use fewer devices"
            )


def _spread_by_units(weights: jax.Array, mesh: Any, axis: str | None) -> jax.Array:
    """[..., g, H] with H spread over an axis of the mesh, if that divides it."""
    if axis is None or weights.shape[-1] % mesh.shape[axis]:
        return weights
    spec = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * (weights.ndim - 1), axis)
    return lax.with_sharding_constraint(weights, NamedSharding(mesh, spec))
