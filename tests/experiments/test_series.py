"""Series: a few steps on short made-up ones, going on, the figures and baselines by hand, bad arguments."""

import json

import numpy as np
import pytest
from scipy.stats import norm, t

from experiments import linear_forecasts, series, training
from experiments.datasets import series as data
from tests.experiments.program import complains, is_picture, launched

SMALL = "--steps 25 --seeds 2 --size 3".split()


def waves(steps=120, companies=1):
    rng = np.random.default_rng(0)
    years = 1900 + np.arange(steps) / 12
    noise = np.cumsum(rng.normal(size=(steps, companies)), axis=0)
    return data.Series(years, 60 + noise + 3 * np.sin(2 * np.pi * years)[:, None])


@pytest.fixture
def short(monkeypatch):
    spots = lambda found, until: linear_forecasts.autoregression(
        found, until, season=12, lags=4, differences=False, waves=0
    )
    monkeypatch.setattr(series, "PROBLEMS", {"sunspots": (waves, spots, "a year")})


@pytest.mark.slow
def test_forecasts_are_judged_and_a_run_goes_on(short, monkeypatch, tmp_path):
    code, out, err = launched("series", *SMALL, "--run", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = results["sunspots"]
    assert 1 <= rows["steps"] <= 25 and {"last value", "a season ago"} < set(rows)
    assert rows["mixture of 2"]["nats"] <= rows["one net"]["nats"] + 1e-6 and 0 <= rows["one net"]["in band"] <= 1
    assert "scratch memory" in out and is_picture(tmp_path / "run" / "series.png")
    monkeypatch.setattr(training, "announce", lambda *_: None)
    assert launched("series", *SMALL, "--run", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_a_forecast_sees_only_the_past():
    found = waves()
    changed = found._replace(values=found.values.copy())
    changed.values[100:] += 50
    for make in (
        lambda f: linear_forecasts.autoregression(f, 96, season=12, lags=4, differences=True, waves=2),
        lambda f: linear_forecasts.volatility(f, 96),
    ):
        one, other = make(found), make(changed)
        for name in ("mean", "scale", "past"):
            np.testing.assert_allclose(getattr(one, name)[:101], getattr(other, name)[:101], rtol=1e-6, atol=1e-6)
        assert not np.allclose(one.past[101], other.past[101])


def test_autoregression_is_least_squares():
    found = waves()
    y = found.values[:, 0]
    made = linear_forecasts.autoregression(found, 96, season=12, lags=1, differences=False, waves=0)
    slope, level = np.polyfit(y[:95], y[1:96], 1)
    assert made.order == "AR(1)"
    np.testing.assert_allclose(made.mean[1:, 0], slope * y[:-1] + level, rtol=1e-6)


def test_figures_by_hand():
    errors = 2 * t.rvs(5, size=4000, random_state=0)
    columns = [*errors, 1, 3], [*0 * errors, 0, 1], [*0 * errors + 1, 2, 2]
    problem = linear_forecasts.Problem(*(np.array(a)[:, None] for a in columns), np.zeros((0, 1, 1)), {}, "AR(1)")
    forecasts = (np.full((1, 4002, 1), 0.5), np.ones((1, 4002, 1)), np.full((1, 1, 1), 4.0))
    rows, (middle, low, high) = series.judged(problem, forecasts, slice(4000, None))
    assert rows["AR(1)"]["rmse"] == pytest.approx(np.sqrt((1 + 4) / 2)) and rows["AR(1)"]["in band"] == 1
    assert rows["AR(1)"]["nats"] == pytest.approx(-np.mean(norm.logpdf([1, 3], [0, 1], 2)))
    assert problem.tail(4000) == pytest.approx((5, 2), rel=0.15)
    assert rows["AR(1), Student-t"]["rmse"] == rows["AR(1)"]["rmse"]
    assert rows["the mixture's gain"]["rmse"] == pytest.approx(np.sqrt(2.5) - np.sqrt(0.5))
    assert rows["the mixture's gain"]["nats"] == pytest.approx(
        rows["AR(1), Student-t"]["nats"] - rows["mixture of 1"]["nats"]
    )
    assert rows["its standard error"]["rmse"] == pytest.approx(1 / (np.sqrt(2.5) + np.sqrt(0.5)))
    assert middle[:, 0].tolist() == [1, 2] and rows["one net"]["rmse"] == pytest.approx(np.sqrt(0.5))
    assert rows["mixture of 1"]["nats"] == pytest.approx(-np.mean(t.logpdf([1, 3], 4, [1, 2], 2)))
    np.testing.assert_allclose(high - low, 2 * 2 * t.ppf(0.95, 4), rtol=1e-6)


def test_bad_arguments_are_one_sentence(short, tmp_path):
    run = ["--run", tmp_path / "run"]
    complains(launched("series", "--seeds", 0, *run), "--seeds must be at least 1")
    complains(launched("series", "--size", 0, *run), "size must be")
