"""`compare`: how near the gradients of online methods come to BPTT's, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, inference, trees
from jaxrnn.analysis.operations import flops
from jaxrnn.online import Method, online
from jaxrnn.online.step import a_loss, mean
from jaxrnn.sequence import unroll
from jaxrnn.types import Cell, Key, Learner, Params, State, Tree


class Nearness(NamedTuple):
    """One gradient beside BPTT's: of all parameters, or of one leaf of them."""

    cosine: float  # of the angle between the two; 1 for the same direction
    ratio: float  # of their norms


class Compared(NamedTuple):
    """What one method gives, and what it takes."""

    whole: Nearness
    leaves: dict[str, Nearness]  # by the parameter's name
    carried: int  # bytes handed from one update to the next
    flops: float  # floating-point operations per step, in forward steps

    @classmethod
    def mean_of(cls, found: Sequence[dict[str, Nearness]], carried: int, operations: float) -> Compared:
        """Over several draws."""
        each = {
            name: Nearness(*(sum(parts) / len(found) for parts in zip(*(one[name] for one in found), strict=True)))
            for name in found[0]
        }
        return cls(each.pop(""), each, carried, operations)


class Comparison(dict[str, Compared]):
    """What `compare` found, by method; `str` gives the table."""

    def __str__(self) -> str:
        lines = [f"{'':24s}{'cosine':>9s}{'norm ratio':>12s}{'bytes carried':>16s}{'forward steps':>15s}"]
        for name, row in self.items():
            near = f"{row.whole.cosine:9.4f}{row.whole.ratio:12.4f}"
            lines.append(f"{name:24s}{near}{row.carried:16,d}{row.flops:15.1f}")
        return "\n".join(lines)


def compare(
    cell: Cell,
    params: Params,
    xs: Tree,
    methods: Mapping[str, Method] | Sequence[Method],
    *,
    state: State | None = None,
    key: Key | None = None,
    draws: int = 1,
) -> Comparison:
    """The gradient of each online method over a sequence, beside that of backpropagation through time.

        cosine = <g, g_BPTT> / (|g| |g_BPTT|),    norm ratio = |g| / |g_BPTT|        of all parameters, and leaf by leaf

    Shapes: xs [T, *B, ...]; the cell ends in its loss, and the parameters stay as they are. Methods that draw signs
    are given `draws` times, each by itself, and the mean of the figures is told: what a single estimate is worth.
    Beside it stand what an update carries, in bytes, and its floating-point operations per step, in forward steps of
    the cell, in windows of one step (`tbptt`: of `every` steps; a block of `rtrl` is not what is priced).
    Do it before and after training: while gradients fade within a few steps, as at most initialisations, all methods
    look good. Cost: BPTT's gradient under `lax.scan`, that of each method, and a trace.
    Raises: TypeError for what is no cell or method, ValueError for a cell that does not end in a loss, a T that
    `every` does not divide, and for methods that draw without a key.
    """
    checks.a_cell("compare", cell)
    draws = checks.positive_int("compare", "draws", draws)
    steps, named = checks.steps("compare", xs), _named(methods)
    if steps == 0:
        raise ValueError("compare: xs has no time steps; a sequence needs at least one")
    forward = _forward_flops(cell, params, xs)
    found = {}
    for name, method in named.items():
        window, learner = getattr(method, "every", 1), online(cell, method)
        if steps % window:
            raise ValueError(f"compare: xs has {steps} steps, which every = {window} of {name} does not divide")
        keys = [key] if key is None or not method.draws else list(jax.random.split(key, draws))
        # A cell that draws draws the same for both.
        pairs = [(_summed(learner, window, params, xs, state, k), _expected(cell, params, xs, state, k)) for k in keys]
        near = [_near(*pair) for pair in pairs]
        carry = jax.eval_shape(lambda learner=learner: learner.init(params, trees.first_step(xs), state, key=key))
        one = trees.all_steps(trees.first_step(xs), window)
        found[name] = Compared.mean_of(
            near, trees.nbytes(carry), flops(learner.update, params, carry, one) / window / max(forward, 1)
        )
    return Comparison(found)


