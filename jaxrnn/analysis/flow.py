"""`gradient_flow`: how the error shrinks or grows on its way back through the copies, and where it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import checks
from jaxrnn.analysis.gradients import Loss, float_leaves, leaf_norms, observed, wide
from jaxrnn.graphs.assembly import Graph
from jaxrnn.sequence.unrolling import prepared
from jaxrnn.trees import is_float
from jaxrnn.types import Cell, Key, Params, Scan, State, Tree

NEVER = -1


class Flow(NamedTuple):
    """What `gradient_flow` found; `str` gives a short account."""

    norms: jax.Array  # [T]: |dL / d state after step t|
    by_lag: jax.Array  # [T]: the same, counted back from the step that runs last
    rate: jax.Array  # the factor per step of the line fitted to log by_lag
    state: Tree  # like the state, leaves [T]: the norm of each leaf
    copies: Tree  # like the params, leaves [T]: the norm of the gradient of each copy of each weight
    bad_values: dict[str, jax.Array]  # by leaf of state and y: the first step with a NaN or Inf, -1 for none
    bad_gradients: dict[str, jax.Array]  # by leaf of state and params: the same on the way back

    def __str__(self) -> str:
        sizes = np.asarray(self.by_lag)
        lags = np.flatnonzero(np.isfinite(sizes) & (sizes > 0))
        lines = ["|dL/d state|: no error reaches the state, or none that is finite"]
        if lags.size:
            ends = " to ".join(f"{sizes[lag]:.3g} at lag {lag}" for lag in dict.fromkeys((lags[0], lags[-1])))
            lines = [f"|dL/d state|: {ends}, {float(self.rate):.4g} times per step"]
        for way, found in (("forward", self.bad_values), ("backward", self.bad_gradients)):
            places = [f"{name} at step {int(t)}" for name, t in found.items() if int(t) != NEVER]
            lines.append(f"{way}: " + (f"NaN or Inf first in {', '.join(places)}" if places else "all finite"))
        return "\n".join(lines)


def gradient_flow(
    loss: Loss,
    cell: Cell,
    params: Params,
    xs: Tree,
    state: State | None = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    key: Key | None = None,
    reverse: bool = False,
    scan: Scan | None = None,
) -> Flow:
    """The error's way back through the unrolled net.

        norms[t] = |dL / d s_t|,    s_t the state after step t,    L = loss(s_last, ys)
        by_lag[d] = norms[T - 1 - d]                               in reverse, norms[d]
        log by_lag[d] ~ a + d log(rate)                            least squares over what is finite and not zero

    dL / d s_t is what comes back to step t from the steps after it; what the loss reads of y_t itself
    does not pass through the carried state and is not in it. With a loss on the last state or output,
    by_lag is the error's spectrum by lag: rate below 1 vanishes, above 1 explodes.
    Shapes: see `Flow`. Norms are Euclidean, over the whole batch; for each example put `jax.vmap`
    around. Leaves are named by their path; of a graph (as it came from `graph`) bad_values has every
    vertex and input, `value['name']`, in place of y. "First" means in the order in which the steps
    run, and from the loss back for gradients.

    Cost: one gradient as in `copy_gradients`, under `scan` (`checkpointed()` unless another is given).
    Limits: as `copy_gradients`. Norms below the smallest normal number of their dtype count as zero;
    use float64 to see further.
    Raises: ValueError for a sequence without steps or a state without floating-point leaves, and what
    `copy_gradients` raises. Hochreiter 1991; Bengio et al. 1994; Pascanu et al. 2013.
    """
    visible, output, what = _opened(cell)
    loop = prepared(visible, params, xs, state, lengths=lengths, resets=resets, key=key, reverse=reverse)
    if loop.steps == 0 or not float_leaves(loop.state):
        missing = "xs has no steps" if loop.steps == 0 else "the cell's state has no floating-point leaf"
        raise ValueError(f"gradient_flow: {missing}, so no error flows through time; give a recurrent cell and T >= 1")
    (copies, states), finite = observed(
        "gradient_flow",
        loss,
        loop,
        params,
        of_copy=leaf_norms,
        of_state=leaf_norms,
        of_forward=lambda state, y: _finite({"state": state, what: y}),
        output=output,
        scan=scan,
        reverse=reverse,
    )
    norms = _together(states)
    by_lag = norms if reverse else norms[::-1]
    back = jax.tree.map(jnp.isfinite, {"state": states, "params": copies})
    return Flow(
        norms=norms,
        by_lag=by_lag,
        rate=decay_rate(by_lag),
        state=states,
        copies=copies,
        bad_values=_first_bad(finite, last_first=reverse),
        bad_gradients=_first_bad(back, last_first=not reverse),
    )


def decay_rate(norms: jax.Array) -> jax.Array:
    """The factor by which norms [N] change from one to the next: exp of the slope of a line through their logarithms.

    Least squares; what is zero, NaN or infinite is left out. NaN where fewer than two are left. Give it
    a slice of `Flow.by_lag` to fit those lags alone.
    Raises: ValueError for anything but one dimension.
    """
    norms = jnp.asarray(norms)
    if norms.ndim != 1:
        raise ValueError(f"decay_rate: norms must be [N], one per step, got {checks.describe(norms)}")
    counts = jnp.isfinite(norms) & (norms > 0)
    weight = counts.astype(norms.dtype)
    total = jnp.sum(weight)
    x, y = jnp.arange(len(norms), dtype=norms.dtype), jnp.log(jnp.where(counts, norms, jnp.ones_like(norms)))
    x, y = x - jnp.sum(weight * x) / total, y - jnp.sum(weight * y) / total
    slope = jnp.sum(weight * x * y) / jnp.sum(weight * x * x)
    return jnp.where(total > 1, jnp.exp(slope), jnp.full_like(slope, jnp.nan))


def _together(states: Tree) -> jax.Array:
    """[T]: the norm over all leaves, from [T] for each."""
    leaves = float_leaves(states)
    each = jnp.stack([leaf.astype(wide(leaves)) for leaf in leaves], axis=1)
    return jax.vmap(leaf_norms)(each)


def _opened(cell: Cell) -> tuple[Cell, Callable[[Tree], Tree], str]:
    """A graph with the value of every vertex for its output; how to make its own output of them; and their name."""
    graph = getattr(cell.step, "__self__", None) if isinstance(cell, Cell) else None
    if not isinstance(graph, Graph):
        return cell, lambda y: y, "y"
    names = (*graph.input_names, *graph.vertices)
    return replace(graph, output=dict(zip(names, names, strict=True))).cell, graph.result, "value"


def _finite(tree: Tree) -> Tree:
    """For each leaf, whether all of it is finite."""
    whole = lambda leaf: jnp.all(jnp.isfinite(leaf)) if is_float(leaf) else jnp.ones((), jnp.bool_)
    return lax.stop_gradient(jax.tree.map(whole, tree))


def _first_bad(finite: dict[str, Tree], *, last_first: bool) -> dict[str, jax.Array]:
    """By leaf: the first step, or the last, whose flag is down; NEVER where all are up."""

    def place(flags: jax.Array) -> jax.Array:
        bad = ~flags[::-1] if last_first else ~flags
        first = jnp.argmax(bad).astype(jnp.int32)
        return jnp.where(jnp.any(bad), len(bad) - 1 - first if last_first else first, NEVER)

    named = ((what, jax.tree_util.tree_leaves_with_path(tree)) for what, tree in finite.items())
    return {checks.leaf_name(what, path): place(flags) for what, leaves in named for path, flags in leaves}
