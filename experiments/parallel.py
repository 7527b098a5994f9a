"""Parallel in time: what it costs to solve a recurrence at once, how exact that is, and what it is good for.

    cost        depth, operations, scratch bytes and time of a minGRU's outputs and gradient, against loops and
                `lax.associative_scan` written out by hand and differentiated by JAX
    accuracy    errors of gradients in float32 and bfloat16, against float64
    newton      a GRU with elementwise recurrent weights, which has no closed form: iterations and certificate,
                as drawn and with weights so large that it is chaotic
    digits      handwritten digits pixel by pixel, and a long wait: what is learned in the same time

    python -m experiments.parallel
    python -m experiments.parallel --parts cost --batch 8 --lengths 1024 8192 --run runs/wider

Writes results.json, table.csv and a picture for each part into the run folder. Each length, and each net that learns,
is a checkpoint: stopped and started again it keeps those it has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxrnn as rnn
from experiments import digits_in_a_row, harness, parallel_pictures

Part = Literal["cost", "accuracy", "newton", "digits"]
Run = Callable[[Any, jax.Array], jax.Array]  # (parameters, xs) -> the outputs of all steps
PLAIN = "lax.scan"


@dataclasses.dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("cost", "accuracy", "newton", "digits")  # What to do, in this order.
    lengths: tuple[int, ...] = (256, 4096, 65536)  # T of cost, accuracy and newton.
    size: int = 64  # Hidden units; accuracy and newton have a quarter.
    inputs: int = 32  # Input features per step.
    batch: int = 1  # Sequences side by side; digits has 32 times as many.
    segment: int = 256  # Steps of a segment under parallel(segment=...).
    longest: int = 16384  # T above which no bfloat16 gradient is found: in a loop that is slow on a CPU.
    gains: tuple[float, ...] = (1.0, 4.0, 16.0)  # What newton's recurrent weights are multiplied by.
    rounds: int = 5  # Timed runs, interleaved, after one that does not count.
    patience: float = 4.0  # Seconds after which no further round begins.
    wait: int = 448  # Steps between a digit and the question.
    seconds: float = 16.0  # Of the processor's time that each net trains for, its compilation apart.
    run: str = "runs/parallel"  # Run folder: results.json, table.csv, pictures, metrics.jsonl.


def by_hand(params: Any, xs: jax.Array) -> jax.Array:
    """A minGRU by `lax.associative_scan`, as people write it: h_t = a_t h_tm1 + b_t, from h = 0."""
    z, n = jnp.split(xs @ params["U"] + params["b"][None, None], 2, axis=-1)
    z = jax.nn.sigmoid(z)
    after = lambda f, g: (g[0] * f[0], g[0] * f[1] + g[1])
    return lax.associative_scan(after, (1 - z, z * n))[1]


def ways(cell: rnn.Cell, segment: int) -> dict[str, Run]:
    scans = {PLAIN: lax.scan, "jaxrnn.scan": rnn.scan, "parallel()": rnn.parallel()}
    scans |= {f"parallel(segment={segment})": rnn.parallel(segment=segment)}
    under = lambda scan: lambda params, xs: rnn.unroll(cell, params, xs, scan=scan)[1]
    return {name: under(scan) for name, scan in scans.items()} | {"associative_scan": by_hand}


def gradient(run: Run) -> Callable[..., Any]:
    """By parameters and inputs, of the outputs' mean square."""
    return jax.grad(lambda params, xs: jnp.mean(jnp.square(run(params, xs).astype(jnp.float32))), (0, 1))


