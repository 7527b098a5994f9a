"""A copy of every weight for each group of examples, so that devices sum a weight's gradient once, after all loops.

Where examples lie on several devices, the gradient of a weight is a sum over them:

    z = x W,  x [B, D] on n devices           dW = x^T dz        a sum over the devices, wherever it stands: in a loop

So each device is given a copy, and the rows are written as n groups, one for each:

    W_i = W  for i < n, before the loop       z_i = x_i W_i,  x_i [B / n, D]
    dW_i = x_i^T dz_i, on its own device      dW = sum_i dW_i, once: the transpose of the copying

The copies' gradients are combined after the loops, as those of an unrolled net's copies are. A device holds one copy,
as it does anyway. The values are the same, and a step written so is a step like any other: whatever runs it,
recomputes it or differentiates it need not know.

Inside `jax.shard_map` each device has its copy already; what makes it so (`pcast`) is done before the loop, and so is
whatever else moves weights between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn.engine import rules
from jaxrnn.engine.evaluate import Override, again, run
from jaxrnn.engine.ir import Env, Flat, is_float, is_var, reached, slice_back, variables
from jaxrnn.engine.rewrites import rewritten_remat
from jaxrnn.engine.rules import Equation, Kind, is_remat, rule
from jaxrnn.engine.thin import is_elementwise, thinly
from jaxrnn.meshes import Shards, axes_of

_BETWEEN_DEVICES = ("pvary", "pcast", "reshard", "mesh_cast", "sharding_constraint")


def with_copies(flat: Flat, told: Shards | None = None) -> Flat:
    """The step with a copy of its weights for each group of examples, made before the loop from what it closed over.

    `told` says how examples are spread under automatic partitioning; on an explicit mesh the types say it.
    """
    types: list[Any] = [v.aval for v in flat.inputs]
    return _with_copies(flat, told, {a.shape[0] for a in types if jnp.ndim(a)})


def _with_copies(flat: Flat, told: Shards | None, rows: set[int]) -> Flat:
    varying = reached(flat.equations, flat.inputs)
    sites = _sites(flat, varying, told, rows)
    still = [e for e in flat.equations if e.primitive.name in _BETWEEN_DEVICES and e.outvars[0] not in varying]
    inside = [e for e in flat.equations if is_remat(e)]
    if not sites and not still and not inside:
        return flat
    wanted = [site.weight for site in sites] + [e.outvars[0] for e in still]
    wanted += [v for e in inside for v in variables(e.invars) if v not in varying]
    known = dict(zip(flat.const_vars, flat.consts, strict=True))
    known = run(slice_back(flat.equations, wanted, flat.const_vars), known)
    copies = {key: _copied(known[key[0]], key[1]) for key in dict.fromkeys((s.weight, s.shards) for s in sites)}
    overrides: dict[int, Override] = {id(e): _given(known[e.outvars[0]]) for e in still}
    overrides |= {id(r): _of_new_types(r) for s in sites for r in s.readers}
    overrides |= {id(s.equation): s.stand_in(copies[s.weight, s.shards]) for s in sites}
    for e in inside:
        overrides[id(e)] = rewritten_remat(e, varying, known, lambda flat: _with_copies(flat, told, rows))
    return again(flat, overrides=overrides)


def _given(value: Any) -> Override:
    return lambda env: [value]


def _of_new_types(equation: Equation) -> Override:
    """The same operation on operands that lie elsewhere than its variables say."""
    return lambda env: [thinly(equation, env)]


class _Site(NamedTuple):
    """Where a weight meets examples: one equation."""

    equation: Equation
    weight: Any  # a variable
    shards: Shards
    readers: Sequence[Equation] = ()  # of its result, where that now lies elsewhere

    def stand_in(self, copies: Any) -> Override:
        meeting = _MEETINGS.get(self.equation.primitive.name)
        grouped = _one_by_one if meeting is None else meeting.grouped
        return lambda env: [grouped(self, env, copies)]

    @property
    def rows(self) -> int:
        """Which axis of the result the examples are."""
        return _rows_of(self.equation, self.weight) or 0

    def in_groups(self, x: Any) -> Any:
        """[B, ...] as [n, B / n, ...]."""
        shape = (self.shards.parts, x.shape[0] // self.shards.parts, *x.shape[1:])
        if not self.shards.is_explicit:
            return x.reshape(shape)
        spec = tuple(jax.typeof(x).sharding.spec)[1:]
        return lax.reshape(x, shape, out_sharding=self.shards.first((None, *spec)))

    @property
    def grouped_type(self) -> NamedSharding | None:
        """Where [n, ..., B / n, ...] lies, if types say it."""
        names = self.equation.outvars[0].aval.sharding.spec
        rest = [None if axis == self.rows else name for axis, name in enumerate(names)]
        return self.shards.first(rest) if self.shards.is_explicit else None

    def as_rows(self, y: Any) -> Any:
        """[n, ..., B / n, ...] as the equation's result."""
        out, y = self.equation.outvars[0].aval, jnp.moveaxis(y, 0, self.rows)
        return lax.reshape(y, out.shape, out_sharding=self.shards.at(self.rows, out.sharding.spec))


def _sites(flat: Flat, varying: set[Var], told: Shards | None, rows: set[int]) -> list[_Site]:
    found = []
    for e in flat.equations:
        weights = [v for v in variables(e.invars) if v not in varying and is_float(v)]
        axis = _rows_of(e, weights[0]) if len(weights) == 1 else None
        if axis is None:
            continue
        readers = _readers(e, flat) if e.primitive.name == "broadcast_in_dim" else ()
        result = (readers[0] if readers else e).outvars[0].aval
        shards, size = _spread_over(result, axis, told), result.shape[axis]
        if shards and size in rows and size % shards.parts == 0:
            found.append(_Site(e, weights[0], shards, readers))
    return found


