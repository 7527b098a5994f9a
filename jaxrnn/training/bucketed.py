"""`Bucketed`: batches of sequences of unequal lengths, in a few shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from jaxrnn import checks
from jaxrnn.sequence.packing import pad
from jaxrnn.training.over_mesh import Part
from jaxrnn.types import Tree


class Padded(NamedTuple):
    """Sequences beside each other, with zeros from each one's end on. A pytree."""

    xs: Any  # [T, B, ...]
    lengths: np.ndarray  # [B] int32


Batch = dict[str, Any]
MOST_LENGTHS = 1000  # that bounds are sought among


class Bucketed:
    """Batches for `fit` of sequences of unequal lengths: each is padded to the next of a few bounds.

        batches = Bucketed({"source": sources, "target": targets, "label": labels}, tokens=2048, seed=0)
        batches(step) == {"source": Padded(xs [T, B, ...], lengths [B]), "target": Padded(...), "label": [B, ...]}

        for each epoch:  shuffle;  for each bound, the shorter first:  cut what fits it into batches, and hand what
                         is left over to the next bound;  shuffle the batches

    A field is a sequence of N arrays [n_i, ...], each with a length of its own, or an array [N, ...] of one entry per
    example. T is a bound, the same for all fields of a batch: the least that the longest of an example's fields fits.
    `bounds`: these numbers of steps, or how many of them, those with the least padding. `size`: examples in
    every batch; or `tokens`: a bound of T steps makes batches of tokens // T. So one train step is compiled per bound.
    What is left over in the largest bound is left out of that epoch; each epoch has its own order. A batch is a
    function of its number (and the seed), so `fit` resumes to the same bits.
    Cost: on the host, an order of N numbers per epoch and a copy of each batch.
    Raises: ValueError for no fields, fields of unequal N or without sequences of unequal length among them, examples
    longer than every bound, both or neither of `size` and `tokens`; and for a batch where there are too few examples
    for one (`once` takes any number).

    >>> words = [np.arange(n) for n in (5, 1, 4, 2, 3, 2)]
    >>> batches = Bucketed({"word": words}, size=2, bounds=(2, 5))
    >>> batches.per_epoch, sorted(batches(step)["word"].xs.shape for step in range(3))
    (3, [(2, 2), (5, 2), (5, 2)])
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        *,
        size: int | None = None,
        tokens: int | None = None,
        bounds: int | Sequence[int] = 4,
        seed: int = 0,
    ) -> None:
        if (size is None) == (tokens is None):
            raise ValueError(
                "Bucketed: give either size, in examples, or tokens, in steps of all of a batch's examples"
            )
        self.fields = {name: _as_arrays(name, field) for name, field in fields.items()}
        self.sequences = {
            name: np.array([len(entry) for entry in field], np.int32)
            for name, field in self.fields.items()
            if not _is_array(field)
        }
        counts = {name: len(field) for name, field in self.fields.items()}
        if not self.sequences or len(set(counts.values())) != 1 or not min(counts.values()):
            raise ValueError(
                "Bucketed: fields must hold the same number of examples, at least one, and one of them sequences "
                f"(a list of arrays [n_i, ...]), got {counts}"
            )
        self.longest = np.max(list(self.sequences.values()), axis=0)  # [N] of an example's fields
        self.bounds = _bounds(self.longest, bounds)
        self.seed = seed
        self._part = Part(0, 1, 1)
        if size is not None:
            self.sizes = [checks.positive_int("Bucketed", "size", size)] * len(self.bounds)
        else:
            tokens = checks.positive_int("Bucketed", "tokens", tokens, least=self.bounds[-1])
            self.sizes = [tokens // bound for bound in self.bounds]
        self._epoch, self._plan = 0, self._planned(0)
        self.per_epoch = len(self._plan)

    def __call__(self, step: int) -> Batch:
        if not self.per_epoch:
            raise ValueError(
                f"Bucketed: {len(self.longest)} examples make no batch; the bounds {self.bounds} have batches of "
                f"{self.sizes}; make them smaller, or read all examples once(), where batches are filled up"
            )
        epoch, place = divmod(step, self.per_epoch)  # as many batches in every epoch: lengths decide, not the order
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._planned(epoch)
        members, bound = self._plan[place]
        return self.batch(members[self._part.slice("Bucketed", len(members))], bound)

    def part(self, part: Part) -> Bucketed:
        """The same batches, of which only these examples are padded: what `fit` asks for in one process of several.

        Raises: ValueError for a bound whose batches cannot be divided so.
        """
        for bound, size in zip(self.bounds, self.sizes, strict=True):
            part.slice(f"Bucketed, sequences of up to {bound} steps", size)
        fewer = copy.copy(self)
        fewer._part = part
        return fewer

    def specs(self, axis: str) -> Tree:
        """What `fit` divides along an axis of a mesh: the examples of every field."""
        lengths: Any = PartitionSpec(axis)
        sequence = Padded(PartitionSpec(None, axis), lengths)
        return {name: sequence if name in self.sequences else PartitionSpec(axis) for name in self.fields}

    def batch(self, members: np.ndarray, bound: int) -> Batch:
        """The examples of these numbers, padded to `bound` steps; an empty example for each number of -1."""
        return {name: self._field(name, members, bound) for name in self.fields}

    def once(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """All examples once, the shortest first, in batches of the same shapes: (their numbers, batch).

        A batch that is not full is filled up with empty sequences (and zeros), so the numbers may be fewer than B.
        """
        order = np.argsort(self.longest, kind="stable")
        bucket = np.searchsorted(self.bounds, self.longest[order])
        for b, (bound, size) in enumerate(zip(self.bounds, self.sizes, strict=True)):
            fitting = order[bucket == b]
            for at in range(0, len(fitting), size):
                members = fitting[at : at + size]
                yield members, self.batch(np.pad(members, (0, size - len(members)), constant_values=-1), bound)

    def per_example(self, function: Callable[[Batch], Iterable[Any]]) -> list[Any]:
        """What `function` makes of every example, in their order: [function({one example}) for each], by batches.

        `function` takes a batch of `once` and gives its B results; those of empty examples that fill it up are dropped.
        """
        found: dict[int, Any] = {}
        for members, batch in self.once():
            found.update(zip(members.tolist(), function(batch), strict=False))
        return [found[i] for i in range(len(found))]

    def _field(self, name: str, members: np.ndarray, bound: int) -> Any:
        field = self.fields[name]
        if name not in self.sequences:
            found = np.asarray(field)[members]
            found[members < 0] = 0
            return found
        return Padded(*pad([field[i] if i >= 0 else field[0][:0] for i in members], bound))

    def _planned(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """An epoch's batches in order: examples, and the bound to pad them to."""
        rng = np.random.default_rng((self.seed % 2**64, epoch))
        order, batches, left = rng.permutation(len(self.longest)), [], np.zeros(0, int)
        bucket = np.searchsorted(self.bounds, self.longest[order])
        for b, (bound, size) in enumerate(zip(self.bounds, self.sizes, strict=True)):
            members = np.concatenate([left, order[bucket == b]])
            whole = len(members) // size * size
            batches += [(members[at : at + size], bound) for at in range(0, whole, size)]
            left = members[whole:]
        return [batches[i] for i in rng.permutation(len(batches))]


