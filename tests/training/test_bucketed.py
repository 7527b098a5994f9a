"""Batches of sequences of unequal lengths: whole epochs, shapes, order, going on, and what is said to bad input."""

import itertools
from collections import Counter

import numpy as np
import pytest

from jaxrnn.training import Bucketed, Padded

RNG = np.random.default_rng(0)
SOURCES = [RNG.integers(1, 99, n) for n in RNG.integers(0, 12, 57)]
TARGETS = [RNG.integers(1, 99, n) for n in RNG.integers(1, 20, 57)]
FIELDS = {"source": SOURCES, "target": TARGETS, "number": np.arange(57)}


def numbers(batches, steps):
    return [batches(step)["number"].tolist() for step in steps]


def test_an_epoch_holds_each_example_at_most_once_and_leaves_out_less_than_a_batch():
    batches = Bucketed(FIELDS, tokens=60, bounds=(6, 12, 20))
    for epoch in range(3):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        count = Counter(n for members in numbers(batches, steps) for n in members)
        assert max(count.values()) == 1 and len(count) > 57 - 60 // 20


def test_a_batch_is_its_examples_padded():
    batches = Bucketed(FIELDS, tokens=60, bounds=(6, 12, 20))
    for step in range(batches.per_epoch):
        batch = batches(step)
        assert isinstance(batch["source"], Padded)
        steps, size = batch["source"].xs.shape
        assert (steps, size) in {(6, 10), (12, 5), (20, 3)} and batch["target"].xs.shape == (steps, size)
        for column, n in enumerate(batch["number"]):
            for name, field in (("source", SOURCES), ("target", TARGETS)):
                length = batch[name].lengths[column]
                assert batch[name].xs[:length, column].tolist() == field[n].tolist()
                assert not batch[name].xs[length:, column].any()


def test_a_batch_is_a_function_of_its_number():
    one, other = Bucketed(FIELDS, size=4, seed=3), Bucketed(FIELDS, size=4, seed=3)
    steps = [7, 40, 2, 41, 40]
    assert numbers(one, steps) == [numbers(other, [step])[0] for step in steps]
    assert numbers(one, range(one.per_epoch)) != numbers(one, range(one.per_epoch, 2 * one.per_epoch))
    assert numbers(one, range(5)) != numbers(Bucketed(FIELDS, size=4, seed=4), range(5))


def test_all_examples_once():
    batches = Bucketed(FIELDS, size=5, bounds=3)
    seen, shapes = [], set()
    for members, batch in batches.once():
        seen += members.tolist()
        shapes.add(batch["source"].xs.shape)
        assert batch["number"][: len(members)].tolist() == members.tolist()
        assert not batch["source"].lengths[len(members) :].any() and not batch["number"][len(members) :].any()
    assert sorted(seen) == list(range(57)) and len(shapes) == len(batches.bounds) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_so_many_bounds_with_the_least_padding(count):
    lengths = np.maximum([len(s) for s in SOURCES], [len(t) for t in TARGETS])
    padded = lambda bounds: sum(min(b for b in bounds if b >= n) - n for n in lengths)
    distinct = np.unique(lengths).tolist()
    fewer = itertools.combinations(distinct[:-1], min(count, len(distinct)) - 1)
    least = min(padded([*chosen, distinct[-1]]) for chosen in fewer)
    bounds = Bucketed(FIELDS, size=1, bounds=count).bounds
    assert padded(bounds) == least and bounds == sorted(set(bounds)) and len(bounds) <= count


def test_bounds_of_long_sequences_and_any_seed():
    waves = [np.zeros(n, np.int8) for n in np.random.default_rng(0).integers(1, 20_000, 300)]
    batches = Bucketed({"wave": waves}, size=10, bounds=3, seed=-1)
    assert batches.bounds[-1] == max(map(len, waves)) and len(batches.bounds) == 3 and batches(0)
    assert batches(0)["wave"].xs.shape[0] in batches.bounds
    plain = Bucketed({"word": [[1, 2], [3], [4, 5, 6]]}, size=3, bounds=1)(0)["word"]
    assert sorted(plain.xs.T.tolist()) == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


def test_a_result_for_each_example_in_their_order():
    batches = Bucketed(FIELDS, size=5, bounds=3)
    totals = batches.per_example(lambda batch: batch["source"].xs.sum(0) + 1000 * batch["number"])
    assert totals == [source.sum() + 1000 * n for n, source in enumerate(SOURCES)]


def test_too_few_for_a_batch_can_be_read_once():
    batches = Bucketed(FIELDS, size=58, bounds=1)
    (members, batch), *more = batches.once()
    assert sorted(members.tolist()) == list(range(57)) and batch["number"].shape == (58,) and not more
    with pytest.raises(ValueError, match="57 examples make no batch"):
        batches(0)


@pytest.mark.parametrize(
    ("fields", "options", "complaint"),
    [
        (FIELDS, {}, "either size, in examples, or tokens"),
        (FIELDS, {"size": 2, "tokens": 99}, "either size, in examples, or tokens"),
        (FIELDS, {"size": 0}, "size must be"),
        (FIELDS, {"tokens": 10}, "tokens must be"),
        (FIELDS, {"size": 2, "bounds": (3, 9)}, "more than the largest bound 9"),
        (FIELDS, {"size": 2, "bounds": (30, 9)}, "ascending"),
        ({"number": np.arange(3)}, {"size": 1}, "one of them sequences"),
        ({"a": SOURCES, "b": TARGETS[:5]}, {"size": 1}, "'a': 57, 'b': 5"),
        ({"a": [3, 4]}, {"size": 1}, r"fields\['a'\]\[0\] is no sequence"),
        ({}, {"size": 1}, "at least one"),
    ],
)
def test_bad_input_is_one_sentence(fields, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Bucketed(fields, **options)
