"""The pictures of `experiments.unrolling`: what still learns at which delay, and how errors fade on the way back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import harness
from experiments.tasks import LEARNED

LOWEST = 1e-20  # what pictures of gradients show
GRADIENTS = {
    "spectra.png": ("spectrum", "lag, steps back from the last", "norm of the loss's gradient by the state"),
    "copies.png": ("copies", "time step", "norm of the gradient of the weights' copy"),
    "exponents.png": ("lyapunov", "place in the spectrum", "Lyapunov exponent, nats per step"),
}
Rows = list[dict[str, Any]]


def draw(
    rows: Rows, tasks: Sequence[str], delays: Sequence[int], nets: Sequence[str], after: str, folder: Path
) -> list[str]:
    """All of them into a folder; gives their names. The gradients are those of the first task's longest delay."""
    harness.picture(folder / "learning.png", partial(learning, rows, tasks, delays, nets), columns=len(tasks))
    shown = [row for row in rows if (row["task"], row["delay"]) == (tasks[0], max(delays))]
    about = f"{tasks[0]}, delay {max(delays)}"
    moments = {"start": f"{about}, at the start", "trained": f"{about}, {after}"}
    for name, (what, across, up) in GRADIENTS.items():
        harness.picture(folder / name, partial(gradients, shown, what, across, up, moments), columns=2)
    return ["learning.png", *GRADIENTS]


def learning(rows: Rows, tasks: Sequence[str], delays: Sequence[int], nets: Sequence[str], panels: Any) -> None:
    """What is left of the error, by delay."""
    panels = [panels] if len(tasks) == 1 else panels
    for axes, task in zip(panels, tasks, strict=True):
        for net, style in zip(nets, ("o-", "s-", "^-", "D-"), strict=False):
            mine = [row for row in rows if (row["task"], row["net"]) == (task, net)]
            errors = [min(row["error"], 10) for row in mine]
            axes.loglog([row["delay"] for row in mine], errors, style, label=net, alpha=0.8)
        axes.axhline(1, color="gray", ls=":", lw=1)
        axes.axhline(LEARNED, color="gray", ls="--", lw=1)
        axes.set(xlabel="delay, steps", ylabel="error left (dotted: without input; dashed: learned)", title=task)
        axes.set_xticks(delays, [str(delay) for delay in delays])
        axes.minorticks_off()
        axes.set_ylim(top=10)
        axes.legend(loc="upper center", ncols=len(nets))


def gradients(rows: Rows, what: str, across: str, up: str, moments: dict[str, str], panels: Any) -> None:
    """Before and after training: by lag, by step, or by place."""
    for axes, (when, title) in zip(panels, moments.items(), strict=True):
        mine = [row for row in rows if row[when]]
        for row in mine:
            values = row[when][what]
            if what == "lyapunov":  # after a direction that is lost (a unit that is off) there is only rounding
                values = list(itertools.takewhile(lambda value: value > -2, values))
            axes.plot(values, "o-" if what == "lyapunov" else "-", ms=3, label=row["net"])
        axes.set(xlabel=across, ylabel=up, title=title)
        if what == "lyapunov":
            axes.axhline(0, color="gray", ls=":", lw=1)
        else:
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST))
        if mine:  # or all have diverged
            axes.legend()
