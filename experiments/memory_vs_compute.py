"""Memory against compute: what each way to run the loop costs, for one gradient of one cell.

One row per sequence length and strategy: compiled scratch bytes, FLOPs, median time relative to plain
`lax.scan`, and the largest difference of the gradients from plain; for the planner's plans also the bytes that
it predicts; for comparison Equinox's checkpointed scan, where installed, and published points. The runs
are interleaved, so that the machine's moods hit all strategies alike. A strategy that needs more memory
than the machine has is compiled but not run, and says so.

    python -m experiments.memory_vs_compute
    python -m experiments.memory_vs_compute --cell gru --size 512 --lengths 100 1000 --scans lax.scan "checkpointed(25)"
    python -m experiments.memory_vs_compute --million

Writes table.csv and curves.png into the run folder. Stopped and started again it keeps the lengths it has.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, million, peers

PLAIN = "lax.scan"
OURS = ("fissioned", "checkpointed(1)", "checkpointed", "checkpointed(levels=2)", "checkpointed(inner=fissioned)")
# Bytes and time relative to keeping everything, at about 1000 steps.
PUBLISHED = {"Gruslys et al. 2016": (0.05, 4 / 3), "Chen et al. 2016, sqrt(T)": (2 / 1000**0.5, 4 / 3)}
COLUMNS = ("T", "strategy", "temp_bytes", "predicted_bytes", "flops", "seconds", "time", "difference", "note")


@dataclasses.dataclass(frozen=True)
class Config:
    cell: harness.CellName = "lstm"  # Recurrent cell.
    size: int = 256  # Hidden units.
    batch: int = 32  # Sequences in parallel.
    inputs: int = 64  # Input features per step.
    lengths: tuple[int, ...] | None = (
        None  # T: 100, 300, 1000, if not given; with --million powers of ten to a million.
    )
    scans: tuple[str, ...] = (PLAIN, *OURS)
    """Strategies; checkpointed(1) is the usual jax.checkpoint on every step. Plain lax.scan is always there."""
    plans: bool = (
        True  # Also the planner's plans, those without a limit and the one within a twentieth of plain's bytes.
    )
    million: bool = False  # Instead: the gradient of up to a million steps (LSTM of 64, one sequence) within --limit.
    limit: str = "64MiB"  # What --million may take.
    rounds: int = 3  # Timed runs of each strategy, interleaved, after one that does not count.
    budget: float | None = None  # MiB above which a strategy is compiled but not run (0: none); else what is free.
    run: str | None = None  # Run folder: table, picture, metrics.jsonl; else runs/memory_vs_compute or runs/million.


def net(config: Config) -> tuple[rnn.Cell, Any, jax.ShapeDtypeStruct]:
    """(cell, parameters, one step's input)"""
    cell = harness.CELLS[config.cell](config.size)
    x = jax.ShapeDtypeStruct((config.batch, config.inputs), jnp.float32)
    return cell, cell.init(jax.random.key(0), x), x


def gradient(config: Config, steps: int, scan: rnn.Scan) -> tuple[Any, tuple[Any, Any]]:
    """The gradient of a loss on the last state by all parameters, and its arguments."""
    cell, params, x = net(config)

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        state, _ = rnn.unroll(cell, params, xs, scan=scan, outputs="none")
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(state))

    return jax.grad(loss), (params, jax.ShapeDtypeStruct((steps, *x.shape), x.dtype))


def planned(config: Config, steps: int) -> dict[str, tuple[rnn.Scan, int]]:
    """The planner's plans by name, each with the bytes that it predicts."""
    cell, params, x = net(config)
    at_best = rnn.analysis.plan(cell, params, x, steps, outputs=False)
    found = {f"plan: {row.about}": (row.strategy, row.bytes) for row in at_best.rows}
    grad, arguments = gradient(config, steps, lax.scan)
    twentieth = rnn.analysis.temp_bytes(grad, *arguments) // 20
    chosen = rnn.analysis.plan(cell, params, x, steps, twentieth, outputs=False).chosen
    if chosen is not None:
        found[f"within 5%: {chosen.about}"] = (chosen.strategy, chosen.bytes)
    return found


def rows(config: Config, scans: dict[str, rnn.Scan], limit: float, T: int) -> list[dict[str, Any]]:
    """All strategies at one length: compiled first, then those that fit run in turn."""
    plans = planned(config, T) if config.plans else {}
    scans = {**scans, **{name: scan for name, (scan, _) in plans.items()}, **peers.checkpointed_scans()}
    table, programs = [], {}
    for name, scan in scans.items():
        grad, arguments = gradient(config, T, scan)
        compiled = jax.jit(grad).lower(*arguments).compile()
        memory = compiled.memory_analysis()
        row = {"T": T, "strategy": name, "temp_bytes": memory.temp_size_in_bytes}
        if name in plans:
            row["predicted_bytes"] = plans[name][1]
        if not name.startswith("equinox"):  # a loop whose number of trips is not in the program cannot be counted
            row["flops"] = rnn.analysis.flops(grad, *arguments)
        table.append(row)
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        if needed > limit:
            row["note"] = f"not run: needs {harness.mebibytes(needed)}, {harness.mebibytes(limit)} allowed"
        else:
            programs[name] = partial(compiled, arguments[0])
    if not programs:
        return table
    xs = jax.random.normal(jax.random.key(1), (T, config.batch, config.inputs))
    results = {name: run(xs) for name, run in programs.items()}
    timings = rnn.analysis.interleaved({name: partial(run, xs) for name, run in programs.items()}, rounds=config.rounds)
    for row in (row for row in table if row["strategy"] in programs):
        row["seconds"] = timings[row["strategy"]].median
        if PLAIN in programs:
            row["time"] = row["seconds"] / timings[PLAIN].median
            row["difference"] = harness.difference(results[row["strategy"]], results[PLAIN])
    return table


