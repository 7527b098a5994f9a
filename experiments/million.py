"""The exact gradient of up to a million steps within a budget: `memory_vs_compute --million`.

One gradient of an LSTM (one sequence, 16 inputs, 64 units, loss on the last state) for T from a hundred
to a million, under `within(64 MiB)`: predicted and compiled scratch bytes, the plan that was chosen, seconds,
and the difference from plain `lax.scan` where plain is short enough to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import jaxrnn as rnn
from experiments import harness

LENGTHS = (100, 1000, 10_000, 100_000, 1_000_000)
LONGEST_PLAIN = 100_000
COLUMNS = ("T", "plan", "predicted_bytes", "temp_bytes", "compile_seconds", "seconds", "passes", "difference")


def ticking(scan: rnn.Scan, forward: Callable[[], None], backward: Callable[[], None]) -> rnn.Scan:
    """The scan, telling the host when it runs and when its gradient has been computed: as `inner`, once per segment."""

    @jax.custom_vjp
    def tick(carry: Any) -> Any:
        jax.debug.callback(forward)
        return carry

    def run_forward(carry: Any) -> Any:
        return tick(carry), None

    def run_backward(nothing: None, ct: Any) -> Any:
        jax.debug.callback(backward)
        return (ct,)

    tick.defvjp(run_forward, run_backward)

    def run(f: Any, init: Any, xs: Any = None, length: int | None = None, reverse: bool = False) -> Any:
        return scan(f, tick(init), xs, length=length, reverse=reverse)

    return run


@contextmanager
def progress(console: Console, steps: int) -> Iterator[tuple[Callable[[int], None], Any, Any]]:
    """Two bars, one per direction: (how to say how many segments there are, forward tick, backward tick)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = [bar.add_task(f"T = {steps:,}, {way}", total=None) for way in ("forward", "backward")]

        def begin(segments: int) -> None:
            for task in tasks:
                bar.reset(task, total=segments)

        yield begin, lambda: bar.advance(tasks[0]), lambda: bar.advance(tasks[1])


def row(steps: int, limit: str, console: Console) -> dict[str, Any]:
    """One length: planned, compiled, run once, compared with plain where that is feasible."""
    cell = rnn.lstm(64)
    xs = jax.random.normal(jax.random.key(1), (steps, 1, 16))
    params = cell.init(jax.random.key(0), xs[0])
    plans: list[Any] = []

    def gradient(scan: rnn.Scan) -> Any:
        def loss(params: Any, xs: jax.Array) -> jax.Array:
            state, _ = rnn.unroll(cell, params, xs, scan=scan, outputs="none")
            return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(state))

        return jax.jit(jax.grad(loss))

    with progress(console, steps) as (begin, forward, backward):
        scan = rnn.within(limit, inner=ticking(rnn.scan, forward, backward), report=plans.append)
        start = time.perf_counter()
        with harness.usage():  # a budget that no plan meets
            compiled = gradient(scan).lower(params, xs).compile()
        built = time.perf_counter()
        chosen = plans[-1].chosen
        assert chosen is not None, "within raises where nothing fits"
        begin(-(-steps // (getattr(chosen.strategy, "segment", None) or steps)))
        result = jax.block_until_ready(compiled(params, xs))
        end = time.perf_counter()
        jax.effects_barrier()
    found = {
        "plan": chosen.about,
        "predicted_bytes": chosen.bytes,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": round(built - start, 3),
        "seconds": round(end - built, 3),
        "passes": chosen.passes,
    }
    if steps <= LONGEST_PLAIN:
        found["difference"] = harness.difference(result, gradient(lax.scan)(params, xs))
    return found


def show(records: list[dict[str, Any]], limit: str, console: Console) -> None:
    lines = [
        {
            "T": f"{record['T']:,}",
            "plan": record["plan"],
            "predicted MiB": f"{record['predicted_bytes'] / 2**20:.2f}",
            "temp MiB": f"{record['temp_bytes'] / 2**20:.2f}",
            "seconds": f"{record['seconds']:.2f}",
            "grad diff": harness.text(record.get("difference"), ".0e"),
        }
        for record in records
    ]
    harness.print_table(console, f"one gradient of an LSTM of 64, one sequence, within {limit}", lines, left=["plan"])


def draw_growth(records: list[dict[str, Any]], limit: str, panels: Any) -> None:
    memory, seconds = panels
    steps = [r["T"] for r in records]
    memory.loglog(steps, [r["temp_bytes"] / 2**20 for r in records], "o-", label="compiled")
    memory.loglog(steps, [r["predicted_bytes"] / 2**20 for r in records], "x--", label="predicted")
    memory.set(xlabel="time steps T", ylabel="scratch memory of one gradient, MiB", title=f"memory within {limit}")
    memory.legend()
    seconds.loglog(steps, [r["seconds"] for r in records], "o-")
    seconds.set(xlabel="time steps T", ylabel="seconds of one gradient", title="time")


def measure(folder: str, limit: str, lengths: tuple[int, ...], console: Console) -> None:
    with rnn.training.Run(folder, {"experiment": "memory_vs_compute --million", "limit": limit}) as run:
        there = {record["T"] for record in rnn.training.read_metrics(run.folder)}
        work = [{"T": steps} for steps in sorted({*lengths, *there})]
        write = lambda done: run.write("million.csv", harness.as_csv(done, COLUMNS))
        table = harness.records(run, work, lambda T: row(T, limit, console), console, then=write, bar=False)
        show(table, limit, console)
        harness.picture(run.folder / "million.png", partial(draw_growth, table, limit), columns=2)
        console.print(f"written: {run.folder / 'million.csv'} and million.png beside it")
