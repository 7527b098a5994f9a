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
from rich.progress import Progress
from rich.table import Table

import jaxrnn
from experiments import common, peers
from experiments.million import LENGTHS, run_million

PLAIN = "lax.scan"


@dataclasses.dataclass(frozen=True)
class Config:
    cell: common.CellName = "lstm"
    """Recurrent cell."""
    size: int = 256
    """Hidden units."""
    batch: int = 32
    """Sequences in parallel."""
    inputs: int = 64
    """Input features per step."""
    lengths: tuple[int, ...] | None = None
    """Sequence lengths T: 100, 300 and 1000, if not given; with --million powers of ten to a million."""
    scans: tuple[str, ...] = (
        PLAIN,
        "fissioned",
        "checkpointed(1)",
        "checkpointed",
        "checkpointed(levels=2)",
        "checkpointed(inner=fissioned)",
    )
    """Strategies; checkpointed(1) is the usual jax.checkpoint on every step. Plain lax.scan is always there."""
    plans: bool = True
    """Also the planner's plans: those of analysis.plan without a limit, and within a twentieth of plain's bytes."""
    million: bool = False
    """Instead: the gradient of up to a million steps (LSTM of 64, one sequence) within --limit, from T = 100 on."""
    limit: str = "64MiB"
    """What --million may take."""
    rounds: int = 3
    """Timed runs of each strategy, interleaved, after one that does not count."""
    budget: float | None = None
    """MiB above which a strategy is compiled but not run (0: run none); what the machine has free, if not given."""
    run: str | None = None
    """Run folder: table.csv, curves.png, metrics.jsonl; runs/memory_vs_compute or runs/million, if not given."""


# Time and bytes relative to keeping everything, at about 1000 steps.
PUBLISHED = {
    "Gruslys et al. 2016": (0.05, 4 / 3),
    "Chen et al. 2016, sqrt(T)": (2 / 1000**0.5, 4 / 3),
}


def net(config: Config) -> tuple[jaxrnn.Cell, Any, jax.ShapeDtypeStruct]:
    """The cell, its parameters, and one step's input."""
    cell = common.CELLS[config.cell](config.size)
    x = jax.ShapeDtypeStruct((config.batch, config.inputs), jnp.float32)
    return cell, cell.init(jax.random.key(0), x), x


def gradient(config: Config, steps: int, scan: jaxrnn.Scan) -> tuple[Any, tuple[Any, Any]]:
    """The gradient of a loss on the last state by all parameters, and its arguments."""
    cell, params, x = net(config)

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        state, _ = jaxrnn.unroll(cell, params, xs, scan=scan, outputs="none")
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(state))

    return jax.grad(loss), (params, jax.ShapeDtypeStruct((steps, *x.shape), x.dtype))


def planned(config: Config, steps: int) -> dict[str, tuple[jaxrnn.Scan, int]]:
    """The planner's plans by name, each with the bytes that it predicts."""
    cell, params, x = net(config)
    at_best = jaxrnn.analysis.plan(cell, params, x, steps, outputs=False)
    found = {f"plan: {row.about}": (row.strategy, row.bytes) for row in at_best.rows}
    grad, arguments = gradient(config, steps, lax.scan)
    twentieth = jaxrnn.analysis.temp_bytes(grad, *arguments) // 20
    chosen = jaxrnn.analysis.plan(cell, params, x, steps, twentieth, outputs=False).chosen
    if chosen is not None:
        found[f"within 5%: {chosen.about}"] = (chosen.strategy, chosen.bytes)
    return found


def rows(config: Config, steps: int, scans: dict[str, jaxrnn.Scan], limit: float) -> list[dict[str, Any]]:
    """All strategies at one length: compiled first, then those that fit run in turn."""
    table, programs = [], {}
    plans = planned(config, steps) if config.plans else {}
    scans = {**scans, **{name: scan for name, (scan, _) in plans.items()}, **peers.checkpointed_scans()}
    for name, scan in scans.items():
        grad, arguments = gradient(config, steps, scan)
        compiled = jax.jit(grad).lower(*arguments).compile()
        memory = compiled.memory_analysis()
        row = {"T": steps, "strategy": name, "temp_bytes": memory.temp_size_in_bytes}
        if name in plans:
            row["predicted_bytes"] = plans[name][1]
        if not name.startswith("equinox"):  # a loop whose number of trips is not in the program cannot be counted
            row["flops"] = jaxrnn.analysis.flops(grad, *arguments)
        table.append(row)
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        if needed > limit:
            table[-1]["note"] = f"not run: needs {common.mebibytes(needed)}, {common.mebibytes(limit)} allowed"
        else:
            programs[name] = partial(compiled, arguments[0])
    if not programs:
        return table
    xs = jax.random.normal(jax.random.key(1), (steps, config.batch, config.inputs))
    results = {name: run(xs) for name, run in programs.items()}
    timings = jaxrnn.analysis.interleaved(
        {name: partial(run, xs) for name, run in programs.items()}, rounds=config.rounds
    )
    for row in table:
        name = row["strategy"]
        if name in programs:
            row["seconds"] = timings[name].median
        if name in programs and PLAIN in programs:
            row["time"] = timings[name].median / timings[PLAIN].median
            row["difference"] = common.difference(results[name], results[PLAIN])
    return table


