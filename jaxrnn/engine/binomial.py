"""The least recomputation for a given number of things kept: closed forms, a dynamic programme, and action tables.

Counted in evaluations of a step's forward pass, over a whole gradient: T without recomputation. Each step is
evaluated at least once with all that its backward pass needs (its "whole step"); what is kept meanwhile
is carries, from which later steps are reached again, or whole steps, or both.
"""

from __future__ import annotations

import functools
from math import comb
from typing import NamedTuple

import numpy as np


def evaluations_keeping_carries(steps: int, slots: int) -> int:
    """Forward evaluations of the binomial schedule with so many carries kept, the first one included.

        C(t, 1) = t (t + 1) / 2;   C(t, m) = min over 1 <= y < t of  y + C(t - y, m - 1) + C(y, m)
                = (r + 1) t - comb(m + r, r - 1),   r the least with comb(m + r, m) >= t

    Griewank and Walther 2000, "Algorithm 799: revolve".
    """
    if steps == 0:
        return 0
    repeats = _repeats(steps, slots)
    return (repeats + 1) * steps - (comb(slots + repeats, repeats - 1) if repeats else 0)


def evaluations_keeping_steps(steps: int, slots: int) -> int:
    """Forward evaluations where a slot holds a whole step, ready for its backward pass.

        C(t, 0) = t (t + 1) / 2;   C(t, m) = min over 1 <= y <= t of  y + C(y - 1, m) + C(t - y, m - 1)

    In closed form: comb(m + v, v) of the steps are evaluated v times, v = 1, 2, ... until all t are
    counted. (The marginal costs of C(., m) are 1, those of C(., m - 1), and one more than its own.)
    Gruslys et al. 2016, "Memory-efficient backpropagation through time".
    """
    total, times = 0, 1
    while steps > 0:
        counted = min(steps, comb(slots + times, times))
        total, steps, times = total + times * counted, steps - counted, times + 1
    return total


@functools.lru_cache(maxsize=2)
def _mixed(steps: int, slots: int, carry: int, whole: int) -> np.ndarray:
    """[steps + 1, slots + 1] evaluations where a carry takes `carry` slots, and a whole step `whole`.

    All numbers of slots at once, the split point moving by at most a little from one length to the
    next: O(steps * slots) instead of O(steps^2 * slots).
    """
    # Row t, column m: m slots beside the carry that the t steps start from.
    best = np.zeros((steps + 1, slots + 1), np.int32)
    m = np.arange(slots + 1)
    after_carry, after_whole = np.maximum(m - carry, 0), np.maximum(m - whole, 0)
    y_carry, y_whole = np.ones(slots + 1, np.int64), np.ones(slots + 1, np.int64)

    def carry_kept(t: int, y: np.ndarray) -> np.ndarray:
        fine = (m >= carry) & (y >= 1) & (y < t)
        y = np.clip(y, 1, max(t - 1, 1))
        return np.where(fine, y + best[t - y, after_carry] + best[y, m], np.iinfo(np.int32).max)

    def whole_kept(t: int, y: np.ndarray) -> np.ndarray:
        fine = (m >= whole) & (y >= 1) & (y <= t)
        y = np.clip(y, 1, t)
        return np.where(fine, y + best[y - 1, m] + best[t - y, after_whole], np.iinfo(np.int32).max)

    for t in range(1, steps + 1):
        best[t] = t * (t + 1) // 2
        for cost, y in ((carry_kept, y_carry), (whole_kept, y_whole)):
            options = np.stack([cost(t, y + step) for step in (0, 1, 2, -1)])
            y += np.array([0, 1, 2, -1])[np.argmin(options, axis=0)]
            np.clip(y, 1, t, out=y)
            best[t] = np.minimum(best[t], options.min(axis=0))
    return best


