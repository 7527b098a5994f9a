"""`Best`: the best parameters of a training so far, and when to stop for want of better ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.training.files import RunError
from jaxrnn.training.runs import Run
from jaxrnn.types import Params


class Best:
    """Keeps the parameters with the best figure that `evaluate` gave, and ends a training that gets no better.

        best = Best("held_out_bits", patience=5)
        fit(..., evaluate=..., evaluate_every=100, best=best)
        best.params, best.step, best.value

    "lowest" is best, or with `mode="highest"` the highest; a figure that is equal or NaN is no better. With
    `patience=n` the training ends after n evaluations in a row that found nothing better, and is saved
    then as at its end. In a run folder the best parameters are saved too, `best/N/` (`Run.best` reads them),
    and every checkpoint says which of them was the best by then: a run that was stopped, by Ctrl-C or
    `kill -9`, and started again ends at the same step, with the same best, to the bit.
    Without a run folder, give the same `Best` again with the state that is gone on from.

    Cost: the parameters once more in memory, and a checkpoint of them for each figure that is better.
    Raises: ValueError for an unknown mode, a patience below 1, or an evaluate that does not give the figure.
    Prechelt 1998, "Early stopping, but when?".
    """

    def __init__(self, figure: str, *, mode: str = "lowest", patience: int | None = None) -> None:
        self.figure = figure
        self.mode = checks.one_of("Best", "mode", mode, ("lowest", "highest"))
        self.patience = None if patience is None else checks.positive_int("Best", "patience", patience)
        self.params: Params = None  # those to use: the average, where the optimizer keeps one
        self.step: int | None = None
        self.value: float | None = None
        self.since = 0  # evaluations since the best one

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.since >= self.patience

    def see(self, step: int, figures: Mapping[str, float], params: Params, run: Run | None) -> None:
        """Takes note of an evaluation, and saves the parameters if they are the best so far."""
        if self.figure not in figures:
            given = ", ".join(map(repr, figures)) or "none"
            raise ValueError(f"fit: best compares {self.figure!r}, which evaluate must give; it gave {given}")
        value = float(figures[self.figure])
        if not self._is_better(value):
            self.since += 1
            return
        # A copy: the next step reuses the state's buffers.
        self.params, self.step, self.value, self.since = jax.tree.map(jnp.array, params), step, value, 0
        if run is not None:
            run.save_best(step, self.params)

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return value == value
        return value < self.value if self.mode == "lowest" else value > self.value

    def place(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"figure": self.figure, "mode": self.mode, "step": self.step, "value": self.value, "since": self.since}

    def go_to(self, place: Mapping[str, Any] | None, params: Params, run: Run) -> None:
        """Takes up what a checkpoint says; where it says nothing, as of a run without a best one, nothing is best yet.

        Raises: RunError where the run keeps the best by another figure, or its parameters cannot be read.
        """
        place = place or Best(self.figure, mode=self.mode).place()
        if (place["figure"], place["mode"]) != (self.figure, self.mode):
            raise RunError(
                f"the run keeps the parameters with the {place['mode']} {place['figure']!r}, not the {self.mode} "
                f"{self.figure!r}; ask for the same, or choose another run folder"
            )
        self.step, self.value, self.since = place["step"], place["value"], place["since"]
        try:
            self.params = None if self.step is None else run.best(params, self.step)
        except RunError as error:
            raise RunError(
                f"the best parameters, those after {self.step} steps, cannot be had from {run.folder / 'best'}; "
                "put them back, or go on without best"
            ) from error
