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
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxrnn
from experiments import common
from experiments.tasks import TASKS, Task
from jaxrnn import graph, prev

LEARNED = 0.1  # of the error of a net without input
LOWEST = 1e-20  # what pictures of gradients show
Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Config:
    tasks: tuple[Literal["adding", "copy"], ...] = ("adding", "copy")
    """Problems; the pictures of the gradients show the first one."""
    delays: tuple[int, ...] = (10, 30, 100)
    """Steps between what is shown and what is asked."""
    nets: tuple[Literal["tanh", "relu", "lstm", "gru"], ...] = ("tanh", "relu", "lstm", "gru")
    """Nets to train; relu starts from the identity (Le et al. 2015), the others from orthogonal matrices."""
    size: int = 32
    """Hidden units."""
    batch: int = 32
    """Sequences per step."""
    steps: int = 2000
    """Training steps of each net."""
    learning_rate: float = 6e-3
    """Adam's peak rate for the nets with gates."""
    plain_learning_rate: float = 2e-3
    """The same for tanh and relu, which fall apart at higher ones."""
    seed: int = 0
    """Seeds parameters and data."""
    run: str = "runs/unrolling"
    """Run folder: table.csv, pictures, metrics.jsonl."""


def beside(recurrent: Initializer) -> Initializer:
    """Weights [D + H, H] of [x, h]: LeCun's for x, `recurrent` for h."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        k_input, k_recurrent = jax.random.split(key)
        rows, size = shape  # rows of x and of h; of x alone while `graph` is yet to find out how large h is
        of_x = nn.initializers.lecun_normal()(k_input, (max(rows - size, 1), size), dtype)
        return jnp.concatenate([of_x, recurrent(k_recurrent, (size, size), dtype)])[-rows:]

    return init


def identity(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


def affine(size: int, fn: Any, recurrent: Initializer = nn.initializers.orthogonal(), bias: float = 0.0) -> Any:  # noqa: B008
    """fn(W [x, h] + b), as a vertex's cell."""
    dense = nn.Dense(size, kernel_init=beside(recurrent), bias_init=nn.initializers.constant(bias))
    return jaxrnn.stack(jaxrnn.layer(dense), jaxrnn.lift(fn))