def _named(methods: Mapping[str, Method] | Sequence[Method]) -> dict[str, Method]:
    each = list(methods.values()) if isinstance(methods, Mapping) else methods
    each = list(each) if isinstance(each, Sequence) else [each]
    for method in each:
        if isinstance(method, type) or not isinstance(method, Method):
            raise TypeError(f"compare: methods must be values such as rtrl() or snap(1), got {method!r}")
    found = dict(methods) if isinstance(methods, Mapping) else {_name(m): m for m in each}
    if len(found) < len(each):
        raise ValueError(f"compare: {', '.join(map(_name, each))} have a name twice; give a dict of methods by name")
    return found


def _name(method: Any) -> str:
    return repr(method).partition("signs=")[0].rstrip("(") if "signs=" in repr(method) else repr(method)


def _loss(cell: Cell, params: Params, xs: Tree, state: State | None, key: Key | None) -> jax.Array:
    _, losses = unroll(cell, params, xs, state, key=key, scan=lax.scan)
    batch = inference.batch_shape("compare", cell, params, trees.first_step(xs))
    return jnp.sum(jax.vmap(lambda y: mean(a_loss(y, batch)))(losses))


# Compiled once for a cell and a method, whatever the parameters: they are compared before training and after.


@partial(jax.jit, static_argnums=0)
def _expected(cell: Cell, params: Params, xs: Tree, state: State | None, key: Key | None) -> Params:
    """BPTT's gradient."""
    return jax.grad(lambda p: _loss(cell, p, xs, state, key))(params)


@partial(jax.jit, static_argnums=(0, 1))
def _summed(learner: Learner, window: int, params: Params, xs: Tree, state: State | None, key: Key | None) -> Params:
    """The gradients of all windows, added up."""

    def body(both: Any, xs: Tree) -> Any:
        carry, total = both
        carry, _, grads = learner.update(params, carry, xs)
        return (carry, jax.tree.map(jnp.add, total, grads)), None

    carry = learner.init(params, jax.tree.map(lambda a: a[0], xs), state, key=key)
    windows = jax.tree.map(lambda a: a.reshape(-1, window, *a.shape[1:]), xs)
    (_, total), _ = lax.scan(body, (carry, jax.tree.map(jnp.zeros_like, params)), windows)
    return total


def _forward_flops(cell: Cell, params: Params, xs: Tree) -> int:
    x = trees.first_step(xs)
    batch = inference.batch_shape("compare", cell, params, x)
    state = jax.eval_shape(lambda p: cell.initial_state(p, batch), params)
    return flops(lambda p, s, x: cell.step(p, s, x), params, state, x)


def _near(found: Params, expected: Params) -> dict[str, Nearness]:
    """By leaf, and of all under the empty name."""
    named = jax.tree_util.tree_leaves_with_path(expected)
    pairs = {jax.tree_util.keystr(path): (a, b) for (path, b), a in zip(named, jax.tree.leaves(found), strict=True)}
    pairs = {name: pair for name, pair in pairs.items() if trees.is_float(pair[1])}
    products = {name: _products(*pair) for name, pair in pairs.items()}
    whole = [sum(parts) for parts in zip(*products.values(), strict=True)]
    return {"": _nearness(*whole), **{name: _nearness(*parts) for name, parts in products.items()}}


def _products(a: jax.Array, b: jax.Array) -> tuple[float, float, float]:
    return tuple(float(jnp.vdot(p, q).real) for p, q in ((a, b), (a, a), (b, b)))  # type: ignore[return-value]


def _nearness(ab: float, aa: float, bb: float) -> Nearness:
    size = (aa * bb) ** 0.5
    return Nearness(ab / size if size else float(aa == bb), (aa / bb) ** 0.5 if bb else float("inf") if aa else 1.0)
