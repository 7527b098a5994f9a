"""`beam_search`: the most likely continuations, as far as a given number of them can be followed at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, trees
from jaxrnn.sequence.feedback import checked, fed_back
from jaxrnn.types import Cell, Key, Params, State, Tree


class Beams(NamedTuple):
    """What `beam_search` found, best first; K is its width."""

    tokens: jax.Array  # [steps, *B, K] of x's type; `end` from the end on
    scores: jax.Array  # [*B, K]: log p of the tokens, the end included; -inf where there are fewer than K
    lengths: jax.Array  # [*B, K] int32, without the end


class Followed(NamedTuple):
    """What is known of every beam while it grows."""

    scores: jax.Array  # [*B, K]
    done: jax.Array  # [*B, K] bool
    lengths: jax.Array  # [*B, K] int32


def beam_search(
    cell: Cell,
    params: Params,
    state: State,
    x: jax.Array,
    steps: int,
    *,
    width: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> Beams:
    """The `width` most likely continuations, found by following that many at once.

        for t in range(steps):
            p_k = log softmax(y of beam k)
            keep the K best of  score_k + p_k[v]  over all beams k and classes v

    A beam that has met `end` goes on as it is. With `length_penalty` a, beams are ranked by score / n^a, n their
    length with the end; scores are returned without it. Ties go to the lower class.
    Shapes: x [*B] the first token, integers; the cell's y: logits [*B, V]; `state` is the cell's after what comes
    before x. It runs without randomness. Width 1 is `generate(..., greedy())`; V^(steps - 1) is an exhaustive search.
    What the cell closes over, such as the memory of `attending`, is not copied per beam.
    Cost: `steps` steps of K B sequences in one compiled loop; memory: K states, and 8 K B bytes per step to find the
    way back. It always takes all steps.
    Raises: ValueError for a negative `steps`, a width below 1, an `end` outside 0..V-1, a penalty that is no number,
    a state that the cell cannot take, or an x or y of another kind.
    Graves 2012; Sutskever et al. 2014. Length: Wu et al. 2016 (there with another form of n).
    """
    width = checks.positive_int("beam_search", "width", width)
    state, x, steps, y = checked("beam_search", cell, params, state, x, steps)
    classes = _classes(x, y)
    if end is not None and checks.positive_int("beam_search", "end", end, least=0) >= classes:
        raise ValueError(f"beam_search: end must be a class in 0..{classes - 1}, got {end!r}")
    penalty = checks.number(length_penalty)
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"beam_search: length_penalty must be a number of at least 0, got {length_penalty!r}")

    batch = x.shape
    beams = lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape))
    step = jax.vmap(lambda state, x: cell.step(params, state, x))  # the beams lead; what is closed over has none
    one = jnp.arange(width) == 0  # at first there is one beam, and the others are impossible
    scores = jnp.where(one, jnp.zeros(()), jnp.full((), -jnp.inf)).astype(trees.wide(y.dtype))
    start = Followed(
        jnp.broadcast_to(scores, (*batch, width)),
        jnp.zeros((*batch, width), jnp.bool_),
        jnp.zeros((*batch, width), jnp.int32),
    )

    def choose(key: Key | None, beams: Followed, state: State, y: jax.Array) -> tuple[tuple[Any, State, Any], Any]:
        del key
        beams, parent, token = _best(beams, jnp.moveaxis(y, 0, -2), width, end, penalty)
        token = token.astype(x.dtype)
        return (beams, _of_parents(state, parent), jnp.moveaxis(token, -1, 0)), (parent, token)

    first = (jax.tree.map(beams, state), beams(x))
    (found, _, _), (parents, tokens) = fed_back(step, choose, start, *first, steps, None, like=params)
    ranked = jnp.argsort(-_rank(found.scores, _with_end(found), penalty), axis=-1)
    pick = lambda leaf: jnp.take_along_axis(leaf, ranked, axis=-1)
    return Beams(_traced_back(ranked, parents, tokens), pick(found.scores), pick(found.lengths))


def _classes(x: jax.Array, y: Any) -> int:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"beam_search: x must be integer tokens [*B], got {checks.describe(x)}")
    if not hasattr(y, "shape") or y.shape[:-1] != x.shape or y.ndim != x.ndim + 1:
        raise ValueError(
            f"beam_search: the cell's y must be logits [*B, V] with *B = {list(x.shape)} as in x, "
            f"got {checks.describe_tree(y)}; put a readout on it, e.g. stack(net, layer(nn.Dense(V)))"
        )
    return int(y.shape[-1])


def _with_end(beams: Followed) -> jax.Array:
    return beams.lengths + beams.done.astype(jnp.int32)


def _rank(scores: jax.Array, lengths: jax.Array, penalty: float) -> jax.Array:
    """What beams are compared by."""
    if not penalty:
        return scores
    return scores / jnp.maximum(lengths, 1).astype(scores.dtype) ** penalty


def _best(
    beams: Followed, logits: jax.Array, width: int, end: int | None, penalty: float
) -> tuple[Followed, jax.Array, jax.Array]:
    """The beams one token on, and which beam and token each comes from, [*B, K]; logits are [*B, K, V]."""
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits.astype(beams.scores.dtype))
    done = jnp.broadcast_to(beams.done[..., None], log_p.shape)
    if end is not None:
        only_end = jnp.where(
            jnp.arange(classes) == end, jnp.zeros((), log_p.dtype), jnp.full((), -jnp.inf, log_p.dtype)
        )
        log_p = jnp.where(done, jnp.broadcast_to(only_end, log_p.shape), log_p)
    scores = beams.scores[..., None] + log_p
    longer = jnp.broadcast_to(beams.lengths[..., None] + 1, done.shape)  # by a token, or by the end, once
    flat = lambda leaf: leaf.reshape(*leaf.shape[:-2], -1)
    _, best = lax.top_k(flat(_rank(scores, longer, penalty)), width)
    parent, token = best // classes, best % classes
    of_parent = lambda leaf: jnp.take_along_axis(leaf, parent, axis=-1)
    was_done = of_parent(beams.done)
    ends = was_done if end is None else was_done | (token == end)
    lengths = of_parent(beams.lengths) + (~ends).astype(jnp.int32)
    return Followed(jnp.take_along_axis(flat(scores), best, axis=-1), ends, lengths), parent, token


def _of_parents(state: State, parent: jax.Array) -> State:
    """The states [K, *B, ...] of those beams that go on; parent is [*B, K]."""
    chosen = jnp.moveaxis(parent, -1, 0)

    def pick(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < chosen.ndim:  # shared by all sequences, and so by all beams
            return leaf
        return jnp.take_along_axis(leaf, chosen.reshape(*chosen.shape, *[1] * (leaf.ndim - chosen.ndim)), axis=0)

    return jax.tree.map(pick, state)


def _traced_back(ranked: jax.Array, parents: jax.Array, tokens: jax.Array) -> jax.Array:
    """The tokens of each beam, [steps, *B, K], found from its last one on."""

    def back(beam: jax.Array, step: Tree) -> tuple[jax.Array, jax.Array]:
        parent, token = step
        return jnp.take_along_axis(parent, beam, axis=-1), jnp.take_along_axis(token, beam, axis=-1)

    _, found = lax.scan(back, ranked, (parents, tokens), reverse=True)
    return found
