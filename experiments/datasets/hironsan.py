"""Entities in Japanese sentences: 500 sentences of news, each word with its script, part of speech and IOB2 tag.

PyPI `hironsancorpus` 0.1.2 (the package is MIT, the sentences are newspapers'), `hironsan/corpus/iob_sents.txt`; the
package is not imported. 15,520 words, 1,282 entities of eight types: ART(ifact), DAT(e), LOC(ation), MON(ey),
ORG(anization), PER(cent), PSN (person), TIM(e).

    sentences()                       the 500, in the order of the file
    folds(500, 5, scattered=True)     five parts to be tested on, each by nets that saw the other four

Sentences stand in the order of their articles, and an article's names return in its other sentences. `scattered` folds
are drawn from all over the file, with numpy's generator of seed 0, so the training parts hold names of the tested
articles, as the usual random split does; the others are five stretches of the file, new articles but for their ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.datasets.packages import Package, fetched

FILE = "hironsan/corpus/iob_sents.txt"
CORPUS = Package(
    "PyPI", "hironsancorpus", "0.1.2", {FILE: "fc55bffe080deea3b63f9923cd33ee9a96b500a997d5719b4a5c03d216ef2a3e"}
)
COLUMNS = 7  # script, four of the part of speech, conjugation and form
UNKNOWN, NOTHING = 0, 1  # numbers of what is not known, and of a character that a word has not


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


class Numbers:
    """Words, characters, columns and tags as numbers; the same ones for every fold, so that nets are compiled once."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        words = {word for s in sentences for word in s.words}
        columns = [{c[i] for s in sentences for c in s.columns} for i in range(COLUMNS)]
        characters = {c for word in words for c in word}
        numbered = lambda values: {value: n for n, value in enumerate(sorted(values), start=2)}
        self.word, self.character, *self.columns = map(numbered, [words, characters, *columns])
        self.tags = sorted({tag for s in sentences for tag in s.tags}, key=lambda tag: (tag[1:], tag))
        self.sizes = [len(t) + 2 for t in (self.word, *[self.character] * 4, *self.columns)]

    def of(self, sentences: Sequence[Sentence], known: set[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each one's words [n, 12] and tags [n]; words that are not known, and characters of none, are UNKNOWN."""
        characters = {c for word in known for c in word}
        return [self._of(sentence, known, characters) for sentence in sentences]

    def _of(self, sentence: Sentence, known: set[str], characters: set[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for word, columns in zip(sentence.words, sentence.columns, strict=True):
            ends = [*word[:2], *[None] * (2 - len(word[:2])), *[None] * (2 - len(word[-2:])), *word[-2:]]
            spelled = [NOTHING if c is None else self.character[c] if c in characters else UNKNOWN for c in ends]
            row = [self.word[word] if word in known else UNKNOWN, *spelled]
            rows.append(row + [table[c] for table, c in zip(self.columns, columns, strict=True)])
        return np.array(rows, np.int32), np.array([self.tags.index(tag) for tag in sentence.tags], np.int32)
