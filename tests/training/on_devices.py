"""Run by `test_over_mesh` in a process of its own with four virtual devices: a line of JSON per check."""

import json
import math
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn
from tests.training.problems import bits

training = rnn.training
MODEL = rnn.stack(rnn.lstm(8), rnn.dropout(rnn.gru(8), 0.2), rnn.lift(lambda y: jnp.sum(y, axis=-1, keepdims=True)))
SERIES = np.sin(np.arange(2001) / 7).astype("f4")[:, None]
PARAMS = MODEL.init(jax.random.key(0), jnp.zeros(1))
STEPS, HALF = 12, 5


def loss(params, batch, key, carry):
    (inputs, targets), begins = batch
    carry, out = rnn.unroll(MODEL, params, inputs, carry, resets=jnp.asarray(begins), key=key)
    return jnp.mean((out - targets) ** 2), carry, {"largest": jnp.max(jnp.abs(out))}


def given(**changed):
    return {
        "loss_fn": loss,
        "params": PARAMS,
        "batches": training.Streams((SERIES[:-1], SERIES[1:]), batch=8, window=10),
        "steps": STEPS,
        "optimizer": OPTIMIZER,
        "key": jax.random.key(1),
        "carry": MODEL.initial_state(PARAMS, (8,)),
        "progress": False,
        "log_every": 4,
        "save_every": HALF,
    } | changed


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
LAYOUTS = {
    "replicated": ({"data": 4}, "replicated"),
    "fsdp": ({"data": 4}, "fsdp"),
    "tensor": ({"data": 2, "model": 2}, "tensor"),
    "by path": ({"data": 2, "model": 2}, {"*/W": P("data", "model"), "0/U": P(None, "model")}),
}


def mesh_of(**axes):
    count = math.prod(axes.values())
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:count])


def on(name):
    """On all devices of all processes, the weights laid out by a rule."""
    axes, rule = LAYOUTS[name]
    mesh = mesh_of(**axes)
    return {"mesh": mesh, "params": training.shardings(MODEL, PARAMS, mesh, rule).put(PARAMS)}


def says(check, **found):
    print(json.dumps({"check": check, **found}), flush=True)


def near(state, other):
    """The largest difference of any number of two states."""
    pairs = zip(jax.tree.leaves(state._replace(key=())), jax.tree.leaves(other._replace(key=())), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b)), initial=0)) for a, b in pairs)


def specs(tree):
    return sorted({str(tuple(leaf.sharding.spec)) for leaf in jax.tree.leaves(tree)})


def same_as_one_device(name, plain, folder):
    state = training.fit(**given(**on(name)), run=folder)
    losses = [record["loss"] for record in training.read_metrics(folder)]
    params = jax.tree.map(lambda leaf: leaf.sharding.spec, state.params)
    moments = jax.tree.map(lambda leaf: leaf.sharding.spec, state.opt_state[1][0].mu)
    says(
        f"{name}: as on one device",
        difference=near(state, plain),
        losses=losses,
        carry=specs(state.carry),
        weights=specs(state.params),
        moments_lie_with_weights=params == moments,
    )


def goes_on(name, folder):
    """Stopped after some steps, gone on with: on the same mesh to the bit; on other devices but for rounding."""
    whole = training.fit(**given(**on(name)))
    training.fit(**given(**on(name), steps=HALF), run=folder / "cut")
    elsewhere = {"the same": on(name), "two": {"mesh": mesh_of(data=2)}, "one": {}, "a square, split": on("by path")}
    for where, args in elsewhere.items():
        training.fit(**given(**args, steps=HALF), run=folder / where)  # another's state is put in its place
        (folder / where / "checkpoints").rename(folder / where / "old")
        (folder / "cut" / "checkpoints").rename(folder / where / "checkpoints")
        state = training.fit(**given(**args), run=folder / where)
        says(
            f"{name}: gone on with on {where}",
            difference=near(state, whole),
            same_bits=bits(state.params) == bits(whole.params),
            weights=specs(state.params) if args else [],
        )
        (folder / where / "checkpoints").rename(folder / "cut" / "checkpoints")
        for newer in (folder / "cut" / "checkpoints").iterdir():
            if newer.name != str(HALF):
                newer.rename(folder / f"{where}_{newer.name}")


def from_one_device(folder):
    whole = training.fit(**given(**on("fsdp")))
    training.fit(**given(steps=HALF), run=folder)
    state = training.fit(**given(**on("fsdp")), run=folder)
    says("one device's checkpoint on four", difference=near(state, whole), weights=specs(state.params))


def state_is_gone_on_from():
    whole = training.fit(**given(**on("fsdp")))
    half = training.fit(**given(**on("fsdp"), steps=HALF))
    before = bits(half)
    state = training.fit(**given(params=half, mesh=mesh_of(data=4)))
    says("a state gone on from", same_bits=bits(state) == bits(whole), survives=bits(half) == before)


