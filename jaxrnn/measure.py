"""What a program costs: compiled bytes, FLOPs, bytes kept per step, and times that can be compared."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxrnn import checks, shapes
from jaxrnn.scans import Plans, fissioned
from jaxrnn.scans.cost import StepBytes, step_bytes
from jaxrnn.scans.plan import Problem
from jaxrnn.scans.within import price
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


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of fn(*args), counted from its trace.

    A product counts 2 per multiply-add, an elementwise operation or reduction 1 per element, a scan's
    body once per step (XLA's own `cost_analysis` counts it once in all), the costliest branch of a
    `cond`. A `while` whose number of trips is not in the program counts once. Recomputation by
    `jax.checkpoint` is in the trace and so in the count.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


# Moving, naming and typing data is not arithmetic.
_FREE = frozenset(
    """broadcast_in_dim reshape transpose squeeze slice dynamic_slice dynamic_update_slice concatenate gather
    scatter select_n convert_element_type bitcast_convert_type copy copy_p iota pad rev stop_gradient
    optimization_barrier device_put random_wrap random_unwrap split expand_dims name""".split()
)


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _inner(params: Mapping[str, Any]) -> list[Jaxpr]:
    found: list[Jaxpr] = []
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, Jaxpr):
                found.append(each)
    return found


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        return 2 * depth * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (kernel.size // max(outputs, 1))
    if inner:
        return sum(inner)  # jit, checkpoint, custom rules, while
    if name in _FREE or name.startswith("random_"):
        return 0
    is_reduction = name.startswith(("reduce_", "arg", "cum"))
    arrays = equation.invars if is_reduction else equation.outvars
    return sum(getattr(v.aval, "size", 0) for v in arrays)


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
        return step_bytes(step, state, shapes.struct(x), scan)

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
        xs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((steps, *a.shape), a.dtype), shapes.struct(x))
        return price(Problem(body, state, xs, steps, inner), bound, every=True)

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
    if not isinstance(cell, Cell):
        raise TypeError(f"{where}: cell must be a Cell, got {type(cell).__name__}; see layer, recurrent and lift")
    own = shapes.batch_shape(where, cell, params, x)
    if batch_shape is None:
        batch_shape = own
    elif not shapes.fits(cell, params, x, batch_shape):
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


class Timing(NamedTuple):
    median: float  # seconds
    low: float  # the first quartile
    high: float  # the third quartile
    runs: int


def interleaved(
    fns: Mapping[str, Callable[[], Any]], *, rounds: int = 7, seconds: float = math.inf, warmup: int = 1
) -> dict[str, Timing]:
    """Times functions of no arguments in turn, so that a machine's moods hit all alike.

    Each round runs all, in an order drawn anew (the same draws every time): what one leaves behind,
    such as threads that go on spinning, then falls on no other in particular. Each run is waited for
    (`block_until_ready`). `warmup` runs come first and do not count (they compile). Stops after
    `rounds` rounds, or once `seconds` have gone by and every function has run at least once. Compare
    the medians' ratios, not the seconds.
    """
    rounds = checks.positive_int("interleaved", "rounds", rounds)
    for _ in range(warmup):
        for fn in fns.values():
            jax.block_until_ready(fn())
    taken: dict[str, list[float]] = {name: [] for name in fns}
    start = time.perf_counter()
    for n in range(rounds):
        for name in random.Random(n).sample(list(fns), len(fns)):
            fn = fns[name]
            before = time.perf_counter()
            jax.block_until_ready(fn())
            taken[name].append(time.perf_counter() - before)
        if time.perf_counter() - start > seconds:
            break
    return {name: _timing(times) for name, times in taken.items()}


def _timing(times: list[float]) -> Timing:
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Timing(statistics.median(times), low, high, len(times))
