"""The schedules themselves: counts against brute force and published figures, and tables played out."""

import functools
from math import comb

import pytest

from jaxrnn.engine.binomial import (
    evaluations_keeping_carries,
    evaluations_keeping_steps,
    evaluations_mixed,
    split,
    table,
)


@functools.cache
def carries(t, m):
    """The recurrence, as it stands in the literature."""
    if m == 1 or t <= 1:
        return t * (t + 1) // 2
    return min(y + carries(t - y, m - 1) + carries(y, m) for y in range(1, t))


@functools.cache
def whole(t, m):
    if m == 0 or t == 0:
        return t * (t + 1) // 2
    return min(y + whole(y - 1, m) + whole(t - y, m - 1) for y in range(1, t + 1))


@functools.cache
def mixed(t, m, size, carry=1):
    options = [t * (t + 1) // 2]
    if m >= carry:
        options += [y + mixed(t - y, m - carry, size, carry) + mixed(y, m, size, carry) for y in range(1, t)]
    if m >= size:
        options += [y + mixed(y - 1, m, size, carry) + mixed(t - y, m - size, size, carry) for y in range(1, t + 1)]
    return min(options)


@pytest.mark.parametrize("m", range(1, 8))
def test_closed_forms_equal_brute_force(m):
    for t in range(40):
        assert evaluations_keeping_carries(t, m) == carries(t, m)
        assert evaluations_keeping_steps(t, m - 1) == whole(t, m - 1)


@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3, 5))])
def test_the_mixed_programme_equals_brute_force(size):
    for t in range(30):
        for m in range(9):
            assert evaluations_mixed(t, m, size) == mixed(t, m, size), (t, m)
            assert evaluations_mixed(t, 2 * m, size, carry=2) == mixed(t, 2 * m, size, 2), (t, m)


def test_published_figures():
    """Gruslys et al. 2016 at 1000 steps; the mixed programme's times, a backward pass counted as two forward passes."""
    assert evaluations_keeping_steps(1000, 50) == 1949
    assert evaluations_keeping_carries(1000, 50) == 2948
    for m in (5, 10, 20, 32, 50):  # revolve's own count of advances, and one evaluation for each step's gradient
        r = next(r for r in range(1000) if comb(m + r, m) >= 1000)
        assert evaluations_keeping_carries(1000, m) == r * 1000 - comb(m + r, r - 1) + 1000
    times = [round((evaluations_mixed(1000, slots, 5) + 2000) / 3000, 3) for slots in (100, 50)]
    assert times == [1.331, 1.571]  # at 2.0% and 1.0% of all steps' bytes


def test_mixed_is_never_worse_than_either_kind_alone():
    for t, m in ((200, 30), (357, 11)):
        assert evaluations_mixed(t, m, 1) <= min(evaluations_keeping_steps(t, m), carries(t, m + 1))


@pytest.mark.parametrize("m", range(2, 8))
def test_splits_are_optimal(m):
    for t in range(2, 40):
        y = split(t, m)
        assert y + carries(t - y, m - 1) + carries(y, m) == carries(t, m)


def played(leaves, slots):
    """Runs a table on integers instead of carries: how many leaves were advanced over after the first pass."""
    schedule, held, advances = table(leaves, slots), {}, 0
    for k in range(leaves):
        held[int(schedule.first[k])] = k
    for k in reversed(range(leaves)):
        at = held[int(schedule.restore[k])]
        for n in range(schedule.begin[k], schedule.end[k]):
            assert schedule.run[n] == at
            held[int(schedule.store[n])] = at
            at, advances = at + 1, advances + 1
        assert at == k, "the gradient of leaf k starts from the carry before leaf k"
        assert set(held) <= set(range(slots + 1))
    return advances


@pytest.mark.parametrize("slots", range(1, 9))
def test_the_table_takes_as_few_advances_as_the_binomial_count(slots):
    for leaves in range(1, 60):
        # The count has the first pass, all but its last leaf, and every leaf's own gradient.
        assert played(leaves, min(slots, leaves)) + (leaves - 1) + leaves == carries(leaves, slots)


def test_a_long_schedule_plans_in_no_time_and_plays():
    assert played(20_000, 100) + 2 * 20_000 - 1 == evaluations_keeping_carries(20_000, 100)
    assert table(100_000, 1000).advances + 2 * 100_000 - 1 == evaluations_keeping_carries(100_000, 1000)
