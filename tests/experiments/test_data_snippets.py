"""Rated snippets: near-duplicates stay together, and the packages are those of the day."""

import itertools

import numpy as np
import pytest

from experiments.datasets import snippets
from tests.experiments.program import held


def test_near_duplicates_are_all_pairs_that_share_more_than_half():
    rng = np.random.default_rng(0)
    bags = [frozenset(f"w{i}" for i in rng.integers(0, 12, rng.integers(1, 8))) for _ in range(60)]
    share = lambda a, b: len(a & b) / len(a | b)
    wanted = {(i, j) for i, j in itertools.combinations(range(60), 2) if share(bags[i], bags[j]) > 0.5}
    assert set(snippets.near_duplicates(bags)) == wanted and len(wanted) > 20


def test_near_duplicates_stand_where_the_first_of_them_does():
    texts = ["A bad film, very bad!", "one of many", "Film: a bad, very bad one", "a film, a bad one", "something else"]
    places = snippets.places(texts)
    assert places[0] == places[2] == places[3] and len(set(places)) == 3 and (places >= 0).all() and (places < 1).all()
    assert places[0] == snippets.places(texts[:1])[0] == snippets.places(["a BAD film, very bad"])[0]


@pytest.mark.slow
def test_the_packages_hold_what_they_held():
    data, rules = held(lambda: (snippets.snippets(), snippets.judged_by_rules()))
    assert [len(part.texts) for part in data[:3]] == [7395, 1074, 2099]
    assert {name: len(part.texts) for name, part in data.others.items()} == {
        "products": 3708,
        "newspapers": 5190,
        "tweets": 4200,
        "words": 7226,
    }
    assert data.test.texts[0].startswith("The gorgeously elaborate continuation") and data.test.ratings[0] > 3.5
    assert rules("A very good film!") > 0.4 > -0.4 > rules("A very bad film!")
