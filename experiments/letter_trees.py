"""Letters to sounds without a net: letters aligned with phonemes, and a decision tree over a window of letters.

Black, Lenzo and Pagel 1998, "Issues in building general letter to sound rules", in little: a letter speaks none, one
or two phonemes; an alignment is the most likely one by what letters speak on average, counted again in each round; the
tree is scikit-learn's, and sees a letter, its neighbours and what was said before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.tree import DecisionTreeClassifier

Spoken = tuple[str, ...]  # what a letter, or a word, speaks
ORDER = " aeiouywrlnmhjgkqcxsztdpbfv'-."  # neighbours in it are alike, since a tree cuts it in two
WINDOW = 4  # letters on either side


def speak(words: Sequence[tuple[str, Spoken]], unknown: Sequence[str], *, known: int = 6000) -> list[Spoken]:
    """What a tree that has seen `words` says to the unknown ones. The first `known` of them set the alignment."""
    counts: Counter[tuple[str, Spoken]] = Counter()
    for _ in range(3):
        counts = Counter(pair for word, spoken in words[:known] for pair in aligned(word, spoken, counts))
    pairs = [aligned(word, spoken, counts) for word, spoken in words]
    found = [(word, chunks) for (word, _), at in zip(words, pairs, strict=True) if (chunks := [c for _, c in at])]
    names = sorted({chunk for _, chunks in found for chunk in chunks})
    number = {chunk: i for i, chunk in enumerate(names)}
    tree = DecisionTreeClassifier(min_samples_leaf=2, random_state=0)
    tree.fit(np.concatenate([windows(word) for word, _ in found]), [number[c] for _, chunks in found for c in chunks])
    said = iter(tree.predict(np.concatenate([windows(word) for word in unknown])).tolist())
    return [tuple(phoneme for _ in word for phoneme in names[next(said)]) for word in unknown]


def windows(word: str) -> np.ndarray:
    """[letters, 2 WINDOW + 1]: the letter itself, then its neighbours, as places in ORDER."""
    places = [ORDER.index(letter) for letter in f"{'':{WINDOW}}{word}{'':{WINDOW}}"]
    return np.lib.stride_tricks.sliding_window_view(np.array(places, np.float32), 2 * WINDOW + 1)


def aligned(word: str, spoken: Spoken, counts: Counter[tuple[str, Spoken]]) -> list[tuple[str, Spoken]]:
    """Which phonemes each letter speaks; nothing where a word has more than two per letter."""
    best: dict[int, tuple[float, list[tuple[str, Spoken]]]] = {0: (0.0, [])}  # phonemes spoken so far -> cost, pairs
    for letter in word:
        ways: dict[int, tuple[float, list[tuple[str, Spoken]]]] = {}
        for at, (cost, pairs) in best.items():
            for end in range(at, min(at + 3, len(spoken) + 1)):
                pair = (letter, spoken[at:end])
                # At first one phoneme a letter is likelier than none or two.
                total = cost - (math.log(counts[pair] + 0.1) if counts else -abs(end - at - 1))
                if end not in ways or total < ways[end][0]:
                    ways[end] = (total, [*pairs, pair])
        best = ways
    return best.get(len(spoken), (0.0, []))[1]
