"""The pronouncing dictionary: its digest still fits, and the split is the one written down."""

import pytest

from experiments.datasets import cmudict
from tests.experiments.program import held


@pytest.mark.slow
def test_the_split():
    parts = held(cmudict.split)
    training, development, test = parts
    assert [len(part) for part in parts] == [110_683, 2_613, 12_756]
    assert not training.keys() & test.keys() and not development.keys() & (training.keys() | test.keys())
    assert test["aaron"] == [("EH", "R", "AH", "N")]
    words = training | development | test
    assert len(words) == 126_052 and sum(len(ways) > 1 for ways in words.values()) == 8_175
    assert len({phoneme for ways in words.values() for way in ways for phoneme in way}) == 39
