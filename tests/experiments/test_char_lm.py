"""The character model: a few steps, a completion, a budget, what it says to bad arguments, going on."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from experiments import char_lm, data
from tests.experiments.program import complains, ended, is_picture, launched, started
from tests.readme import EXPERIMENTS, python_blocks

TINY = "--size 24 --embedding 8 --batch 16 --window 16 --steps 20 --evaluations 1 --save-every 5".split()


@functools.cache
def beginnings():
    """The beginnings of both texts; the standard library's sources are ASCII but for a few, so no character is cut."""
    sizes = zip(data.standard_library(), (100_000, 30_000), strict=True)
    return [data.Text(text.content[:size], text.starts[:size]) for text, size in sizes]


@pytest.fixture
def short_text(monkeypatch):
    """For what is not about all of the text; and one completion instead of five."""
    monkeypatch.setattr(char_lm, "standard_library", beginnings)
    monkeypatch.setattr(char_lm, "PROMPTS", char_lm.PROMPTS[:1])


@pytest.mark.parametrize("text", ["short", pytest.param("whole", marks=pytest.mark.slow)])
def test_char_lm_trains_reports_writes_and_completes(text, tmp_path, request):
    if text == "short":
        request.getfixturevalue("short_text")
    folder = tmp_path / "tiny"
    code, out, err = launched("char_lm", *TINY, "--run", folder, "--export", folder / "model")
    assert code == 0, err
    for expected in (
        "gzip -9",
        "xz -9",
        "as trained",
        "learning on as it reads",
        "scratch memory",
        "gradient as one product per segment",
        "def __init__(self",
    ):
        assert expected in out
    bits = json.loads((folder / "results.json").read_text())
    assert 1.5 < bits["xz -9"] < bits["gzip -9"] < 2.5 and 2 < bits["gru 24, learning on as it reads"] < 8
    assert rnn.training.read_metrics(folder)[-1]["held_out_bits"] == pytest.approx(bits["gru 24, as trained"])
    assert is_picture(folder / "curve.png")
    code, out, err = launched("char_lm", "--run", folder, "--complete", "def f(", "--length", 30)
    assert code == 0, err
    assert out.startswith("def f(")
    leaves_as_programs(folder, tmp_path / "model")


def leaves_as_programs(folder, model):
    """The run, which is at its end, is written without training, and the README's lines serve it."""
    before = rnn.training.read_metrics(folder)
    code, out, err = launched("char_lm", "--run", folder, "--export", model)
    assert code == 0 and out.startswith(f"{model}: ") and rnn.training.read_metrics(folder) == before, err
    assert rnn.serving.load(model).config["size"] == 24
    for name in ("weights.npz", "step.jax"):  # as after the training itself
        assert (model / name).read_bytes() == (folder / "model" / name).read_bytes()
    (lines,) = [block for block in python_blocks(EXPERIMENTS) if "sys.stdin" in block]
    strangers = "import sys; sys.modules |= dict.fromkeys(['jaxrnn', 'flax', 'optax', 'orbax'])\n"
    command = [sys.executable, "-I", "-c", strangers + lines, str(model)]
    served = subprocess.run(command, cwd=model, input=b"def f(\n", capture_output=True, timeout=300)
    assert served.returncode == 0, served.stderr
    # 200 bytes after the prompt, the same as from the net itself.
    saved = rnn.serving.load(model)
    noise, text = np.random.default_rng(0), bytearray(b"\ndef f(")
    state, step = saved.cell.initial_state(saved.params, ()), jax.jit(saved.cell.step)
    for n in range(len(text) + 20):
        state, logits = step(saved.params, state, jnp.int32(text[n]))
        if n == len(text) - 1:
            text.append(int(np.argmax(logits / 0.5 + noise.gumbel(size=256))))
    assert len(served.stdout) == 201 and served.stdout.startswith(bytes(text[7:]))
    complains(launched("char_lm", "--run", folder, "--export", folder), "is not the folder of a saved model")


def when_a_checkpoint_is_there(folder, act):
    deadline = time.time() + 200
    while not any((folder / "checkpoints" / step).exists() for step in ("5", "15")) and time.time() < deadline:
        time.sleep(0.02)
    act()


