"""Run by test_meshes.py in a process of its own, for the number of devices is settled once: learners on meshes.

    python -m tests.online.on_four_devices

The batch lies on four devices, the parameters on all of them. Every check compares two windows' losses and gradients
with those on a single device.
"""

import functools
import os
import traceback

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from jaxrnn.online import eprop, immediate, kf_rtrl, online, rtrl, snap, tbptt, uoro
from tests.online.problems import error, first, lossy

T, B = 4, 8
METHODS = {
    "rtrl": rtrl(block=False),
    "block": rtrl(),
    "snap": snap(1),
    "eprop": eprop(),
    "uoro": uoro(),
    "kf_rtrl": kf_rtrl(),
    "tbptt": tbptt(4, every=2),
    "immediate": immediate(),
}
net = lossy(rnn.stack(rnn.gru(4, learn_initial_state=True), rnn.lstm(3)))
xs = tuple(jax.random.normal(k, (T, B, 3)) for k in jax.random.split(jax.random.key(0)))
params = net.init(jax.random.key(1), first(xs))


def summed(method, params, xs, key, start=None):
    """The losses and the gradients of two windows."""
    learner = online(net, method)
    carry = learner.init(params, first(xs), key=key)
    carry = carry if start is None else start(carry)
    halves = jax.tree.map(lambda a: a.reshape(2, T // 2, *a.shape[1:]), xs)

    def body(carry, window):
        carry, loss, grads = learner.update(params, carry, window)
        return carry, (loss, grads)

    carry, found = lax.scan(body, carry, halves)
    return found


def on_a_mesh(kind, method, key):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto if kind == "auto" else AxisType.Explicit,))
    with jax.set_mesh(mesh):
        put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
        run = jax.jit(functools.partial(summed, method, key=key))
        return run(put(params, P()), put(xs, P(None, "d")))


def main():
    key = jax.random.key(5)
    for name, method in METHODS.items():
        expected = jax.jit(functools.partial(summed, method, key=key))(params, xs)
        try:
            found = on_a_mesh("auto", method, key)
            apart = error(jax.device_get(found), jax.device_get(expected))
            print(f"{name}: {'fine' if apart < 1e-5 else apart}")
        except Exception:
            print(f"{name}: {traceback.format_exc()!r}")


if __name__ == "__main__":
    jax.config.update("jax_threefry_partitionable", True)
    assert jnp.ones(1).devices() and jax.device_count() == 4
    main()
