"""Entities in Japanese sentences: 500 sentences of news, each word with its script, part of speech and IOB2 tag.

PyPI `hironsancorpus` 0.1.2 (MIT), `hironsan/corpus/iob_sents.txt`; the package is not imported. 15,520 words, 1,282
entities of eight types: ART(ifact), DAT(e), LOC(ation), MON(ey), ORG(anization), PER(cent), PSN (person), TIM(e).

    sentences()                       the 500, in the order of the file
    folds(500, 5, scattered=True)     five parts to be tested on, each by nets that saw the other four

Sentences stand in the order of their articles, and an article's names return in its other sentences. `scattered` folds
are drawn from all over the file, with numpy's generator of seed 0, so the training parts hold names of the tested
articles, as the usual random split does; the others are five stretches of the file, new articles but for their ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.datasets.packages import Package, fetched

FILE = "hironsan/corpus/iob_sents.txt"
CORPUS = Package(
    "PyPI", "hironsancorpus", "0.1.2", {FILE: "fc55bffe080deea3b63f9923cd33ee9a96b500a997d5719b4a5c03d216ef2a3e"}
)
COLUMNS = 7  # script, four of the part of speech, conjugation and form


class Sentence(NamedTuple):
    words: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]  # of each word: what the tagger that made the file says of it
    tags: tuple[str, ...]  # O, B-LOC, I-LOC, ...


def sentences() -> list[Sentence]:
    """Raises: packages.Missing where the package cannot be had."""
    text = (fetched(CORPUS) / FILE).read_text(encoding="utf-8")
    blocks = [[line.split("\t") for line in block.split("\n")] for block in text.strip("\n").split("\n\n")]
    return [
        Sentence(
            tuple(line[0] for line in lines),
            tuple(tuple(line[1 : 1 + COLUMNS]) for line in lines),
            tuple(line[-1] for line in lines),
        )
        for lines in blocks
    ]


def folds(count: int, parts: int, *, scattered: bool) -> list[np.ndarray]:
    """The numbers of the sentences that each part tests, ascending."""
    order = np.random.default_rng(0).permutation(count) if scattered else np.arange(count)
    return [np.sort(part) for part in np.array_split(order, parts)]
