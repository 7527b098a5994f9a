"""User code type checks against the public API: the READMEs', and typed code under `mypy --strict`; errors are found.

Needs mypy (extra `lint`); .ci/run runs it with "Style and types".
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrnn
from tests.readme import EXPERIMENTS, IMPORTS, README, python_blocks

pytestmark = pytest.mark.slow
mypy = pytest.importorskip("mypy", reason="mypy is in the extra lint")

# As a user has it: jaxrnn gives its types but is not itself looked at, and optax has none.
SETTINGS = """
[mypy]
{strictness} = True
allow_untyped_globals = True
[mypy-jaxrnn.*]
follow_imports = silent
[mypy-optax.*]
ignore_missing_imports = True
"""

TYPED = """
from collections.abc import Callable
from typing import Any, NamedTuple, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxrnn as rnn


class Memory(NamedTuple):
    h: jax.Array


Weights = dict[str, jax.Array]


def start(params: Weights, batch_shape: tuple[int, ...]) -> Memory:
    return Memory(jnp.zeros((*batch_shape, 4)))


def step(params: Weights, state: Memory, x: jax.Array, *, key: jax.Array | None = None) -> tuple[Memory, jax.Array]:
    h = jnp.tanh(params["a"] * state.h + x)
    return Memory(h), h


def own_scan(
    f: Callable[[Any, Any], Any], init: Any, xs: Any = None, length: int | None = None, reverse: bool = False
) -> tuple[Any, Any]:
    return jax.lax.scan(f, init, xs, length, reverse)


def loss(params: Any, batch: Any, key: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
    return jnp.sum(params["a"]), carry


mine = rnn.Cell(init=lambda key, x: {"a": jnp.float32(0.9)}, initial_state=start, step=step)
net = rnn.stack(mine, rnn.lstm(4), rnn.recurrent(nn.GRUCell(4)), rnn.layer(nn.Dense(3)), rnn.lift(jnp.tanh))
assert_type(net, rnn.Cell)
xs = jnp.zeros((5, 2, 4))
params = net.init(jax.random.key(0), xs[0])
scans: list[rnn.Scan] = [jax.lax.scan, own_scan, rnn.scan, rnn.checkpointed(2, inner=own_scan), rnn.within("2MiB")]
state, ys = rnn.unroll(net, params, xs, lengths=jnp.array([1, 2]), scan=scans[0])
layer = rnn.chain(rnn.bidirectional(rnn.lstm(3), rnn.gru(3)), rnn.layer(nn.Dense(2)))
assert_type(layer, rnn.SequenceLayer)
rnn.unroll(layer, layer.init(jax.random.key(1), xs[0]), xs)
assert_type(rnn.cross_entropy(ys, jnp.zeros((5, 2), int)), jax.Array)
sampler: rnn.sequence.Sampler = rnn.greedy()
for sample in (sampler, rnn.temperature(0.8), lambda key, y: y):
    rnn.generate(mine, params, state, xs[0], steps=3, sample=sample, key=jax.random.key(2))
adam = rnn.training.adam(1e-3, steps=3)
trained = rnn.training.fit(loss, {"a": xs}, lambda n: xs, steps=3, optimizer=adam, key=jax.random.key(0))
assert_type(trained, rnn.training.TrainState)
assert_type(rnn.online.online(mine, rnn.online.rtrl()), rnn.Learner)
assert_type(rnn.analysis.temp_bytes(jnp.sum, xs), int)
print(rnn.analysis.explain(net, params, xs[0]).kept)
drawn = rnn.graph({"h": (nn.Dense(8), ["x", rnn.prev("h")]), "y": (lambda h: h, "h")}, output="y")
rnn.graphs.draw(drawn, steps=3).save("net.svg")
model = rnn.serving.load(rnn.serving.export(net, params, "net", xs[0, 0]))
assert_type(model, rnn.serving.Model)
assert_type(model.cell, rnn.Cell)
assert_type(rnn.__version__, str)
"""

WRONG = {
    'rnn.lstm("64")': "arg-type",
    "rnn.gru(64, rest='before')": "call-arg",
    "rnn.unroll(rnn.lstm(4), ())": "call-arg",
    "rnn.unroll(nn.Dense(4), (), ())": "arg-type",
    "rnn.stack(nn.Dense(4))": "arg-type",
    "rnn.unroll(rnn.lstm(4), (), (), scan=lambda f: f)": "arg-type",
    "rnn.generate(rnn.lstm(4), (), (), (), 5, sample=0.8)": "arg-type",
    "rnn.Cell(init=rnn.lstm(4).init)": "call-arg",
    "rnn.lstm(4).steps": "attr-defined",
    "rnn.serving.load('net').sell": "attr-defined",
    "rnn.residual(nn.Dense(4))": "arg-type",
}


def checked(folder, files, strictness):
    """What mypy says of programs, one a file, beside an installed jaxrnn."""
    (folder / "mypy.ini").write_text(SETTINGS.format(strictness=strictness))
    for name, code in files.items():
        (folder / name).write_text(code)
    found = Path(jaxrnn.__file__).parents[1]  # mypy finds what is installed, but not the sources that an install names
    path = {} if found.name == "site-packages" else {"MYPYPATH": str(found)}
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", *files]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def sections(text):
    for part in re.split(r"\n###? ", text):
        if code := "\n".join(python_blocks(part)):
            yield re.sub("[^a-z]+", "_", part.split("\n")[0].lower()), IMPORTS + code


def test_the_code_of_the_readmes_type_checks(tmp_path):
    files = {f"{name}.py": code for text in (README, EXPERIMENTS) for name, code in sections(text)}
    assert len(files) > 10
    assert checked(tmp_path, files, "check_untyped_defs") == ""


def test_typed_code_and_what_is_wrong_in_it(tmp_path):
    wrong = "import flax.linen as nn\nimport jaxrnn as rnn\n" + "\n".join(WRONG) + "\n"
    said = checked(tmp_path, {"typed.py": TYPED, "wrong.py": wrong}, "strict")
    assert not [line for line in said.splitlines() if line.startswith("typed.py")], said
    for number, (line, kind) in enumerate(WRONG.items(), 3):
        assert re.search(rf"^wrong.py:{number}: error: .*\[{kind}\]$", said, re.M), (line, said)
