"""Where a loop may stand: in an exported program whose batch has no size yet, and on a mesh of four devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxrnn as rnn
from tests.reference import assert_close

T, D, H = 5, 3, 4


def weights():
    keys = jax.random.split(jax.random.key(0), 3)
    return [0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, [(D, H), (H, H), (H, D)], strict=True)]


def recurrent(w, h, x):
    """A product with the input, one with the carry, and a readout: something for every part of the program."""
    h = jnp.tanh(x @ w[0] + h @ w[1])
    return h, jax.nn.softmax(h @ w[2])


def gated(w, c, x):
    """Two leaves in the carry, and an output that needs no product."""
    h, kept = c
    gate, new = jax.nn.sigmoid(x @ w[0]), jnp.tanh(h @ w[1])
    kept = gate * kept + (1 - gate) * new
    return (jnp.tanh(kept), kept), kept * gate


def counting(w, c, x):
    """An integer beside the floats, and a product of the readout with itself."""
    h, n = c
    h = jnp.tanh(x @ w[0] + h * w[1][:1])
    return (h, n + 1), (h @ w[2], n)


STEPS = {
    "recurrent": (recurrent, lambda zeros: zeros),
    "gated": (gated, lambda zeros: (zeros, zeros)),
    "counting": (counting, lambda zeros: (zeros, jnp.int32(0))),
}
SCANS = {
    "scan": rnn.scan,
    "fissioned(2)": rnn.fissioned(2),
    "checkpointed(fissioned)": rnn.checkpointed(2, inner=rnn.scan),
}


def program(scan, name):
    step, start = STEPS[name]

    def loss(w, xs):
        carry = start(jnp.zeros_like(xs[0] @ w[0]))
        end, ys = scan(lambda c, x: step(w, c, x), carry, xs)
        floats = [a for a in jax.tree.leaves((end, ys)) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(a)) for a in floats), ys

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


@functools.cache
def under_lax_scan(name):
    return jax.jit(program(lax.scan, name))(weights(), inputs())


def inputs():
    return jax.random.normal(jax.random.key(1), (T, 6, D))


PAIRS = [(scan, name, i == j) for i, scan in enumerate(SCANS) for j, name in enumerate(STEPS)]


@pytest.mark.parametrize(
    ("scan", "name"), [pytest.param(*pair, marks=() if fast else pytest.mark.slow) for *pair, fast in PAIRS]
)
def test_a_batch_without_a_size_can_be_exported(scan, name):
    (batch,) = export.symbolic_shape("batch")
    symbolic = jax.ShapeDtypeStruct((T, batch, D), jnp.float32)
    exported = export.export(jax.jit(program(SCANS[scan], name)))(weights(), symbolic)
    assert_close(exported.call(weights(), inputs()), under_lax_scan(name), 1e-5)


# --- four devices -------------------------------------------------------------------------------


def on_a_mesh(kind, scan, name):
    """The gradient on four devices, the batch divided among them: values, and where the outputs are."""
    types = {"explicit": jax.sharding.AxisType.Explicit, "automatic": jax.sharding.AxisType.Auto}
    mesh = jax.make_mesh((4,), ("d",), axis_types=(types.get(kind, jax.sharding.AxisType.Auto),))
    P = jax.sharding.PartitionSpec
    xs = jax.random.normal(jax.random.key(1), (T, 8, D))
    everywhere = jax.device_put(weights(), jax.sharding.NamedSharding(mesh, P()))
    divided = jax.device_put(xs, jax.sharding.NamedSharding(mesh, P(None, "d")))
    compute = program(scan, name)
    if kind == "shard_map":
        inner = compute

        def each(w, xs):
            (loss, ys), (dw, dxs) = inner(jax.lax.pcast(w, "d", to="varying"), xs)
            return lax.psum(loss, "d"), lax.psum(dw, "d"), dxs, jax.tree.leaves(ys)[0]

        compute = jax.shard_map(
            each, mesh=mesh, in_specs=(P(), P(None, "d")), out_specs=(P(), P(), P(None, "d"), P(None, "d"))
        )
        found = jax.jit(compute)(everywhere, divided)
        return found, found[-1].sharding.spec
    with jax.set_mesh(mesh):
        (loss, ys), (dw, dxs) = jax.jit(compute)(everywhere, divided)
    ys = jax.tree.leaves(ys)[0]
    return (loss, dw, dxs, ys), ys.sharding.spec


def check_a_mesh(kind):
    """What the subprocess runs: every step under every scan is as under lax.scan on one device."""
    for name in STEPS:
        xs = jax.random.normal(jax.random.key(1), (T, 8, D))
        (loss, ys), (dw, dxs) = jax.jit(program(lax.scan, name))(weights(), xs)
        want = loss, dw, dxs, jax.tree.leaves(ys)[0]
        for label, scan in {"lax.scan": lax.scan, **SCANS}.items():
            found, spec = on_a_mesh(kind, scan, name)
            assert_close(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, want), 1e-5, (kind, name, label))
            assert spec[1] == "d", (kind, name, label, spec)
            print("equal:", kind, name, label, flush=True)


@pytest.mark.slow  # the fast checks of meshes are in tests/scans/test_meshes.py
@pytest.mark.parametrize("kind", ["explicit", "automatic", "shard_map"])
def test_a_batch_divided_among_four_devices(kind):
    """In a process of its own: how many devices there are is settled when JAX starts."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.engine.test_places import check_a_mesh; check_a_mesh({kind!r})"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("equal:") == len(STEPS) * (1 + len(SCANS))
