"""Many short sequences in few rows: `pack`, and what is read back for each of them; `pad` and `buckets` for batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks, trees
from jaxrnn.sequence.layers import live, zero_where_not
from jaxrnn.types import Tree

Array = jax.Array | np.ndarray
NOBODY = -1  # the number of no sequence


class Packed(NamedTuple):
    """N sequences laid end to end in R rows of T steps; a pytree, so it goes through `jax.jit` as it is.

        unroll(net, params, packed.xs, resets=packed.resets)

    gives each sequence what it gives alone. What is left over of a row is zeros that belong to nobody.
    """

    xs: Tree  # leaves [T, R, ...]
    resets: Array  # [T, R] bool: a sequence begins here, or what is left over of the row
    row: Array  # [N] int32: where each sequence lies,
    start: Array  # [N] int32: from which step on
    lengths: Array  # [N] int32
    number: Array  # [T, R] int32: which sequence a step belongs to, or -1

    @property
    def live(self) -> jax.Array:
        """[T, R]: whether a step belongs to a sequence."""
        return jnp.asarray(self.number != NOBODY)

    @property
    def ends(self) -> jax.Array:
        """[T, R]: whether a step is the last of its sequence."""
        after = jnp.concatenate([self.number[1:], jnp.full_like(self.number[:1], NOBODY)])
        return self.live & (self.number != after)

    def last(self, ys: Tree) -> Tree:
        """ys [T, R, ...] -> [N, ...]: each sequence's output at its last step; 0 for one of length 0."""
        self._check("last", ys)
        at = jnp.maximum(self.start + self.lengths - 1, 0)
        return zero_where_not(jnp.asarray(self.lengths > 0), jax.tree.map(lambda y: y[at, self.row], ys))

    def sums(self, values: Tree) -> Tree:
        """values [T, R, ...] -> [N, ...]: each sequence's sum, of losses say; 0 for one of length 0."""
        self._check("sums", values)
        belongs = jnp.where(self.live, self.number, len(self.row)).ravel()  # a number too many is dropped
        add = lambda v: jax.ops.segment_sum(v.reshape(-1, *v.shape[2:]), belongs, len(self.row))
        return jax.tree.map(add, zero_where_not(self.live, values))

    def unpacked(self, ys: Tree, steps: int | None = None) -> Tree:
        """ys [T, R, ...] -> [steps, N, ...]: as if the sequences had been padded to `steps` (by default T) with 0."""
        self._check("unpacked", ys)
        room = self.resets.shape[0]
        steps = room if steps is None else checks.positive_int("unpacked", "steps", steps)
        t = jnp.minimum(jnp.arange(steps)[:, None] + self.start[None], room - 1)
        found = jax.tree.map(lambda y: y[t, self.row[None]], ys)
        return zero_where_not(live(steps, jnp.asarray(self.lengths)), found)

    def _check(self, where: str, tree: Tree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.shape(leaf)[:2] != self.resets.shape:
                raise ValueError(
                    f"Packed.{where}: {checks.leaf_name('ys', path)} should be [T, R, ...] with T, R = "
                    f"{self.resets.shape}, got {checks.describe(leaf)}; give what unroll over packed.xs returned"
                )


def pack(sequences: Iterable[Tree], steps: int | None = None, rows: int | None = None) -> Packed:
    """Lays sequences of unequal lengths end to end, in as few rows as are found by first-fit decreasing.

        for each sequence, the longest first:  put it into the first row that still has room for it

    Shapes: each sequence is a pytree of leaves [n_i, ...], all n_i alike within one; `steps` is T, by default the
    longest; `rows` is R, by default as many as are needed. For programs that are compiled once, give both.
    Sequences keep their numbers: `packed.row[i]` and so on are the i-th one's. Length 0 is a length.
    Rows needed: at most 11/9 of the least possible, and 6/9 (Johnson 1973; Dosa 2007); for sequences much shorter
    than T, next to nothing is left over.
    Cost: on the host, N log N for the places and one copy of the data.
    Raises: ValueError for no sequences, leaves of one sequence that differ in length, a sequence longer than
    `steps`, or fewer rows than are needed; sequences whose leaves differ in shape or dtype.

    >>> words = [np.arange(5), np.arange(3), np.arange(2), np.arange(1)]
    >>> packed = pack(words, steps=6)
    >>> packed.xs.shape, packed.row.tolist(), packed.start.tolist()
    ((6, 2), [0, 1, 1, 0], [0, 0, 3, 5])
    """
    leaves, structure = _as_leaves("pack", list(sequences))
    lengths, steps = _measured("pack", leaves, steps)
    placed = first_fit_decreasing(lengths.tolist(), steps)
    needed = max(len(placed), 1)
    rows = needed if rows is None else checks.positive_int("pack", "rows", rows)
    if needed > rows:
        raise ValueError(f"pack: {needed} rows of {steps} steps are needed, got rows={rows}; pack fewer sequences")

    row, start = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    number, resets = np.full((steps, rows), NOBODY, np.int32), np.zeros((steps, rows), bool)
    for r, members in enumerate(placed):
        t = 0
        for i in members:
            row[i], start[i] = r, t
            number[t : t + lengths[i], r] = i
            resets[t, r] = True
            t += lengths[i]
        if t < steps:
            resets[t, r] = True
    # A sequence of length 0 lies at the start of the first row, and takes no room.
    laid = [_laid([each[k] for each in leaves], lengths, row, start, (steps, rows)) for k in range(len(leaves[0]))]
    return Packed(jax.tree.unflatten(structure, laid), resets, row, start, lengths, number)


def first_fit_decreasing(lengths: Sequence[int], steps: int) -> list[list[int]]:
    """Which sequences each row holds, in order. A tree over the rows finds the first with room: N log N in all.

    Every node of the tree holds the most room that any row below it has left.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    size = 1 << max(len(order) - 1, 0).bit_length()
    room = [steps] * (2 * size)
    rows: list[list[int]] = []
    for i in order:
        at = 1
        while at < size:
            at = 2 * at if room[2 * at] >= lengths[i] else 2 * at + 1
        if at - size == len(rows):
            rows.append([])
        rows[at - size].append(i)
        room[at] -= lengths[i]
        while at > 1:
            at //= 2
            room[at] = max(room[2 * at], room[2 * at + 1])
    return rows


def pad(sequences: Iterable[Tree], steps: int | None = None) -> tuple[Tree, np.ndarray]:
    """Sequences beside each other, [T, N, ...], with zeros from each one's end on; and their lengths, [N] int32.

    `steps` is T, by default the longest one's length. Raises: ValueError as `pack` does.

    >>> xs, lengths = pad([np.array([1, 2, 3]), np.array([4])])
    >>> xs.tolist(), lengths.tolist()
    ([[1, 4], [2, 0], [3, 0]], [3, 1])
    """
    leaves, structure = _as_leaves("pad", list(sequences))
    lengths, steps = _measured("pad", leaves, steps)
    row, start = np.arange(len(lengths)), np.zeros(len(lengths), np.int32)
    laid = [_laid([s[k] for s in leaves], lengths, row, start, (steps, len(lengths))) for k in range(len(leaves[0]))]
    return jax.tree.unflatten(structure, laid), lengths


def buckets(
    lengths: Any, size: int, *, rng: np.random.Generator | None = None, spread: int = 100
) -> Iterator[np.ndarray]:
    """Batches of sequences of about equal lengths, for `pad`: index arrays [size], the last one perhaps shorter.

        for each pool of spread * size sequences, shuffled:  sort it by length, cut it, shuffle the batches

    Without `rng` nothing is shuffled, and one sort over all lengths leaves the least padding. A larger `spread` means
    less padding and less chance. Packing wastes less than any batch does; buckets keep one sequence per row.
    Raises: ValueError for lengths that are not [N], or sizes below 1.

    >>> [batch.tolist() for batch in buckets([5, 1, 4, 2], 2)]
    [[1, 3], [2, 0]]
    """
    known = np.asarray(lengths)
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"buckets: lengths must be integers [N], got {known.dtype}{list(known.shape)}")
    size = checks.positive_int("buckets", "size", size)
    pool = size * checks.positive_int("buckets", "spread", spread) if rng is not None else max(len(known), 1)
    order = np.arange(len(known)) if rng is None else rng.permutation(len(known))
    for first in range(0, len(order), pool):
        members = order[first : first + pool]
        members = members[np.argsort(known[members], kind="stable")]
        batches = [members[at : at + size] for at in range(0, len(members), size)]
        for b in range(len(batches)) if rng is None else rng.permutation(len(batches)):
            yield batches[b]


def _as_leaves(where: str, sequences: Sequence[Tree]) -> tuple[list[list[np.ndarray]], Any]:
    """The leaves of each sequence, and the structure that all share."""
    if not len(sequences):
        raise ValueError(f"{where}: needs at least one sequence, got none")
    structure = jax.tree.structure(sequences[0])
    first = [np.asarray(leaf) for leaf in jax.tree.leaves(sequences[0])]
    found = []
    for i, sequence in enumerate(sequences):
        if not trees.same_structure(sequence, sequences[0]):
            got = jax.tree.structure(sequence)
            raise ValueError(f"{where}: sequences[{i}] should have the structure {structure} of the first, got {got}")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(sequence)]
        for (path, _), leaf, like in zip(jax.tree_util.tree_leaves_with_path(sequence), leaves, first, strict=True):
            name = checks.leaf_name(f"sequences[{i}]", path)
            if leaf.ndim == 0:
                raise ValueError(
                    f"{where}: {name} is a scalar; each sequence is an array [n, ...], or a pytree of such"
                )
            if leaf.shape[1:] != like.shape[1:] or leaf.dtype != like.dtype:
                raise ValueError(
                    f"{where}: {name} should be {like.dtype}[{', '.join(map(str, ('n', *like.shape[1:])))}] "
                    f"as in the first sequence, got {checks.describe(leaf)}"
                )
            if len(leaf) != len(leaves[0]):
                raise ValueError(f"{where}: {name} has {len(leaf)} steps, the leaf before it {len(leaves[0])}")
        found.append(leaves)
    if not first:
        raise ValueError(f"{where}: sequences have no arrays; each is a pytree of leaves [n, ...]")
    return found, structure


def _measured(where: str, leaves: list[list[np.ndarray]], steps: int | None) -> tuple[np.ndarray, int]:
    """Every sequence's length, [N], and how many steps there is room for."""
    lengths = np.array([len(each[0]) for each in leaves], np.int32)
    room = max(int(lengths.max()), 1) if steps is None else checks.positive_int(where, "steps", steps)
    if (lengths > room).any():
        i = int(np.argmax(lengths > room))
        raise ValueError(
            f"{where}: sequences[{i}] has {lengths[i]} steps, more than steps={room}; cut it, or raise steps"
        )
    return lengths, room


def _laid(
    parts: list[np.ndarray], lengths: np.ndarray, row: np.ndarray, start: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """One leaf of all sequences, each in its place, [T, R, ...]."""
    out = np.zeros((*shape, *parts[0].shape[1:]), parts[0].dtype)
    for part, n, r, t in zip(parts, lengths, row, start, strict=True):
        out[t : t + n, r] = part
    return out
