"""Which weights reach which rows of the state: what real-time recurrent learning has to remember, and no more.

    s_t, y_t = step(theta, s_tm1, x_t)         M_t = ds_t / dz     over all earlier values of a tap z (see `sites`)
    M_t = A_t M_tm1 + B_t a_t                  A_t = ds_t / ds_tm1,  B_t = ds_t / dz_t

The step without its products with weights, its *core*, maps the state and the taps to the next state and to the
operands of the taps. Its Jacobian is sparse, and its pattern is found once, from the equations. Columns that share no
row are found by one derivative in one direction (Curtis, Powell and Reid 1974): an LSTM of any size takes five.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Var

from jaxrnn import trees
from jaxrnn.engine.dependence import Masks, Seen, reached_from
from jaxrnn.engine.ir import Atom, is_float, is_var, reached
from jaxrnn.engine.partition import components
from jaxrnn.engine.rules import Equation
from jaxrnn.engine.sites import Entered, Tap, Term


class Mixes(ValueError):
    """A step whose examples are not independent of one another."""


class Core(NamedTuple):
    """The state, the taps and their operands as columns and rows of one Jacobian."""

    batch: tuple[int, ...]
    state: list[Atom]  # the floating leaves that go in, each [*B, ...]
    state_out: list[Any]  # the same, coming out
    taps: list[Tap]
    operands: list[Atom]  # those of products that depend on the state or on a tap
    equations: list[Equation]  # of the whole step but for what is of weights alone
    outputs: list[Any]

    @property
    def terms(self) -> dict[int, Term]:
        """The summands of taps, by the equations that make them."""
        return {id(term.equation): term for tap in self.taps for term in tap.terms}

    def features(self, v: Any) -> int:
        return math.prod(v.aval.shape[len(self.batch) :])

    @property
    def units(self) -> int:
        """N: the state's features."""
        return sum(map(self.features, self.state))

    def columns(self) -> list[slice]:
        """Where each tap stands among the columns, after the state's N."""
        return _after(self.units, [tap.size for tap in self.taps])

    def rows(self) -> dict[Var, slice]:
        """Where each operand stands among the rows, after the state's N."""
        return dict(zip(self.operands, _after(self.units, map(self.features, self.operands)), strict=True))

    def products(self, tap: Tap) -> list[Term]:
        """The tap's terms whose operand depends on the state or on another tap."""
        return [term for term in tap.terms if term.operand in self.operands]


