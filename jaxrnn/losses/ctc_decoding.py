"""Reading labels off CTC's probabilities while they come: greedily, a cell; or by prefix beam search, on the host."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.cells.base import WithoutParameters
from jaxrnn.types import Cell, Key, Params

LanguageModel = Callable[[Any, int], tuple[Any, float]]  # (state, label) -> (state, log p)


def ctc_greedy(blank: int = 0) -> Cell:
    """The likeliest path, read as CTC reads it: a label begins where the likeliest class changes to it.

        k_t = argmax x_t
        y_t = k_t  where k_t is not blank and k_t != k_tm1,  else -1

    Shapes: x_t [*B, V] logits or probabilities, y_t [*B] int32, state [*B] int32: k_tm1, so a stream may come
    in pieces. `labels_read` gathers the labels. The likeliest path need not read the likeliest labelling: for that
    there is `PrefixBeams`. Raises: ValueError for a blank below 0.
    """
    return Greedy(checks.positive_int("ctc_greedy", "blank", blank, least=0)).cell


@dataclass(frozen=True)
class Greedy(WithoutParameters):
    blank: int

    def initial_state(self, params: Params, batch_shape: tuple[int, ...]) -> jax.Array:
        del params
        return jnp.full(batch_shape, self.blank, jnp.int32)

    def step(
        self, params: Params, state: jax.Array, x: jax.Array, *, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del params, key
        best = jnp.argmax(x, axis=-1).astype(jnp.int32)
        return best, jnp.where((best != self.blank) & (best != state), best, -1)


def labels_read(ys: Any, lengths: Any = None) -> list[list[int]]:
    """The outputs [T, B] of `ctc_greedy` as one list of labels per sequence.

    lengths [B]: how many steps of each count; the rest, where `unroll` puts zeros, is left out.

    >>> labels_read(np.array([[2, -1], [-1, 1], [3, 0]]), lengths=[3, 2])
    [[2, 3], [1]]
    """
    ys = np.asarray(ys)
    ends = [len(ys)] * ys.shape[1] if lengths is None else np.asarray(lengths)
    return [[int(k) for k in column[:end] if k >= 0] for column, end in zip(ys.T, ends, strict=True)]


class _Prefix:
    """Labels as a path in a tree: all but the last, the last, and what the language model says of them."""

    def __init__(self, before: _Prefix | None, label: int, model_state: Any, model_score: float, since: int = 0):
        self.before, self.label = before, label
        self.since = since  # how many frames had been read when it was
        self.length: int = 0 if before is None else before.length + 1
        self.model_state, self.model_score = model_state, model_score
        # A prefix that no beam goes through any more is forgotten, on however long a stream.
        self.longer: weakref.WeakValueDictionary[int, _Prefix] = weakref.WeakValueDictionary()

    def begins_with(self, other: _Prefix) -> bool:
        at: _Prefix = self
        while at.length > other.length and at.before is not None:
            at = at.before
        return at is other

    def labels(self) -> tuple[int, ...]:
        found: list[int] = []
        at = self
        while at.before is not None:
            found.append(at.label)
            at = at.before
        return tuple(reversed(found))


class PrefixBeams:
    """Prefix beam search over one stream: the likeliest labellings of the frames so far, summed over alignments.

        blank(l), label(l): log p that the frames so far read l and end in a blank, or in l's last label
        each frame:  blank(l)    <- p(blank) (blank(l) + label(l))
                     label(l)    <- p(last of l) label(l)
                     label(l k)  <- p(k) (blank(l) + label(l)),  after itself p(k) blank(l) alone
        and of all l the `width` best by  log p(l) + weight * log p_model(l) + bonus * |l|  stay

    `feed` takes logits (or log-probabilities) [T, V] in pieces of any length, which does not change the result.
    At any time `best()` is the best labelling so far, `scores()` the log p of each that is kept, and `stable()`
    what all of them begin with: it will not change, whatever comes. On a long stream that may wait long, for two
    labellings that differ in one old label; with `lag` a label of the best labelling is settled once it was read so
    many frames ago: labellings without it are dropped.
    `language_model` is (state, label) -> (state, log p), asked once per labelling, from `model_state` on.
    Labels more than `prune` nats less likely than the frame's likeliest class are not tried; None: all are.
    With a width above the number of all labellings, no pruning and no lag, the scores are exact.
    Cost: on the host, per frame width * (labels tried) sums; memory O(width * length).
    Raises: ValueError for options out of range or frames of another shape.

    >>> unsure = np.log([[0.1, 0.5, 0.4], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])
    >>> [PrefixBeams(4, lag=lag).feed(unsure).stable() for lag in (None, 2)]
    [(), (1,)]

    Graves 2012, "Supervised sequence labelling"; Hannun et al. 2014, "First-pass large vocabulary continuous
    speech recognition using bi-directional recurrent DNNs".
    """

    def __init__(
        self,
        width: int = 16,
        *,
        blank: int = 0,
        language_model: LanguageModel | None = None,
        model_state: Any = None,
        weight: float = 1.0,
        bonus: float = 0.0,
        prune: float | None = 12.0,
        lag: int | None = None,
    ):
        self.width = checks.positive_int("PrefixBeams", "width", width)
        self.blank = checks.positive_int("PrefixBeams", "blank", blank, least=0)
        if language_model is not None and not callable(language_model):
            raise ValueError(f"PrefixBeams: language_model must be a function or None, got {language_model!r}")
        if prune is not None and not checks.number(prune) >= 0:
            raise ValueError(f"PrefixBeams: prune must be a number of nats of at least 0, or None, got {prune!r}")
        self.model, self.weight, self.bonus = language_model, weight, bonus
        self.prune = math.inf if prune is None else prune
        self.lag = None if lag is None else checks.positive_int("PrefixBeams", "lag", lag, least=0)
        self.frames = 0
        # Best first: (log p ending in a blank, log p ending in the last label) of each prefix.
        self.beams = {_Prefix(None, -1, model_state, 0.0): (0.0, -math.inf)}

    def feed(self, logits: Any) -> PrefixBeams:
        """Reads on: logits [T, V], or [V] for one frame. Gives itself."""
        frames = np.atleast_2d(np.asarray(logits, np.float64))
        if frames.ndim != 2 or self.blank >= frames.shape[1]:
            raise ValueError(
                f"PrefixBeams: logits must be [T, V] with V above the blank, {self.blank}, got {np.shape(logits)}"
            )
        for frame in frames:
            self._read(frame - np.logaddexp.reduce(frame))
        return self

    def _read(self, log_p: np.ndarray) -> None:
        self.frames += 1
        tried = [int(k) for k in np.flatnonzero(log_p >= log_p.max() - self.prune) if k != self.blank]
        classes = log_p.tolist()
        ending_blank: dict[_Prefix, float] = {}
        ending_label: dict[_Prefix, float] = {}
        for prefix, (blank, label) in self.beams.items():
            both = _log_sum(blank, label)
            _add(ending_blank, prefix, both + classes[self.blank])
            if prefix.before is not None:
                _add(ending_label, prefix, label + classes[prefix.label])
            for k in tried:
                # The same label again is the same one, unless a blank lies between.
                way = blank if k == prefix.label else both
                if way > -math.inf:
                    _add(ending_label, self._longer(prefix, k), way + classes[k])
        found = {
            prefix: (ending_blank.get(prefix, -math.inf), ending_label.get(prefix, -math.inf))
            for prefix in {**ending_blank, **ending_label}
        }
        rank = lambda prefix: _log_sum(*found[prefix]) + prefix.model_score
        kept = sorted(found, key=rank, reverse=True)[: self.width]
        if self.lag is not None:
            settled = self._settled(kept[0], self.lag)
            kept = [prefix for prefix in kept if prefix.begins_with(settled)]
        self.beams = {prefix: found[prefix] for prefix in kept}

    def _settled(self, best: _Prefix, lag: int) -> _Prefix:
        """What of the best labelling has stood for `lag` frames."""
        at = best
        while at.before is not None and self.frames - at.since < lag:
            at = at.before
        return at

    def _longer(self, prefix: _Prefix, label: int) -> _Prefix:
        found = prefix.longer.get(label)
        if found is None:
            state, log_p = (None, 0.0) if self.model is None else self.model(prefix.model_state, label)
            score = prefix.model_score + self.weight * log_p + self.bonus
            found = prefix.longer[label] = _Prefix(prefix, label, state, score, self.frames)
        return found

    def best(self) -> tuple[int, ...]:
        """The best labelling of the frames so far."""
        return next(iter(self.beams)).labels()

    def scores(self) -> dict[tuple[int, ...], float]:
        """log p, without the language model, of each labelling that is kept, best first."""
        return {prefix.labels(): _log_sum(*ways) for prefix, ways in self.beams.items()}

    def stable(self) -> tuple[int, ...]:
        """What all labellings that are kept begin with."""
        ends = set(self.beams)
        while len(ends) > 1:
            longest = max(end.length for end in ends)
            ends = {end.before if end.length == longest and end.before is not None else end for end in ends}
        return ends.pop().labels()


def _add(total: dict[_Prefix, float], prefix: _Prefix, log_p: float) -> None:
    total[prefix] = _log_sum(total.get(prefix, -math.inf), log_p)


def _log_sum(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