def under_a_mesh_that_is_set():
    """`jax.make_mesh` makes explicit axes, and a program may have set such a mesh: inside `fit` they are automatic."""
    plain, args = training.fit(**given(steps=3)), on("fsdp")
    for kind in (AxisType.Explicit, AxisType.Auto):
        with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(kind,))):
            state = training.fit(**given(**args, steps=3))
        says(f"under {kind.name}", difference=near(state, plain), weights=specs(state.params))


def bucketed(folder):
    words = [np.arange(n % 7 + 1, dtype=np.float32)[:, None] for n in range(64)]
    batches = training.Bucketed({"word": words, "length": np.arange(64) % 7 + 1}, size=8, bounds=3)

    def loss(params, batch, key):
        del key
        xs, lengths = batch["word"]
        _, out = rnn.unroll(MODEL, params, xs, lengths=jnp.asarray(lengths))
        return jnp.mean((jnp.sum(out, axis=0)[:, 0] - batch["length"].astype(out.dtype)) ** 2)

    args = {"loss_fn": loss, "batches": batches, "carry": None}
    state, plain = training.fit(**given(**args, mesh=mesh_of(data=4))), training.fit(**given(**args))
    says("buckets", difference=near(state, plain))


def best_and_average(folder):
    optimizer = training.averaging(OPTIMIZER, 0.9)

    def trained(where, **args):
        best = training.Best("size")
        size = lambda params: {"size": float(optax.tree.norm(params))}
        args = {"optimizer": optimizer, "evaluate": size, "evaluate_every": 3, "best": best} | args
        state = training.fit(**given(**args), run=folder / where)
        return training.averaged(state), best

    (a, best), (b, other) = trained("mesh", **on("fsdp")), trained("one")
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.max(np.abs(a - np.asarray(b)))), a, b)))
    says("best and average", difference=max(gap(a, b), gap(best.params, other.params)), steps=[best.step, other.step])


def refusals(folder):
    seven = training.Streams((SERIES[:-1], SERIES[1:]), batch=6, window=10)
    wide, four = np.zeros((5, 6, 1), "f4"), {"mesh": mesh_of(data=4)}
    cases = {
        "axis": four | {"batch_axis": "rows"},
        "streams": four | {"batches": seven, "carry": MODEL.initial_state(PARAMS, (6,))},
        "batch": four | {"batches": lambda step: ((wide, wide), np.zeros((5, 6), bool))},
        "specs": four | {"batch_specs": (P(), P(), P())},
        "mesh": {"mesh": [0, 1]},
        "iterators": four | {"batches": [1]},
    }
    for name, args in cases.items():
        try:
            training.fit(**given(**args), run=folder / name)
            says(f"refused: {name}", error="nothing")
        except (ValueError, TypeError) as error:
            left = sorted(p.name for p in (folder / name).rglob("*") if p.name not in ("run.json", "run.lock"))
            says(f"refused: {name}", error=str(error), left=left)


def collectives():
    """In which loops of an FSDP step there are gathers of weights."""
    from jaxrnn.training import fitting, over_mesh

    for name in ("replicated", "fsdp"):
        args = given(**on(name))
        over = over_mesh.OverMesh.checked(args["mesh"], "data", None, args["batches"])
        state, layout = fitting._given(args["params"], OPTIMIZER, args["key"], args["carry"], over)
        same = map(fitting._Same, (loss, jax.value_and_grad, OPTIMIZER))
        _, step = fitting._compiled_once(*same, "sum", fitting._Same(None), layout)
        text = step.lower(state, over.batch(over.batches(args["batches"])(0))).compile().as_text()
        loops, entry = [part for part in text.split("\n\n") if "ENTRY" not in part], text.split("ENTRY")[1]
        says(
            f"{name}: collectives",
            gathers_in_loops=sum(part.count(" all-gather(") for part in loops),
            gathers=entry.count(" all-gather("),
            exchanges=text.count(" all-to-all(") + text.count(" collective-permute("),
        )


def one_program():
    """Several trainings with the same objects share what was compiled, on a mesh too."""
    traces = []

    def counted(params, batch, key, carry):
        traces.append(1)
        return loss(params, batch, key, carry)

    args = given(**on("fsdp"), loss_fn=counted, steps=2)
    training.fit(**args), training.fit(**args)
    once = len(traces)
    training.fit(**args | {"params": PARAMS})
    says("one program", traces=[once, len(traces)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        here, plain = Path(folder), training.fit(**given())
        checks = {
            **{name: lambda name=name: same_as_one_device(name, plain, here / name) for name in LAYOUTS},
            "going on": lambda: [goes_on(name, here / f"{name} on") for name in ("fsdp",)],
            "from one": lambda: from_one_device(here / "from one"),
            "state": state_is_gone_on_from,
            "set": under_a_mesh_that_is_set,
            "bucketed": lambda: bucketed(here),
            "best": lambda: best_and_average(here / "best"),
            "refusals": lambda: refusals(here / "refused"),
            "collectives": collectives,
            "one program": one_program,
        }
        for name in sys.argv[1:] or checks:
            checks[name]()