def _is_array(field: Any) -> bool:
    """Whether a field has one entry per example, and not a sequence of its own for each."""
    return hasattr(field, "shape")


def _as_arrays(name: str, field: Any) -> Any:
    """A field as it came, or a list of arrays [n_i, ...]."""
    if _is_array(field):
        return field
    found = [np.asarray(entry) for entry in field]
    for i, entry in enumerate(found):
        if entry.ndim == 0:
            raise ValueError(
                f"Bucketed: fields[{name!r}][{i}] is no sequence; give a list of arrays [n_i, ...], or one array "
                "[N, ...] of an entry per example"
            )
    return found


def _bounds(longest: np.ndarray, bounds: int | Sequence[int]) -> list[int]:
    """The numbers of steps to pad to, ascending."""
    if isinstance(bounds, (int, np.integer)):
        count = checks.positive_int("Bucketed", "bounds", bounds)
        return _least_padding(np.maximum(longest, 1), count)
    given = [checks.positive_int("Bucketed", "bounds", n) for n in bounds]
    if not given or given != sorted(set(given)):
        raise ValueError(f"Bucketed: bounds must be ascending numbers of steps, got {list(bounds)}")
    if (longest > given[-1]).any():
        i = int(np.argmax(longest > given[-1]))
        raise ValueError(f"Bucketed: example {i} has {longest[i]} steps, more than the largest bound {given[-1]}")
    return given


def _least_padding(longest: np.ndarray, count: int) -> list[int]:
    """At most `count` bounds with the least padding in all, by dynamic programming over the lengths that there are.

    With the lengths l_1 < ... < l_m, n_j examples of length at most l_j that have s_j steps in all, and F_1(j) padded
    to l_j:  F_k(j) = min over i < j of  F_{k-1}(i) + (n_j - n_i) l_j - (s_j - s_i).   Cost: count m^2.
    """
    coarse = -(-int(longest.max()) // MOST_LENGTHS)  # of long sequences, waveforms say, multiples of this
    rounded = np.minimum(-(-longest // coarse) * coarse, longest.max())
    lengths, counts = np.unique(rounded, return_counts=True)
    n, s = np.cumsum([0, *counts]), np.cumsum([0, *(counts * lengths)])
    padding = (n[None, 1:] - n[:, None]) * lengths[None] - (s[None, 1:] - s[:, None])  # [i, j]: of those in between
    padding = np.where(np.arange(len(n))[:, None] <= np.arange(len(lengths))[None], padding.astype(float), np.inf)
    best, came_from = padding[0], [np.zeros(len(lengths), int)]
    for _ in range(min(count, len(lengths)) - 1):
        total = np.concatenate([[np.inf], best])[:, None] + padding
        came_from.append(total.argmin(axis=0))
        best = total.min(axis=0)
    found, j = [], len(lengths)
    for before in reversed(came_from):
        found.append(int(lengths[j - 1]))
        j = int(before[j - 1])
    return sorted(found)