def show(records: list[dict[str, Any]], config: Config, console: Console) -> None:
    table = Table(title=f"one gradient of {config.cell} {config.size}, batch {config.batch}, {config.inputs} inputs")
    for column in ("T", "strategy", "temp MiB", "predicted", "of plain", "GFLOP", "time", "grad diff"):
        table.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=True)
    plain = {r["T"]: r["temp_bytes"] for r in records if r["strategy"] == PLAIN}
    for n, row in enumerate(records):
        last_of_length = n + 1 == len(records) or records[n + 1]["T"] != row["T"]
        table.add_row(
            str(row["T"]),
            row["strategy"],
            f"{row['temp_bytes'] / 2**20:,.2f}",
            f"{row['predicted_bytes'] / 2**20:,.2f}" if "predicted_bytes" in row else "",
            f"{row['temp_bytes'] / plain[row['T']]:.1%}",
            f"{row['flops'] / 1e9:,.1f}" if "flops" in row else "-",
            f"{row['time']:.2f}x" if "time" in row else "-",
            f"{row['difference']:.0e}" if "difference" in row else "-",
            end_section=last_of_length,
        )
    console.print(table)
    for row in records:
        if "note" in row:
            console.print(f"T = {row['T']}, {row['strategy']}: {row['note']}")


COLUMNS = ("T", "strategy", "temp_bytes", "predicted_bytes", "flops", "seconds", "time", "difference", "note")


def draw_curves(records: list[dict[str, Any]]) -> Any:
    ours = [name for name in dict.fromkeys(r["strategy"] for r in records) if ":" not in name and "equinox" not in name]
    longest = max((r["T"] for r in records if "time" in r), default=None)
    timed = [r for r in records if r["T"] == longest and "time" in r]

    def points(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        rows = sorted(rows, key=lambda r: r["temp_bytes"])
        return [r["temp_bytes"] / 2**20 for r in rows], [r["time"] for r in rows]

    def draw(panels: Any) -> None:
        memory, trade = panels
        for name in ours:
            mine = [r for r in records if r["strategy"] == name]
            memory.loglog([r["T"] for r in mine], [r["temp_bytes"] / 2**20 for r in mine], "o-", label=name)
            trade.plot(*points([r for r in timed if r["strategy"] == name]), "o", label=name)
        memory.set(xlabel="time steps T", ylabel="scratch memory of one gradient, MiB", title="memory")
        memory.legend()
        trade.plot(*points([r for r in timed if ":" in r["strategy"]]), "kx-", label="the planner's plans")
        trade.plot(
            *points([r for r in timed if "equinox" in r["strategy"]]), "s--", label="Equinox's checkpointed scan"
        )
        plain = next((r["temp_bytes"] for r in timed if r["strategy"] == PLAIN), None)
        for (name, (share, time)), mark in zip(PUBLISHED.items(), "*P", strict=True):
            if plain is not None:
                trade.plot(share * plain / 2**20, time, mark, color="0.4", ms=10, label=name)
        trade.set(xscale="log", xlabel="scratch memory of one gradient, MiB", ylabel="time, relative to lax.scan")
        trade.set_title(f"time against memory, T = {longest}" if longest else "time against memory: none was run")
        trade.legend(fontsize="small")
        trade.margins(0.1)

    return draw


def main(config: Config) -> None:
    console = common.console()
    if config.million:
        run_million(config.run or "runs/million", config.limit, config.lengths or LENGTHS, console)
        return
    lengths = config.lengths or (100, 300, 1000)
    scans = {PLAIN: lax.scan, **{text: common.scan_named(text) for text in config.scans}}
    if min(lengths) < 1:
        raise common.UsageError("--lengths needs whole numbers of at least 1")
    with common.usage():
        jax.eval_shape(gradient(config, 1, lax.scan)[0], *gradient(config, 1, lax.scan)[1])
    limit = config.budget * 2**20 if config.budget is not None else jaxrnn.analysis.memory_free()
    about = {"experiment": "memory_vs_compute", **dataclasses.asdict(config)}
    for name in ("run", "million", "limit"):
        del about[name]
    with jaxrnn.training.Run(config.run or "runs/memory_vs_compute", about | {"lengths": lengths}) as run:
        found = {record["T"]: record["rows"] for record in jaxrnn.training.read_metrics(run.folder)}
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("lengths", total=len(lengths))
            for steps in sorted(set(lengths)):
                bar.update(task, description=f"T = {steps}")
                if steps not in found:
                    found[steps] = rows(config, steps, scans, limit)
                    run.log({"T": steps, "rows": found[steps]})
                bar.advance(task)
        records = [row for steps in sorted(found) for row in found[steps]]
        show(records, config, console)
        run.write("table.csv", common.as_csv(records, COLUMNS))
        common.picture(run.folder / "curves.png", draw_curves(records), columns=2)
        console.print(f"written: {run.folder / 'table.csv'} and curves.png beside it")


if __name__ == "__main__":
    common.launch(main, Config, __doc__ or "")
