"""Translations without a net, by looking things up: the most similar verse that is known, and a dictionary of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from experiments.datasets.bible import Verse

WORDS = r"\w+|[^\w\s]"


def most_similar(known: Sequence[Verse], verses: Sequence[Verse]) -> list[str]:
    """The English of the verse whose Spanish words are most like a verse's, by the cosine of their TF-IDF."""
    weigh = TfidfVectorizer(token_pattern=WORDS, sublinear_tf=True)
    seen = weigh.fit_transform([verse.spanish for verse in known])
    likeness = weigh.transform([verse.spanish for verse in verses]) @ seen.T
    return [known[int(i)].english for i in np.asarray(likeness.argmax(axis=1)).ravel()]


def word_for_word(known: Sequence[Verse], verses: Sequence[Verse]) -> list[str]:
    """Each Spanish word as the English one that it occurs with most exclusively: 2 n(both) / (n(one) + n(other))."""
    spanish = CountVectorizer(token_pattern=WORDS, binary=True)
    english = CountVectorizer(token_pattern=WORDS, binary=True, lowercase=False)
    one = spanish.fit_transform([verse.spanish for verse in known]).astype(np.float32)
    other = english.fit_transform([verse.english for verse in known]).astype(np.float32)
    both = (one.T @ other).tocoo()
    dice = 2 * both.data / (np.asarray(one.sum(0)).ravel()[both.row] + np.asarray(other.sum(0)).ravel()[both.col])
    order, names = np.argsort(dice), english.get_feature_names_out()
    meaning = dict(zip(both.row[order].tolist(), both.col[order].tolist(), strict=True))  # the last of each stays
    numbers, split = spanish.vocabulary_, spanish.build_analyzer()
    said = lambda word: names[meaning[numbers[word]]] if word in numbers else word
    return [" ".join(map(said, split(verse.spanish))) for verse in verses]