def show(records: list[dict[str, Any]], config: Config, console: Console) -> None:
    plain = {r["T"]: r["temp_bytes"] for r in records if r["strategy"] == PLAIN}
    lines = [
        {
            "T": str(row["T"]),
            "strategy": row["strategy"],
            "temp MiB": f"{row['temp_bytes'] / 2**20:,.2f}",
            "predicted": f"{row['predicted_bytes'] / 2**20:,.2f}" if "predicted_bytes" in row else "",
            "of plain": f"{row['temp_bytes'] / plain[row['T']]:.1%}",
            "GFLOP": f"{row['flops'] / 1e9:,.1f}" if "flops" in row else "-",
            "time": f"{row['time']:.2f}x" if "time" in row else "-",
            "grad diff": harness.text(row.get("difference"), ".0e"),
        }
        for row in records
    ]
    title = f"one gradient of {config.cell} {config.size}, batch {config.batch}, {config.inputs} inputs"
    harness.print_table(console, title, lines, left=["strategy"], section="T")
    for row in records:
        if "note" in row:
            console.print(f"T = {row['T']}, {row['strategy']}: {row['note']}")


def draw_curves(records: list[dict[str, Any]], panels: Any) -> None:
    """Bytes by length; and at the longest length that was run, time by bytes."""
    memory, trade = panels
    longest = max((r["T"] for r in records if "time" in r), default=None)
    timed = sorted((r for r in records if r["T"] == longest and "time" in r), key=lambda r: r["temp_bytes"])

    def points(kind: str, style: str, label: str, rows: list[dict[str, Any]]) -> None:
        mine = [(r["temp_bytes"] / 2**20, r["time"]) for r in rows if kind in r["strategy"]]
        if mine:
            trade.plot(*zip(*mine, strict=True), style, label=label)

    ours = [r for r in records if ":" not in r["strategy"] and "equinox" not in r["strategy"]]
    for name in dict.fromkeys(r["strategy"] for r in ours):
        mine = [r for r in records if r["strategy"] == name]
        memory.loglog([r["T"] for r in mine], [r["temp_bytes"] / 2**20 for r in mine], "o-", label=name)
        points("", "o", name, [r for r in timed if r["strategy"] == name])
    points(":", "kx-", "the planner's plans", timed)
    points("equinox", "s--", "Equinox's checkpointed scan", timed)
    plain = next((r["temp_bytes"] for r in timed if r["strategy"] == PLAIN), None)
    for (name, (share, time)), mark in zip(PUBLISHED.items(), "*P", strict=True):
        if plain is not None:
            trade.plot(share * plain / 2**20, time, mark, color="0.4", ms=10, label=name)
    memory.set(xlabel="time steps T", ylabel="scratch memory of one gradient, MiB", title="memory")
    trade.set(xscale="log", xlabel="scratch memory of one gradient, MiB", ylabel="time, relative to lax.scan")
    trade.set_title(f"time against memory, T = {longest}" if longest else "time against memory: none was run")
    trade.margins(0.1)
    memory.legend()
    if trade.get_legend_handles_labels()[0]:
        trade.legend(fontsize="small")


def main(config: Config) -> None:
    console, lengths = harness.console(), config.lengths or (100, 300, 1000)
    if min(lengths) < 1:
        raise harness.UsageError("--lengths needs whole numbers of at least 1")
    if config.million:
        million.measure(config.run or "runs/million", config.limit, config.lengths or million.LENGTHS, console)
        return
    scans = {PLAIN: lax.scan, **{text: harness.scan_named(text) for text in config.scans}}
    with harness.usage():
        jax.eval_shape(gradient(config, 1, lax.scan)[0], *gradient(config, 1, lax.scan)[1])
    limit = config.budget * 2**20 if config.budget is not None else rnn.analysis.memory_free()
    about = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "million", "limit")}
    about |= {"experiment": "memory_vs_compute", "lengths": lengths}
    with rnn.training.Run(config.run or "runs/memory_vs_compute", about) as run:
        flat = lambda done: [row for record in done for row in record["rows"]]
        work, measure = [{"T": T} for T in sorted(set(lengths))], lambda T: {"rows": rows(config, scans, limit, T)}
        write = lambda done: run.write("table.csv", harness.as_csv(flat(done), COLUMNS))
        table = flat(harness.records(run, work, measure, console, then=write))
        show(table, config, console)
        harness.picture(run.folder / "curves.png", partial(draw_curves, table), columns=2)
        console.print(f"written: {run.folder / 'table.csv'} and curves.png beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
