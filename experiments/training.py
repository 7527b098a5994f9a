"""What the experiments that train a net on a set of data share: their settings, the training, curves, results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax import lax
from rich.console import Console

import jaxrnn as rnn
from experiments import harness


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all of them have; each adds its own."""

    minutes: float = 4.0  # Of training, on two cores as the README's were: it sets how many steps are done.
    steps: int | None = None  # Training steps, in place of minutes.
    learning_rate: float = 3e-3  # Adam's peak rate, after a warm-up and before a cosine decay.
    scan: str = "fissioned"
    """How the loops run: lax.scan, fissioned, checkpointed(8, inner=fissioned), within('64MiB'), ..."""
    memory: str | None = None  # Bytes that a scan's gradient may take, e.g. 64MiB: the planner picks the scan.
    seed: int = 0  # Seeds the parameters, the order of the examples, and dropout.
    save_every: int = 250  # Steps between checkpoints.
    run: str = ""  # Run folder: results.json, metrics.jsonl, pictures, checkpoints.


NOT_TRAINING = ("run", "save_every")  # no part of what a run is


def about(config: Settings, experiment: str, steps: int) -> dict[str, Any]:
    """What a run folder says it is: the settings that its numbers depend on."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_TRAINING}
    return {"experiment": experiment, **settings, "steps": steps}


def steps_of(config: Settings, per_minute: float) -> int:
    """How many training steps are asked for: a number, not a clock, so that a resumed run ends in the same bits."""
    steps = round(config.minutes * per_minute) if config.steps is None else config.steps
    if steps < 1:
        raise harness.UsageError(f"--minutes or --steps must ask for at least one step, got {steps}")
    return steps


def at_least(config: Settings, **least: float) -> None:
    """Raises: UsageError for the first of these settings that is below its least value."""
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise harness.UsageError(f"--{name} must be at least {value}, got {getattr(config, name)}")


def scan_of(config: Settings) -> rnn.Scan:
    with harness.usage():
        return rnn.within(config.memory) if config.memory is not None else harness.scan_named(config.scan)


def announce(
    console: Console, config: Settings, what: str, loss: Callable[[rnn.Scan], Callable[[Any], Any]], params: Any
) -> None:
    """What is trained on what, and what a gradient of `loss(scan)(params)` takes beside plain `lax.scan`'s."""
    chosen = config.scan if config.memory is None else f"within({config.memory})"
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    needs = []
    for name, scan in {chosen: scan_of(config), "plain lax.scan": lax.scan}.items():
        with harness.usage():  # a budget that no plan meets
            needs.append(f"{name} {harness.mebibytes(rnn.analysis.temp_bytes(jax.grad(loss(scan)), params))}")
    console.print(f"{what}; {size:,} parameters; scratch memory of one gradient: {', '.join(needs)}", highlight=False)


def trained(
    config: Settings,
    run: rnn.training.Run,
    loss_fn: Callable[..., Any],
    params: Any,
    batches: Callable[[int], Any],
    steps: int,
    *,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluations: int = 5,
    best: rnn.training.Best | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Any:
    """The parameters after `steps` steps of Adam, or the best ones on the way where `best` looks for them.

    Their average, where the optimizer is `averaging`.
    """
    if optimizer is None:
        optimizer = rnn.training.adam(config.learning_rate, steps=steps)
    final = rnn.training.fit(
        loss_fn,
        params,
        batches,
        steps=steps,
        optimizer=optimizer,
        key=jax.random.key(config.seed + 1),
        run=run,
        evaluate=evaluate,
        evaluate_every=max(1, steps // evaluations),
        best=best,
        save_every=config.save_every,
    )
    return rnn.training.to_evaluate(final) if best is None or best.params is None else best.params


def write_results(run: rnn.training.Run, results: Mapping[str, Any]) -> None:
    run.write("results.json", json.dumps(results, indent=2) + "\n")


def draw_curve(run: rnn.training.Run, figure: str, others: Mapping[str, float], axes: Any, *, each: int = 1) -> None:
    """A figure of `evaluate` by training steps, and what it is compared with as lines across."""
    points = [(r["step"] * each, r[figure]) for r in rnn.training.read_metrics(run.folder) if figure in r]
    axes.plot(*zip(*points, strict=True), "o-", label=figure)
    for (name, value), style in zip(others.items(), ("--", ":", "-.", "--"), strict=False):
        axes.axhline(value, color="0.4", ls=style, label=name)
    axes.set(xlabel="training steps" if each == 1 else "examples", ylabel=figure)
    axes.legend()


def shares(rows: Sequence[tuple[str, float]], column: str) -> list[dict[str, str]]:
    """Rows of a table with one figure each, in per cent."""
    return [{"": name, column: f"{value:.1%}"} for name, value in rows]
