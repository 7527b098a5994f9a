"""Run by `test_meshes` in a process of its own with four virtual devices: a line of JSON per check."""

import json
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from jaxrnn.scans import randomly_truncated

SCANS = {
    "lax.scan": lax.scan,
    "scan": rnn.scan,
    "fissioned(2, separate)": rnn.fissioned(2, separate=True),
    "checkpointed": rnn.checkpointed(2, inner=rnn.scan),
    "truncated(all)": rnn.truncated(99, inner=rnn.checkpointed(2)),
    "truncated(every=2, reach=3)": rnn.truncated(every=2, reach=3),
    "randomly_truncated": randomly_truncated(jax.random.key(2), mean_length=3, inner=rnn.scan),
    "revolve": rnn.revolve(2, 2),
    "within": rnn.within("1MB"),
}
W = jax.random.normal(jax.random.key(0), (4, 4))
XS = jax.random.normal(jax.random.key(1), (6, 8, 4))
ALONG = P(None, "d")  # time, batch over the devices


def outputs(scan, w, xs):
    def step(h, x):
        a, b = jnp.split(h @ w + x @ w, 2, -1)
        h = jnp.tanh(jnp.concatenate([a * b, b], -1))
        return h, jnp.tanh(h @ w)

    return scan(step, xs[0] * 0, xs)[1]


def gradient(scan, w, xs):
    return jax.grad(lambda w: jnp.sum(outputs(scan, w, xs) ** 2))(w)


def both(scan):
    return jax.jit(lambda w, xs: (outputs(scan, w, xs), gradient(scan, w, xs)))


@cache
def expected(name):
    """What is to be found, on one device."""
    another = name.startswith(("truncated(every", "randomly"))  # whose gradient is another one, on one device too
    return both(SCANS[name])(W, XS) if another or name == "lax.scan" else expected("lax.scan")


def says(place, scan, found, **more):
    pairs = zip(found, expected(scan), strict=True)
    close = all(np.allclose(np.asarray(a), np.asarray(b), 1e-4, 1e-5) for a, b in pairs)
    print(json.dumps({"place": place, "scan": scan, "equal": close, **more}), flush=True)


def in_shard_map(name, scan, mesh, check_vma):
    def local(w, xs):
        g = gradient(scan, w, xs)  # with checked types JAX itself adds up what devices have of a common weight
        return outputs(scan, w, xs), g if check_vma else lax.psum(g, "d")

    specs = {"in_specs": (P(), ALONG), "out_specs": (ALONG, P()), "check_vma": check_vma}
    says(f"shard_map, check_vma={check_vma}", name, jax.jit(jax.shard_map(local, mesh=mesh, **specs))(W, XS))


def on_explicit_mesh(name, scan, mesh):
    with jax.set_mesh(mesh):
        found = both(scan)(W, jax.device_put(XS, NamedSharding(mesh, ALONG)))
    says("explicit mesh", name, found, sharding=str(found[0].sharding.spec))


def on_automatic_mesh(name, scan, mesh):
    xs = jax.device_put(XS, NamedSharding(mesh, ALONG))
    program = both(scan).lower(W, xs).compile()
    found, text = program(W, xs), program.as_text()
    says("automatic mesh", name, found, sharding=str(found[0].sharding.spec), gathers=text.count("all-gather("))


def in_pmap(name, scan):
    found = jax.pmap(lambda xs: outputs(scan, W, xs), in_axes=1, out_axes=1)(XS.reshape(6, 4, 2, 4)).reshape(XS.shape)
    says("pmap", name, (found, expected(name)[1]))


if __name__ == "__main__":
    automatic = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    for name in sys.argv[1:] or SCANS:
        scan = SCANS[name]
        for check in (True, False):
            in_shard_map(name, scan, automatic, check)
        on_explicit_mesh(name, scan, explicit)
        on_automatic_mesh(name, scan, automatic)
        in_pmap(name, scan)
