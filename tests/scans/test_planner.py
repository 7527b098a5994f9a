"""The planner: what it predicts is what the compiler finds, budgets are kept, and every plan's gradient is plain's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn import checks
from tests.reference import assert_close, scalar
from tests.scans.test_matrix import options, problem, product_of
from tests.zoo import CELLS

B, D = 16, 8
NETS = {
    "lstm": lambda: rnn.lstm(32),
    "gru": lambda: rnn.gru(32),
    "elman": lambda: rnn.elman(32),
    "stack": lambda: rnn.stack(rnn.lstm(24), rnn.gru(32), rnn.layer(nn.Dense(10))),
}


def params_of(cell, batch=B):
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((batch, D))))


def gradient(cell, scan, outputs):
    def loss(params, xs):
        state, ys = rnn.unroll(cell, params, xs, scan=scan, outputs="all" if outputs else "none")
        return jnp.mean(ys**2) if outputs else sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))

    return jax.grad(loss)


def compiled_bytes(cell, scan, steps, outputs, batch=B):
    xs = jax.ShapeDtypeStruct((steps, batch, D), jnp.float32)
    return rnn.analysis.temp_bytes(gradient(cell, scan, outputs), params_of(cell, batch), xs)


@pytest.mark.parametrize(
    ("name", "steps", "outputs", "inner"),
    [
        ("elman", 100, False, rnn.scan),
        pytest.param("lstm", 100_000, False, rnn.scan, marks=pytest.mark.slow),
        pytest.param("gru", 1000, True, rnn.scan, marks=pytest.mark.slow),
        pytest.param("elman", 300, False, lax.scan, marks=pytest.mark.slow),
        pytest.param("stack", 997, True, rnn.scan, marks=pytest.mark.slow),
        pytest.param("lstm", 300, False, lax.scan, marks=pytest.mark.slow),
    ],
)
def test_every_row_predicts_what_the_gradient_takes(name, steps, outputs, inner):
    cell = NETS[name]()
    plans = rnn.analysis.plan(
        cell, params_of(cell), jax.ShapeDtypeStruct((B, D), jnp.float32), steps, outputs=outputs, inner=inner
    )
    assert len(plans.rows) >= 4
    for row in plans.rows:
        found = compiled_bytes(cell, row.strategy, steps, outputs)
        assert abs(row.bytes / found - 1) < 0.15, (row, found)
    passes = [row.passes for row in plans.rows]
    assert passes == sorted(passes) and passes[0] == 0


@functools.cache
def bytes_of_plain(name, steps, outputs):
    return compiled_bytes(NETS[name](), rnn.scan, steps, outputs)


@pytest.mark.parametrize(
    ("outputs", "share"), product_of([False, True], [1.5, 0.6, 0.1, 0.04], fast=lambda o, s: (o, s) == (1, 1))
)
def test_a_budget_is_never_exceeded(share, outputs):
    cell = NETS["lstm"]()
    plain = bytes_of_plain("lstm", 1000, outputs)
    ys = 1000 * B * 32 * 4 * 2 if outputs else 0
    budget = int((plain - ys) * share) + ys
    taken = []
    found = compiled_bytes(cell, rnn.within(budget, report=taken.append), 1000, outputs)
    assert found <= budget
    chosen = taken[0].chosen
    assert chosen.bytes <= budget
    # Of all outputs XLA holds two copies here, the second one their cotangent; on JAX 0.12 plain does with one. What
    # then lacks for half the steps is 7 kB of 12 MB, so one segment of 50 steps more is computed again.
    one_more = 0.05 if outputs and jax.__version_info__ >= (0, 11) else 0
    assert chosen.passes <= {1.5: 0, 0.6: 0.5 + one_more, 0.1: 1, 0.04: 2}[share] + 1e-9


@pytest.mark.slow
def test_the_chosen_plan_is_near_what_no_schedule_can_beat():
    cell = NETS["lstm"]()
    x = jax.ShapeDtypeStruct((B, D), jnp.float32)
    plain = rnn.analysis.plan(cell, params_of(cell), x, 1000, outputs=False).rows[0].bytes
    for share in (0.6, 0.2):
        plans = rnn.analysis.plan(cell, params_of(cell), x, 1000, int(plain * share), outputs=False)
        assert plans.bound <= plans.chosen.passes <= plans.bound + 0.1


def test_the_issue_s_size_in_a_twentieth_of_the_memory_for_a_third_more_work():
    """LSTM B32 H256 D64, T = 1000: compiling needs no memory, so the real size can be asserted."""
    cell = rnn.lstm(256)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((32, 64))))
    xs = jax.ShapeDtypeStruct((1000, 32, 64), jnp.float32)
    plain = gradient(cell, lax.scan, False)
    lean = gradient(cell, rnn.within("18.8MiB"), False)
    assert rnn.analysis.temp_bytes(lean, params, xs) <= 0.05 * rnn.analysis.temp_bytes(plain, params, xs)
    assert rnn.analysis.flops(lean, params, xs) <= 1.34 * rnn.analysis.flops(plain, params, xs)


@pytest.mark.parametrize(
    ("name", "mode"),
    product_of(["lstm_all", "dropout_sequence"], ["plain", "everything"], fast=lambda n, m: n == m == 0),
)
def test_gradients_under_a_budget(name, mode, x64):
    """With lengths, resets, keys and in reverse: a recomputed step draws the same randomness."""
    cell, params, xs, state = problem(name, "float64")
    xs = jnp.concatenate([xs] * 12)
    settings = options(mode)
    if "resets" in settings:
        settings["resets"] = jnp.concatenate([settings["resets"]] * 12)
        settings["lengths"] = settings["lengths"] * 12

    def run(params, xs, state, scan):
        return scalar(*rnn.unroll(cell, params, xs, state, scan=scan, **settings))

    grads = lambda scan: jax.grad(lambda *a: run(*a, scan), (0, 1, 2), allow_int=True)(params, xs, state)
    expected, taken = jax.jit(lambda: grads(lax.scan))(), []
    jax.eval_shape(lambda: grads(rnn.within("1GB", report=taken.append)))
    less = int(taken[-1].chosen.bytes * 0.8)
    assert_close(jax.jit(lambda: grads(rnn.within(less, report=taken.append)))(), expected, 1e-10)
    assert taken[-1].chosen.passes > 0
    assert_close(jax.jit(lambda: grads(rnn.revolve(3, 4, kept=5)))(), expected, 1e-10)


def test_it_works_inside_vmap_jit_and_fit(tmp_path):
    cell = rnn.stack(rnn.recurrent(nn.GRUCell(8)), rnn.layer(nn.Dense(1)))
    xs = jnp.sin(jnp.arange(4 * 80.0).reshape(80, 4, 1))
    params = jax.jit(cell.init)(jax.random.key(0), xs[0])
    scan = rnn.within("40KiB")

    def one(params, x):
        return jnp.mean(rnn.unroll(cell, params, x, scan=scan)[1] ** 2)

    single = jax.vmap(one, (None, 1))
    alone = lambda p: jnp.mean(rnn.unroll(cell, p, xs, scan=lax.scan)[1] ** 2, axis=(0, 2))
    got, expected = jax.jit(
        lambda p: [jax.grad(lambda p, f=f: jnp.sum(f(p)))(p) for f in (lambda p: single(p, xs), alone)]
    )(params)
    assert_close(got, expected, 1e-5)

    def loss(params, batch, key):
        return jnp.mean((rnn.unroll(cell, params, batch, key=key, scan=rnn.within("1MiB"))[1] - batch) ** 2)

    done = rnn.training.fit(
        loss, params, lambda n: xs, steps=2, optimizer=optax.sgd(0.1), key=jax.random.key(1), progress=False
    )
    assert int(done.step) == 2


def test_nothing_is_compiled_twice(monkeypatch):
    from jaxrnn.scans.planner import Pricing

    asked = []
    compiled = Pricing._compiled_bytes
    monkeypatch.setattr(Pricing, "_compiled_bytes", lambda self, s: asked.append(s) or compiled(self, s))
    cell = rnn.gru(5)
    grad = gradient(cell, rnn.within("1MB"), False)
    for _ in range(3):
        jax.eval_shape(grad, params_of(cell), jax.ShapeDtypeStruct((50, B, D), jnp.float32))
    assert len(asked) == len(set(asked)) == 1


@pytest.mark.slow
def test_prices_tell_steps_apart_that_differ_in_outputs_alone():
    cell, x = rnn.elman(64), jax.ShapeDtypeStruct((B, D), jnp.float32)
    without, with_outputs = (
        rnn.analysis.plan(cell, params_of(cell), x, 512, outputs=o).rows[0].bytes for o in (False, True)
    )
    ys = 512 * B * 64 * 4
    assert with_outputs - without >= 0.9 * ys


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_says_what_would_do():
    cell = NETS["lstm"]()
    with pytest.raises(ValueError, match=r"within: no plan for 500 steps stays within 1,000 bytes; the least is") as e:
        compiled_bytes(cell, rnn.within(1000), 500, False)
    with pytest.raises(ValueError, match="outputs='none'"):  # all outputs alone are more
        compiled_bytes(cell, rnn.within("1MiB"), 2000, True)
    least = int(str(e.value).split("the least is ")[1].split(" bytes")[0].replace(",", ""))
    assert compiled_bytes(cell, rnn.within(least), 500, False) <= least


def test_steps_with_effects_are_not_repeated():
    def step(h, x):
        jax.debug.callback(lambda: None)
        return jnp.tanh(h + x), ()

    run = lambda scan: jax.eval_shape(jax.grad(lambda h, xs: scan(step, h, xs)[0].sum()), jnp.zeros(1000), xs)
    xs = jax.ShapeDtypeStruct((50, 1000), jnp.float32)
    run(rnn.within("10MB"))
    with pytest.raises(ValueError, match="within: .*side effects"):
        run(rnn.within("100kB"))
    with pytest.raises(ValueError, match="revolve: .*side effects"):
        run(rnn.revolve(3))


def test_a_step_that_communicates_cannot_be_priced():
    step = lambda h, x: (jnp.tanh(lax.pmean(h, "b") + x), ())
    run = lambda scan: jax.vmap(lambda h: scan(step, h, jnp.ones((30, 3)))[0], axis_name="b")(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="named axis"):
        run(rnn.within("1MB"))
    assert_close(run(rnn.checkpointed(5)), run(lax.scan), 1e-6)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 2**26),
        ("1.5 GB", 1_500_000_000),
        ("10kb", 10_000),
        ("7", 7),
        ("2 KiB", 2048),
        (5, 5),
        ("3 b", 3),
        (1e6, 10**6),
    ],
)
def test_numbers_of_bytes(text, count):
    assert checks.byte_count("f", "n", text) == count


@pytest.mark.parametrize(
    "bad", ["", "MiB", "64 MeB", "-3MB", "1e9", "0", 0, -1, 2.5, None, True, "nan", "1.2.3MB", "²", "9" * 400 + "GB"]
)
def test_what_is_no_number_of_bytes(bad):
    with pytest.raises(ValueError, match="within: bytes"):
        rnn.within(bad)


def test_other_bad_arguments():
    cell, x = NETS["gru"](), jax.ShapeDtypeStruct((B, D), jnp.float32)
    with pytest.raises(TypeError, match="within: inner"):
        rnn.within(10, inner=3)
    with pytest.raises(TypeError, match="within: inner must be hashable"):
        rnn.within(10, inner=type("Unhashable", (), {"__hash__": None, "__call__": lambda self: None})())
    with pytest.raises(TypeError, match="within: report"):
        rnn.within(10, report=3)
    with pytest.raises(ValueError, match="plan: outputs"):
        rnn.analysis.plan(cell, params_of(cell), x, 10, outputs="no")
    assert hash(rnn.revolve(jnp.int32(2))) == hash(rnn.revolve(2))
    with pytest.raises(ValueError, match="revolve: slots"):
        rnn.revolve(0)
    with pytest.raises(ValueError, match="revolve: kept"):
        rnn.revolve(2, kept=-1)
    with pytest.raises(ValueError, match="plan: steps"):
        rnn.analysis.plan(cell, params_of(cell), x, -1)
    with pytest.raises(ValueError, match="plan: limit"):
        rnn.analysis.plan(cell, params_of(cell), x, 10, "lots")
    with pytest.raises(TypeError, match="plan: cell"):
        rnn.analysis.plan(None, None, x, 10)


def test_revolve_takes_a_carry_per_slot_and_one_program_for_any_length():
    cell, params = NETS["lstm"](), params_of(NETS["lstm"]())
    carry = 2 * B * 32 * 4
    few, many = (compiled_bytes(cell, rnn.revolve(slots, 5), 2000, False) for slots in (5, 45))
    assert abs(many - few - 40 * carry) <= 64 * 1024  # and tables of a few integers a leaf

    def size(steps):
        xs = jax.ShapeDtypeStruct((steps, B, D), jnp.float32)
        lowered = jax.jit(gradient(cell, rnn.revolve(5, 10), False)).lower(params, xs)
        return sum("stablehlo.constant" not in line for line in lowered.as_text().splitlines())

    assert size(200) == size(20_000)


def test_no_weight_gradient_per_example_under_vmap():
    cell = rnn.lstm(64)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((D,))))

    def loss(params, xs):
        one = lambda xs: jnp.sum(rnn.unroll(cell, params, xs, scan=rnn.revolve(5, 10), outputs="none")[0].h)
        return jnp.sum(jax.vmap(one, 1)(xs))

    text = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((500, B, D), jnp.float32)).compile().as_text()
    assert f"f32[{B},64,256]" not in text and f"f32[{B},{D},256]" not in text and "f32[64,256]" in text


@pytest.mark.slow  # in test_segments it is so within itself
def test_revolve_differentiates_twice_and_forward(x64):
    cell = CELLS["gru"](jnp.float64)
    xs = jax.random.normal(jax.random.key(0), (23, 2, 3), jnp.float64)
    params = cell.init(jax.random.key(1), xs[0])

    def loss(params, scan):
        state, ys = rnn.unroll(cell, params, xs, scan=scan)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(state**2)

    towards = jax.tree.map(jnp.cos, params)

    def along_loss(p, scan):
        return optax.tree.vdot(jax.grad(loss)(p, scan), towards)

    @functools.partial(jax.jit, static_argnums=1)
    def orders(params, scan):
        along = lambda f: jax.jvp(lambda p: f(p, scan), (params,), (towards,))
        return along(loss), along(jax.grad(loss)), jax.grad(along_loss)(params, scan), jax.jacfwd(loss)(params, scan)

    assert_close(orders(params, rnn.revolve(2, 3, kept=4)), orders(params, lax.scan), 1e-9)


def test_a_table_reads_well():
    cell = NETS["lstm"]()
    text = str(
        rnn.analysis.plan(cell, params_of(cell), jax.ShapeDtypeStruct((B, D), jnp.float32), 400, "2MiB", outputs=False)
    )
    for expected in (
        "400 steps, limit 2.00 MiB",
        "everything kept",
        "->",
        "segments of",
        "no schedule does with fewer",
    ):
        assert expected in text
    np.testing.assert_equal(max(map(len, text.splitlines()[1:])) < 100, True)
