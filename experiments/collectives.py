"""Several devices: what a gradient sends between them, for two LSTM layers under three scans, in four arrangements.

    data            examples spread, the weights everywhere
    fully sharded   examples spread, and every weight too (FSDP)
    units           hidden units spread: tensor parallel
    data x units    both, on a 2 x 2 mesh

Nothing is timed: collectives, their bytes and the scratch memory are read from the compiled programs, so virtual
devices of one processor tell as much as real ones. Each gradient is run once and compared with one device's.

    python -m experiments.collectives
    python -m experiments.collectives --steps 100 --ways data --show

Writes table.csv, results.json and collectives.png into the run folder; every row is a checkpoint to go on from.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from typing import Any, Literal

DEVICES = 4
if __name__ == "__main__":
    # How many virtual devices there are must be said before JAX starts; where there are real ones it changes nothing.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

import jaxrnn as rnn  # noqa: E402
from experiments import harness  # noqa: E402

Way = Literal["data", "fully sharded", "units", "data x units"]
WAYS: dict[str, tuple[tuple[int, int], dict[str, str]]] = {  # devices along "data" and "model"; what `sharded` is told
    "data": ((4, 1), {"batch": "data"}),
    "fully sharded": ((4, 1), {"batch": "data"}),
    "units": ((1, 4), {"units": "model"}),
    "data x units": ((2, 2), {"batch": "data", "units": "model"}),
}
Contender = Literal["lax.scan", "flax", "jaxrnn.scan", "sharded", "sharded, checkpointed"]
PLAIN = "lax.scan"


@dataclasses.dataclass(frozen=True)
class Config:
    ways: tuple[Way, ...] = ("data", "fully sharded", "units", "data x units")  # Arrangements.
    contenders: tuple[Contender, ...] = ("lax.scan", "flax", "sharded", "sharded, checkpointed")
    """lax.scan, Flax's nn.RNN, jaxrnn.scan as it is, or told by `sharded` where things lie."""
    steps: tuple[int, ...] = (100, 1000)  # T.
    batch: int = 32  # Sequences, all devices together.
    inputs: int = 64  # Input features per step.
    size: int = 64  # Hidden units of each layer.
    show: bool = False  # Print every collective of every program as well.
    run: str = "runs/collectives"  # Run folder: table.csv, results.json, collectives.png, metrics.jsonl.


def ours(config: Config, scan: rnn.Scan) -> tuple[Any, Callable[..., Any]]:
    """Parameters, and the outputs of two layers under a scan."""
    net = rnn.stack(rnn.lstm(config.size), rnn.lstm(config.size))
    params = net.init(jax.random.key(0), jnp.zeros(config.inputs))
    return params, lambda params, xs: rnn.unroll(net, params, xs, scan=scan)[1]


def flax(config: Config) -> tuple[Any, Callable[..., Any]]:
    layers = [nn.RNN(nn.OptimizedLSTMCell(config.size), time_major=True) for _ in range(2)]
    net = nn.Sequential(layers)
    params = net.init(jax.random.key(0), jnp.zeros((1, 1, config.inputs)))
    return params, net.apply


def contender(config: Config, name: str, told: dict[str, str]) -> tuple[Any, Callable[..., Any]]:
    if name == "flax":
        return flax(config)
    scans = {"lax.scan": lax.scan, "jaxrnn.scan": rnn.scan, "sharded": rnn.sharded(**told)}  # type: ignore[arg-type]
    scans["sharded, checkpointed"] = rnn.sharded(**told, inner=rnn.checkpointed(inner=rnn.scan))  # type: ignore[arg-type]
    return ours(config, scans[name])


def gradient(run: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda params, xs: jnp.mean(jnp.square(run(params, xs))))


def examples(config: Config, T: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (T, config.batch, config.inputs))


@functools.cache
def on_one_device(config: Config, flax: bool, T: int) -> Any:
    params, run = contender(config, "flax" if flax else PLAIN, {"batch": "data"})
    return jax.device_get(jax.jit(gradient(run))(params, examples(config, T)))


def lies(way: str, mesh: Any, weights: Any) -> NamedSharding:
    """Where a weight is kept: nowhere in particular, in parts along its longest axis, or by columns."""
    axes = [n for n, size in enumerate(weights.shape) if size % DEVICES == 0]
    if way == "data" or not axes:
        return NamedSharding(mesh, PartitionSpec())
    axis = max(axes, key=lambda n: weights.shape[n]) if way == "fully sharded" else axes[-1]
    name = "data" if way == "fully sharded" else "model"
    return NamedSharding(mesh, PartitionSpec(*[name if n == axis else None for n in range(weights.ndim)]))


