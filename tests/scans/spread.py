"""Run by `test_sharding` in a process of its own with four virtual devices: a line of JSON per check."""

import functools
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from jaxrnn.analysis import collectives

T, B, H = 10, 8, 8
SCANS = {
    "lax.scan": lax.scan,
    "scan": rnn.scan,
    "fissioned(2, separate)": rnn.fissioned(2, separate=True),
    "checkpointed": rnn.checkpointed(4),
    "checkpointed(fissioned)": rnn.checkpointed(4, inner=rnn.scan),
    "python_loop": rnn.python_loop(),
    "revolve": rnn.revolve(2, 2),
    "truncated(all)": rnn.truncated(99),
    "within": rnn.within("1MB"),
    "parallel": rnn.parallel(),
}
NETS = ("lstm", "gru", "vectors", "elementwise")
WAYS = {  # how many devices each axis of the mesh has; whether the weights are spread; what is told
    "data": ((4, 1), False, {"batch": "data"}),
    "fully sharded": ((4, 1), True, {"batch": "data"}),
    "units": ((1, 4), True, {"units": "model"}),
    "data and units": ((2, 2), True, {"batch": "data", "units": "model"}),
    "two axes": ((2, 2), False, {"batch": ("data", "model")}),
}
LENGTHS = [10, 3, 0, 7, 10, 1, 9, 10]


@functools.cache
def net_named(name):
    embed, dense = rnn.layer(nn.Embed(5, H, param_dtype=float)), rnn.layer(nn.Dense(3, param_dtype=float))
    if name == "lstm":
        return rnn.stack(embed, rnn.lstm(H, dtype=float, peephole=True), dense)
    if name == "gru":
        return rnn.stack(embed, rnn.gru(H, dtype=float, learn_initial_state=True), dense)
    if name == "vectors":
        return rnn.stack(rnn.lift(lambda x: jax.nn.one_hot(x, 5)), rnn.lstm(H, dtype=float), dense)
    return rnn.stack(embed, rnn.cells.min_gru(H, dtype=float), rnn.ind_rnn(H, dtype=float))


@functools.cache
def inputs():
    return jax.random.randint(jax.random.key(0), (T, B), 0, 5)


@functools.cache
def parameters(name):
    return net_named(name).init(jax.random.key(1), inputs()[0])


def losses(net, scan):
    def loss(params, xs):
        _, ys = rnn.unroll(net_named(net), params, xs, lengths=jnp.array(LENGTHS), scan=scan)
        return jnp.mean(jnp.sin(ys)), ys

    return jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def on_one_device(net):
    return losses(net, lax.scan)(parameters(net), inputs())


def spread(params, mesh, way):
    def sharding(a):
        divides = [n % 4 == 0 for n in a.shape]
        if not WAYS[way][1] or not any(divides):
            return NamedSharding(mesh, P())
        axis = divides.index(True) if way == "fully sharded" else max(n for n, yes in enumerate(divides) if yes)
        names = "data" if way == "fully sharded" else "model"
        return NamedSharding(mesh, P(*[names if n == axis else None for n in range(a.ndim)]))

    return jax.tree.map(lambda a: jax.device_put(a, sharding(a)), params)


def says(net, way, name, scan, kind):
    shape, _, told = WAYS[way]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    expected = on_one_device(net)
    with jax.set_mesh(mesh):
        params = spread(parameters(net), mesh, way)
        xs = jax.device_put(inputs(), NamedSharding(mesh, P(None, told.get("batch"))))
        program = losses(net, rnn.sharded(**told, inner=scan) if kind is AxisType.Auto else scan)
        program = program.lower(params, xs).compile()
        sent, found = collectives(program), program(params, xs)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    distance = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
    line = {"net": net, "way": way, "scan": name, "distance": distance, "sent": [list(c) for c in sent]}
    line |= {"explicit": kind is AxisType.Explicit, "bytes": sum(a.nbytes for a in jax.tree.leaves(params))}
    print(json.dumps(line), flush=True)


def sends():
    """A program whose collectives are known: what it computes, and what is found in it."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

    def each(x):  # [3, 5] in 32 bits, on each device
        def inner(x, _):
            return lax.ppermute(x, "d", [(i, (i + 1) % 4) for i in range(4)]), None

        def outer(x, _):
            x = lax.scan(inner, x, None, length=2)[0]
            return x + jnp.sum(lax.all_gather(x, "d"), 0), None

        x = lax.scan(outer, x, None, length=7)[0]
        x = lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, "d"), lambda x: x, x)
        return lax.while_loop(lambda x: jnp.max(x) < 9, lambda x: lax.pmax(x, "d") + 1, x)

    program = jax.shard_map(each, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)
    sent = collectives(program, jax.ShapeDtypeStruct((12, 5), jnp.float32))
    print(
        json.dumps({"sends": [list(c) for c in sent], "times": sent.times, "nbytes": sent.nbytes, "table": str(sent)})
    )


def explains():
    """What `explain` says of an LSTM whose weights are in parts, on a mesh of automatic axes and of explicit ones."""
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        cell = rnn.lstm(H)
        params = cell.init(jax.random.key(0), jnp.zeros((B, 4)))
        params = jax.device_put(params, NamedSharding(mesh, P()))
        x = jax.ShapeDtypeStruct((B, 4), float, sharding=NamedSharding(mesh, P("data")))
        found = rnn.analysis.explain(cell, params, x, mesh=mesh)
        size = sum(a.nbytes for a in jax.tree.leaves(params))
        print(json.dumps({"explains": [list(c) for c in found.sent], "bytes": size, "text": str(found)}), flush=True)


def placed_by_types():
    """Units and examples over an explicit mesh, by a step that says itself where its product is to lie."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    w, xs = (
        jax.random.normal(jax.random.key(0), (2 * H, 2 * H)) / 4,
        jax.random.normal(jax.random.key(1), (T, B, 2 * H)),
    )

    def loss(scan, place, w, xs):
        def step(h, x):
            h = jnp.tanh(jnp.dot(h, w, out_sharding=place) + x)
            return h, h

        return jnp.mean(jnp.sin(scan(step, jnp.zeros_like(xs[0]), xs)[1]))

    expected = jax.grad(loss, 2)(lax.scan, None, w, xs)
    with jax.set_mesh(mesh):
        spread = jax.device_put(w, NamedSharding(mesh, P("model"))), jax.device_put(xs, P(None, "data", "model"))
        for name in ("scan", "checkpointed"):
            place = NamedSharding(mesh, P("data", "model"))
            program = jax.jit(jax.grad(functools.partial(loss, SCANS[name], place), 0)).lower(*spread).compile()
            apart = float(np.max(np.abs(np.asarray(program(*spread)) - np.asarray(expected))))
            sums = [c.times for c in collectives(program) if c.nbytes == w.nbytes // 2 and c.kind == "all-reduce"]
            print(json.dumps({"placed": name, "apart": apart, "sums": sums}), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sends()
    explains()
    placed_by_types()
    for text in sys.argv[1:]:
        net, way, name, kind = json.loads(text)
        says(net, way, name, SCANS[name], AxisType.Explicit if kind == "explicit" else AxisType.Auto)