def cost(config: Config, T: int) -> list[dict[str, Any]]:
    """A row for each way to run a minGRU over T steps."""
    cell = rnn.cells.min_gru(config.size)
    xs = jax.random.normal(jax.random.key(1), (T, config.batch, config.inputs))
    params, limit = cell.init(jax.random.key(0), xs[0]), rnn.analysis.memory_free()
    table: dict[str, dict[str, Any]] = {name: {"way": name} for name in ways(cell, config.segment)}
    for what, of in (("forward", lambda run: run), ("gradient", gradient)):
        programs = {}
        for name, run in ways(cell, config.segment).items():
            compiled, row = jax.jit(of(run)).lower(params, xs).compile(), table[name]
            needed = compiled.memory_analysis().temp_size_in_bytes
            row |= {f"{what}_{m.__name__}": m(of(run), params, xs) for m in (rnn.analysis.depth, rnn.analysis.flops)}
            row |= {f"{what}_bytes": needed}
            if needed > limit:
                row["note"] = f"{what} not run: needs {harness.mebibytes(needed)}, {harness.mebibytes(limit)} are free"
            else:
                programs[name] = partial(compiled, params, xs)
        timings = rnn.analysis.interleaved(programs, rounds=config.rounds, seconds=config.patience)
        found = {name: program() for name, program in programs.items()}
        for name in programs:
            table[name][f"{what}_seconds"] = timings[name].median
            if PLAIN in found:
                table[name][f"{what}_time"] = timings[name].median / timings[PLAIN].median
                table[name][f"{what}_difference"] = harness.difference(found[name], found[PLAIN])
    return list(table.values())


def accuracy(config: Config, T: int) -> list[dict[str, Any]]:
    """The norm of the gradient's error by the gradient's own, in two dtypes."""
    cell = rnn.cells.min_gru(max(1, config.size // 4))
    xs = jax.random.normal(jax.random.key(1), (T, 1, 8))
    params, table = cell.init(jax.random.key(0), xs[0]), []
    runs = {name: run for name, run in ways(cell, T).items() if name in (PLAIN, "parallel()", "associative_scan")}
    for dtype in ("float32", "bfloat16") if config.longest >= T else ("float32",):
        rough = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), (params, xs))
        with jax.enable_x64(True):
            in_double = jax.tree.map(lambda a: a.astype("float64"), rough)
            exact = [np.asarray(g) for g in jax.tree.leaves(jax.jit(gradient(runs[PLAIN]))(*in_double))]
        for name, run in runs.items():
            got = [np.asarray(g, np.float64) for g in jax.tree.leaves(jax.jit(gradient(run))(*rough))]
            off = sum(np.sum(np.square(a - b)) for a, b in zip(got, exact, strict=True))
            size = sum(np.sum(np.square(b)) for b in exact)
            table.append({"way": name, "dtype": dtype, "error": float(np.sqrt(off / size))})
    return table


