"""One step ahead with uncertainty: what a small recurrent net adds to a linear forecast of CO2, sunspots and stocks.

The net reads the past and corrects a baseline's forecast: its mean by a multiple of the baseline's scale, the scale by
a factor, both none at first; what it predicts is a Student-t distribution. The baseline is an autoregression whose
order AIC chooses (statsmodels), for stocks the last price with an exponentially weighted volatility; each with a normal
distribution and with the Student-t that fits its past errors. The first four fifths of a series are to train on; how
long is chosen by their last sixth, then all of them train nets anew. Five nets of different seeds, and the mixture of
all five. The last fifth is forecast once, every value from all before it.

    python -m experiments.series

Stopped, the same command goes on from the last checkpoint. results.json has all figures, series.png the forecasts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import t as traced_student
from scipy.stats import norm
from scipy.stats import t as student

import jaxrnn as rnn
from experiments import harness, training
from experiments.datasets import series
from experiments.linear_forecasts import BAND, Problem, autoregression, figures, gained, volatility

PER_MINUTE = 1200.0  # training steps of all series, in a minute of two cores
FORMS = {"rmse": ".3f", "nats": ".3f", "in band": ".1%"}
WARM = 20  # steps at the beginning that do not count


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    minutes: float = 1.0  # Of training, on two cores as the README's were: the most steps that may be done.
    learning_rate: float = 3e-3  # Adam's rate after a warm-up.
    size: int = 16  # Hidden units of each net.
    seeds: int = 5  # Nets per series, trained side by side.
    dropout: float = 0.2  # Share of the hidden units that the correction does not see in training.
    decay: float = 1e-2  # Weight decay.
    run: str = "runs/series"  # Run folder.


CARBON = partial(autoregression, season=52, lags=60, differences=True, waves=4)
SPOTS = partial(autoregression, season=11, lags=20, differences=False, waves=0)
PROBLEMS: dict[str, tuple[Callable[[], series.Series], Callable[[series.Series, int], Problem], str]] = {
    "CO2": (series.carbon_dioxide, CARBON, "ppm, weekly"),
    "sunspots": (series.sunspots, SPOTS, "a year"),
    "stocks": (series.stocks, volatility, "AAPL's daily return, per cent"),
}


def model(config: Config) -> rnn.Cell:
    """Past [*B, F] -> corrections [*B, 2]: of the mean, and of the scale's logarithm; none at first."""
    readout = rnn.layer(nn.Dense(2, kernel_init=nn.initializers.zeros))
    return rnn.stack(rnn.layer(nn.Dense(config.size)), rnn.dropout(rnn.gru(config.size), config.dropout), readout)


def forecast(net: rnn.Cell, scan: rnn.Scan, params: Any, past: Any, key: Any = None) -> tuple[Any, Any, Any]:
    """Mean and scale of the error in units of the baseline's scale, [T, B] each; degrees of freedom, [1, 1]."""
    _, ys = rnn.unroll(net, params["net"], past, key=key, scan=scan)
    return ys[..., 0], jnp.exp(ys[..., 1]), 2.1 + jax.nn.softplus(params["tail"])[None, None]


def nats(forecast: tuple[Any, Any, Any], error: Any) -> jax.Array:
    """-log p of what came, in units of the baseline's scale, [T, B]."""
    mean, scale, freedom = forecast
    return -traced_student.logpdf(error, freedom, mean, scale)


