"""Run by test_meshes.py in a process of its own, for the number of devices is settled once: unroll on meshes.

    python -m tests.sequence.on_four_devices lax.scan "checkpointed(2)"

Every check compares values and gradients with those on a single device.
"""

import contextlib
import functools
import os
import sys
import traceback

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from tests.zoo import SCANS

T, B, D = 6, 8, 3
SHARDED = {"xs": P(None, "d"), "lengths": P("d"), "resets": P(None, "d"), "state": P("d"), "key": P()}
xs = jax.random.normal(jax.random.key(0), (T, B, D))
cell = rnn.dropout(rnn.lstm(4, learn_initial_state=True), 0.3, mask="sequence")
params = cell.init(jax.random.key(1), xs[0])
CASES = {
    "plain": ({}, {}),
    "a key": ({"key": jax.random.key(3)}, {}),
    "everything": (
        {
            "lengths": jnp.arange(B) % (T + 1),
            "resets": jnp.zeros((T, B), bool).at[3, ::2].set(True),
            "state": jax.tree.map(lambda a: a + 0.1, cell.initial_state(params, (B,))),
        },
        {"outputs": "sum", "reverse": True},
    ),
}


def values(scan, **options):
    """(params, xs and what else is given) -> loss, outputs."""

    def loss(params, given):
        state, ys = rnn.unroll(cell, params, scan=scan, **given, **options)
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state)), ys

    return loss


def gradient(scan, **options):
    """The same, and the gradient of the replicated weights."""
    return jax.value_and_grad(values(scan, **options), has_aux=True)


def laid_out(given, mesh):
    """The weights on every device, a share of the batch on each."""
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    return put(params, P()), {name: put(value, SHARDED[name]) for name, value in given.items()}


def on_mesh(find, given, output, mesh, context):
    del output
    given = laid_out(given, mesh)
    with context:
        return jax.jit(find)(*given)


def in_shard_map(find, given, output, mesh):
    def each(params, given):
        (loss, ys), grads = find(params, given)
        return (lax.psum(loss, "d"), ys), grads

    specs = P(), {name: SHARDED[name] for name in given}
    run = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=((P(), output), P()))
    return jax.jit(run)(*laid_out(given, mesh))


@functools.cache
def expected(case):
    given, options = CASES[case]
    return jax.jit(gradient(lax.scan, **options))(params, {"xs": xs, **given})


def check(scan, case, run):
    given, options = CASES[case]
    output = P("d") if "outputs" in options else P(None, "d")
    wanted = expected(case)
    if run is WAYS["not set"]:  # where JAX 0.12 itself differentiates no scan with weights
        got, wanted = run(values(scan, **options), {"xs": xs, **given}, output), wanted[0]
        ys = got[1]
    else:
        got = run(gradient(scan, **options), {"xs": xs, **given}, output)
        ys = got[0][1]
    if not (run is WAYS["shard_map"] and case == "a key"):  # where each device draws for a batch of its own
        chex.assert_trees_all_close(jax.device_get(got), jax.device_get(wanted), rtol=1e-4, atol=1e-5)
    assert ys.sharding.is_equivalent_to(NamedSharding(ys.sharding.mesh, output), ys.ndim), ys.sharding


EXPLICIT, AUTO = jax.make_mesh((4,), ("d",)), jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
WAYS = {
    "explicit": lambda *args: on_mesh(*args, EXPLICIT, jax.set_mesh(EXPLICIT)),
    "shard_map": lambda *args: in_shard_map(*args, EXPLICIT),
    "not set": lambda *args: on_mesh(*args, EXPLICIT, contextlib.nullcontext()),
    "auto": lambda *args: on_mesh(*args, AUTO, jax.set_mesh(AUTO)),
}


def main(scans):
    """A line for each check: what was checked, and what went wrong with it if anything did."""
    for name in scans:
        whole = name == "lax.scan"  # shows what lies in unroll itself, not in the scan
        for where, run in WAYS.items() if whole else list(WAYS.items())[:2]:
            for case in CASES if whole and where in ("explicit", "shard_map") else ("plain", "everything"):
                try:
                    check(SCANS[name], case, run)
                    print(f"{name}: {case}, {where}: fine", flush=True)
                except Exception:
                    print(f"{name}: {case}, {where}: {traceback.format_exc()!r}", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(sys.argv[1:])
