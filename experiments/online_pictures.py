"""The pictures of `experiments.online`: how near gradients come to BPTT's, and what is left of losses by the step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import harness

Rows = list[dict[str, Any]]
LEFT = {
    "stream": "bits left",
    "copy": "error left",
    "adding": "error left",
    "drift": "bits left",
    "text": "bits per byte, as it is read",
}


def draw(rows: Rows, stretch: int, drift: Sequence[int], folder: Path) -> list[str]:
    """One for each part that there is; gives their names."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    for part in parts:
        mine = [row for row in rows if row["part"] == part]
        if part == "table":
            harness.picture(folder / "table.png", partial(nearness, mine), columns=2)
        else:
            changes = (
                {n * stretch: d for n, d in enumerate(drift) if n and d != drift[n - 1]} if part == "drift" else {}
            )
            harness.picture(folder / f"{part}.png", partial(curves, mine, part, changes))
    return [f"{part}.png" for part in parts]


def nearness(rows: Rows, panels: Any) -> None:
    """The cosines before and after training; and after training by what a step costs."""
    bars, costs = panels
    places = np.arange(len(rows))
    for n, (when, title) in enumerate({"start": "at the start", "trained": "after training"}.items()):
        bars.bar(places + 0.4 * n - 0.2, [row[f"recurrent_{when}"] for row in rows], 0.4, label=title)
    bars.set_xticks(places, [row["method"] for row in rows], rotation=30)
    bars.set(ylabel="cosine to BPTT's gradient, recurrent weights", ylim=(None, 1.25))
    bars.axhline(0, color="0.5", lw=1)
    bars.legend(loc="upper right", ncols=2)
    for row in rows:
        costs.plot(row["steps"], row["recurrent_trained"], "o", ms=4 + 2 * np.log10(row["carried"]) - 5)
        costs.annotate(
            row["method"], (row["steps"], row["recurrent_trained"]), xytext=(8, -4), textcoords="offset points"
        )
    costs.set(xscale="log", xlabel="cost of a step, in forward steps", ylabel="cosine, after training")
    costs.set_title("larger: more bytes carried")
    costs.margins(0.2)


def curves(rows: Rows, part: str, changes: dict[int, int], axes: Any) -> None:
    """Left of the loss by updates, the mean over seeds with each seed behind it."""
    for n, row in enumerate(rows):
        curve = np.array(row["curve"])
        at = (np.arange(len(curve)) + 0.5) * row["updates"] / len(curve)
        if part == "text":
            at = at / row["updates"]
        axes.plot(
            at, curve.mean(axis=1), "--" if row["method"] == "immediate" else "-", color=f"C{n}", label=row["method"]
        )
        if curve.shape[1] > 1:
            axes.plot(at, curve, color=f"C{n}", lw=0.6, alpha=0.4)
    for step, delay in changes.items():
        axes.axvline(step, color="0.5", ls=":", lw=1)
        axes.text(step, 1.0, f" now {delay} ago", transform=axes.get_xaxis_transform(), va="top", fontsize="small")
    axes.set(xlabel="share of the text" if part == "text" else "updates", ylabel=LEFT[part], title=part)
    if part != "text":
        axes.set(yscale="log", ylim=(1e-5, None))
    axes.legend(fontsize="small", loc="best")
