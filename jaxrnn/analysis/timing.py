"""Times that can be compared: functions run in turn."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxrnn import checks


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