def loss_fn(net: rnn.Cell, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> jax.Array:
    """Of all seeds' nets at once: their parameters have a leading dimension."""
    keys = jax.random.split(key, len(params["tail"]))
    past, error, counts = batch

    def of_one(params: Any, key: Any) -> jax.Array:
        return rnn.losses.reduced(nats(forecast(net, scan, params, past, key), error), mask=counts)

    return jnp.mean(jax.vmap(of_one)(params, keys))


def scaled(problem: Problem, first: int, until: int, stop: int) -> tuple[Any, Any, Any]:
    """A batch: the past up to `stop`, the error in units of the scale, and that the steps from first to until count."""
    error = ((problem.values - problem.mean) / problem.scale).astype(np.float32)[:stop]
    t = np.arange(stop)[:, None]
    return problem.past[:stop], error, np.broadcast_to((t >= first) & (t < until), error.shape)


class Nets:
    """The nets of one series: how long to train is chosen on the development part, then all are trained anew."""

    def __init__(self, config: Config, features: int) -> None:
        with harness.usage():
            self.config, self.net, self.scan = config, model(config), training.scan_of(config)
            rate = optax.linear_schedule(0.0, config.learning_rate, 50)
            self.optimizer = optax.adamw(rate, weight_decay=config.decay)
            keys = jax.random.split(jax.random.key(config.seed), config.seeds)
            first = jax.vmap(lambda key: self.net.init(key, jax.ShapeDtypeStruct((features,), jnp.float32)))
            self.params = {"net": first(keys), "tail": jnp.full(config.seeds, 3.0)}
        self.loss = partial(loss_fn, self.net, self.scan)
        forecasts = lambda p, past: jax.vmap(lambda p: forecast(self.net, self.scan, p, past))(p)
        self.forecasts = jax.jit(forecasts)  # [seeds, ...] each

    def judged(self, batch: Any, params: Any) -> dict[str, float]:
        past, error, counts = batch
        return {"nats": float(np.mean(nats(self.forecasts(params, past), error[None])[:, counts]))}

    def __call__(self, folder: Path, found: series.Series, problem: Any, steps: int) -> tuple[Any, int]:
        """The parameters, and how many steps they were trained for."""
        cut, test, best = found.development, found.test, rnn.training.Best("nats", patience=5)
        train = partial(training.trained, self.config, loss_fn=self.loss, params=self.params, optimizer=self.optimizer)
        with rnn.training.Run(folder / "development") as own:
            earlier = problem(found, cut)
            judge = partial(self.judged, scaled(earlier, cut, test, test))
            batch = scaled(earlier, WARM, cut, test)
            train(own, batches=lambda _: batch, steps=steps, evaluate=judge, evaluations=25, best=best)
        with rnn.training.Run(folder / "whole") as own:
            whole = scaled(problem(found, test), WARM, test, test)
            return train(own, batches=lambda _: whole, steps=best.step), best.step


def judged(problem: Problem, forecasts: Any, test: slice) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Figures of every forecast over the test; and the middle, low and high of all nets' means, [T, B] each."""
    y, at, scale = problem.values[test], problem.mean[test], problem.scale[test]
    rows = {name: {"rmse": float(np.sqrt(np.mean((y - f[test]) ** 2)))} for name, f in problem.others.items()}
    rows[problem.order] = figures(y, at, norm.pdf(y, at, scale), norm.cdf(y, at, scale))
    tail, factor = problem.tail(test.start)
    heavy = student(tail, at, factor * scale)
    rows[f"{problem.order}, Student-t"] = figures(y, at, heavy.pdf(y), heavy.cdf(y))
    mean, wide, freedom = map(np.asarray, forecasts)
    mean, wide = at + mean[:, test] * scale, wide[:, test] * scale
    density, below = student.pdf(y, freedom, mean, wide), student.cdf(y, freedom, mean, wide)
    nets = [figures(y, *net) for net in zip(mean, density, below, strict=True)]
    over = lambda how: {name: float(how([net[name] for net in nets])) for name in nets[0]}
    rows["one net"] = over(np.mean)
    rows["its standard deviation"] = over(partial(np.std, ddof=1)) if len(nets) > 1 else {}
    rows[f"mixture of {len(nets)}"] = figures(y, mean.mean(0), density.mean(0), below.mean(0))
    rows |= gained((y - at, heavy.pdf(y)), (y - mean.mean(0), density.mean(0)))
    half = student.ppf((1 + BAND) / 2, freedom) * wide
    return rows, [np.mean(each, axis=0) for each in (mean, mean - half, mean + half)]


def draw(drawn: dict[str, Any], axes: Any) -> None:
    """The end of each test: what came, and the band."""
    for panel, (name, (found, problem, band)) in zip(np.atleast_1d(axes), drawn.items(), strict=True):
        last = slice(-min(len(band[0]), 160), None)
        years, (middle, low, high) = found.years[last], (each[last, 0] for each in band)
        panel.fill_between(years, low, high, alpha=0.3, label="90% band")
        panel.plot(years, middle, lw=1, label="forecast")
        panel.plot(years, problem.values[last, 0], "k.", ms=4, label="what came")
        panel.set(title=f"{name}, one step ahead", ylabel=PROBLEMS[name][2], xlabel="year")
        panel.legend(fontsize="small", framealpha=0.5)


def main(config: Config) -> None:
    if config.seeds < 1 or not 0 <= config.dropout < 1:
        raise harness.UsageError("--seeds must be at least 1, and --dropout a share from 0 up to but not 1")
    console, results, drawn = harness.console(), {}, {}
    steps = max(1, training.steps_of(config, PER_MINUTE) // (1 if config.steps else len(PROBLEMS)))
    with rnn.training.Run(config.run, training.about(config, "series", steps)) as run:
        for name, (load, problem, _) in PROBLEMS.items():
            found = load()
            with console.status(f"{name}: the linear forecast"):
                whole = problem(found, found.test)
            nets, test = Nets(config, whole.past.shape[-1]), slice(found.test, None)
            given = {"batch": scaled(whole, WARM, found.test, found.test), "key": jax.random.key(0)}
            loss = lambda scan, nets=nets, given=given: partial(loss_fn, nets.net, scan, **given)
            what = f"{name}: {found.test} steps to train on, {len(whole.values) - found.test} to test"
            training.announce(console, config, f"{what}; {config.seeds} nets of up to {steps} steps", loss, nets.params)
            params, done = nets(run.folder / name, found, problem, steps)
            rows, band = judged(whole, nets.forecasts(params, whole.past), test)
            results[name], drawn[name] = rows | {"steps": done}, (found, whole, band)
            texts = lambda f: {n: harness.text(f.get(n), form) for n, form in FORMS.items()}
            shown = [{name: row} | texts(f) for row, f in rows.items()]
            harness.print_table(console, f"{name}: the test, nets of {done} steps", shown, left=[name])
        training.write_results(run, results)
        harness.picture(run.folder / "series.png", partial(draw, drawn), columns=len(drawn))
        console.print(f"written: {run.folder / 'series.png'} and results.json beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
