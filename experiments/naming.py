"""Names of pictures: their words, how near one is to another, and those of the nearest picture, for `captions`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import sacrebleu
from sklearn.neighbors import NearestNeighbors

from experiments.datasets.emoji import Emoji


def words(name: str) -> list[str]:
    return re.findall(r"[:,]|[^\s:,]+", name)


def said(parts: Sequence[str]) -> str:
    return re.sub(r" ([:,])", r"\1", " ".join(parts))


def figures(captions: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """BLEU, the share that is right to the letter, and that of the skin tones where there are any."""
    pairs = list(zip(captions, names, strict=True))
    tones = [[re.findall(r"[\w-]+ skin tone", text) for text in pair] for pair in pairs]
    toned = [a == b for a, b in tones if b]
    return {
        "bleu": sacrebleu.corpus_bleu(list(captions), [list(names)]).score,
        "exact": sum(a == b for a, b in pairs) / len(pairs),
        "skin_tones": sum(toned) / max(len(toned), 1),
    }


def nearest(train: Emoji, pictures: np.ndarray) -> list[str]:
    """The captions of the pictures that differ least, pixel by pixel."""
    flat = lambda a: a.reshape(len(a), -1)
    _, found = NearestNeighbors(n_neighbors=1).fit(flat(train.pictures)).kneighbors(flat(pictures))
    return [train.names[i] for i in found[:, 0]]
