"""What `experiments.sentiment` is compared with: counts of words, by scikit-learn, and a lexicon with rules."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from experiments.datasets.snippets import Snippets, judged_by_rules


def without_nets(data: Snippets) -> dict[str, np.ndarray]:
    """Judgements of the test part, [N] each, positive or negative."""
    rules = judged_by_rules()
    judged = {"VADER": np.array([rules(text) for text in data.test.texts])}
    return judged | counting(data, others=False) | counting(data, others=True)


def counting(data: Snippets, others: bool) -> dict[str, np.ndarray]:
    """By counts of words and of pairs of words, fitted to all that is not the test part."""
    read = [data.train, data.development, *(data.others.values() if others else ())]
    texts = [text for part in read for text, rating in zip(*part, strict=True) if rating]
    positive = np.array([rating > 0 for part in read for rating in part.ratings if rating])
    about, found = ", on the other texts too" if others else "", {}
    for name, count, model in (
        ("naive Bayes", CountVectorizer(ngram_range=(1, 2), binary=True), MultinomialNB()),
        ("logistic regression", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10)),
    ):
        model.fit(count.fit_transform(texts), positive)
        found[name + about] = model.predict_proba(count.transform(data.test.texts))[:, 1] - 0.5
    return found
