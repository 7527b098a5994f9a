"""What the strategies promise in bytes and program size, read from compiled programs. Nothing here is timed."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from tests.choice import slow_but_for
from tests.zoo import CELLS, D, rounded

B, H_BIG = 32, 64
CELL = rnn.lstm(H_BIG)
PARAMS = jax.eval_shape(lambda: CELL.init(jax.random.key(0), jnp.zeros((B, D))))
MIB = 2**20


def gradient_bytes(scan, steps, cell=CELL, params=PARAMS, batch=B, features=D, **options):
    """Temp bytes of the gradient of a loss on the last state."""

    def loss(params, xs):
        state, _ = rnn.unroll(cell, params, xs, scan=scan, **options)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state))

    return rnn.analysis.temp_bytes(jax.grad(loss), params, jax.ShapeDtypeStruct((steps, batch, features), jnp.float32))


@functools.cache
def plain_bytes():
    return gradient_bytes(lax.scan, 400)


def test_segments_and_levels_keep_what_the_formulas_say():
    c, r, _ = rnn.analysis.kept_per_step(CELL, PARAMS, jax.ShapeDtypeStruct((B, D), jnp.float32), (B,))
    assert c == 2 * B * H_BIG * 4
    slack = 0.6 * MIB  # gradients, and one step's scratch, whatever the length
    assert 400 * r <= plain_bytes() <= 400 * r + slack
    in_segments = gradient_bytes(rnn.checkpointed(20), 400)
    assert in_segments <= 20 * c + 20 * r + slack
    assert gradient_bytes(rnn.checkpointed(5, levels=2), 400) <= 2 * 10 * c + 5 * r + slack
    assert gradient_bytes(rnn.checkpointed(), 400) <= in_segments + slack


def test_the_issue_s_sizes_at_full_scale():
    """LSTM B32 H256 D64, last-state loss: compiling needs no memory, so the real sizes can be asserted."""
    cell = rnn.lstm(256)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((32, 64))))
    at = lambda scan, steps: gradient_bytes(scan, steps, cell, params, 32, 64) / MIB
    assert 360 < at(lax.scan, 1000) < 390
    assert at(rnn.checkpointed(25), 1000) <= 16
    assert at(rnn.checkpointed(levels=2), 1000) <= 11
    assert at(rnn.checkpointed(), 100_000) <= 130
    assert at(rnn.checkpointed(levels=2), 100_000) <= 45


# Of these much is kept for the output alone, so that a loss that reads no outputs keeps less.
READ_BY_OUTPUT = {"sru", "sru_peephole", "lru", "s5", "selective_ssm", "mlstm"}


FAST = ("elman", "lstm", "gru", "running_mean", "sru", "mlstm")


@pytest.mark.parametrize(
    "name",
    slow_but_for(FAST, [n for n in CELLS if n not in ("lift", "layer")]),
)
def test_kept_per_step_is_what_lax_scan_keeps(name):
    """The slope of the compiled bytes over T is the r that was measured from the trace."""
    cell = CELLS[name](jnp.float32)
    batch = 64
    x = jax.ShapeDtypeStruct((batch, D), jnp.float32)
    params = jax.eval_shape(lambda: rounded(cell.init(jax.random.key(0), jnp.zeros((batch, D))), jnp.float32))
    r = rnn.analysis.kept_per_step(cell, params, x, (batch,)).kept

    def loss(params, xs):
        def body(state_and_total, x):
            state, y = cell.step(params, state_and_total[0], x)
            return (state, state_and_total[1] + jnp.sum(y) if name in READ_BY_OUTPUT else 0.0), ()

        (state, total), _ = lax.scan(body, (cell.initial_state(params, (batch,)), 0.0), xs)
        return total + sum(jnp.sum(a) for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating))

    bytes_at = lambda steps: rnn.analysis.temp_bytes(
        jax.grad(loss, argnums=(0, 1)), params, jax.ShapeDtypeStruct((steps, batch, D), jnp.float32)
    )
    slope = (bytes_at(4096) - bytes_at(1024)) / 3072
    # XLA may keep a little less (it derives one array from another) and never much more.
    assert 0.7 * r <= slope <= 1.1 * r + 8


@pytest.mark.parametrize("scan", [lax.scan, rnn.checkpointed(20)])
def test_lengths_cost_no_memory_of_the_state_s_size(scan):
    lengths = jnp.full((B,), 17)
    plain = plain_bytes() if scan is lax.scan else gradient_bytes(scan, 400)
    # The step's number, 4 bytes a step, and a few masks: nothing of size T * B, let alone T * B * H.
    assert gradient_bytes(scan, 400, lengths=lengths) - plain <= 400 * 8 + 4 * B * H_BIG * 4


def test_resets_cost_no_memory_of_the_state_s_size():
    resets = jnp.zeros((400, B), bool)
    extra = gradient_bytes(lax.scan, 400, resets=resets) - plain_bytes()
    assert extra <= 400 * B * 8  # masks of one byte per step and example, no states


@pytest.mark.parametrize(
    "scan",
    [
        lax.scan,
        rnn.checkpointed(10),
        rnn.checkpointed(10, levels=2),
        rnn.truncated(10),
        rnn.truncated(every=10, reach=24),
    ],
)
def test_the_program_does_not_grow_with_the_sequence(scan):
    def size(steps):
        loss = lambda p, xs: jnp.sum(rnn.unroll(CELL, p, xs, scan=scan)[0].h)
        xs = jax.ShapeDtypeStruct((steps, B, D), jnp.float32)
        return len(jax.jit(jax.grad(loss)).lower(PARAMS, xs).as_text().splitlines())

    assert size(200) == size(20_000)


def test_the_program_of_a_python_loop_does():
    def size(steps):
        xs = jax.ShapeDtypeStruct((steps, B, D), jnp.float32)
        run = lambda p, xs: rnn.unroll(CELL, p, xs, scan=rnn.python_loop())
        return len(jax.jit(run).lower(PARAMS, xs).as_text().splitlines())

    assert size(20) > 1.8 * size(10)


def test_a_carry_is_kept_once_though_it_has_two_names():
    """Elman's h_t is the next step's h_tm1, and all of which its derivative is made: one H per step, on every JAX."""
    steps, cell = 512, rnn.elman(64)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((16, 8))))
    loss = lambda params, xs: jnp.sum(rnn.unroll(cell, params, xs, outputs="none")[0] ** 2)
    taken = rnn.analysis.temp_bytes(jax.grad(loss), params, jnp.zeros((steps, 16, 8)))
    assert taken < 1.5 * steps * 16 * 64 * 4
