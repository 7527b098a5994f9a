"""Steps made at random: whatever the step does, `fissioned` means what `lax.scan` means.

Each kind of operation is also tried alone. `pytest --hypothesis-profile=long` tries new programs for about 20
minutes; with `--hypothesis-show-statistics` it says how many.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxrnn as rnn
from tests.engine import operations
from tests.engine.operations import OPERATIONS, N
from tests.reference import assert_close

T = 4
HOW = {
    "whole": rnn.fissioned(),
    "whole, separate": rnn.fissioned(separate=True),
    "segments of 3": rnn.fissioned(3),
    "segments of 2, separate": rnn.fissioned(2, separate=True),
}


class Program(NamedTuple):
    """Operations one after the other on the values so far (x, a, b, ...), and what becomes of the values."""

    operations: tuple  # (name, place of the left value, of the right one), places modulo how many there are
    roots: tuple  # places of the next a, the next b, and of two outputs
    reverse: bool = False

    @property
    def parts(self):
        return [OPERATIONS[name] for name, _, _ in self.operations]

    @property
    def reads(self):
        return {what for part in self.parts for what in part.reads}

    def step(self, w):
        """Carry: two vectors, a counter, and what the operations read; x: a vector and what they read."""

        def step(carry, xs):
            values = [xs["x"], carry["a"], carry["b"]]
            here = operations.Here(w, carry["n"], carry | xs)
            for part, (_, left, right) in zip(self.parts, self.operations, strict=True):
                made = part.run(here, values[left % len(values)], values[right % len(values)])
                values.append(operations.bounded(made, smooth=w.dtype != jnp.float64))
            a, b, y, total = (values[place % len(values)] for place in self.roots)
            more = {what: operations.CARRIES[what].next(here, a) for what in carry if what in operations.CARRIES}
            return {"a": a, "b": b, "n": carry["n"] + 1} | more, (y, jnp.sum(total), carry["n"])

        return step


def inputs(program, dtype):
    """Weights [4, N, N], the first carry, inputs [T, N], and keys [T] of the kinds that the program draws from."""
    k_weights, k_inputs, k_carry = jax.random.split(jax.random.key(3), 3)
    w = jax.random.normal(k_weights, (4, N, N), dtype)
    a, b = jax.random.normal(k_carry, (2, N), dtype)
    more = {what: carry.first(dtype) for what, carry in operations.CARRIES.items() if what in program.reads}
    keys = {
        impl: jax.random.split(jax.random.key(5, impl=impl), T) for impl in operations.KEYS if impl in program.reads
    }
    return w, {"a": a, "b": b, "n": jnp.int32(0)} | more, jax.random.normal(k_inputs, (T, N), dtype), keys


def loss_of(program, scan, keys, integers):
    """(weights, what of the carry can be varied, inputs) -> a number, and the end."""

    def run(w, floats, x):
        end, (ys, sums, counts) = scan(program.step(w), integers | floats, {"x": x} | keys, reverse=program.reverse)
        moved = sum(jnp.sum(jnp.sin(jnp.real(end[name] * jnp.conj(end[name])))) for name in floats)
        end = {name: _numbers(leaf) for name, leaf in end.items()}
        return moved + jnp.sum(end["b"]) + jnp.sum(jnp.cos(ys)) + jnp.sum(sums), (end, ys, sums, counts)

    return run


def _numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def varied(program, dtype):
    w, carry, x, keys = inputs(program, dtype)
    floats = {name: leaf for name, leaf in carry.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    return (w, floats, x), keys, {name: leaf for name, leaf in carry.items() if name not in floats}


def everything(scan, program, all_orders):
    """Values, all gradients, a directional derivative; in all orders, a Hessian-vector product and vmap as well."""
    arguments, keys, integers = varied(program, jnp.float64)
    run = loss_of(program, scan, keys, integers)
    loss = lambda *args: run(*args)[0]
    gradient = jax.grad(loss, (0, 1, 2))

    def compute(w, s, x):
        found = {"values": run(w, s, x)[1]}
        direction = jax.tree.map(jnp.cos, (w, s, x))
        forward = all(part.forward for part in program.parts)
        if forward:
            found["jvp"] = jax.jvp(loss, (w, s, x), direction)[1]
        if forward and all_orders:
            found["gradient, Hessian-vector product"] = jax.jvp(gradient, (w, s, x), direction)
        else:
            found["gradient"] = gradient(w, s, x)
        if all_orders:
            many = jnp.stack([x, -x], 1)
            found["grad of vmap"] = jax.grad(lambda w: jnp.sum(jax.vmap(loss, (None, None, 1))(w, s, many)))(w)
            found["vmap of grad"] = jax.vmap(gradient, (None, None, 1))(w, s, many)
        return found

    return jax.jit(compute)(*arguments)


@functools.lru_cache(maxsize=1)  # the same program under one scan after the other
def expected(program, all_orders):
    want = everything(lax.scan, program, all_orders)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(want)), program
    return want


def compare(program, how, all_orders=True):
    with jax.enable_x64(True):
        assert_close(everything(HOW[how], program, all_orders), expected(program, all_orders), 1e-10, program)


def alone(name, reverse=False):
    """The operation on the carry and the input, on the input alone, and between products."""
    return Program(((name, 1, 0), (name, 0, 0), ("row @ weight", 3, 0), (name, 5, 4)), (6, 4, 4, 3), reverse)


@pytest.mark.parametrize(
    ("name", "how"),
    # Every third is fast, so each way has its share.
    [
        pytest.param(name, list(HOW)[n % len(HOW)], marks=() if n % 3 == 0 else pytest.mark.slow)
        for n, name in enumerate(OPERATIONS)
    ],
)
def test_each_operation_is_as_under_lax_scan(name, how):
    compare(alone(name), how, all_orders=False)


# Every other one, each ten seconds to compile; the random programs below have all of them in all orders.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [(name, list(HOW)[(n + 1) // 2 % len(HOW)]) for n, name in enumerate(OPERATIONS) if n % 2]
)
def test_each_operation_is_as_under_lax_scan_in_reverse_and_in_all_orders(name, how):
    compare(alone(name, reverse=True), how)


def programs(names):
    pick = st.integers(0, 30)
    return st.builds(
        Program,
        st.lists(st.tuples(st.sampled_from(names), pick, pick), min_size=2, max_size=9).map(tuple),
        st.tuples(pick, pick, pick, pick),
        st.booleans(),
    )


# An example compiles two large programs: no time to look for a smaller one that fails too.
compiling = settings(phases=[Phase.generate], suppress_health_check=list(HealthCheck))


LAST = list(HOW)[-1]


@pytest.mark.parametrize("how", [LAST, *(pytest.param(how, marks=pytest.mark.slow) for how in HOW if how != LAST)])
@compiling
@given(program=programs(list(OPERATIONS)))
def test_any_step_is_as_under_lax_scan(how, program):
    compare(program, how)


def narrow(scan, program, dtype):
    arguments, keys, integers = varied(program, dtype)
    run = loss_of(program, scan, keys, integers)
    return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*arguments)


def compare_narrow(program, dtype):
    """Sums over time may be rounded in another order, so values are near, and only their types are equal."""
    got, want = (narrow(scan, program, dtype) for scan in (rnn.fissioned(2), lax.scan))
    assert [a.dtype for a in jax.tree.leaves(got)] == [a.dtype for a in jax.tree.leaves(want)]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.1 * max(1.0, np.abs(b).max()), err_msg=str(program))


NARROW = [name for name, operation in OPERATIONS.items() if operation.narrow]


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(jnp.bfloat16, id="bfloat16"), pytest.param(jnp.float16, id="float16", marks=pytest.mark.slow)],
)
@compiling
@given(program=programs(NARROW))
def test_any_step_of_16_bits_is_nearly_as_under_lax_scan(dtype, program):
    compare_narrow(program, dtype)
