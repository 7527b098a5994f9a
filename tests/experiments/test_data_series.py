"""The series: their hashes still fit, and what is in them."""

import numpy as np
import pytest

from experiments.datasets import series
from tests.experiments.program import held


def had(load):
    return held(load)


@pytest.mark.slow
def test_carbon_dioxide_and_sunspots():
    co2 = had(series.carbon_dioxide)
    assert co2.values.shape == (2284, 1) and np.isfinite(co2.values).all()
    assert 1958.2 < co2.years[0] < 1958.3 and 2001.9 < co2.years[-1] < 2002 and co2.values[0, 0] == 316.1
    assert np.diff(co2.years).min() > 0 and np.diff(co2.years).max() < 0.021
    assert (co2.development, co2.test) == (1522, 1827)
    sun = had(series.sunspots)
    assert sun.values.shape == (309, 1) and (sun.years[0], sun.years[-1]) == (1700, 2008)
    assert sun.values.min() == 0 and sun.values.max() == pytest.approx(190.2)


@pytest.mark.slow
def test_stocks():
    found = had(series.stocks)
    assert found.values.shape[1] == 4 and len(found.years) == len(found.values) > 2100
    assert 2004.6 < found.years[0] < 2004.7 and 2013.1 < found.years[-1] < 2013.3 and (found.values > 0).all()
    returns = np.diff(np.log(found.values), axis=0)
    assert np.abs(returns).max() < 0.25  # no splits


@pytest.mark.slow
def test_vowels():
    train, test = had(series.vowels)
    assert np.bincount(train.speaker).tolist() == [30] * 9 and len(test.frames) == len(test.speaker) == 370
    lengths = [len(f) for f in [*train.frames, *test.frames]]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {f.shape[1] for f in [*train.frames, *test.frames]} == {12} and train.frames[0].shape == (20, 12)
    assert train.frames[0][0, 0] == np.float32(1.860936)
