"""Nets as graphs, unrolled; the gradient of every copy; and what still learns at which delay.

Draws three recurrent nets as people draw them, cyclic and unrolled, and checks the scan that runs them
against their unrolled graphs. Then trains tanh, relu, LSTM and GRU nets on the adding problem and on
delayed copy, and measures before and after how the error fades on its way back, step by step.

    python -m experiments.unrolling
    python -m experiments.unrolling --tasks adding --delays 200 --nets relu gru --steps 3000 --run runs/longer

Writes elman.svg, lstm.svg, gru.svg, table.csv, learning.png, spectra.png, copies.png and exponents.png
into the run folder. Every net trained is a checkpoint: stopped and started again it keeps those it has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, pictures
from experiments.nets import DRAWN, TRAINED
from experiments.tasks import LEARNED, TASKS, Task


@dataclasses.dataclass(frozen=True)
class Config:
    tasks: tuple[Literal["adding", "copy"], ...] = ("adding", "copy")
    """Problems; the pictures of the gradients show the first one."""
    delays: tuple[int, ...] = (10, 30, 100)  # Steps between what is shown and what is asked.
    nets: tuple[Literal["tanh", "relu", "lstm", "gru"], ...] = ("tanh", "relu", "lstm", "gru")
    """Nets to train; relu starts from the identity (Le et al. 2015), the others from orthogonal matrices."""
    size: int = 32  # Hidden units.
    batch: int = 32  # Sequences per step.
    steps: int = 2000  # Training steps of each net.
    learning_rate: float = 6e-3  # Adam's peak rate for the nets with gates.
    plain_learning_rate: float = 2e-3  # The same for tanh and relu, which fall apart at higher ones.
    seed: int = 0  # Seeds parameters and data.
    run: str = "runs/unrolling"  # Run folder: table.csv, pictures, metrics.jsonl.


def drawn_and_checked(config: Config, run: rnn.training.Run, console: Console) -> None:
    """The pictures; and the scan against the unrolled graph, values and gradients."""
    steps = 4
    xs = jax.random.normal(jax.random.key(config.seed), (steps, 2, 3))
    for name, make in DRAWN.items():
        net = make(config.size, 1)
        params = net.init(jax.random.key(config.seed), xs[0])
        deep = rnn.graphs.unrolled(net, steps)
        by_scan = lambda params, net=net: jnp.sum(jnp.sin(rnn.unroll(net, params, xs)[1]))
        by_graph = lambda params, deep=deep: jnp.sum(jnp.sin(deep.evaluate(params, xs)[1]))
        results = [jax.jit(jax.value_and_grad(f))(params) for f in (by_scan, by_graph)]
        apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, results), strict=True))
        drawing = rnn.graphs.draw(net, steps).save(run.folder / f"{name}.svg")
        if name == "elman":
            console.print(rnn.graphs.draw(net, 3).text(console.width), markup=False, highlight=False)
        console.print(
            f"{name}: {len(deep.vertices)} copies and {len(deep.edges)} edges in {steps} steps, depth {deep.depth}; "
            f"scan and unrolled graph differ by {apart:.0e} in value and gradients; {drawing.name}"
        )


def measured(net: rnn.Cell, task: Task, batch: Any, exponents: int) -> Any:
    """params -> how the error fades on the way back, and the largest Lyapunov exponents."""
    xs, targets = batch

    @jax.jit
    def measure(params: Any) -> dict[str, Any]:
        flow = rnn.analysis.gradient_flow(lambda state, ys: task.error(ys, targets), net, params, xs)
        of_copies = jnp.stack(jax.tree.leaves(flow.copies), axis=1)
        return {
            "rate": flow.rate,
            "lyapunov": jnp.mean(rnn.analysis.lyapunov(net, params, xs[:, :8], exponents=exponents), axis=0),
            "spectrum": flow.by_lag,
            "copies": jax.vmap(rnn.analysis.leaf_norms)(of_copies),
        }

    return lambda params: {name: value.tolist() for name, value in measure(params).items()}


@functools.cache
def batches_of(config: Config, task: str, delay: int) -> Callable[[int], Any]:
    """The batch of each step; all nets get the same."""
    key = jax.random.key(config.seed)
    return jax.jit(lambda step: TASKS[task].batch(jax.random.fold_in(key, step), config.batch, delay))


def trained(config: Config, task: str, delay: int, net: str) -> dict[str, Any]:
    """One net on one problem: what is left of the error; at the longest delay also the gradients before and after."""
    started = time.perf_counter()
    problem, batches = TASKS[task], batches_of(config, task, delay)
    cell = TRAINED[net](config.size, problem.outputs)
    key = jax.random.key(config.seed)
    params = cell.init(key, batches(0)[0][0])
    tested = problem.batch(jax.random.key(config.seed + 1), 1024, delay)

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        xs, targets = batch
        return problem.error(rnn.unroll(cell, params, xs)[1], targets)

    measure = lambda params: {}
    if delay == max(config.delays):
        measure = measured(cell, problem, batches(config.steps), exponents=min(config.size, 16))
    row: dict[str, Any] = {"start": measure(params), "trained": {}}
    rate = config.plain_learning_rate if net in ("tanh", "relu") else config.learning_rate
    optimizer = rnn.training.adam(rate, steps=config.steps)
    try:
        final = rnn.training.fit(
            loss, params, batches, steps=config.steps, optimizer=optimizer, key=key, progress=False
        )
        row |= {"error": float(jax.jit(loss)(final.params, tested, None)), "trained": measure(final.params)}
    except FloatingPointError as error:
        row |= {"error": math.inf, "note": str(error).split(";")[0]}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def figures_of(row: dict[str, Any]) -> dict[str, float | None]:
    """The numbers that sum up a row's gradients, None where they were not measured."""
    found: dict[str, float | None] = {}
    for when in ("start", "trained"):
        found[f"rate_{when}"] = row[when]["rate"] if row[when] else None
    for when in ("start", "trained"):
        found[f"lyapunov_{when}"] = row[when]["lyapunov"][0] if row[when] else None
    return found


