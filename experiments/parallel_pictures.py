"""The pictures of `experiments.parallel`: one for each part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments import harness

Rows = list[dict[str, Any]]
COLORS = {"lax.scan": "C0", "jaxrnn.scan": "C1", "parallel()": "C2", "associative_scan": "C4"}


def _by(rows: Rows, name: str) -> dict[Any, Rows]:
    return {value: [r for r in rows if r[name] == value] for value in dict.fromkeys(r[name] for r in rows)}


def _lines(axes: Any, rows: Rows, figure: str, style: str = "o-", **more: Any) -> None:
    for way, mine in _by(rows, "way").items():
        known = [(r["of"], r[figure]) for r in mine if figure in r]
        if known:
            axes.plot(*zip(*known, strict=True), style, color=COLORS.get(way, "C3"), label=way, **more)


def draw_cost(rows: Rows, panels: Any) -> None:
    """Depth, bytes and time of the gradient by length."""
    depth, memory, time = panels
    _lines(depth, rows, "gradient_depth")
    mebi = [r | {"mebi": r["gradient_bytes"] / 2**20} for r in rows]
    _lines(memory, mebi, "mebi")
    _lines(time, rows, "gradient_seconds")
    depth.set(title="depth of the gradient", ylabel="operations one after the other")
    memory.set(title="scratch memory of the gradient", ylabel="MiB")
    time.set(title="time of the gradient on this machine", ylabel="seconds")
    for axes in panels:
        axes.set(xscale="log", yscale="log", xlabel="time steps T")
        axes.grid(alpha=0.3)
    depth.legend()


def draw_accuracy(rows: Rows, axes: Any) -> None:
    for dtype, mine in _by(rows, "dtype").items():
        _lines(axes, mine, "error", "o--" if dtype == "float32" else "s-", alpha=0.8)
    handles, labels = axes.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))
    axes.set(xscale="log", yscale="log", xlabel="time steps T", ylabel="error of the gradient, relative")
    axes.set_title("error against float64: bfloat16 solid, float32 dashed")
    axes.legend(kept.values(), kept.keys())
    axes.grid(alpha=0.3)


def draw_newton(rows: Rows, panels: Any) -> None:
    """Iterations by length; and the error beside its bound."""
    count, error = panels
    for n, (gain, mine) in enumerate(_by(rows, "gain").items()):
        color, lengths = f"C{n}", [r["of"] for r in mine]
        count.plot(lengths, [r["iterations"] for r in mine], "-", color=color, label=f"weights x {gain:g}")
        for r in mine:
            count.plot(r["of"], r["iterations"], "o" if r["met"] else "x", color=color, ms=8)
        met = [r for r in mine if r["met"]]
        if met:
            error.plot([r["of"] for r in met], [r["error"] for r in met], "o-", color=color, label=f"x {gain:g}: error")
            error.plot([r["of"] for r in met], [r["bound"] for r in met], "--", color=color, label=f"x {gain:g}: bound")
    count.set(xscale="log", xlabel="time steps T", ylabel="iterations", ylim=(0, None))
    count.set_title("Newton's iterations (cross: not met, the loop runs)")
    error.set(xscale="log", yscale="log", xlabel="time steps T", ylabel="largest difference from lax.scan's states")
    error.set_title("error, and the certificate's bound")
    count.legend()
    if error.get_legend_handles_labels()[0]:
        error.legend()


def draw_digits(rows: Rows, panels: Any) -> None:
    """What is right of the held-out digits, by seconds and by updates."""
    for axes, place, label in zip(panels, (1, 0), ("seconds of processor time", "updates"), strict=True):
        for row in rows:
            axes.plot([p[place] for p in row["curve"]], [100 * p[3] for p in row["curve"]], label=row["of"])
        axes.axhline(10, color="0.5", ls=":", label="a guess")
        axes.set(xlabel=label, ylabel="held-out digits read right, %", ylim=(0, 100), title=f"by {label}")
    panels[0].legend()


PICTURES: dict[str, tuple[Callable[..., None], int]] = {
    "cost": (draw_cost, 3),
    "accuracy": (draw_accuracy, 1),
    "newton": (draw_newton, 2),
    "digits": (draw_digits, 2),
}


def draw(rows: Rows, folder: Path) -> list[str]:
    """A PNG for each part that there is; their names."""
    parts = _by(rows, "part")
    for part, mine in parts.items():
        drawing, columns = PICTURES[part]
        harness.picture(folder / f"{part}.png", partial(drawing, mine), columns=columns)
    return [f"{part}.png" for part in parts]
