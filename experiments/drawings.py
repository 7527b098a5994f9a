"""The pictures of `experiments.captions` and `experiments.sentiment`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Words = Callable[[str], list[str]]


# Captions.


def captions(data: Any, everything: Sequence[Mapping[str, str]], panels: Any) -> None:
    """Emoji of both parts, every so many, with what is said of them and, where that is wrong, what they are called."""
    figure = _cleared(panels, 16, 11)
    for half, part in zip(figure.subfigures(1, 2), ("combinations", "bases"), strict=True):
        half.suptitle(f"unseen {part}: what the net says (what it is)")
        own, rows = getattr(data, part), [row for row in everything if row["part"] == part]
        for axes, i in zip(half.subplots(5, 4).flat, np.linspace(0, len(rows) - 1, 20).astype(int), strict=True):
            right = rows[i]["net"] == rows[i]["name"]
            text = _wrapped(rows[i]["net"]) + ("" if right else f"\n({_wrapped(rows[i]['name'])})")
            _show(axes, own.pictures[i], text, fontsize=7, color="darkgreen" if right else "firebrick")


def looks(
    own: Any, right: Sequence[int], words: Words, where: Callable[[np.ndarray, str], np.ndarray], panels: Any
) -> None:
    """Where the net looks as it says a word: the longest of the captions that are right and begin differently."""
    longest_last = sorted(right, key=lambda i: len(words(own.names[i])))
    chosen = list({words(own.names[i])[0]: i for i in longest_last}.values())[-4:]
    grid = _cleared(panels, 16, 2 * len(chosen)).subplots(len(chosen), 9, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, i in zip(grid, chosen, strict=True):
        picture, said = own.pictures[i], words(own.names[i])
        _show(row[0], picture, _wrapped(own.names[i]), fontsize=7)
        maps = [(w, a) for w, a in zip(said, where(picture, own.names[i]), strict=False) if w not in ":,"]
        for axes, (word, share) in zip(row[1:], maps, strict=False):
            each = len(picture) // len(share)  # pixels of a place
            light = np.kron(share / share.max(), np.ones((each, each)))[..., None]
            _show(axes, picture * (0.15 + 0.85 * light), word, fontsize=9)


def _show(axes: Any, picture: np.ndarray, title: str, **style: Any) -> None:
    axes.imshow(picture)
    axes.axis("off")
    axes.set_title(title, **style)


def _wrapped(text: str) -> str:
    return re.sub(r"(.{1,26})(?:\s|$)", r"\1\n", text).strip()


# Sentiment.


def error(count: int, share: float = 0.8) -> float:
    """The standard error of a share among so many."""
    return math.sqrt(share * (1 - share) / count)


def accuracy(shares: Mapping[str, float], judged: np.ndarray, ratings: np.ndarray, panels: Any) -> None:
    """All that judge, side by side; and how sure the nets are, by how people rated."""
    names = list(shares)[::-1]
    colors = ["C1" if "net" in name else "0.7" for name in names]
    panels[0].barh(names, [shares[name] for name in names], color=colors, xerr=error(len(judged)))
    panels[0].set(xlabel="share of unseen snippets judged right, one standard error", xlim=(0.55, 0.9))
    for y, name in enumerate(names):
        panels[0].text(0.555, y, f"{shares[name]:.1%}", va="center")
    right = (judged > 0) == (ratings > 0)
    for which, color, label in ((right, "C0", "right"), (~right, "C3", "wrong")):
        about = f"{label}: {which.sum()}"
        panels[1].plot(ratings[which], judged[which], ".", ms=3, color=color, alpha=0.6, label=about)
    panels[1].axhline(0, color="0.4", lw=1)
    panels[1].axvline(0, color="0.4", lw=1)
    panels[1].set(xlabel="people's mean rating", ylabel="the nets' judgement")
    panels[1].legend()


def moved(
    test: Any,
    words: Words,
    judged: Callable[[Sequence[str]], np.ndarray],
    moves: Callable[[str], np.ndarray],
    panels: Any,
) -> None:
    """Sentences, every so many, with each word in the colour of where it moves the judgement: blue up, red down."""
    import matplotlib.pyplot as plt

    axes = _cleared(panels, 15, 8).subplots()
    axes.axis("off")
    some = [i for i, text in enumerate(test.texts) if 8 <= len(words(text)) <= 18]
    some = some[:: max(1, len(some) // 18)][:18]
    for row, (i, verdict) in enumerate(zip(some, judged([test.texts[i] for i in some]), strict=True)):
        color = "darkgreen" if verdict * test.ratings[i] > 0 else "firebrick"
        axes.text(-1, -row, f"{test.ratings[i]:+.1f} / {verdict:+.1f}", ha="right", va="center", color=color)
        found, x = moves(test.texts[i]), 0.0
        for word, move in zip(words(test.texts[i]), found / max(np.abs(found).max(), 1e-9), strict=True):
            shade = plt.get_cmap("RdBu")(0.5 + 0.4 * move)
            axes.text(x, -row, word, family="monospace", fontsize=9, va="center", backgroundcolor=shade)
            x += 0.78 * len(word) + 2
    title = "people's rating / the net's judgement, and the words that moved it: blue up, red down"
    axes.set(xlim=(-12, 105), ylim=(-18, 1), title=title)


def _cleared(panels: Any, width: float, height: float) -> Any:
    """The figure of these panels, empty and of another size."""
    figure = panels[0].figure
    for panel in panels:
        panel.remove()
    figure.set_size_inches(width, height)
    return figure