def measured(config: Config, way: str, scan: str, T: int) -> dict[str, Any]:
    """What the gradient of a mean square by the parameters sends, per device; and how far it is from one device's."""
    shape, told = WAYS[way]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params, run = contender(config, scan, told)
    where = jax.tree.map(lambda a: lies(way, mesh, a), params)
    spread_out = NamedSharding(mesh, PartitionSpec(None, told.get("batch")))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, where), jax.device_put(examples(config, T), spread_out)
        program = jax.jit(gradient(run), out_shardings=where).lower(*spread).compile()
        found = jax.device_get(program(*spread))
    sent, alone = rnn.analysis.collectives(program), on_one_device(config, scan == "flax", T)
    return {
        "collectives": sent.times,
        "bytes": sent.nbytes,
        "all_reduces": sent.of("all-reduce").times,
        "scratch": program.memory_analysis().temp_size_in_bytes,
        "weights": sum(a.nbytes for a in jax.tree.leaves(params)),
        "difference": harness.difference(found, alone),
        "sent": str(sent),
    }


def shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "arrangement": row["way"],
        "T": f"{row['T']:,}",
        "scan": row["scan"],
        "collectives": f"{row['collectives']:,}",
        "of these sums": f"{row['all_reduces']:,}",
        "sent": harness.mebibytes(row["bytes"]),
        "scratch": harness.mebibytes(row["scratch"]),
        "off by": f"{row['difference']:.0e}",
    }


def draw(rows: list[dict[str, Any]], panels: Any) -> None:
    """Bars on a logarithmic scale: how many collectives, how many bytes."""
    longest = max(row["T"] for row in rows)
    rows = [row for row in rows if row["T"] == longest]
    ways, names = (list(dict.fromkeys(row[name] for row in rows)) for name in ("way", "scan"))
    for axes, figure in zip(panels, ("collectives", "bytes"), strict=True):
        for n, name in enumerate(names):
            mine = {row["way"]: row[figure] for row in rows if row["scan"] == name}
            places = [ways.index(way) + (n - (len(names) - 1) / 2) * 0.8 / len(names) for way in mine]
            axes.bar(places, list(mine.values()), 0.8 / len(names), label=name)
        axes.set_xticks(range(len(ways)), ways)
        axes.set(yscale="log", title=f"{figure} of a gradient, {longest:,} steps, {DEVICES} devices")
        axes.grid(alpha=0.3, axis="y")
    panels[0].legend(loc="upper left")


def main(config: Config) -> None:
    if jax.device_count() < DEVICES:
        raise harness.UsageError(
            f"four devices are needed, and there are {jax.device_count()}; a CPU has as many as asked"
        )
    if not (config.ways and config.contenders and config.steps) or min(*config.steps, config.inputs) < 1:
        raise harness.UsageError("--ways, --contenders and --steps need at least one; sizes must be at least 1")
    if config.batch % DEVICES or config.size % DEVICES or min(config.batch, config.size) < 1:
        raise harness.UsageError(f"--batch and --size must be multiples of {DEVICES}, the number of devices")
    console = harness.console()
    work = [{"way": w, "T": T, "scan": c} for w in config.ways for T in config.steps for c in config.contenders]
    about = {name: getattr(config, name) for name in ("batch", "inputs", "size")}
    with rnn.training.Run(config.run, {"experiment": "collectives", **about}) as run:
        write = lambda done: run.write("table.csv", harness.as_csv([{**row, "sent": ""} for row in done]))
        rows = harness.records(run, work, functools.partial(measured, config), console, then=write)
        for row in rows if config.show else ():
            console.print(f"\n{row['way']}, {row['scan']}, T = {row['T']:,}\n{row['sent']}", highlight=False)
        run.write("results.json", json.dumps(rows, indent=1))
        lines = [shown(row) for row in rows]
        harness.print_table(
            console, f"a gradient on {DEVICES} devices", lines, left=("arrangement", "scan"), section="T"
        )
        harness.picture(run.folder / "collectives.png", functools.partial(draw, rows), columns=2)
        console.print(f"written: {run.folder / 'table.csv'}; results.json, collectives.png beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
