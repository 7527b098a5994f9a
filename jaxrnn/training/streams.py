"""Long sequences cut into consecutive windows: what truncated BPTT with a carried state reads."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxrnn import checks
from jaxrnn.training.over_mesh import Part
from jaxrnn.types import Tree

Array = np.ndarray[Any, Any]


class Streams:
    """B parallel readers of one long sequence, `window` steps at a time.

        stream b reads sequence[b * n : (b + 1) * n] with n = N // B, over and over,
        and window i of an epoch holds its steps i * window ... (i + 1) * window - 1

    `streams(step)` gives the step's windows, leaves [window, B, ...], and which steps begin a stream,
    [window, B] booleans (all of the first step of each epoch). Window i + 1 goes on where window i
    ended, so the state at its end is the state to start with; pass the booleans to `unroll(resets=...)`.
    The result depends on the step's number alone: a resumed run reads what it would have read.
    An epoch has `windows` windows; the steps left over at a stream's end (fewer than `window`), and
    the last N mod B of the sequence, are not read. Leaves may be memory-mapped: a call reads one window only.

    `before` and `after` steps of context stand around each window, [before + window + after, B, ...],
    read from the windows next to it (the last of an epoch being followed by the first). Windows then
    overlap, and each begins `window` steps after the last one did: that is where its state is found.
    The booleans mark a stream's begin in the context too, so that what lies before it reaches nothing.

    `lengths` says that the sequence is several documents, one after the other: the booleans also mark
    where one begins. Streams are cut from it as before, wherever that may be in a document. With
    `whole=True` each stream reads several whole documents, over and over: in the order of the sequence
    each goes to the stream that has least to read, nothing is cut or left out, and in `windows` windows
    every stream has read all of its own at least once.

    A `Streams` also has a length, `windows`, and the windows of an epoch as its items: what a data
    pipeline such as `grain` takes for a source.
    Cost: the window's bytes, and a search for each of its steps among a stream's documents.
    Raises: ValueError for leaves of unequal lengths, a sequence too short for one window, lengths that
    do not add up to the sequence's, or fewer whole documents than streams; IndexError for an item
    that an epoch does not have.

    >>> streams = Streams(np.arange(12), batch=2, window=2, before=1)
    >>> windows, begins = streams(1)
    >>> windows.T.tolist()  # steps 2 and 3 of each stream, and the one before
    [[1, 2, 3], [7, 8, 9]]
    """

    def __init__(
        self,
        sequence: Tree,
        *,
        batch: int,
        window: int,
        before: int = 0,
        after: int = 0,
        lengths: Sequence[int] | Array | None = None,
        whole: bool = False,
    ) -> None:
        self.batch = checks.positive_int("Streams", "batch", batch)
        self.window = checks.positive_int("Streams", "window", window)
        self.before = checks.positive_int("Streams", "before", before, least=0)
        self.after = checks.positive_int("Streams", "after", after, least=0)
        self.sequence = jax.tree.map(np.asarray, sequence)
        if not jax.tree.leaves(self.sequence):
            raise ValueError("Streams: sequence has no arrays; give at least one, time first")
        steps = checks.steps("Streams", self.sequence, name="sequence")
        if whole and lengths is None:
            raise ValueError("Streams: whole=True needs to know the documents; give their lengths")
        ends = np.array([steps]) if lengths is None else _ends(lengths, steps)
        if whole:
            self._streams = _whole_documents(ends, self.batch)
            self.windows = -(-max(stream.steps for stream in self._streams) // self.window)
            return
        stride = steps // self.batch
        self.windows = stride // self.window
        if self.windows == 0:
            raise ValueError(
                f"Streams: {steps} steps are too few for {batch} streams with windows of {window}; "
                f"at least {self.batch * self.window} are needed, or a smaller batch or window"
            )
        read = self.windows * self.window
        self._streams = [_part(ends, b * stride, read) for b in range(self.batch)]

    def __call__(self, step: int) -> tuple[Tree, Array]:
        start = operator.index(step) * self.window
        steps = np.arange(start - self.before, start + self.window + self.after)
        found = [stream.places(steps) for stream in self._streams]
        places, begins = (np.stack(each, axis=1) for each in zip(*found, strict=True))
        return jax.tree.map(lambda a: np.asarray(a[places]), self.sequence), begins

    def part(self, part: Part) -> Streams:
        """The same windows, of which only these streams are read: what `fit` asks for in one process of several."""
        fewer = copy.copy(self)
        fewer._streams = self._streams[part.slice("Streams", self.batch)]
        return fewer

    def specs(self, axis: str) -> Tree:
        """What `fit` divides along an axis of a mesh: the streams, of windows and booleans alike."""
        return PartitionSpec(None, axis)

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, window: int) -> tuple[Tree, Array]:
        number = operator.index(window)
        if not -self.windows <= number < self.windows:
            raise IndexError(f"Streams: an epoch has {self.windows} windows, from 0, got {number}")
        return self(number % self.windows)


class _Stream(NamedTuple):
    """What one stream reads, over and over: pieces of the sequence, one after the other."""

    starts: Array  # of each piece, in the sequence
    ends: Array  # of each piece, in the stream

    @property
    def steps(self) -> int:
        return int(self.ends[-1])

    def places(self, steps: Array) -> tuple[Array, Array]:
        """Where in the sequence these steps of the stream are, and which of them begin a piece."""
        steps = steps % self.steps
        piece = np.searchsorted(self.ends, steps, side="right")
        since = steps - np.concatenate([[0], self.ends])[piece]
        return self.starts[piece] + since, since == 0


def _ends(lengths: Sequence[int] | Array, steps: int) -> Array:
    """Where the documents end, in the sequence; those without steps are left out."""
    known = np.asarray(lengths)
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer) or (known < 0).any():
        raise ValueError(f"Streams: lengths must be whole numbers of at least 0, one per document, got {lengths!r}")
    if known.sum() != steps:
        raise ValueError(
            f"Streams: lengths must add up to the {steps} steps of the sequence, got {known.sum()}; "
            "give one length per document, in their order"
        )
    return np.cumsum(known[known > 0], dtype=np.int64)


def _part(ends: Array, start: int, steps: int) -> _Stream:
    """The stream that reads sequence[start : start + steps], cut where documents end."""
    inner = ends[(ends > start) & (ends < start + steps)]
    return _Stream(np.concatenate([[start], inner]), np.concatenate([inner, [start + steps]]) - start)


def _whole_documents(ends: Array, batch: int) -> list[_Stream]:
    """Each document, in their order, to the stream that has least to read."""
    if len(ends) < batch:
        raise ValueError(
            f"Streams: {len(ends)} documents are too few for {batch} streams of whole ones; "
            "take a smaller batch, or whole=False"
        )
    starts = np.concatenate([[0], ends[:-1]])
    total, chosen = np.zeros(batch, np.int64), []
    for length in ends - starts:
        chosen.append(int(np.argmin(total)))
        total[chosen[-1]] += length
    of_stream = [np.flatnonzero(np.array(chosen) == b) for b in range(batch)]
    return [_Stream(starts[own], np.cumsum((ends - starts)[own])) for own in of_stream]
