"""What a stranger does with a saved model: jax, numpy, and a few lines; neither jaxrnn nor flax to be imported."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as rnn
from jaxrnn.serving import export

ALONE = """
import sys
sys.modules |= dict.fromkeys(["jaxrnn", "flax", "optax", "orbax"])  # importing any of them fails
from pathlib import Path
import jax, numpy as np
from jax.export import deserialize

folder = Path(sys.argv[1])
weights = dict(np.load(folder / "weights.npz"))
start, step, unroll = (
    deserialize(bytearray((folder / f"{name}.jax").read_bytes())).call for name in ("start", "step", "unroll")
)
xs = np.load(folder.parent / "xs.npy")
state, ys = start(weights, xs[0]), []
for x in xs:
    state, y = step(weights, state, x)
    ys.append(y)
last, at_once = unroll(weights, start(weights, xs[0]), xs)
np.savez(folder.parent / "out.npz", ys=np.stack(ys), at_once=at_once, h=state["1/h"], last=last["1/h"])
"""


def alone(code, *arguments, cwd, given=None):
    """A program in a process that knows nothing of where we are."""
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    child = subprocess.run(command, cwd=cwd, input=given, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_a_stranger_steps_a_net(tmp_path):
    net = rnn.stack(rnn.layer(nn.Embed(9, 4)), rnn.lstm(5, dtype=jnp.bfloat16), rnn.gru(3), rnn.layer(nn.Dense(9)))
    x = jax.ShapeDtypeStruct((), jnp.int32)
    params = net.init(jax.random.key(0), x)
    folder = export(net, params, tmp_path / "net", x, steps="T", platforms=["cpu"])
    xs = np.random.default_rng(0).integers(0, 9, (4, 3)).astype(np.int32)
    np.save(tmp_path / "xs.npy", xs)
    alone(ALONE, folder, cwd=tmp_path)
    state, ys = rnn.unroll(net, params, xs)
    with np.load(tmp_path / "out.npz") as out:
        for name in ("ys", "at_once"):
            np.testing.assert_allclose(out[name], ys, atol=0.02)  # 16 bits, fused otherwise
        for name in ("h", "last"):
            np.testing.assert_allclose(out[name].view(jnp.bfloat16).astype(float), state[1].h.astype(float), atol=0.02)
