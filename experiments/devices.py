"""Devices and processes that share an experiment's training: from the command line to a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from rich.console import Console

import jaxrnn as rnn
from experiments import harness


@dataclasses.dataclass(frozen=True)
class Devices:
    """Settings of an experiment that can be spread over devices."""

    devices: int | None = None
    """Devices that share every batch, of all processes together; by default one, or all that the processes have."""
    sharding: Literal["replicated", "fsdp"] = "replicated"  # Weights whole on every device, or in parts on all.
    coordinator: str | None = None
    """Where process 0 listens, as host:port; or auto: under SLURM, Kubernetes or Open MPI JAX knows, and the rest."""
    processes: int = 1  # How many processes train together, each started with the same settings but for its number.
    process: int = 0  # The number of this one.


NOT_TRAINING = tuple(field.name for field in dataclasses.fields(Devices))  # where it runs, and no part of what it is


def join(config: Devices) -> None:
    """Joins the other processes, if there are any. Before anything asks JAX for an array."""
    if config.coordinator is None:
        if config.processes != 1:
            raise harness.UsageError("--processes needs --coordinator, host:port of process 0, or auto")
        return
    # A scheduler's SIGTERM is heard by `fit` itself, which agrees with the other processes on where to stop.
    jax.config.update("jax_enable_preemption_service", False)
    found = () if config.coordinator == "auto" else (config.coordinator, config.processes, config.process)
    try:
        jax.distributed.initialize(*found, heartbeat_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        raise harness.UsageError(f"--coordinator {config.coordinator}: {' '.join(str(error).split())}") from error


def mesh_of(config: Devices, batch: int) -> Mesh | None:
    """The mesh to train on; None for one device of one process."""
    there = len(jax.devices())
    alone = jax.process_count() == 1
    count = (1 if alone else there) if config.devices is None else config.devices
    if not 1 <= count <= there or not (alone or count == there):
        raise harness.UsageError(
            f"--devices must be {f'from 1 to {there}' if alone else f'all {there} of the processes'}, got {count}; "
            "a CPU has as many as XLA_FLAGS=--xla_force_host_platform_device_count=N says"
        )
    if batch % count:
        raise harness.UsageError(f"--batch must be a multiple of the {count} devices that share it, got {batch}")
    return jax.make_mesh((count,), ("data",), devices=jax.devices()[:count]) if count > 1 or not alone else None


def placed(config: Devices, cell: rnn.Cell, params: Any, mesh: Mesh | None, console: Console) -> Any:
    """The parameters where they are to lie; prints that, where there is a choice."""
    if mesh is None:
        return params
    layout = rnn.training.shardings(cell, params, mesh, config.sharding)
    console.print(f"on {mesh.size} devices, {config.sharding}\n{layout}", markup=False, highlight=False)
    return layout.put(params)


def speaks() -> bool:
    """Whether this is the process that prints and draws."""
    return jax.process_index() == 0


def console() -> Console:
    return harness.console() if speaks() else Console(quiet=True)
