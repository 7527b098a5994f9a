"""Forecasts one step ahead to compare with: autoregression (statsmodels), the last price with a weighted volatility."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from experiments.datasets import series

BAND = 0.9


class Problem(NamedTuple):
    """A series as its forecasts one step ahead see it; only the baseline's parameters depend on `until`."""

    values: np.ndarray  # [T, B]: to be forecast
    mean: np.ndarray  # [T, B]: the baseline's forecast
    scale: np.ndarray  # [T, B]: and its standard deviation
    past: np.ndarray  # [T, B, F] float32: what the net reads before each value
    others: dict[str, np.ndarray]  # [T, B]: simpler forecasts
    order: str

    def tail(self, until: int) -> tuple[float, float]:
        """The Student-t distribution of the errors up to `until`: degrees of freedom, and a factor of the scale."""
        z = ((self.values - self.mean) / self.scale)[:until]
        freedom, _, factor = student.fit(z[z != 0], 8.0, floc=0)
        return float(freedom), float(factor)


def autoregression(
    found: series.Series, until: int, *, season: int, lags: int, differences: bool, waves: int
) -> Problem:
    """AR of the values or their differences, with waves of the year, fitted up to `until`; AIC chooses its order."""
    from statsmodels.tsa.ar_model import AutoReg, ar_select_order

    y = found.values[:, 0]
    before = np.roll(y, 1)
    before[0] = y[0]
    target = y - before if differences else y
    angle = 2 * np.pi * found.years[:, None] * np.arange(1, waves + 1)
    year = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    exog = lambda stop: year[:stop] if waves else None
    order = max(ar_select_order(target[:until], lags, ic="aic", trend="c", exog=exog(until)).ar_lags or [1])
    fitted = AutoReg(target[:until], order, trend="c", exog=exog(until)).fit()
    ahead = AutoReg(target, order, trend="c", exog=exog(len(y))).predict(fitted.params, start=order)
    ahead = np.concatenate([0 * target[:order] if differences else before[:order], ahead])  # at first, the last value
    scale = np.std(target[order:until] - ahead[order:until])
    level = (y - np.mean(y[:until])) / np.std(y[:until])
    seen = np.roll(np.stack([(target - ahead) / scale, level, (y - before) / scale], axis=-1), 1, axis=0)
    seen[0] = 0
    mean = before + ahead if differences else ahead
    past = np.concatenate([seen, (mean - before)[:, None] / scale, year], axis=-1).astype(np.float32)
    others = {"last value": before[:, None], "a season ago": np.roll(y, season)[:, None]}
    return Problem(y[:, None], mean[:, None], np.full((len(y), 1), scale), past[:, None], others, f"AR({order})")


def volatility(found: series.Series, until: int) -> Problem:
    """Daily returns in per cent: none is forecast, v_t = 0.94 v_tm1 + 0.06 r_tm1^2 (RiskMetrics)."""
    returns = np.diff(100 * np.log(found.values), axis=0, prepend=100 * np.log(found.values[:1]))
    v = np.empty_like(returns)
    v[0] = np.mean(returns[1:22] ** 2, axis=0)
    for n in range(1, len(v)):
        v[n] = 0.94 * v[n - 1] + 0.06 * returns[n - 1] ** 2
    error = np.roll(returns / np.sqrt(v), 1, axis=0)
    error[0] = 0
    market = np.broadcast_to(np.mean(error, axis=1, keepdims=True), error.shape)
    wild = np.log(np.sqrt(v) / np.std(returns[:until], axis=0))
    past = np.stack([error, np.abs(error), market, np.abs(market), wild], axis=-1).astype(np.float32)
    return Problem(returns, np.zeros_like(v), np.sqrt(v), past, {}, "last price, weighted volatility")


def figures(y: Any, mean: Any, density: Any, below: Any) -> dict[str, float]:
    """Of forecasts of y: their root mean square error, nats per value, and how many values lie in the 90% band."""
    found = {"rmse": np.sqrt(np.mean((y - mean) ** 2)), "nats": -np.mean(np.log(density))}
    return {n: float(v) for n, v in {**found, "in band": np.mean(np.abs(below - 0.5) < BAND / 2)}.items()}


def gained(one: tuple[Any, Any], other: tuple[Any, Any]) -> dict[str, dict[str, float]]:
    """What the other forecast gains on one, of errors and densities each, and how sure so few values make it."""
    (e, p), (f, q) = one, other
    squares, logs, roots = e**2 - f**2, np.log(q / p), np.sqrt(np.mean(e**2)) + np.sqrt(np.mean(f**2))
    error = lambda values: float(np.std(values, ddof=1) / np.sqrt(values.size))
    return {
        "the mixture's gain": {"rmse": float(np.mean(squares) / roots), "nats": float(np.mean(logs))},
        "its standard error": {"rmse": error(squares) / float(roots), "nats": error(logs)},
    }
