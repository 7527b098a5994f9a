"""`shardings`: what each rule splits, what the table says, what is refused. On meshes of devices that are not there."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn as rnn

shardings = rnn.training.shardings
NET = rnn.stack(rnn.layer(nn.Embed(10, 6)), rnn.lstm(8, peephole=True), rnn.gru(8), rnn.layer(nn.Dense(12)))
PARAMS = NET.init(jax.random.key(0), jnp.zeros((), int))
FOUR = AbstractMesh((4,), ("data",))
SQUARE = AbstractMesh((2, 2), ("data", "model"))


def specs(rule, mesh, **options):
    tree = shardings(NET, PARAMS, mesh, rule, **options).tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): s.spec for p, s in leaves if s.spec != P()}


def test_replicated_splits_nothing():
    assert specs("replicated", FOUR) == {} == specs({}, FOUR) == specs(lambda path, leaf: None, FOUR)


def test_fsdp_splits_the_largest_axis_that_the_devices_divide():
    assert specs("fsdp", FOUR) == {
        "1/U": P(None, "data"),  # [6, 32]
        "1/W": P(None, "data"),  # [8, 32]
        "1/b": P("data"),
        "1/p": P(None, "data"),  # [3, 8]
        "2/U": P(None, "data"),  # [8, 24]
        "2/W": P(None, "data"),
        "2/b": P("data"),
        "2/c_n": P("data"),
        "3/bias": P("data"),
        "3/kernel": P(None, "data"),  # [8, 12]
    }  # and the embedding, [10, 6], is whole
    assert specs("fsdp", SQUARE)["0/embedding"] == P("data")
    assert specs("fsdp", SQUARE, axis="model")["0/embedding"] == P("model")
    assert specs("fsdp", AbstractMesh((4,), ("x",)))["1/b"] == P("x")  # the only one there is


def test_tensor_parallel_splits_units_and_never_the_columns_in_which_gates_lie():
    assert specs("tensor", SQUARE) == {
        "1/W": P("model"),
        "1/p": P(None, "model"),
        "2/U": P("model"),
        "2/W": P("model"),
        "2/c_n": P("model"),
        "3/kernel": P("model"),
    }


def test_a_projection_s_weights_are_split_by_what_they_read():
    cell = rnn.lstm(8, projection=4)
    params = cell.init(jax.random.key(0), jnp.zeros(3))
    tree = shardings(cell, params, SQUARE, "tensor").tree
    assert {name: s.spec for name, s in tree.items()} == {"U": P(), "W": P("model"), "R": P("model"), "b": P()}


def test_rules_by_path():
    by_pattern = {"1/W": P("model", "data"), "*/W": P("data"), "*kernel": None}
    assert specs(by_pattern, SQUARE) == {"1/W": P("model", "data"), "2/W": P("data")}
    by_function = lambda path, leaf: P(("data", "model")) if leaf.shape[0] % 4 == 0 else None
    assert specs(by_function, SQUARE)["2/W"] == P(("data", "model"))


def test_the_table_says_what_a_device_holds():
    lines = [line.split() for line in str(shardings(NET, PARAMS, SQUARE, "fsdp")).splitlines()]
    halves = [int(line[-1].replace(",", "")) for line in lines[2:-1]]
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(PARAMS)]
    assert halves == [n // 2 for n in sizes] and int(lines[-1][-1].replace(",", "")) == sum(halves)
    assert lines[0] == ["leaf", "shape", "spec", "bytes", "per", "device"]
    assert lines[3][:4] == ["1/U", "float32[6,32]", "P(None,", "'data')"]
    whole = str(shardings(NET, jax.eval_shape(lambda: PARAMS), FOUR)).splitlines()[-1].split()
    assert whole == ["all", f"{sum(n // 4 for n in sizes):,}", f"{sum(sizes):,}"]


def test_bytes_are_those_that_jax_itself_lays_out():
    layout = shardings(NET, PARAMS, SQUARE, {"1/W": P("data", "model"), "3/kernel": P(None, ("data", "model"))})
    lines = {line.split()[0]: line.split()[-1] for line in str(layout).splitlines()}
    for path, leaf in (("1/W", PARAMS[1]["W"]), ("3/kernel", PARAMS[3]["kernel"])):
        place = layout.tree[int(path[0])][path[2:]]
        assert int(lines[path]) == 4 * np.prod(place.shard_shape(leaf.shape)) == leaf.nbytes // 4


@pytest.mark.parametrize(
    ("optimizer", "moment"),
    [
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), lambda s: s[1][0].mu),
        (rnn.training.averaging(optax.sgd(0.1, momentum=0.9)), lambda s: s.average),
        (optax.contrib.prodigy(1.0), lambda s: s.params0),
    ],
)
def test_an_optimizer_s_state_lies_with_the_parameters(optimizer, moment):
    layout = shardings(NET, PARAMS, SQUARE, "fsdp")
    state = layout.like(jax.eval_shape(optimizer.init, PARAMS))
    assert moment(state) == layout.tree
    assert all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(state))
    for leaf, place in zip(
        jax.tree.leaves(jax.eval_shape(optimizer.init, PARAMS)), jax.tree.leaves(state), strict=True
    ):
        place.shard_shape(leaf.shape)  # divides


def test_parts_of_the_parameters_that_an_optimizer_masks():
    mask = jax.tree_util.tree_map_with_path(lambda path, _: "W" in str(path), PARAMS)
    layout = shardings(NET, PARAMS, SQUARE, "fsdp")
    state = layout.like(jax.eval_shape(optax.masked(optax.adam(1e-3), mask).init, PARAMS))
    found = [s.spec for s in jax.tree.leaves(state.inner_state[0].mu)]
    assert found == [P(None, "data")] * 2


def test_one_array_is_a_tree_too():
    cell = rnn.elman(8)
    layout = shardings(cell, jnp.ones((8, 3)), FOUR, "fsdp")
    assert layout.tree.spec == P("data")
    assert layout.like({"mu": jnp.ones((8, 3)), "count": jnp.int32(0)})["mu"].spec == P("data")


def test_put_places_them():
    mesh = jax.make_mesh((1,), ("data",))
    layout = shardings(NET, PARAMS, mesh, "fsdp")
    assert isinstance(layout, rnn.training.Shardings)
    placed = layout.put(PARAMS | {} if isinstance(PARAMS, dict) else PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), placed, PARAMS)
    assert all(leaf.sharding.mesh.axis_types == (AxisType.Auto,) for leaf in jax.tree.leaves(placed))
    back = rnn.training.gathered(placed)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), back, PARAMS)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("zero", r"rule must be one of 'replicated', 'fsdp', 'tensor', got 'zero'"),
        ({"0/V": P()}, r"the pattern '0/V' fits no leaf of params; there are '0/embedding', '1/U', .*\.\.\."),
        (
            {"1/W": P("rows")},
            r"params 1/W \(float32\[8,32\]\) is to be split over the mesh axis 'rows', but the mesh has 'd",
        ),
        ({"1/W": P("data", "data")}, r"params 1/W .* is split twice over 'data' by P\('data', 'data'\); once"),
        (
            {"1/p": P("data")},
            r"axis 0 of params 1/p \(float32\[3,8\]\) should be a multiple of the 2 devices along 'data'",
        ),
        ({"1/b": P(None, "data")}, r"params 1/b \(float32\[32\]\) has 1 axes, got P\(None, 'data'\) for 2; use fewer"),
        (lambda path, leaf: 3, r"params 0/embedding .* needs a PartitionSpec \(or None\), got int 3"),
    ],
)
def test_refusals(rule, complaint):
    with pytest.raises(ValueError, match=complaint) as refused:
        shardings(NET, PARAMS, SQUARE, rule)
    assert "\n" not in str(refused.value)


def test_refusals_of_axes_and_sizes():
    with pytest.raises(
        ValueError, match=r"'tensor' splits weights over the mesh axis 'model', but the mesh has 'a' of 2"
    ):
        shardings(NET, PARAMS, AbstractMesh((2, 2), ("a", "b")), "tensor")
    with pytest.raises(ValueError, match=r"'fsdp' splits weights over the mesh axis 'rows'"):
        shardings(NET, PARAMS, SQUARE, "fsdp", axis="rows")
    with pytest.raises(
        ValueError, match=r"axis 0 of params 1/W .* should be a multiple of the 3 devices along 'model', got 8"
    ):
        shardings(NET, PARAMS, AbstractMesh((3,), ("model",)), "tensor")
    layer = rnn.bidirectional(rnn.lstm(4), rnn.lstm(4))
    with pytest.raises(
        ValueError, match="'tensor' reads the hidden sizes off a Cell's state, got a SequenceLayer; give"
    ):
        shardings(layer, layer.init(jax.random.key(0), jnp.zeros(3)), SQUARE, "tensor")
    with pytest.raises(ValueError, match="no weight has an axis of the size of a state"):
        shardings(rnn.lift(jnp.tanh), {"w": jnp.ones(4)}, SQUARE, "tensor")


def test_a_part_is_a_share_of_any_batch():
    part = rnn.training.Part(2, 4, 8)
    assert part.slice("mine", 8) == slice(2, 4) and part.slice("mine", 64) == slice(16, 32)
    with pytest.raises(ValueError, match="mine: a batch of 12 cannot be divided among 8 devices; take a multiple of 8"):
        part.slice("mine", 12)
    mesh = jax.make_mesh((1,), ("data",))
    assert rnn.training.part_of(mesh) == (0, 1, 1) == rnn.training.part_of(mesh, None)
    with pytest.raises(
        ValueError, match="the mesh axis 'rows', but the mesh has 'data' of 1; give batch_axis= one of these"
    ):
        rnn.training.part_of(mesh, "rows")


def test_streams_and_buckets_read_a_part():
    series = np.arange(96)
    streams = rnn.training.Streams((series, 2 * series), batch=8, window=4)
    (whole, doubled), begins = streams(5)
    (own, also), begin = streams.part(rnn.training.Part(1, 2, 4))(5)
    for got, want in ((own, whole), (also, doubled), (begin, begins)):
        np.testing.assert_array_equal(got, want[:, 2:4])
    assert len(streams.part(rnn.training.Part(1, 2, 4))) == len(streams) == streams.windows
    words = [np.arange(n % 5 + 1) for n in range(40)]
    buckets = rnn.training.Bucketed({"word": words, "n": np.arange(40)}, size=4, bounds=2, seed=3)
    for step in range(buckets.per_epoch):
        parts = [buckets.part(rnn.training.Part(n, n + 1, 2))(step) for n in range(2)]
        both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=-1), *parts)
        jax.tree.map(np.testing.assert_array_equal, both, buckets(step))
    with pytest.raises(
        ValueError, match=r"Bucketed, sequences of up to . steps: a batch of 4 cannot be divided among 3"
    ):
        buckets.part(rnn.training.Part(0, 1, 3))


def test_a_mesh_of_one_device_changes_no_bit(tmp_path):
    from tests.training.problems import bits, recurrent

    mesh = jax.make_mesh((1,), ("data",))
    given = recurrent(steps=6)
    plain = rnn.training.fit(**given)
    assert bits(rnn.training.fit(**given, mesh=mesh, run=tmp_path / "run")) == bits(plain)
    half = rnn.training.fit(**given | {"steps": 3}, mesh=mesh)
    assert bits(rnn.training.fit(**given | {"params": half}, mesh=mesh)) == bits(plain)
    batch = rnn.training.on_mesh((np.zeros((5, 4, 1)), np.zeros(4), np.int32(3), jax.random.key(0)), mesh)
    assert [leaf.sharding.spec for leaf in batch[:3]] == [P(None, "data"), P("data"), P()]