def newton(config: Config, T: int) -> list[dict[str, Any]]:
    """What the certificate says, for recurrent weights of several sizes, and how far from the loop the states are."""
    cell = rnn.cells.elementwise_gru(max(1, config.size // 4))
    xs = jax.random.normal(jax.random.key(1), (T, config.batch, config.inputs))
    drawn, table, told = cell.init(jax.random.key(0), xs[0]), [], []
    under = lambda scan: lambda params, xs: rnn.unroll(cell, params, xs, scan=scan)[1]
    in_order = jax.jit(under(lax.scan))
    iterated = jax.jit(under(rnn.parallel(newton=rnn.scans.newton(report=told.append))))
    scans = {PLAIN: lax.scan, "jaxrnn.scan": rnn.scan, "newton": rnn.parallel(newton=rnn.scans.newton())}
    grads = {name: jax.jit(gradient(under(scan))) for name, scan in scans.items()}
    for gain in config.gains:
        params = drawn | {"w": gain * drawn["w"]}
        off = float(jnp.max(jnp.abs(iterated(params, xs) - in_order(params, xs))))
        jax.effects_barrier()  # until the report is there
        certificate = {name: value.item() for name, value in told.pop()._asdict().items()}
        programs = {name: partial(grad, params, xs) for name, grad in grads.items()}
        timings = rnn.analysis.interleaved(programs, rounds=config.rounds, seconds=config.patience / 3)
        times = {f"{name}_time": timings[name].median / timings[PLAIN].median for name in scans}
        table.append({"gain": gain, **certificate, "error": off, **times})
    return table


def learned(config: Config, name: str) -> list[dict[str, Any]]:
    return [digits_in_a_row.learned(name, config.size, 32 * config.batch, config.wait, config.seconds)]


MEASURES: dict[str, Any] = {"cost": cost, "accuracy": accuracy, "newton": newton, "digits": learned}


def as_csv(rows: list[dict[str, Any]]) -> str:
    columns = dict.fromkeys(name for row in rows for name in row if name != "curve")
    return harness.as_csv(rows, list(columns))


def shown(part: str, row: dict[str, Any]) -> dict[str, str]:
    """A line of a table on the terminal."""
    ratio = lambda name: harness.text(row.get(name), ".2f")
    if part == "cost":
        line = {"T": str(row["of"]), "way": row["way"], "depth": f"{row['gradient_depth']:,}"}
        line |= {"MFLOP": f"{row['gradient_flops'] / 1e6:,.1f}", "MiB": f"{row['gradient_bytes'] / 2**20:,.2f}"}
        line |= {"seconds": harness.text(row.get("gradient_seconds"), ".4f"), "of lax.scan": ratio("gradient_time")}
        return line | {"forward": ratio("forward_time"), "diff": harness.text(row.get("gradient_difference"), ".0e")}
    if part == "accuracy":
        return {"T": str(row["of"]), "dtype": row["dtype"], "way": row["way"], "error": f"{row['error']:.1e}"}
    if part == "newton":
        line = {"T": str(row["of"]), "weights": f"x {row['gain']:g}", "iterations": str(row["iterations"])}
        line |= {name: f"{row[name]:.0e}" for name in ("residual", "bound", "error")}
        return line | {"met": "yes" if row["met"] else "no: the loop", "gradient, of lax.scan": ratio("newton_time")}
    return {"net": row["of"], "updates": str(row["updates"]), "right": f"{row['right']:.1%}"}


def main(config: Config) -> None:
    console = harness.console()
    sizes = ("size", "inputs", "batch", "segment", "rounds")
    if not config.parts or not config.lengths or min(*config.lengths, *(getattr(config, s) for s in sizes)) < 1:
        raise harness.UsageError(f"--parts needs at least one; --lengths, {', '.join(sizes)} must be at least 1")
    if config.wait < 0 or config.seconds <= 0:
        raise harness.UsageError("--wait must be 0 or more, --seconds above 0")
    about = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "parts", "lengths")}
    lengths = sorted(set(config.lengths))
    over = lambda part: {"digits": digits_in_a_row.NETS}.get(part, lengths)
    work = [{"part": part, "of": of} for part in config.parts for of in over(part)]
    measure = lambda part, of: {"rows": MEASURES[part](config, of)}
    flat = lambda done: [{"part": r["part"], "of": r["of"], **row} for r in done for row in r["rows"]]
    with rnn.training.Run(config.run, {"experiment": "parallel", **about}) as run:
        write = lambda done: run.write("table.csv", as_csv(flat(done)))
        rows = flat(harness.records(run, work, measure, console, then=write))
        run.write("results.json", json.dumps([{k: v for k, v in r.items() if k != "curve"} for r in rows], indent=1))
        for part in config.parts:
            lines = [shown(part, row) for row in rows if row["part"] == part]
            section = "T" if part != "digits" else None
            harness.print_table(console, part, lines, left=["way", "net", "dtype"], section=section)
        for row in (row for row in rows if "note" in row):
            console.print(f"T = {row['of']}, {row['way']}: {row['note']}")
        written = parallel_pictures.draw(rows, run.folder)
        console.print(f"written: {run.folder / 'table.csv'}; results.json, {', '.join(written)} beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
