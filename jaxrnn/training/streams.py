"""Long sequences cut into consecutive windows: what truncated BPTT with a carried state reads."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.types import Tree


class Streams:
    """B parallel readers of one long sequence, `window` steps at a time.

        stream b reads sequence[b * n : (b + 1) * n] with n = N // B,
        and window i of an epoch holds its steps i * window ... (i + 1) * window - 1

    `streams(step)` gives the step's windows, leaves [window, B, ...], and which steps begin a stream,
    [window, B] booleans (all of the first step of each epoch). Window i + 1 goes on where window i
    ended, so the state at its end is the state to start with; pass the booleans to `unroll(resets=...)`.
    The result depends on the step's number alone: a resumed run reads what it would have read.
    An epoch has `windows` windows; the steps left over at a stream's end (fewer than `window`), and
    the last N mod B of the sequence, are not read. Leaves may be memory-mapped: a call reads one window only.
    Raises: ValueError for leaves of unequal lengths, or a sequence too short for one window.
    """

    def __init__(self, sequence: Tree, *, batch: int, window: int) -> None:
        self.batch = checks.positive_int("Streams", "batch", batch)
        self.window = checks.positive_int("Streams", "window", window)
        self.sequence = jax.tree.map(np.asarray, sequence)
        if not jax.tree.leaves(self.sequence):
            raise ValueError("Streams: sequence has no arrays; give at least one, time first")
        steps = checks.steps("Streams", self.sequence, name="sequence")
        self._stride = steps // self.batch
        self.windows = self._stride // self.window
        if self.windows == 0:
            raise ValueError(
                f"Streams: {steps} steps are too few for {batch} streams with windows of {window}; "
                f"at least {self.batch * self.window} are needed, or a smaller batch or window"
            )

    def __call__(self, step: int) -> tuple[Tree, np.ndarray[Any, Any]]:
        start = (step % self.windows) * self.window

        def window(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            rows = a[: self._stride * self.batch].reshape(self.batch, self._stride, *a.shape[1:])
            return np.ascontiguousarray(rows[:, start : start + self.window].swapaxes(0, 1))

        begins = np.zeros((self.window, self.batch), bool)
        begins[0] = start == 0
        return jax.tree.map(window, self.sequence), begins