def evaluations_mixed(steps: int, slots: int, whole: int, carry: int = 1) -> int:
    """Forward evaluations where carries and whole steps share the slots; the lesser of both at each split.

        C(t, m) = t (t + 1) / 2   if nothing fits, or the least over y of
                  y + C(t - y, m - carry) + C(y, m)      and of  y + C(y - 1, m) + C(t - y, m - whole)

    The carry that the sequence starts from takes no slot. Cost: O(steps * slots), all slots at once. Up to
    some ten thousand steps.
    """
    return int(_mixed(steps, slots, carry, whole)[steps, slots])


def _repeats(steps: int, slots: int) -> int:
    """How often the costliest step is advanced over: the least r with comb(slots + r, slots) >= steps."""
    repeats = 0
    while comb(slots + repeats, slots) < steps:
        repeats += 1
    return repeats


def split(steps: int, slots: int) -> int:
    """How far to advance before the next carry is kept: an optimal y of the binomial schedule.

    Both parts must be solvable with the advances that the whole needs: y <= comb(m + r - 1, m) on the
    left, whose steps are advanced over once now, t - y <= comb(m - 1 + r, m - 1) on the right.
    """
    repeats = _repeats(steps, slots)
    right_at_least = comb(slots + repeats - 2, slots - 1) if repeats >= 2 else 1
    return max(1, min(comb(slots + repeats - 1, slots), steps - right_at_least, steps - 1))


class Table(NamedTuple):
    """The binomial schedule as integers: one pass over all segments, then the segments' gradients, last segment first.

        for k in range(segments):            slots[first[k]] = carry;  carry = segment_k(carry)
        for k in reversed(range(segments)):  carry = slots[restore[k]]
                                           for n in range(begin[k], end[k]):
                                               slots[store[n]] = carry;  carry = segment_run[n](carry)
                                           the gradient of segment k, from carry

    Slot 0 holds the first carry; slot number `slots`, beside the others, takes what need not be kept.
    """

    first: np.ndarray  # [segments]
    restore: np.ndarray  # [segments]
    begin: np.ndarray  # [segments]
    end: np.ndarray  # [segments]
    run: np.ndarray  # [advances] which segment is run again, only to reach a later one
    store: np.ndarray  # [advances]

    @property
    def advances(self) -> int:
        return len(self.run)


class _Piece(NamedTuple):
    """Leaves whose gradients are still due, as a subproblem of the schedule."""

    start: int
    segments: int
    slots: int  # that it may use, the one that holds its first carry included
    slot: int


@functools.lru_cache(maxsize=64)
def table(segments: int, slots: int) -> Table:
    """The schedule for so many segments with so many kept carries, the first one among them."""
    scratch, free = slots, list(range(slots - 1, 0, -1))
    restore, begin, end = (np.zeros(segments, np.int32) for _ in range(3))
    due = [_Piece(0, segments, slots, 0)]

    def kept_on_the_way(piece: _Piece) -> dict[int, int]:
        """Splits a piece down to its last segment: which carries to keep on the way there, in which slots."""
        kept = {}
        while piece.segments > 1:
            left = split(piece.segments, piece.slots) if piece.slots > 1 else piece.segments - 1
            due.append(piece._replace(segments=left))
            start, right = piece.start + left, piece.segments - left
            if right > 1:  # a single segment is run at once, from the carry at hand
                kept[start] = free.pop()
            piece = _Piece(start, right, piece.slots - 1, kept.get(start, scratch))
        return kept

    kept = {0: 0} | kept_on_the_way(due.pop())
    first = np.array([kept.get(k, scratch) for k in range(segments)], np.int32)
    restore[-1] = first[-1]
    run: list[int] = []
    store: list[int] = []
    while due:
        piece = due.pop()
        last = piece.start + piece.segments - 1
        restore[last], begin[last] = piece.slot, len(run)
        kept = kept_on_the_way(piece)
        run += range(piece.start, last)
        store += [kept.get(k, scratch) for k in range(piece.start, last)]
        end[last] = len(run)
        if piece.segments == 1 and piece.slot:
            free.append(piece.slot)
    return Table(first, restore, begin, end, np.array(run, np.int32), np.array(store, np.int32))
