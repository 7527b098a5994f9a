"""Run by `test_parallel_meshes` in a process of its own with four virtual devices: a line of JSON per check."""

import json
import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from jaxrnn.analysis import collectives
from jaxrnn.scans import newton

W = jax.random.normal(jax.random.key(0), (2, 4, 4)) / 2
EXCHANGE = r"f32\[([\d,]*)\][^=\n]* (all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\("
ALONG = {"batch": P(None, "d"), "time": P("d")}


def gated(w, h, x):
    z = jax.nn.sigmoid(x @ w[0])
    h = (1 - z) * h + z * (x @ w[1])
    return h, h


def bounded(w, h, x):
    h = jnp.tanh(x @ w[0] + 0.5 * h)
    return h, h


STEPS = {"gated": (gated, rnn.parallel()), "gated, in segments": (gated, rnn.parallel(16))}
STEPS["iterated"] = (bounded, rnn.parallel(newton=newton()))


def inputs(steps):
    return jax.random.normal(jax.random.key(1), (steps, 8, 4))


def outputs(step, scan, w, xs):
    return scan(partial(step, w), xs[0] * 0, xs)[1]


def both(step, scan):
    loss = lambda w, xs: jnp.sum(outputs(step, scan, w, xs) ** 2)
    return lambda w, xs: (outputs(step, scan, w, xs), jax.grad(loss)(w, xs))


@cache
def expected(name, steps):
    """What is to be found, on one device."""
    return jax.jit(both(STEPS[name][0], lax.scan))(W, inputs(steps))


def says(place, name, found, steps, **more):
    pairs = zip(found, expected(name, steps), strict=True)
    close = all(np.allclose(np.asarray(a), np.asarray(b), 1e-4, 1e-5) for a, b in pairs)
    print(json.dumps({"place": place, "name": name, "steps": steps, "equal": close, **more}), flush=True)


def in_shard_map(name, mesh, check_vma):
    fn = both(*STEPS[name])

    def local(w, xs):
        ys, g = fn(w, xs)
        return ys, g if check_vma else lax.psum(g, "d")

    specs = {"in_specs": (P(), ALONG["batch"]), "out_specs": (ALONG["batch"], P()), "check_vma": check_vma}
    found = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(W, inputs(40))
    says(f"shard_map, check_vma={check_vma}", name, found, 40)


def on_explicit_mesh(name, mesh):
    with jax.set_mesh(mesh):
        xs = jax.device_put(inputs(40), NamedSharding(mesh, ALONG["batch"]))
        found = jax.jit(both(*STEPS[name]))(W, xs)
    says("explicit mesh", name, found, 40, sharding=str(found[0].sharding.spec))


def on_automatic_mesh(name, mesh, axis, steps):
    """Also the exchanges in the compiled gradient: how many numbers each moves."""
    xs = jax.device_put(inputs(steps), NamedSharding(mesh, ALONG[axis]))
    program = jax.jit(both(*STEPS[name]), out_shardings=(NamedSharding(mesh, ALONG[axis]), NamedSharding(mesh, P())))
    program = program.lower(W, xs).compile()
    found = re.findall(EXCHANGE, program.as_text())
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape, kind in found if kind != "all-reduce"]
    sums = sum(kind == "all-reduce" for _, kind in found)
    says(f"automatic mesh, {axis}", name, program(W, xs), steps, exchanges=sizes, sums=sums)


CELLS = {
    "min_gru": rnn.cells.min_gru(4),
    "lru": rnn.stack(rnn.layer(nn.Dense(4)), rnn.cells.lru(4)),  # two leaves that need one another
    "two layers": rnn.stack(rnn.cells.min_gru(4), rnn.cells.min_lstm(4)),
    "smallest": rnn.Cell(
        lambda key, x: jnp.float32(0.7),
        lambda w, batch: (jnp.zeros((*batch, 4)), jnp.float32(0)),
        lambda w, s, x, key=None: ((h := jnp.minimum(w * s[0] + x, 1.0), s[1] + jnp.sum(h)), h),  # and a total
    ),
}
WAYS = {
    "in order": {},
    "reversed": {"reverse": True},
    "lengths": {"lengths": jnp.array([64, 0, 37, 1])},
    "resets": {"resets": jnp.arange(256).reshape(64, 4) % 11 == 0},
}


def over_devices(name, way, mesh, steps):
    """Each device has a stretch of the steps; a NaN nowhere, so that the loop that is kept for one is not run."""
    cell, xs = CELLS[name], jax.random.normal(jax.random.key(1), (steps, 4, 4))
    params = cell.init(jax.random.key(2), xs[0])

    def loss(scan, params, xs):
        end, ys = rnn.unroll(cell, params, xs, scan=scan, **WAYS[way])
        return sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves((end, jnp.sin(ys))))

    gradient = lambda scan: jax.jit(jax.value_and_grad(partial(loss, scan), (0, 1)))
    with jax.set_mesh(mesh):
        spread = jax.device_put(xs, NamedSharding(mesh, ALONG["time"]))
        program = gradient(rnn.parallel(over="d")).lower(params, spread).compile()
        found = program(params, spread)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(gradient(lax.scan)(params, xs)), strict=True))
    apart = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) / (1 + float(np.max(np.abs(b)))) for a, b in pairs)
    sent = [list(c) for c in collectives(program)]
    print(
        json.dumps({"place": "over", "name": f"{name}, {way}", "steps": steps, "apart": apart, "sent": sent}),
        flush=True,
    )


if __name__ == "__main__":
    automatic = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    for name in CELLS:
        over_devices(name, "in order", automatic, 64)
    for way in list(WAYS)[1:]:
        over_devices("min_gru", way, automatic, 64)
    over_devices("min_gru", "in order", automatic, 4096)
    for steps in (512, 4096):
        on_automatic_mesh("gated", automatic, "time", steps)
    for name in STEPS:
        for check in (True, False):
            in_shard_map(name, automatic, check)
        on_explicit_mesh(name, explicit)
        on_automatic_mesh(name, automatic, "batch", 40)
