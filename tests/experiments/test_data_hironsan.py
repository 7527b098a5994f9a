"""The corpus of entities: its hash still fits, and what is in it."""

from collections import Counter

import numpy as np
import pytest

from experiments.datasets import hironsan
from tests.experiments.program import held


@pytest.mark.slow
def test_what_is_in_the_corpus():
    found = held(hironsan.sentences)
    assert len(found) == 500 and sum(len(s.words) for s in found) == 15_520
    assert all(len(s.words) == len(s.columns) == len(s.tags) for s in found)
    assert {len(c) for s in found for c in s.columns} == {hironsan.COLUMNS}
    begun = Counter(tag for s in found for tag in s.tags if tag.startswith("B-"))
    assert sum(begun.values()) == 1_282
    assert begun.most_common(3) == [("B-LOC", 398), ("B-DAT", 272), ("B-ORG", 251)] and len(begun) == 8
    assert found[0].words[:3] == ("2005", "年", "7") and found[0].tags[:3] == ("B-DAT", "I-DAT", "I-DAT")


@pytest.mark.parametrize("scattered", [False, True])
def test_folds_part_the_sentences(scattered):
    folds = hironsan.folds(23, 5, scattered=scattered)
    assert sorted(np.concatenate(folds).tolist()) == list(range(23)) and {len(f) for f in folds} == {4, 5}
    assert (np.concatenate(folds).tolist() == list(range(23))) is not scattered
    again = hironsan.folds(23, 5, scattered=scattered)
    assert all((a == b).all() for a, b in zip(folds, again, strict=True))
