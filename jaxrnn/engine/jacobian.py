"""How strongly: the Jacobian of one step, by the state and by the taps, entry by entry as far as it is asked for.

    s_t = core(s_tm1, z),   z = a W,   a = core(s_tm1, z)        so      ds_t = J_s ds_tm1 + J_z W^T da

The core's own Jacobian comes from one derivative per colour, whatever the size; what passes through a product is
gathered from the weight where each column reaches one row of it (a gate's own unit), and multiplied out elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.engine.evaluate import Override, apply, run
from jaxrnn.engine.influence import Core, Structure
from jaxrnn.engine.ir import Env, reached, read, slice_back
from jaxrnn.engine.rules import Equation
from jaxrnn.engine.sites import Tap


def flat_features(core: Core, leaves: Any, dtype: Any) -> jax.Array:
    """Leaves [*B, ...] side by side, [*B, features]."""
    lead, none = core.batch, jnp.zeros((*core.batch, 0), dtype)
    return jnp.concatenate([none, *(leaf.reshape(*lead, -1).astype(dtype) for leaf in leaves)], len(lead))


def state_leaves(core: Core, features: jax.Array) -> list[jax.Array]:
    """[*B, N] as the floating leaves of the state."""
    bounds = np.cumsum([core.features(v) for v in core.state])[:-1]
    parts = jnp.split(features, bounds, axis=len(core.batch)) if core.state else []
    return [part.reshape(like.aval.shape).astype(like.aval.dtype) for part, like in zip(parts, core.state, strict=True)]


def with_taps(core: Core, added: dict[Any, Any], plain: Env, *, held: bool = False) -> dict[int, Override]:
    """Stand-ins under which something is added to each tap. `held`: the terms of taps keep the values of `plain`.

    A weight can be a tap itself and in a term of another one: the term then reads it as it is in `plain`.
    """
    ways: dict[int, Override] = {}
    terms, shared = core.terms, {tap.at for tap in shared_taps(core)}
    for e in core.equations:
        out: Any = e.outvars[0] if e.outvars else None
        term = terms.get(id(e))
        if term is None and out not in added:
            continue
        value = plain[out] if term is not None and held else None
        as_it_is = {term.weight: plain[term.weight]} if term is not None and term.weight in shared else {}
        ways[id(e)] = _way(e, value, added.get(out), as_it_is)
    return ways


def _way(equation: Equation, value: Any, more: Any, as_it_is: Env) -> Override:
    def way(env: Env) -> list[Any]:
        found = apply(equation, env | as_it_is)[0] if value is None else value
        return [found if more is None else found + more]

    return way


def nothing_added(core: Core) -> tuple[list[jax.Array], list[jax.Array]]:
    """Zeros for the taps of each example, and for those that are shared."""
    zeros = [jnp.zeros(tap.at.aval.shape, tap.at.aval.dtype) for tap in core.taps]
    own = [z for z, tap in zip(zeros, core.taps, strict=True) if not tap.is_shared]
    return own, [z for z, tap in zip(zeros, core.taps, strict=True) if tap.is_shared]


def own_taps(core: Core) -> list[Tap]:
    return [tap for tap in core.taps if not tap.is_shared]


def shared_taps(core: Core) -> list[Tap]:
    return [tap for tap in core.taps if tap.is_shared]


def where(mask: np.ndarray, found: jax.Array) -> jax.Array:
    """found, and 0 where the mask over its last dimensions is false."""
    if mask.all():
        return found
    return jnp.where(jnp.broadcast_to(jnp.asarray(mask), found.shape), found, jnp.zeros((), found.dtype))


def _before(x: jax.Array, dims: int) -> jax.Array:
    """With so many dimensions of size 1 in front."""
    return x.reshape(*(1,) * dims, *x.shape)


class _Gathered(NamedTuple):
    """Of columns each of which reaches one row of the operand: dz[g, n] = weight[row[n], g] value[n]."""

    weight: jax.Array  # [I, G]
    row: np.ndarray  # [n]
    value: jax.Array  # [*B, n]


class Jacobian:
    """ds_t / d(s_tm1, z) at the values of one step."""

    def __init__(self, structure: Structure, env: Env, dtype: Any) -> None:
        self.structure, self.core, self.env, self.dtype = structure, structure.core, env, dtype
        self._lead = len(self.core.batch)
        self._moved: dict[Any, Any] = {}

    @functools.cached_property
    def _compressed(self) -> jax.Array:
        """The core's Jacobian, [*B, colours, R]."""
        core, env = self.core, self.env
        rows = [*core.state_out, *core.operands]
        terms = core.terms
        moving = [e for e in core.equations if id(e) not in terms]
        seeds_at = [*core.state, *(tap.at for tap in core.taps)]
        depends = reached(moving, seeds_at)
        needed = [e for e in slice_back(core.equations, rows, []) if not depends.isdisjoint(e.outvars)]

        def evaluate(state: Any, own: Any, shared: Any) -> jax.Array:
            added = {tap.at: e for tap, e in zip(own_taps(core), own, strict=True)}
            inside = env | dict(zip(core.state, state, strict=True))
            inside |= {tap.at: env[tap.at] + e for tap, e in zip(shared_taps(core), shared, strict=True)}
            out = run(needed, inside, with_taps(core, added, env, held=True))
            return flat_features(core, [read(out, v) for v in rows], self.dtype)

        own, shared = nothing_added(core)
        _, linear = jax.linearize(evaluate, [env[v] for v in core.state], own, shared)
        return jax.vmap(lambda seed: linear(*self._directions(seed)), out_axes=len(core.batch))(self._seeds())

    def _seeds(self) -> np.ndarray:
        colours = max(self.structure.colours, 1)
        seeds = np.zeros((colours, self.structure.local.shape[1]), self.dtype)
        seeds[self.structure.colour, np.arange(seeds.shape[1])] = 1
        return seeds

    def _directions(self, seed: jax.Array) -> tuple[Any, Any, Any]:
        """One number per column, as tangents of (state, taps of each example, shared taps)."""
        core, n = self.core, self.core.units
        state = state_leaves(core, jnp.broadcast_to(seed[:n], (*core.batch, n)))
        own, shared = [], []
        for tap, columns in zip(core.taps, core.columns(), strict=True):
            kind = tap.at.aval
            if not tap.is_shared:
                wide = seed[columns].reshape(kind.shape[len(core.batch) :]).astype(kind.dtype)
                own.append(jnp.broadcast_to(wide, kind.shape))
            elif jnp.issubdtype(kind.dtype, jnp.complexfloating):
                real, imaginary = seed[columns].reshape(2, *kind.shape)
                shared.append(jax.lax.complex(real, imaginary).astype(kind.dtype))
            else:
                shared.append(seed[columns].reshape(kind.shape).astype(kind.dtype))
        return state, own, shared

    def local(self, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
        """Entries of the core's Jacobian at index arrays, [*B, *their shape]."""
        found = self._compressed[..., self.structure.colour[columns], rows]
        return where(self.structure.local[rows, columns], found)

    def entries(self, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
        """ds_t[row] / d column at index arrays of rows of the state, [*B, *their shape]."""
        rows, columns = np.broadcast_arrays(rows, columns)
        total = self.local(rows, columns)
        sources, place = np.unique(columns, return_inverse=True)
        place = place.reshape(-1)
        for k, own in enumerate(self.core.columns()):
            nearby, real = self._units_read(rows.reshape(-1), own)
            moved = self.moved(k, sources) if len(nearby) else None
            if moved is None:
                continue
            for units, is_one in zip(nearby, real, strict=True):
                through = where(is_one, self.local(rows.reshape(-1), units))
                term = through * self._at(moved, units - own.start, place)
                total = total + term.reshape(*term.shape[:-1], *rows.shape)
        return total

    def _at(self, moved: Any, units: np.ndarray, places: np.ndarray) -> jax.Array:
        if not isinstance(moved, _Gathered):
            return moved[..., units, places]
        return _before(moved.weight[moved.row[places], units], self._lead) * moved.value[..., places]

    def _units_read(self, rows: np.ndarray, own: slice) -> tuple[np.ndarray, np.ndarray]:
        """For each row the columns that it reads of those of a tap: [Q, rows], and which of these are real."""
        pattern = self.structure.local[rows][:, own]
        most = int(pattern.sum(1).max(initial=0))
        order = np.argsort(~pattern, axis=1, kind="stable")[:, :most]
        return (order + own.start).T, np.take_along_axis(pattern, order, 1).T

    def moved(self, k: int, sources: np.ndarray) -> Any:
        """dz_k / d sources through its products: None where there is none, gathered, or [*B, G, n]."""
        key = (k, sources.tobytes())
        if key not in self._moved:
            self._moved[key] = self._find_moved(k, sources)
        return self._moved[key]

    def _find_moved(self, k: int, sources: np.ndarray) -> Any:
        core, places = self.core, self.core.rows()
        total: Any = None
        products = core.products(core.taps[k])
        for term in products:
            rows = places[term.operand]
            direct = self.structure.local[rows][:, sources]
            through = self._taps_between(rows, k, sources)
            if not (direct.any() or through):
                continue
            weight = self.env[term.weight].astype(self.dtype)
            if not through and direct.sum(0).max() <= 1 and len(products) == 1:
                row = direct.argmax(0)
                return _Gathered(weight, row, self.local(rows.start + row, sources))
            indices = np.arange(rows.start, rows.stop)
            of_operand = self.local(*np.meshgrid(indices, sources, indexing="ij"))
            for j in through:
                of_operand = of_operand + self._passed_on(indices, j, sources)
            part = jnp.einsum("ig,...in->...gn", weight, of_operand)
            total = part if total is None else total + part
        return total

    def _taps_between(self, rows: slice, k: int, sources: np.ndarray) -> list[int]:
        """Earlier taps through whose products the sources reach these rows of an operand."""
        local, columns = self.structure.local, self.core.columns()
        return [j for j in range(k) if local[rows, columns[j]].any() and self.moved(j, sources) is not None]

    def _passed_on(self, rows: np.ndarray, j: int, sources: np.ndarray) -> jax.Array:
        """d rows / dz_j  dz_j / d sources, [*B, rows, n]."""
        moved, own = self.moved(j, sources), self.core.columns()[j]
        if isinstance(moved, _Gathered):
            moved = _before(moved.weight[moved.row].T, self._lead) * moved.value[..., None, :]
        total: Any = 0.0
        for units, real in zip(*self._units_read(rows, own), strict=True):
            through = where(real, self.local(rows, units))
            total = total + through[..., None] * moved[..., units - own.start, :]
        return total

    def by_state(self) -> jax.Array:
        """A, [*B, N, N]."""
        n = np.arange(self.core.units)
        return self.entries(n[:, None], n[None, :])

    def by_tap(self, k: int, rows: np.ndarray | None = None) -> jax.Array:
        """B of one tap, [*B, N, G], or at chosen rows [K, G] (N: none), [*B, K, G]."""
        own = self.core.columns()[k]
        columns = np.arange(own.start, own.stop)[None, :]
        if rows is None:
            return self.entries(np.arange(self.core.units)[:, None], columns)
        real = rows < self.core.units
        return where(real, self.entries(np.where(real, rows, 0), columns))


def linear_step(structure: Structure, env: Env, dtype: Any) -> Callable[..., jax.Array]:
    """The derivative of the whole step at its values, products and all.

    A linear function of tangents: (state [*B, N], taps of each example, shared taps) -> [*B, N].
    """
    core = structure.core
    needed = slice_back(core.equations, core.state_out, [])

    def evaluate(state: Any, own: Any, shared: Any) -> jax.Array:
        added = {tap.at: e for tap, e in zip(own_taps(core), own, strict=True)}
        inside = env | dict(zip(core.state, state_leaves(core, state), strict=True))
        inside |= {tap.at: env[tap.at] + e for tap, e in zip(shared_taps(core), shared, strict=True)}
        out = run(needed, inside, with_taps(core, added, env))
        return flat_features(core, [read(out, v) for v in core.state_out], dtype)

    before = flat_features(core, [env[v] for v in core.state], dtype)
    return jax.linearize(evaluate, before, *nothing_added(core))[1]


def pulled_back(structure: Structure, linear: Callable[..., jax.Array], rows: jax.Array, dtype: Any) -> list[jax.Array]:
    """For each tap, by each example, [*B, G]: what a combination [*B, N] of the state's features owes to it.

    A tap that the examples share takes one pass back for each of them; all others together one.
    """
    core = structure.core
    back = jax.linear_transpose(linear, jnp.zeros(rows.shape, dtype), *nothing_added(core))
    own = iter(back(rows)[1])
    if shared_taps(core):
        count = math.prod(core.batch)
        chosen = jnp.eye(count, dtype=dtype).reshape(count, *core.batch, 1)
        one_by_one = iter(jax.vmap(lambda c: back(rows * c)[2])(chosen))
    found = []
    for tap in core.taps:
        if not tap.is_shared:
            found.append(next(own).reshape(*core.batch, tap.size).astype(dtype))
            continue
        found.append(units(next(one_by_one).reshape(*core.batch, -1), dtype))
    return found


def units(cotangent: jax.Array, dtype: Any) -> jax.Array:
    """A tap's cotangent by its units, [..., G]: of a complex weight by both parts (JAX gives dL/dx - i dL/dy)."""
    parts = [cotangent.real, -cotangent.imag] if jnp.iscomplexobj(cotangent) else [cotangent]
    return jnp.concatenate(parts, -1).astype(dtype)