def _rows_of(e: Equation, w: Any) -> int | None:
    """Which axis of an equation's result comes from the first axis of what the weight meets; None: no such thing."""
    out = e.outvars[0].aval
    is_each = rule(e).kind in (Kind.ARITHMETIC, Kind.COSTLY) and not rules.inner_jaxprs(e)
    if is_each and jnp.ndim(out) and (not w.aval.ndim or w.aval.shape[0] == 1 < out.shape[0]):
        return 0  # a number, or a row, with each of them
    meeting = _MEETINGS.get(e.primitive.name)
    return meeting.rows(e, w) if meeting else None


def _readers(repetition: Equation, flat: Flat) -> Sequence[Equation]:
    """What a repetition is added to, say: it is to lie where that does, for JAX makes it without asking where.

    None where something else reads it, which wants it as it was.
    """
    made = repetition.outvars[0]
    readers = [e for e in flat.equations if made in e.invars]
    same = all(is_elementwise(e) and e.outvars[0].aval.shape == made.aval.shape for e in readers)
    return readers if same and made not in flat.outputs else ()


def _spread_over(kind: Any, axis: int, told: Shards | None) -> Shards | None:
    """How an axis of a value is spread: as its type says, or as one was told."""
    place = kind.sharding
    axes = axes_of(None if place is None or place.mesh.empty else place.spec[axis])
    return Shards(axes, place.mesh) if axes else told


def _copied(weight: Any, shards: Shards) -> Any:
    """[...] as [n, ...], one for each device; one that is spread over the same devices is gathered for it, once."""
    if not shards.is_explicit:
        free = [PartitionSpec.UNCONSTRAINED] * weight.ndim
        return lax.with_sharding_constraint(lax.broadcast(weight, (shards.parts,)), shards.first(free))
    taken = lambda entry: not set(shards.axes).isdisjoint(axes_of(entry))
    spec = [None if taken(entry) else entry for entry in jax.typeof(weight).sharding.spec]
    whole = jax.reshard(weight, NamedSharding(shards.mesh, PartitionSpec(*spec)))
    return lax.broadcast(whole, (shards.parts,), out_sharding=shards.first(spec))


class _Meeting(NamedTuple):
    """A primitive in which weights and examples meet."""

    rows: Callable[[Equation, Any], int | None]
    grouped: Callable[[_Site, Env, Any], Any]


def _rows_of_product(e: Equation, w: Any) -> int | None:
    contracted, batched = e.params["dimension_numbers"]
    if e.invars.count(w) != 1 or not all(map(is_var, e.invars)):
        return None
    there = e.invars.index(w)
    here = 1 - there
    if not e.invars[here].aval.ndim or 0 in contracted[here] or 0 in batched[here]:
        return None
    before = w.aval.ndim - len(contracted[there]) - len(batched[there]) if there == 0 else 0
    return len(batched[here]) + before


def _product(site: _Site, env: Env, copies: Any) -> Any:
    e = site.equation
    operands = [copies if v is site.weight else site.in_groups(env[v]) for v in e.invars]
    # The groups are a batch of products; a row's place within its group comes after them.
    later = lambda dims: [d + 1 for d in dims]
    (x, y), (x_batch, y_batch) = e.params["dimension_numbers"]
    numbers = (later(x), later(y)), ([0, *later(x_batch)], [0, *later(y_batch)])
    how = {name: e.params[name] for name in ("precision", "preferred_element_type")}
    return site.as_rows(lax.dot_general(operands[0], operands[1], numbers, out_sharding=site.grouped_type, **how))


def _rows_of_repetition(e: Equation, w: Any) -> int | None:
    del w
    return None if 0 in e.params["broadcast_dimensions"] or not e.params["shape"] else 0


def _repeated(site: _Site, env: Env, copies: Any) -> Any:
    del env
    how, parts, out = site.equation.params, site.shards.parts, site.equation.outvars[0].aval
    shape = (parts, out.shape[0] // parts, *out.shape[1:])
    places = (0, *(d + 1 for d in how["broadcast_dimensions"]))
    return site.as_rows(lax.broadcast_in_dim(copies, shape, places, out_sharding=site.grouped_type))


def _rows_of_look_up(e: Equation, w: Any) -> int | None:
    return 0 if e.invars[0] is w and 0 not in e.params["dimension_numbers"].offset_dims else None


def _rows_of_convolution(e: Equation, w: Any) -> int | None:
    where = e.params["dimension_numbers"]
    return 0 if e.invars[1] is w and where.lhs_spec[0] == 0 == where.out_spec[0] else None


def _one_by_one(site: _Site, env: Env, copies: Any) -> Any:
    """Any other: the equation itself, for all groups at once."""
    e, inputs = site.equation, variables(site.equation.invars)
    given = {v: copies if v is site.weight else env[v] for v in inputs}
    rows = [v is not site.weight and x.ndim > 0 and x.shape[0] > 1 for v, x in given.items()]
    axes = [0 if v is site.weight or has else None for v, has in zip(inputs, rows, strict=True)]
    grouped = [site.in_groups(x) if has else x for x, has in zip(given.values(), rows, strict=True)]
    one = lambda *args: thinly(e, dict(zip(inputs, args, strict=True)))
    return site.as_rows(jax.vmap(one, axes)(*grouped))


_MEETINGS = {
    "dot_general": _Meeting(_rows_of_product, _product),
    "broadcast_in_dim": _Meeting(_rows_of_repetition, _repeated),
    "gather": _Meeting(_rows_of_look_up, _one_by_one),
    "conv_general_dilated": _Meeting(_rows_of_convolution, _one_by_one),
}
