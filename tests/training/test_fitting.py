"""Training, run folders, and going on after an interruption."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn.training.runs import read_metrics

# Optax and orbax promote dtypes within themselves; strictness is for our own code.
pytestmark = pytest.mark.usefixtures("lenient")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def lenient():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


CELL = rnn.stack(rnn.dropout(rnn.gru(5), 0.2), rnn.lift(lambda y: jnp.sum(y, axis=-1)))
SERIES = np.sin(np.arange(400) / 7).astype("f4")[:, None]


def loss_fn(params, batch, key, carry):
    (xs, ys), begins = batch
    carry, out = rnn.unroll(CELL, params, xs, carry, resets=jnp.asarray(begins), key=key)
    return jnp.mean((out - ys[..., 0]) ** 2), carry, {"largest": jnp.max(jnp.abs(out))}


def arguments(steps=30, **changed):
    params = CELL.init(jax.random.key(0), jnp.zeros(1))
    return {
        "loss_fn": loss_fn,
        "params": params,
        "batches": rnn.training.Streams((SERIES[:-1], SERIES[1:]), batch=4, window=10),
        "steps": steps,
        "optimizer": rnn.training.adam(1e-2, steps=30, warmup=5),
        "key": jax.random.key(1),
        "carry": CELL.initial_state(params, (4,)),
        "progress": False,
        "log_every": 7,
        "save_every": 10,
    } | changed


def same_bits(a, b):
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(plain(x)).tobytes() == np.asarray(plain(y)).tobytes() for x, y in pairs)


def test_fit_learns_and_writes_what_it_says(tmp_path):
    state = rnn.training.fit(**arguments(), run=tmp_path / "run", evaluate=lambda p: {"size": 3.0}, evaluate_every=15)
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records] == [7, 14, 15, 21, 28, 30]
    assert {"loss", "grad_norm", "largest", "seconds"} <= records[0].keys()
    assert [r["step"] for r in records if "size" in r] == [15, 30]
    assert records[-1]["loss"] < records[0]["loss"]
    assert int(state.step) == 30
    with rnn.training.Run(tmp_path / "run") as run:
        assert run.steps() == [10, 20, 30]


def test_the_train_step_is_the_plain_update(tmp_path):
    given = arguments()
    optimizer = optax.sgd(0.1)
    state = rnn.training.create(given["params"], optimizer, given["key"], given["carry"])
    batch = given["batches"](0)
    key = jax.random.fold_in(given["key"], 0)
    grads = jax.grad(lambda p: loss_fn(p, batch, key, given["carry"])[0])(given["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, given["params"], grads)
    new, metrics = rnn.training.make_train_step(loss_fn, optimizer)(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.params, expected)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))  # donated
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given["params"]))  # but not what the caller holds


def test_the_carry_of_one_window_starts_the_next():
    """Two windows of 10 with SGD at rate 0 end in the state of one pass over 20 steps."""
    given = arguments()
    step = rnn.training.make_train_step(lambda p, b, k, c: loss_fn(p, b, None, c), optax.sgd(0.0))
    state = rnn.training.create(given["params"], optax.sgd(0.0), given["key"], given["carry"])
    for n in range(2):
        state, _ = step(state, given["batches"](n))
    (xs, _), _ = rnn.training.Streams((SERIES[:-1], SERIES[1:]), batch=4, window=20)(0)
    expected, _ = rnn.unroll(CELL, given["params"], xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.carry, expected)


@pytest.mark.parametrize("result", ["loss", "loss and metrics"])
def test_losses_without_a_carry(result):
    def loss(params, batch, key):
        value = jnp.sum((params["w"] - batch) ** 2)
        return value if result == "loss" else (value, {"w": jnp.sum(params["w"])})

    state = rnn.training.fit(
        loss, {"w": jnp.zeros(2)}, lambda step: np.ones(2, "f4"), steps=50, optimizer=optax.sgd(0.1),
        key=jax.random.key(0), progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(state.params["w"], 1.0, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    whole = rnn.training.fit(**arguments(), run=tmp_path / "whole")
    batches = arguments()["batches"]

    def interrupted(at):
        def read(step):
            if step == at:
                signal.raise_signal(signal.SIGINT)
            return batches(step)

        return read

    for at in (4, 13, 22):
        with pytest.raises(
            rnn.training.Interrupted, match=rf"stopped after step {at} of 30; saved in .*cut, start it again"
        ):
            rnn.training.fit(**arguments(batches=interrupted(at)), run=tmp_path / "cut")
        with rnn.training.Run(tmp_path / "cut") as run:
            assert run.steps()[-1] == at
    resumed = rnn.training.fit(**arguments(), run=tmp_path / "cut")
    assert same_bits(resumed, whole)
    steps = [r["step"] for r in read_metrics(tmp_path / "cut")]
    assert steps == sorted(set(steps)) and steps[-1] == 30
    assert same_bits(rnn.training.fit(**arguments(), run=tmp_path / "cut"), whole)  # finished: nothing is done again


KILLED = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_train import arguments
import jaxrnn as rnn
given = arguments(save_every=3)
batches = given["batches"]
def slow(step):
    time.sleep(0.05)
    return batches(step)
rnn.training.fit(**(given | {{"batches": slow}}), run={run!r})
"""


