"""Sentences that people rated from -4 to 4, and a lexicon of rated words: Hutto and Gilbert 2014 (VADER).

10,605 snippets of film reviews, by 20 raters each; and what may be trained on beside them: 13,098 rated sentences of
product reviews, newspapers and tweets, and some 7,200 rated words. All are in the source of
vaderSentiment 0.5, which is under MIT; the sentences are their authors'.

The split, of the snippets whose mean rating is not 0: a snippet whose letters have a sha256 below 0.2, read as a number
from 0 to 1, is in the test part, from there to 0.3 in the development part, else in the training part. Snippets that
share more than half of all their words (a chain of such pairs, too) go where the first of them goes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from experiments.datasets.packages import Package, fetched

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATED = Package(
    "PyPI", "vaderSentiment", "0.5", {ARCHIVE: "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"}
)
RULES = Package(  # the authors' own program, as it is for Python 3
    "PyPI",
    "vaderSentiment",
    "3.3.2",
    {
        "vaderSentiment/vaderSentiment.py": "25cd814d23000b41c0e242d99960832c6620b3f1b844469173404500ce63206b",
        "vaderSentiment/vader_lexicon.txt": "1ec9c6e9ee19aade328f8beb393a6afa71a5bb3acf7d3cc22d4ef568df374bf5",
        "vaderSentiment/emoji_utf8_lexicon.txt": "b8d54223ae1ce22a3e12c1f745316b71678c328eb5f5d3063a842f37cfbe2823",
    },
)
OTHERS = {"products": "amazonReviewSnippets", "newspapers": "nytEditorialSnippets", "tweets": "tweets"}


class Rated(NamedTuple):
    """Texts, each with its mean rating."""

    texts: list[str]
    ratings: np.ndarray  # [N] float32, -4..4


class Snippets(NamedTuple):
    train: Rated  # snippets of film reviews, none rated 0
    development: Rated
    test: Rated
    others: dict[str, Rated]  # sentences from elsewhere; "words": the lexicon's entries that are words


def snippets() -> Snippets:
    """All of it. Raises: packages.Missing."""
    with tarfile.open(fetched(RATED) / ARCHIVE) as archive:

        def lines(name: str) -> list[list[str]]:
            member = archive.extractfile(f"hutto_ICWSM_2014/{name}.txt")
            assert member is not None
            text = member.read().decode("utf-8", "replace")
            return [line.split("\t") for line in text.split("\n") if line.strip()]

        films = _rated([(row[2].strip(), row[1]) for row in lines("movieReviewSnippets_GroundTruth")])
        others = {
            name: _rated([(row[2].strip(), row[1]) for row in lines(f"{file}_GroundTruth")])
            for name, file in OTHERS.items()
        }
        entries = [row[:2] for row in lines("vader_sentiment_lexicon")]
    others["words"] = _rated([(word, rating) for word, rating in entries if re.fullmatch(r"[a-z][a-z' -]+", word)])
    films = _chosen(films, films.ratings != 0)
    place = places(films.texts)
    parts = (place >= 0.3, (place >= 0.2) & (place < 0.3), place < 0.2)
    return Snippets(*(_chosen(films, part) for part in parts), others)


def judged_by_rules() -> Callable[[str], float]:
    """VADER, the lexicon with its authors' rules: text -> from -1 to 1. Raises: packages.Missing."""
    path = fetched(RULES) / "vaderSentiment" / "vaderSentiment.py"
    spec = importlib.util.spec_from_file_location("vader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scores = module.SentimentIntensityAnalyzer().polarity_scores
    return lambda text: float(scores(text)["compound"])


def places(texts: Sequence[str]) -> np.ndarray:
    """[N]: where each text stands between 0 and 1; near-duplicates all stand where the first of them does."""
    letters = [" ".join(re.findall("[a-z]+", text.lower())) for text in texts]
    hashed = [int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12 for key in letters]
    a, b = np.array(near_duplicates([frozenset(key.split()) for key in letters]), int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(texts), len(texts)))
    _, group = connected_components(graph, directed=False)
    first = np.unique(group, return_index=True)[1]
    return np.array(hashed)[first[group]]


def near_duplicates(bags: Sequence[frozenset[str]]) -> list[tuple[int, int]]:
    """All pairs that share more than half of all their words.

    Such a pair shares one of the rarer half (and one more) of each one's words, so only those need to be looked up.
    """
    counts = Counter(word for bag in bags for word in bag)
    holders, pairs = defaultdict(list), []
    for i, bag in enumerate(bags):
        rare = sorted(bag, key=lambda word: (counts[word], word))[: len(bag) // 2 + 1]
        for j in sorted({j for word in rare for j in holders[word]}):
            if 2 * len(bag & bags[j]) > len(bag | bags[j]):
                pairs.append((j, i))
        for word in rare:
            holders[word].append(i)
    return pairs


def _rated(rows: Sequence[tuple[str, str]]) -> Rated:
    return Rated([text for text, _ in rows], np.array([rating for _, rating in rows], np.float32))


def _chosen(rated: Rated, which: np.ndarray) -> Rated:
    return Rated([rated.texts[i] for i in np.flatnonzero(which)], rated.ratings[which])