def _after(start: int, sizes: Iterable[int]) -> list[slice]:
    bounds = start + np.cumsum([0, *sizes])
    return [slice(int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def core_of(found: Entered, states: int, batch: tuple[int, ...]) -> Core:
    """The core of a step with `states` leaves of the state, of any type."""
    flat = found.flat
    pairs = [(v, out) for v, out in zip(flat.inputs[:states], flat.outputs[:states], strict=True) if is_float(v)]
    operands = dict.fromkeys(t.operand for tap in found.taps for t in tap.terms if t.operand is not None)
    moving = [v for v in operands if is_float(v)]
    return Core(
        batch, [v for v, _ in pairs], [o for _, o in pairs], found.taps, moving, found.core, flat.outputs[states:]
    )


def same_program(one: Core, other: Core) -> bool:
    """Whether two cores, of other batches, do the same things in the same order."""
    names = [[e.primitive.name for e in core.equations] for core in (one, other)]
    sizes = [[(tap.size, tap.depth) for tap in core.taps] for core in (one, other)]
    return names[0] == names[1] and sizes[0] == sizes[1]


def _pattern(core: Core) -> tuple[np.ndarray, np.ndarray]:
    """Of the core's Jacobian, [rows, columns]; and which columns an output depends on."""
    terms = core.terms
    masks = reached_from([e for e in core.equations if id(e) not in terms], _seeds(core), Seen(core.batch))
    rows = [_of_example(core, masks, v) for v in (*core.state_out, *core.operands)]
    none = np.zeros((0, core.units + sum(tap.size for tap in core.taps)), bool)
    read = [masks[v].reshape(len(none.T), -1).any(1) for v in core.outputs if is_var(v) and v in masks]
    return np.concatenate([none, *rows]), np.any([none.any(0), *read], axis=0)


def _seeds(core: Core) -> Masks:
    """Each column as a coordinate of its variable, of the first example where there are several."""
    seeds: Masks = {}
    count = core.units + sum(tap.size for tap in core.taps)
    first: Any = (slice(None), *(0,) * len(core.batch))
    start = 0
    for v, size, is_shared in (
        *((v, core.features(v), False) for v in core.state),
        *((tap.at, tap.size, tap.is_shared) for tap in core.taps),
    ):
        own = np.zeros((count, size), bool)
        own[start + np.arange(size), np.arange(size)] = True
        if is_shared:  # of a complex weight both parts
            size_of_one = math.prod(v.aval.shape)
            seeds[v] = own.reshape(count, -1, size_of_one).any(1).reshape(count, *v.aval.shape)
        else:
            seeds[v] = np.zeros((count, *v.aval.shape), bool)
            seeds[v][first] = own.reshape(count, *v.aval.shape[len(core.batch) :])
        start += size
    return seeds


def _of_example(core: Core, masks: Masks, v: Any) -> np.ndarray:
    """[features, C]: what the features of one example depend on. Raises: Mixes."""
    count, features = core.units + sum(tap.size for tap in core.taps), core.features(v)
    if not is_var(v) or v not in masks:
        return np.zeros((features, count), bool)
    mask = masks[v].reshape(count, math.prod(core.batch), features)
    own = count - sum(tap.size for tap in core.taps if tap.is_shared)
    if mask[:own, 1:].any():
        raise Mixes("what one example of the batch becomes depends on another one")
    # Of a weight that the examples share, each may read another part.
    return np.concatenate([mask[:own, 0], mask[own:].any(1)]).T


class Structure(NamedTuple):
    """What can be said of a step's influence without its values."""

    core: Core
    local: np.ndarray  # [R, C] the Jacobian's pattern; rows: state, operands; columns: state, taps
    total: np.ndarray  # the same, through the products as well
    near: np.ndarray  # through those products only that feed a layer back to itself
    live: np.ndarray  # [N] state that anything reads
    colour: np.ndarray  # [C] columns of one colour share no row

    @property
    def colours(self) -> int:
        return int(self.colour.max(initial=-1)) + 1

    def kept(self, order: int | None = None, layerwise: bool = False) -> list[Kept]:
        """Which rows of the state are remembered for each tap.

        `order`: those that a value reaches within so many steps (None: all that it ever reaches). `layerwise`: none
        that it reaches only by a product of another layer.
        """
        n = self.core.units
        found = []
        for columns in self.core.columns():
            rows = _closed(self.total[:n, :n], self.total[:n, columns], order) & self.live[:, None]
            if layerwise:
                rows &= _closed(self.near[:n, :n], self.near[:n, columns], None)
            found.append(Kept.of(rows))
        return found


class Kept(NamedTuple):
    """The rows that are remembered for a tap."""

    mask: np.ndarray  # [N, G]
    which: np.ndarray | None  # [K, G] of rows, N where there are fewer than K; None: all rows are held

    @classmethod
    def of(cls, mask: np.ndarray) -> Kept:
        most = int(mask.sum(0).max(initial=0))
        if 2 * most > len(mask):
            return cls(mask, None)
        index = np.argsort(~mask, axis=0, kind="stable")[:most]
        return cls(mask, np.where(np.take_along_axis(mask, index, 0), index, len(mask)))

    @property
    def rows(self) -> int:
        """K: rows held per unit of the tap."""
        return len(self.mask) if self.which is None else len(self.which)


def _closed(step: np.ndarray, reached_at_once: np.ndarray, order: int | None) -> np.ndarray:
    found, steps = reached_at_once, 1
    while order is None or steps < order:
        more = found | (step.astype(np.float32) @ found.astype(np.float32) > 0)
        if (more == found).all():
            break
        found, steps = more, steps + 1
    return found.copy()


def structure(core: Core, seen: Core) -> Structure:
    """Of a core, as it is seen in the same core of fewer examples. Cost: about C^2 booleans, once per trace."""
    local, read = _pattern(seen)
    moving = [bool(local[rows].any()) for rows in core.rows().values()]
    kept = np.concatenate(
        [np.arange(core.units), *(_range(r) for r, m in zip(core.rows().values(), moving, strict=True) if m)]
    )
    core = core._replace(operands=trees.only(moving, core.operands))
    local, n = local[kept], core.units
    total, near = (_through_products(core, local, terms) for terms in (_all_terms(core), lateral(core)))
    return Structure(core, local, total, near, local[:, :n].any(0) | read[:n], _coloured(local))


def _range(rows: slice) -> np.ndarray:
    return np.arange(rows.start, rows.stop)


def _all_terms(core: Core) -> list[Term]:
    return [term for tap in core.taps for term in core.products(tap)]


def _through_products(core: Core, local: np.ndarray, terms: Sequence[Term]) -> np.ndarray:
    """The pattern with what passes through these products: each unit of z needs all of the operand."""
    total, rows, chosen = local.copy(), core.rows(), {id(t.equation) for t in terms}
    for _ in range(len(core.taps) + 1):
        before = total.copy()
        for tap, columns in zip(core.taps, core.columns(), strict=True):
            for term in core.products(tap):
                if id(term.equation) in chosen:
                    total[local[:, columns].any(1)] |= total[rows[term.operand]].any(0)
        if (before == total).all():
            break
    return total


def lateral(core: Core) -> list[Term]:
    """The products through which a layer feeds itself, and not the next one."""
    reach = [reached(core.equations, [v]) for v in core.state]
    groups = components([{j for j, r in enumerate(reach) if is_var(out) and out in r} for out in core.state_out])

    def feeds_back(term: Term) -> bool:
        after = reached(core.equations, term.equation.outvars)
        return any(
            term.operand in reach[j] and is_var(core.state_out[k]) and core.state_out[k] in after
            for group in groups
            for j in group
            for k in group
        )

    return [term for term in _all_terms(core) if feeds_back(term)]


def _coloured(local: np.ndarray) -> np.ndarray:
    """Greedily, the first colour that fits."""
    colour = np.zeros(local.shape[1], int)
    taken: list[np.ndarray] = []
    for c in range(local.shape[1]):
        column = local[:, c]
        k = next((k for k, rows in enumerate(taken) if not (rows & column).any()), len(taken))
        if k == len(taken):
            taken.append(np.zeros(len(local), bool))
        taken[k] |= column
        colour[c] = k
    return colour