def show(rows: list[dict[str, Any]], config: Config, console: Console) -> None:
    """Who learns what; and how the error fades at the longest delay."""
    learning, spectra = [], []
    for task in config.tasks:
        for delay in sorted(set(config.delays)):
            at = {row["net"]: row["error"] for row in rows if (row["task"], row["delay"]) == (task, delay)}
            text = lambda error: "diverged" if math.isinf(error) else f"{error:.3f}"
            marks = {net: f"{text(at[net])}{' *' if at[net] < LEARNED else '  '}" for net in config.nets}
            learning.append({"task": task, "delay": str(delay), **marks})
    headings = ("factor at start", "factor trained", "exponent at start", "exponent trained")
    for row in rows:
        if row["delay"] == max(config.delays):
            figures = [harness.text(value, ".3f") for value in figures_of(row).values()]
            spectra.append({"task": row["task"], "net": row["net"], **dict(zip(headings, figures, strict=True))})
    title = f"error left after {config.steps} steps (1: as without input; *: learned)"
    harness.print_table(console, title, learning, left=["task"])
    title = "at the longest delay: the error's factor per step back, and the largest Lyapunov exponent"
    harness.print_table(console, title, spectra, left=["task", "net"])
    for row in rows:
        if "note" in row:
            console.print(f"{row['task']}, delay {row['delay']}, {row['net']}: {row['note']}")


def as_csv(rows: list[dict[str, Any]]) -> str:
    columns = ["task", "delay", "net", "error", "seconds", "note", *figures_of(rows[0])]
    return harness.as_csv([row | figures_of(row) for row in rows], columns)


def main(config: Config) -> None:
    console = harness.console()
    for name in ("tasks", "delays", "nets"):
        if not getattr(config, name):
            raise harness.UsageError(f"--{name} needs at least one")
    if min(*config.delays, config.size, config.batch) < 1:
        raise harness.UsageError("--delays, --size and --batch must be at least 1")
    with harness.usage():
        rnn.training.adam(config.learning_rate, steps=config.steps)
    about = {k: v for k, v in dataclasses.asdict(config).items() if k != "run"}
    delays = sorted(set(config.delays))
    work = [{"task": t, "delay": d, "net": n} for t in config.tasks for d in delays for n in config.nets]
    with rnn.training.Run(config.run, {"experiment": "unrolling", **about}) as run:
        drawn_and_checked(config, run, console)
        write = lambda rows: run.write("table.csv", as_csv(rows))
        rows = harness.records(run, work, partial(trained, config), console, then=write)
        show(rows, config, console)
        written = pictures.draw(rows, config.tasks, delays, config.nets, f"after {config.steps} steps", run.folder)
        console.print(f"written: {run.folder / 'table.csv'}; {', '.join(written)} beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