def elman(size: int, outputs: int, fn: Any = jnp.tanh, **start: Any) -> jaxrnn.Cell:
    return graph(
        {
            "h": (affine(size, fn, **start), ["x", prev("h")]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


def lstm(size: int, outputs: int) -> jaxrnn.Cell:
    sigmoid, x_and_h = jax.nn.sigmoid, ["x", prev("h")]
    return graph(
        {
            "i": (affine(size, sigmoid), x_and_h),
            "f": (affine(size, sigmoid, bias=1.0), x_and_h),
            "g": (affine(size, jnp.tanh), x_and_h),
            "o": (affine(size, sigmoid), x_and_h),
            "c": (lambda i, f, g, c: f * c + i * g, ["i", "f", "g", prev("c")]),
            "h": (lambda o, c: o * jnp.tanh(c), ["o", "c"]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


def gru(size: int, outputs: int) -> jaxrnn.Cell:
    sigmoid, x_and_h = jax.nn.sigmoid, ["x", prev("h")]
    return graph(
        {
            "r": (affine(size, sigmoid), x_and_h),
            "z": (affine(size, sigmoid), x_and_h),
            "kept": (lambda r, h: r * h, ["r", prev("h")]),
            "n": (affine(size, jnp.tanh), ["x", "kept"]),
            "h": (lambda z, n, h: (1 - z) * n + z * h, ["z", "n", prev("h")]),
            "y": (nn.Dense(outputs), ["h"]),
        },
        output="y",
    )


DRAWN = {"elman": elman, "lstm": lstm, "gru": gru}
TRAINED = {
    "tanh": elman,
    "relu": lambda size, outputs: elman(size, outputs, jax.nn.relu, recurrent=identity),
    "lstm": lstm,
    "gru": gru,
}


def drawn_and_checked(config: Config, run: jaxrnn.training.Run, console: Console) -> None:
    """The pictures; and the scan against the unrolled graph, values and gradients."""
    steps = 4
    xs = jax.random.normal(jax.random.key(config.seed), (steps, 2, 3))
    for name, make in DRAWN.items():
        net = make(config.size, 1)
        params = net.init(jax.random.key(config.seed), xs[0])
        deep = jaxrnn.graphs.unrolled(net, steps)
        by_scan = lambda params, net=net: jnp.sum(jnp.sin(jaxrnn.unroll(net, params, xs)[1]))
        by_graph = lambda params, deep=deep: jnp.sum(jnp.sin(deep.evaluate(params, xs)[1]))
        results = [jax.jit(jax.value_and_grad(f))(params) for f in (by_scan, by_graph)]
        apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, results), strict=True))
        picture = jaxrnn.graphs.draw(net, steps).save(run.folder / f"{name}.svg")
        if name == "elman":
            console.print(jaxrnn.graphs.draw(net, 3).text(console.width), markup=False, highlight=False)
        console.print(
            f"{name}: {len(deep.vertices)} copies and {len(deep.edges)} edges in {steps} steps, depth {deep.depth}; "
            f"scan and unrolled graph differ by {apart:.0e} in value and gradients; {picture.name}"
        )


def measured(net: jaxrnn.Cell, task: Task, batch: Any, exponents: int) -> Any:
    """params -> how the error fades on the way back, and the largest Lyapunov exponents."""
    xs, targets = batch

    @jax.jit
    def measure(params: Any) -> dict[str, Any]:
        flow = jaxrnn.analysis.gradient_flow(lambda state, ys: task.error(ys, targets), net, params, xs)
        of_copies = jnp.stack(jax.tree.leaves(flow.copies), axis=1)
        return {
            "rate": flow.rate,
            "lyapunov": jnp.mean(jaxrnn.analysis.lyapunov(net, params, xs[:, :8], exponents=exponents), axis=0),
            "spectrum": flow.by_lag,
            "copies": jax.vmap(jaxrnn.analysis.leaf_norms)(of_copies),
        }

    return lambda params: {name: value.tolist() for name, value in measure(params).items()}


@functools.cache
def batches_of(config: Config, task: str, delay: int) -> Callable[[int], Any]:
    """The batch of each step; all nets get the same."""
    key = jax.random.key(config.seed)
    return jax.jit(lambda step: TASKS[task].batch(jax.random.fold_in(key, step), config.batch, delay))


def trained(config: Config, task_name: str, delay: int, net_name: str) -> dict[str, Any]:
    """One net on one problem: what is left of the error; at the longest delay also the gradients before and after."""
    started = time.perf_counter()
    task, batches = TASKS[task_name], batches_of(config, task_name, delay)
    net = TRAINED[net_name](config.size, task.outputs)
    key = jax.random.key(config.seed)
    params = net.init(key, batches(0)[0][0])
    tested = task.batch(jax.random.key(config.seed + 1), 1024, delay)

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        del key
        xs, targets = batch
        return task.error(jaxrnn.unroll(net, params, xs)[1], targets)

    measure = lambda params: {}
    if delay == max(config.delays):
        measure = measured(net, task, batches(config.steps), exponents=min(config.size, 16))
    row = {"task": task_name, "delay": delay, "net": net_name, "start": measure(params), "trained": {}}
    rate = config.plain_learning_rate if net_name in ("tanh", "relu") else config.learning_rate
    optimizer = jaxrnn.training.adam(rate, steps=config.steps)
    try:
        final = jaxrnn.training.fit(
            loss, params, batches, steps=config.steps, optimizer=optimizer, key=key, progress=False
        )
        error = jax.jit(loss)(final.params, tested, None)
        row |= {"error": float(error), "trained": measure(final.params)}
    except jaxrnn.training.Interrupted as stopped:
        raise jaxrnn.training.Interrupted(
            f"{stopped} of this net; start again to go on after the nets that are done"
        ) from None
    except FloatingPointError as error:
        row |= {"error": math.inf, "note": str(error).split(";")[0]}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def figures_of(row: dict[str, Any]) -> list[tuple[str, float | None]]:
    """The numbers that sum up a row's gradients, None where they were not measured."""
    first = {"rate": lambda rate: rate, "lyapunov": lambda exponents: exponents[0]}
    return [
        (f"{what}_{when}", first[what](row[when][what]) if row[when] else None)
        for what in first
        for when in ("start", "trained")
    ]


def show(rows: list[dict[str, Any]], config: Config, console: Console) -> None:
    """Who learns what; and how the error fades at the longest delay."""
    learning = Table(title=f"error left after {config.steps} steps (1: as without input; *: learned)")
    spectra = Table(title="at the longest delay: the error's factor per step back, and the largest Lyapunov exponent")
    for column in ("task", "delay", *config.nets):
        learning.add_column(column, justify="left" if column == "task" else "right")
    for column in ("task", "net", "factor at start", "factor trained", "exponent at start", "exponent trained"):
        spectra.add_column(column, justify="left" if column in ("task", "net") else "right")
    for task in config.tasks:
        for delay in sorted(set(config.delays)):
            at = {row["net"]: row["error"] for row in rows if (row["task"], row["delay"]) == (task, delay)}
            left = ("diverged" if math.isinf(at[net]) else f"{at[net]:.3f}" for net in config.nets)
            marks = (
                f"{text}{' *' if at[net] < LEARNED else '  '}" for net, text in zip(config.nets, left, strict=True)
            )
            learning.add_row(task, str(delay), *marks)
        for row in rows:
            if (row["task"], row["delay"]) == (task, max(config.delays)):
                figures = (f"{value:.3f}" if value is not None else "-" for _, value in figures_of(row))
                spectra.add_row(task, row["net"], *figures)
    console.print(learning)
    console.print(spectra)
    for row in rows:
        if "note" in row:
            console.print(f"{row['task']}, delay {row['delay']}, {row['net']}: {row['note']}")


def as_csv(rows: list[dict[str, Any]]) -> str:
    columns = ["task", "delay", "net", "error", "seconds", "note", *(name for name, _ in figures_of(rows[0]))]
    return common.as_csv([row | dict(figures_of(row)) for row in rows], columns)


def draw_learning(rows: list[dict[str, Any]], config: Config) -> Any:
    def draw(panels: Any) -> None:
        panels = [panels] if len(config.tasks) == 1 else panels
        for axes, task in zip(panels, config.tasks, strict=True):
            for net, style in zip(config.nets, ("o-", "s-", "^-", "D-"), strict=False):
                mine = [row for row in rows if (row["task"], row["net"]) == (task, net)]
                errors = [min(row["error"], 10) for row in mine]
                axes.loglog([row["delay"] for row in mine], errors, style, label=net, alpha=0.8)
            axes.axhline(1, color="gray", ls=":", lw=1)
            axes.axhline(LEARNED, color="gray", ls="--", lw=1)
            axes.set(xlabel="delay, steps", ylabel="error left (dotted: without input; dashed: learned)", title=task)
            axes.set_xticks(config.delays, [str(delay) for delay in config.delays])
            axes.minorticks_off()
            axes.set_ylim(top=10)
            axes.legend(loc="upper center", ncols=len(config.nets))

    return draw


PICTURES = {"spectrum": "spectra.png", "copies": "copies.png", "lyapunov": "exponents.png"}
LABELS = {
    "spectrum": ("lag, steps back from the last", "norm of the loss's gradient by the state"),
    "copies": ("time step", "norm of the gradient of the weights' copy"),
    "lyapunov": ("place in the spectrum", "Lyapunov exponent, nats per step"),
}


def draw_gradients(rows: list[dict[str, Any]], config: Config, what: str) -> Any:
    """Before and after training, at the longest delay of the first task: by lag, by step, or by place."""
    task, delay = config.tasks[0], max(config.delays)

    def draw(panels: Any) -> None:
        for axes, when in zip(panels, ("start", "trained"), strict=True):
            mine = [row for row in rows if (row["task"], row["delay"]) == (task, delay) and row[when]]
            for row in mine:
                values = row[when][what]
                if what == "lyapunov":  # after a direction that is lost (a unit that is off) there is only rounding
                    values = list(itertools.takewhile(lambda value: value > -2, values))
                axes.plot(values, "o-" if what == "lyapunov" else "-", ms=3, label=row["net"])
            moment = "at the start" if when == "start" else f"after {config.steps} steps"
            axes.set(xlabel=LABELS[what][0], ylabel=LABELS[what][1], title=f"{task}, delay {delay}, {moment}")
            if what == "lyapunov":
                axes.axhline(0, color="gray", ls=":", lw=1)
            else:
                axes.set_yscale("log", nonpositive="mask")
                axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST))
            if mine:  # or all have diverged
                axes.legend()

    return draw


def main(config: Config) -> None:
    console = common.console()
    for name in ("tasks", "delays", "nets"):
        if not getattr(config, name):
            raise common.UsageError(f"--{name} needs at least one")
    if min(*config.delays, config.size, config.batch) < 1:
        raise common.UsageError("--delays, --size and --batch must be at least 1")
    with common.usage():
        jaxrnn.training.adam(config.learning_rate, steps=config.steps)
    about = {"experiment": "unrolling", **dataclasses.asdict(config)}
    del about["run"]
    wanted = [(t, d, n) for t in config.tasks for d in sorted(set(config.delays)) for n in config.nets]
    with jaxrnn.training.Run(config.run, about) as run:
        found = {(r["task"], r["delay"], r["net"]): r for r in jaxrnn.training.read_metrics(run.folder)}
        drawn_and_checked(config, run, console)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("nets", total=len(wanted))
            for each in wanted:
                bar.update(task, description="{}, delay {}, {}".format(*each))
                if each not in found:
                    found[each] = trained(config, *each)
                    run.log(found[each])
                bar.advance(task)
        rows = [found[each] for each in wanted]
        show(rows, config, console)
        run.write("table.csv", as_csv(rows))
        common.picture(run.folder / "learning.png", draw_learning(rows, config), columns=len(config.tasks))
        for what, name in PICTURES.items():
            common.picture(run.folder / name, draw_gradients(rows, config, what), columns=2)
        console.print(f"written: {run.folder / 'table.csv'}; learning.png, {', '.join(PICTURES.values())} beside it")


if __name__ == "__main__":
    common.launch(main, Config, __doc__ or "")
