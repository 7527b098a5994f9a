"""What a program takes: compiled bytes, bytes kept per step, the planner's table, what the machine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax

from jaxrnn import checks, inference, trees
from jaxrnn.engine.memory import StepBytes, step_bytes
from jaxrnn.scans import Plans, fissioned
from jaxrnn.scans.base import LoopProblem
from jaxrnn.scans.budget import price
from jaxrnn.scans.planner import Pricing
from jaxrnn.types import Cell, Params, Scan, Tree


def temp_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes of scratch memory that the compiled fn(*args) needs beside its arguments and results.

    XLA's own figure (`memory_analysis().temp_size_in_bytes`); for a gradient mostly what the backward
    pass keeps. Compiles and does not run; args may be ShapeDtypeStructs. Raises: RuntimeError where
    the backend reports no figure.
    """
    analysis = jax.jit(fn).lower(*args).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"temp_bytes: the backend {jax.default_backend()!r} reports no memory analysis")
    return int(analysis.temp_size_in_bytes)


def kept_per_step(
    cell: Cell, params: Params, x: Tree, batch_shape: tuple[int, ...] | None = None, *, scan: Scan = lax.scan
) -> StepBytes:
    """Bytes of a cell's carry, of what a scan keeps per step for the backward pass, and of one input.

    x is one step's input [*batch_shape, ...] or its ShapeDtypeStruct; the batch shape is found by
    tracing the step if it is not given. T steps keep T times `kept`, plus what does not depend on T;
    under `jaxrnn.scan` less than under `lax.scan`. Traces the step and computes nothing.
    Raises: ValueError for a batch shape that the input does not have.
    """
    checks.a_scan("kept_per_step", "scan", scan)

    def found(step: Callable[..., Any], state: Tree) -> StepBytes:
        return step_bytes(step, state, trees.struct(x), scan)

    return _of_step("kept_per_step", cell, params, x, batch_shape, found)


def plan(
    cell: Cell,
    params: Params,
    x: Tree,
    steps: int,
    limit: int | str | None = None,
    *,
    batch_shape: tuple[int, ...] | None = None,
    outputs: bool = True,
    inner: Scan = fissioned(),  # noqa: B008  an immutable value
) -> Plans:
    """What each kind of plan takes for the gradient of a cell over so many steps: a table, by recomputation.

        everything kept; part kept; segments; levels; the binomial schedule      bytes, extra passes, time

    x is one step's input [*batch_shape, ...] or its ShapeDtypeStruct, params may be structs too. With a
    limit, bytes or a text such as "64MiB", each kind has the parameters that recompute least within it, and
    `chosen` is what `within(limit)` would take, or None; without one each is shown at its best.
    `outputs=False`: for a loss on the last state alone. Bytes are the compiler's for the loop's gradient by
    parameters and state, outputs and their cotangents included; the time counts a backward pass as two forward passes.
    Cost: a compilation per row, some seconds in all; nothing is run.
    Raises: TypeError or ValueError for what is no cell, a batch shape that x does not have, steps below 0 or a
    limit that is no number of bytes.
    """
    steps = checks.positive_int("plan", "steps", steps, least=0)
    bound = None if limit is None else checks.byte_count("plan", "limit", limit)
    checks.one_of("plan", "outputs", outputs, (True, False))
    checks.a_scan("plan", "inner", inner)

    def found(step: Callable[..., Any], state: Tree) -> Plans:
        body = step if outputs else lambda s, x: (step(s, x)[0], ())
        xs = trees.all_steps(x, steps)
        problem = LoopProblem("plan", body, state, xs, steps, False, {})
        return price(Pricing(problem, inner), bound, every=True)

    return _of_step("plan", cell, params, x, batch_shape, found)


Found = TypeVar("Found")


def _of_step(
    where: str,
    cell: Cell,
    params: Params,
    x: Tree,
    batch_shape: tuple[int, ...] | None,
    ask: Callable[[Callable[..., Any], Tree], Found],
) -> Found:
    """What a question to a cell's step and state, as structs, is answered."""
    checks.a_cell(where, cell)
    own = inference.batch_shape(where, cell, params, x)
    if batch_shape is None:
        batch_shape = own
    elif not inference.fits(cell, params, x, batch_shape):
        raise ValueError(f"{where}: batch_shape should be {own}, as in x, got {batch_shape}; or leave it out")
    batch, found = batch_shape, []

    def trace(params: Params) -> None:
        state = jax.eval_shape(lambda: cell.initial_state(params, batch))
        found.append(ask(lambda s, x: cell.step(params, s, x), state))

    jax.eval_shape(trace, params)  # the parameters may be structs; as tracers the step can close over them
    return found[0]


def memory_free() -> int:
    """Bytes that a program may still take: on the accelerator in use, or of the machine for the CPU.

    Raises: RuntimeError where neither the device nor the operating system says.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError, OSError):
        raise RuntimeError("memory_free: this system does not say how much memory it has") from None