def test_kill_nine_loses_nothing_that_was_saved(tmp_path):
    whole = rnn.training.fit(**arguments(save_every=3), run=tmp_path / "whole")
    run = tmp_path / "killed"
    for _ in range(2):
        before = _newest(run)
        script = KILLED.format(root=str(ROOT), run=str(run))
        child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "JAX_PLATFORMS": "cpu"})
        deadline = time.time() + 120
        while _newest(run) < before + 6 and child.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        assert child.poll() is None, "ended before it could be killed"
        child.kill()
        child.wait()
    assert same_bits(rnn.training.fit(**arguments(save_every=3), run=run), whole)


def _newest(run):
    folder = run / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    def bad(step):
        (xs, ys), begins = arguments()["batches"](step)
        return (xs, ys * (np.nan if step == 11 else 1)), begins

    with pytest.raises(
        FloatingPointError, match=r"the loss of step 12 is nan and its gradient's norm nan; lower the learning rate"
    ):
        rnn.training.fit(**arguments(batches=bad), run=tmp_path / "run")
    with rnn.training.Run(tmp_path / "run") as run:
        assert run.steps() == [10]


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_others_are_intact(tmp_path, damage):
    path = tmp_path / "run"
    rnn.training.fit(**arguments(), run=path)
    newest = path / "checkpoints" / "30"
    if damage == "gone":
        for file in sorted(newest.rglob("*"), reverse=True):
            if file.is_file() and "state" in file.parts:
                file.unlink()
    else:
        largest = max((f for f in (newest / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        content = bytearray(largest.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(255 - b for b in content[middle : middle + 8])
        largest.write_bytes({"flipped": content, "cut": content[:middle], "emptied": b""}[damage])
    with pytest.raises(
        rnn.training.RunError, match=r"checkpoint .*30 is damaged \(.*\); delete .* to go on from step 20"
    ):
        rnn.training.fit(**arguments(), run=path)
    subprocess.run(["rm", "-r", str(newest)], check=True)
    assert int(rnn.training.fit(**arguments(), run=path).step) == 30


def test_another_model_s_checkpoint_is_refused(tmp_path):
    rnn.training.fit(**arguments(), run=tmp_path / "run")
    other = rnn.stack(rnn.gru(6), rnn.lift(lambda y: jnp.sum(y, axis=-1)))
    params = other.init(jax.random.key(0), jnp.zeros(1))
    with pytest.raises(
        rnn.training.RunError, match=r"holds another model: .* is float32\[.*\] there and float32\[.*\] here"
    ):
        rnn.training.fit(**arguments(params=params), run=tmp_path / "run")


def test_foreign_and_unwritable_folders_are_refused_untouched(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear to someone")
    with pytest.raises(rnn.training.RunError, match=r"is not a run folder \(it holds thesis.txt but no run.json\)"):
        rnn.training.Run(foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(rnn.training.RunError, match=r"cannot be written \(.*\); choose another folder"):
        rnn.training.Run(foreign / "thesis.txt" / "run")
    rnn.training.Run(tmp_path / "mine", {"size": 3, "cell": "gru"}).close()
    with pytest.raises(rnn.training.RunError, match=r"holds a different run \(size: 3 there, 4 here\)"):
        rnn.training.Run(tmp_path / "mine", {"size": 4, "cell": "gru"})
    (tmp_path / "mine" / "run.json").write_text("{")
    with pytest.raises(rnn.training.RunError, match=r"run.json cannot be read"):
        rnn.training.Run(tmp_path / "mine", {"size": 3})


def test_a_torn_metrics_line_is_forgotten(tmp_path):
    with rnn.training.Run(tmp_path / "run") as run:
        run.log({"step": 1})
        run.log({"step": 2})
        with run.metrics_path.open("a") as file:
            file.write('{"step": 3, "lo')
        assert [r["step"] for r in read_metrics(run.folder)] == [1, 2]
        run.forget_after(1)
        run.log({"step": 2})
        assert run.metrics_path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_run_without_a_checkpoint_has_none_to_restore(tmp_path):
    with (
        rnn.training.Run(tmp_path / "run") as run,
        pytest.raises(rnn.training.RunError, match="holds no checkpoint to go on from"),
    ):
        run.restore({"w": jnp.zeros(2)})


@pytest.mark.parametrize("name", ["steps", "log_every", "save_every", "evaluate_every"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=rf"fit: {name} must be a whole number of at least 1, got 0"):
        rnn.training.fit(**arguments(**{name: 0}))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"loss_fn": lambda p, b, k, c: jnp.zeros(())}, r"loss_fn must return \(loss, carry\) or .*got 1 value"),
        ({"carry": None, "loss_fn": lambda p, b, k: (1.0, 2.0)}, r"metrics must be a dict, got float"),
        ({"carry": None, "loss_fn": lambda p, b, k: (1.0, {}, 2)}, r"loss_fn must return loss or .*got 3 value"),
        ({"loss_fn": lambda p, b, k, c: (jnp.zeros(3), c)}, r"fit: loss must be a single number, got float32\[3\]"),
        ({"loss_fn": lambda p, b, k, c: (0.0, c, {"m": jnp.zeros(2)})}, r"fit: m must be a single number"),
        (
            {"loss_fn": lambda p, b, k, c: (0.0, c, {"loss": 1.0})},
            r"metrics \['loss'\] have names that fit uses itself",
        ),
        ({"batches": [1, 2]}, r"batches must be a function of the step's number, got list"),
        ({"evaluate": lambda p: 3.0}, r"evaluate must return a dict of numbers, got float"),
    ],
)
def test_bad_functions_are_named(changed, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        rnn.training.fit(**arguments(steps=2, **changed))


def test_a_stateless_carry_is_still_a_carry():
    loss = lambda p, b, k, c: (jnp.sum(p["w"] ** 2), c)
    given = arguments(steps=2, params={"w": jnp.ones(2)}, loss_fn=loss, carry=((), ()))
    assert rnn.training.fit(**given).carry == ((), ())


@pytest.mark.parametrize("optimizer", [optax.contrib.prodigy(1.0), optax.sgd(0.1)])
def test_the_caller_s_parameters_survive(optimizer):
    mine = {"w": jnp.ones(3)}
    loss = lambda p, b, k: jnp.sum(p["w"] ** 2)
    rnn.training.fit(**arguments(steps=2, params=mine, loss_fn=loss, carry=None, optimizer=optimizer))
    assert mine["w"].tolist() == [1, 1, 1]


def test_ctrl_c_in_the_last_step_is_heard(tmp_path):
    def evaluate(params):
        signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(rnn.training.Interrupted, match="stopped after step 3 of 3"):
        rnn.training.fit(**arguments(steps=3, evaluate=evaluate), run=tmp_path / "run")
    assert int(rnn.training.fit(**arguments(steps=3), run=tmp_path / "run").step) == 3


def test_saving_never_fails_silently(tmp_path):
    with rnn.training.Run(tmp_path / "run") as run:
        state = {"a": jnp.ones(2), "none": jnp.zeros((0, 3)), "number": 2.5}
        run.save(10, state)
        for step in (10, 5):
            with pytest.raises(
                rnn.training.RunError, match=rf"checkpoint {step} was not written: .* holds one of step 10"
            ):
                run.save(step, state)
        assert same_bits(run.restore(state), jax.tree.map(jnp.asarray, state))
        with pytest.raises(ValueError, match="nothing to save"):
            run.save(11, ())


def test_a_carry_that_changes_type_is_named():
    given = arguments()
    step = rnn.training.make_train_step(lambda p, b, k, c: (jnp.zeros(()), (c, c)), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"train step: carry should have the structure"):
        step(rnn.training.create(given["params"], optax.sgd(0.1), given["key"], given["carry"]), given["batches"](0))


def test_progress_is_shown_line_by_line_off_a_terminal(capsys):
    rnn.training.fit(**arguments(progress=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 7/30  ") and "loss" in lines[0] and lines[-1].startswith("step 30/30")


def test_adam_warms_up_clips_and_decays():
    optimizer = rnn.training.adam(0.1, steps=100, warmup=10, clip=1.0, final=0.0)
    params = {"w": jnp.ones(3)}
    state, sizes = optimizer.init(params), []
    for _ in range(100):
        updates, state = optimizer.update({"w": jnp.full(3, 1e6)}, state, params)
        sizes.append(float(jnp.abs(updates["w"]).max()))
    assert sizes[0] == 0 and max(sizes) == pytest.approx(0.1, rel=0.05) and sizes[-1] < 0.01
    assert sizes.index(max(sizes)) in range(8, 14)


def test_streams_read_consecutive_windows():
    streams = rnn.training.Streams({"x": np.arange(25), "y": np.arange(50).reshape(25, 2)}, batch=2, window=5)
    assert streams.windows == 2
    first, begins = streams(0)
    assert first["x"].T.tolist() == [[0, 1, 2, 3, 4], [12, 13, 14, 15, 16]] and first["y"].shape == (5, 2, 2)
    assert begins.tolist() == [[True, True]] + [[False, False]] * 4
    second, begins = streams(1)
    assert second["x"].T.tolist() == [[5, 6, 7, 8, 9], [17, 18, 19, 20, 21]] and not begins.any()
    assert streams(2)[0]["x"].tolist() == first["x"].tolist() and streams(2)[1][0].all()
    with pytest.raises(
        ValueError, match=r"25 steps are too few for 6 streams with windows of 5; at least 30 are needed"
    ):
        rnn.training.Streams(np.arange(25), batch=6, window=5)
    with pytest.raises(ValueError, match=r"sequence\['b'\] has 3 time steps but sequence\['a'\] has 4"):
        rnn.training.Streams({"a": np.zeros(4), "b": np.zeros(3)}, batch=1, window=1)


def test_metrics_are_json_lines(tmp_path):
    rnn.training.fit(**arguments(), run=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)
