"""Taggers to compare with, a word's most frequent tag and a linear CRF by CRFsuite; and what taggers found."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities

from experiments.datasets import hironsan

NAMES = ("word", "word, else speech", "linear CRF")


def tagged(name: str, train: Sequence[hironsan.Sentence], test: Sequence[hironsan.Sentence]) -> list[list[str]]:
    """The tags that one of them finds in `test`."""
    if name == "linear CRF":
        return linear_crf(train, test)
    keys = [lambda word, columns: word, lambda word, columns: columns[1:5]]
    return most_frequent(train, test, keys[: NAMES.index(name) + 1])


def most_frequent(train: Sequence[Any], test: Sequence[Any], keys: Sequence[Any]) -> list[list[str]]:
    """The tag that a word's first known key has most often in the training sentences, or O."""
    counts: list[dict[Any, Counter[str]]] = [{} for _ in keys]
    for sentence in train:
        for word, columns, tag in zip(*sentence, strict=True):
            for key, count in zip(keys, counts, strict=True):
                count.setdefault(key(word, columns), Counter())[tag] += 1
    known = lambda *w: next((c[k(*w)] for k, c in zip(keys, counts, strict=True) if k(*w) in c), Counter("O"))
    return [[known(*w).most_common(1)[0][0] for w in zip(s.words, s.columns, strict=True)] for s in test]


def features(sentence: hironsan.Sentence) -> list[list[str]]:
    """For the linear CRF: of the five words around each, the word, its ends, script and part of speech; two pairs."""
    found = []
    for t in range(len(sentence.words)):
        row = ["bias"]
        for d in range(-2, 3):
            if not 0 <= t + d < len(sentence.words):
                row.append(f"{d} none")
                continue
            word, (script, *speech) = sentence.words[t + d], sentence.columns[t + d]
            row += [f"{d} word {word}", f"{d} script {script}", f"{d} first {word[0]}", f"{d} last {word[-1]}"]
            row += [f"{d} speech {n} {'-'.join(speech[:n])}" for n in (1, 2, 4)]
        for d in (-1, 0):
            pair = sentence.columns[max(t + d, 0) : t + d + 2]
            row.append(f"{d} pair {'|'.join('-'.join(columns[1:3]) for columns in pair)}")
        found.append(row)
    return found


def linear_crf(train: Sequence[hironsan.Sentence], test: Sequence[hironsan.Sentence]) -> list[list[str]]:
    """By CRFsuite, with both penalties at 0.1, as its tutorial has them."""
    import pycrfsuite  # here: the tests of the nets need it not

    trainer = pycrfsuite.Trainer(verbose=False)
    trainer.set_params({"c1": 0.1, "c2": 0.1, "max_iterations": 100, "feature.possible_transitions": True})
    for sentence in train:
        trainer.append(features(sentence), sentence.tags)
    tagger = pycrfsuite.Tagger()
    with tempfile.TemporaryDirectory() as folder:
        trainer.train(f"{folder}/linear")
        tagger.open(f"{folder}/linear")
    return [tagger.tag(features(sentence)) for sentence in test]


def spans(tags: Sequence[str]) -> dict[tuple[int, int], str]:
    """Each entity's type by its first and last word, as seqeval reads the tags."""
    return {(first, last): kind for kind, first, last in get_entities(list(tags))}


def confusions(true: Any, found: Any) -> tuple[np.ndarray, list[str]]:
    """How often an entity of one type (rows) was found with the same bounds as another, or not; last, no entity."""
    kinds = sorted({kind for tags in true for kind in spans(tags).values()}) + ["none"]
    counts = np.zeros((len(kinds), len(kinds)), int)
    for one, other in zip(map(spans, true), map(spans, found), strict=True):
        for bounds in one.keys() | other.keys():
            counts[kinds.index(one.get(bounds, "none")), kinds.index(other.get(bounds, "none"))] += 1
    return counts, kinds


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """The sentence with its entities in brackets: [LOC Oslo]."""
    words = list(words)
    for (first, last), kind in spans(tags).items():
        words[first] = f"[{kind} {words[first]}"
        words[last] += "]"
    return "".join(words)


def draw(rows: Sequence[dict[str, Any]], counts: np.ndarray, kinds: Sequence[str], axes: Any) -> None:
    """F1 of each model, and what one of them took for what."""
    models = list(dict.fromkeys(r["model"] for r in rows))
    for n, name in enumerate(models):
        values = [r["f1"] for r in rows if r["model"] == name]
        places = [n + 0.1 * (r["fold"] - 2) for r in rows if r["model"] == name]
        axes[0].plot(places, values, "o", ms=4, alpha=0.6)
        axes[0].hlines(np.mean(values), n - 0.35, n + 0.35, color="0.2")
    axes[0].set(ylabel="F1 of entities", title="a dot per fold and seed, their mean", ylim=(0, 1))
    axes[0].set_xticks(range(len(models)), [name.replace(" ", "\n") for name in models])
    axes[1].imshow(np.log1p(counts), cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > 0.2 * counts.max()
            axes[1].text(column, row, count, ha="center", va="center", color="w" if dark else "0.1")
    axes[1].set(xlabel="found", ylabel="entity", title="types, net with CRF (seed 0, all folds)")
    axes[1].set_xticks(range(len(kinds)), kinds)
    axes[1].set_yticks(range(len(kinds)), kinds)