def has_a_checkpoint(folder):
    with rnn.training.Run(folder, json.loads((folder / "run.json").read_text())) as opened:
        return bool(opened.steps())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_char_lm_interrupted_says_how_to_go_on(signum, code, tmp_path, short_text, monkeypatch):
    monkeypatch.setattr(char_lm, "announce", lambda *_: None)  # what comes before training
    folder = tmp_path / "run"
    stop = lambda: os.kill(os.getpid(), signum)
    threading.Thread(target=when_a_checkpoint_is_there, args=(folder, stop), daemon=True).start()
    result = launched("char_lm", *TINY, "--steps", 100_000, "--run", folder)
    assert result.code == code and "start it again to go on" in result.err, result
    assert has_a_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_char_lm_interrupted_from_outside(signum, code, tmp_path):
    folder = tmp_path / "run"
    child = started("char_lm", *TINY, "--steps", 100_000, "--run", folder)
    when_a_checkpoint_is_there(folder, lambda: child.send_signal(signum))
    result = ended(child)
    assert result.code == code and "start it again to go on" in result.err, result
    assert has_a_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--scan", "lax.skan"], "scan 'lax.skan' is not understood; known are lax.scan"),
        (["--scan", "checkpointed(0)"], "segment must be a whole number of at least 1, got 0"),
        (["--scan", "truncated"], "is not understood"),
        (["--scan", "__import__('os').system('true')"], "is not understood"),
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--window", "100000000"], "too few for"),
        (["--dropout", "1.5"], "rate is the share that is dropped"),
        (["--devices", "99"], "--devices must be from 1 to 1, got 99; a CPU has as many as XLA_FLAGS=--xla_force_host"),
        (["--processes", "2"], "--processes needs --coordinator, host:port of process 0, or auto"),
        (["--complete", "x", "--run", "no/such/run"], "is not a run folder"),
        (["--run", "pyproject.toml/run"], "cannot be written"),
        (["--run", "tests"], "is not a run folder"),
    ],
)
def test_char_lm_says_what_is_wrong_in_one_sentence(arguments, complaint, short_text):
    complains(launched("char_lm", *arguments), complaint)


@pytest.mark.parametrize("arguments", [["--cell", "lstn"], ["--no-such-option", "1"], ["--steps", "many"]])
def test_unknown_options_are_refused(arguments):
    code, _, err = launched("char_lm", *arguments)
    assert code == 2 and err.strip()


def spread(folder, devices, *arguments):
    """The model on the beginnings of its texts, in a process of its own with so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [*TINY, "--run", folder, *arguments]
    return started("char_lm_on_devices", *command, package="tests.experiments", XLA_FLAGS=flags)


def in_two_processes(folder, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    joined = ["--coordinator", where, "--processes", 2, "--process"]
    return [spread(folder, 2, *arguments, *joined, n) for n in range(2)]


def losses(folder):
    """Of the last training windows, of the held-out text as trained and learning on."""
    last = rnn.training.read_metrics(folder)[-1]
    return [
        last["step"],
        last["loss"],
        last["held_out_bits"],
        *json.loads((folder / "results.json").read_text()).values(),
    ]


@pytest.mark.slow
def test_char_lm_on_four_devices_and_in_two_processes_has_the_losses_of_one(tmp_path):
    for name, devices, *arguments in (("one", 1), ("four", 4, "--devices", 4, "--sharding", "fsdp")):
        result = ended(spread(tmp_path / name, devices, *arguments))
        assert result.code == 0, result
    for n, child in enumerate(in_two_processes(tmp_path / "two")):
        result = ended(child)
        assert result.code == 0, result
        assert ("bits per character" in result.out) == (n == 0)  # the first one prints
    for name in ("four", "two"):
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-5)
        assert is_picture(tmp_path / name / "curve.png")


@pytest.mark.slow
def test_char_lm_goes_on_when_one_process_of_two_was_killed(tmp_path):
    more = ["--steps", 300]
    children = in_two_processes(tmp_path / "two", *more)
    when_a_checkpoint_is_there(tmp_path / "two", children[1].kill)
    result, _ = map(ended, children)
    assert result.code != 0 and "error: another of the 2 processes has ended" in result.err, result
    assert has_a_checkpoint(tmp_path / "two")
    assert not (tmp_path / "two" / "results.json").exists()
    for child in in_two_processes(tmp_path / "two", *more):
        result = ended(child)
        assert result.code == 0, result
    assert ended(spread(tmp_path / "one", 1, *more)).code == 0
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3)


@pytest.mark.slow
def test_char_lm_within_a_budget_prints_its_plan_first(tmp_path, short_text):
    arguments = [*TINY, "--window", 400, "--memory", "3MiB", "--steps", 2]
    code, out, err = launched("char_lm", *arguments, "--run", tmp_path / "run")
    assert code == 0, err
    taken = float(out.split("scratch memory of one gradient: within(3MiB) ")[1].split()[0])
    assert taken <= 3.05 and out.index("extra passes") < out.index("step 2/2")
    complains(launched("char_lm", *arguments[:-3], "1KiB", "--steps", 2, "--run", tmp_path / "none"), "within: no plan")


def test_the_corpus_is_held_out_by_module():
    train, held = data.standard_library()
    assert train.characters > 2_000_000 and 0.02 < held.characters / train.characters < 0.12
    assert train.starts[0] and held.starts[0] and train.fingerprint != held.fingerprint
    pieces = data.shuffled(train, 2048, seed=0)
    assert len(pieces.content) == len(train.content)
    assert np.bincount(np.frombuffer(pieces.content, np.uint8)).tolist() == (
        np.bincount(np.frombuffer(train.content, np.uint8)).tolist()
    )
    assert np.diff(np.flatnonzero(pieces.starts)).max() <= 2048
    assert data.shuffled(train, 2048, seed=0).fingerprint == pieces.fingerprint
