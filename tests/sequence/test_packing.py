"""Packed sequences give what they give alone; and packing wastes little."""

import itertools
import sysconfig
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn import sequence, training
from tests.reference import assert_close, scalar

N = (7, 1, 4, 0, 9, 3, 3, 12)
H = 5


def sequences():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 3)).astype(np.float32) for n in N]


NETS = {
    "lstm": rnn.lstm(H),
    "learned": rnn.gru(H, learn_initial_state=True),
    "bidirectional": sequence.chain(sequence.bidirectional(rnn.lstm(H), rnn.gru(2)), rnn.layer(nn.Dense(3))),
}


@pytest.mark.parametrize(
    "name", [name if name == "learned" else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
)
def test_packed_is_alone(name):
    net, parts = NETS[name], sequences()
    packed = sequence.pack(parts, steps=12, rows=5)
    assert isinstance(packed, sequence.Packed)
    assert packed.xs.shape == (12, 5, 3) and len(packed.lengths) == len(N)
    params = net.init(jax.random.key(0), parts[0][0])
    if "initial_state" in params:
        params["initial_state"] += 0.5

    def together(params):
        _, ys = rnn.unroll(net, params, packed.xs, resets=packed.resets)
        return packed.unpacked(ys), packed.last(ys), packed.sums(jnp.sum(ys**2, -1))

    def alone(params):
        scan = jax.lax.scan
        ys = [rnn.unroll(net, params, part[:, None], scan=scan)[1][:, 0] if len(part) else None for part in parts]
        size = ys[0].shape[-1]
        last = [jnp.zeros(size) if y is None else y[-1] for y in ys]
        sums = [jnp.zeros(()) if y is None else jnp.sum(y**2) for y in ys]
        ys = [jnp.zeros((0, size)) if y is None else y for y in ys]
        padded = [jnp.concatenate([y, jnp.zeros((12 - len(y), size))]) for y in ys]
        return jnp.stack(padded, 1), jnp.stack(last), jnp.stack(sums)

    found = [
        jax.jit(jax.value_and_grad(lambda p, run=run: (scalar((), run(p)), run(p)), has_aux=True))(params)
        for run in (together, alone)
    ]
    assert_close(*found, 1e-4)


SCANS = {"lax": jax.lax.scan, "scan": rnn.scan, "checkpointed": rnn.checkpointed(4)}
FAST = [("scan", True), ("checkpointed", False)]
ALL = [(name, reverse) for name in SCANS for reverse in (False, True)]


@pytest.mark.parametrize(
    ("scan", "reverse"),
    [pytest.param(SCANS[n], r, id=f"{n}-{r}", marks=() if (n, r) in FAST else pytest.mark.slow) for n, r in ALL],
)
def test_states_at_ends(reverse, scan):
    net, parts = rnn.lstm(H, learn_initial_state=True), sequences()
    packed = sequence.pack(parts)
    params = jax.tree.map(lambda a: a + 0.2, net.init(jax.random.key(0), parts[0][0]))

    def together(params):
        return sequence.states_at_ends(net, params, packed, reverse=reverse, scan=scan)

    def alone(params):
        ends = [
            rnn.unroll(net, params, part[:, None], reverse=reverse, scan=jax.lax.scan)[0]
            if len(part)
            else net.initial_state(params, (1,))
            for part in parts
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *ends)

    assert_close(jax.jit(together)(params), alone(params), 1e-5)
    grads = [jax.jit(jax.grad(lambda p, run=run: scalar((), run(p))))(params) for run in (together, alone)]
    assert_close(*grads, 1e-4)


def test_states_at_ends_keep_no_states_of_all_steps():
    net, steps, rows = rnn.lstm(64), 2048, 8
    parts = [np.ones((16, 4), np.float32)] * (steps * rows // 16)
    packed = jax.tree.map(jnp.asarray, sequence.pack(parts, steps=steps, rows=rows))
    params = net.init(jax.random.key(0), packed.xs[0])

    def loss(params):
        return scalar((), sequence.states_at_ends(net, params, packed, scan=rnn.checkpointed()))

    def by_outputs(params):
        _, ys = rnn.unroll(net, params, packed.xs, resets=packed.resets, scan=rnn.checkpointed())
        return scalar((), packed.last(ys))

    found, all_steps = (rnn.analysis.temp_bytes(jax.grad(f), params) for f in (loss, by_outputs))
    assert found < 0.25 * all_steps


def test_every_step_belongs_where_it_came_from():
    parts = [{"x": np.full(n, i), "y": np.arange(n, dtype=np.float32)} for i, n in enumerate(N)]
    packed = sequence.pack(parts, steps=15)
    assert (np.where(packed.live, packed.xs["x"], -1) == packed.number).all()
    assert packed.live.sum() == sum(N) and packed.ends.sum() == sum(n > 0 for n in N)
    for i, n in enumerate(N):
        r, t = packed.row[i], packed.start[i]
        assert packed.xs["y"][t : t + n, r].tolist() == list(range(n)) and (n == 0 or packed.resets[t, r])
    begins = np.where(packed.live, packed.xs["y"] == 0, False)
    left_over = packed.resets & ~np.asarray(packed.live)
    assert (packed.resets == (begins | left_over)).all() and left_over.sum() <= packed.resets.shape[1]


def test_packed_goes_through_jit_and_fit(lenient):
    net = rnn.stack(rnn.gru(4), rnn.layer(nn.Dense(1)))
    rng = np.random.default_rng(1)

    def batches():
        for _ in range(40):
            parts = [rng.standard_normal((n, 2)).astype(np.float32) for n in rng.integers(1, 9, 12)]
            parts = [{"x": part, "y": part.cumsum(0)[:, :1]} for part in parts]
            yield sequence.pack(parts, steps=16, rows=6)

    def loss(params, packed, key):
        _, ys = rnn.unroll(net, params, packed.xs["x"], resets=packed.resets, key=key)
        errors = jnp.sum((ys - packed.xs["y"]) ** 2, -1)
        return rnn.losses.reduced(errors, mask=packed.live)

    state = training.create(net.init(jax.random.key(0), jnp.zeros(2)), optax.adam(3e-2), jax.random.key(1))
    first = []
    step = training.make_train_step(loss, optax.adam(3e-2))
    for batch in batches():
        state, metrics = step(state, batch)
        first.append(float(metrics["loss"]))
    assert np.mean(first[-5:]) < 0.6 * np.mean(first[:5])


def code():
    library = Path(sysconfig.get_paths()["stdlib"])
    return [(library / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py", "typing.py", "pydoc.py")]


DISTRIBUTIONS = {
    "identifiers": lambda: [len(word) for text in code() for word in text.split() if word.isidentifier()],
    "lines of code": lambda: [len(line) for text in code() for line in text.splitlines() if line.strip()],
    "log-normal": lambda: np.random.default_rng(0).lognormal(3.2, 0.7, 20_000).clip(1, 512).astype(int).tolist(),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_little_is_wasted(name):
    """256 sequences at a time, as a training that shuffles would take them; batches of 32 beside it."""
    lengths = np.random.default_rng(1).permutation(DISTRIBUTIONS[name]())[: 256 * 40]
    lengths = lengths[: len(lengths) // 256 * 256].reshape(-1, 256)
    steps = int(lengths.max())
    rows = sum(len(sequence.packing.first_fit_decreasing(each.tolist(), steps)) for each in lengths)
    assert rows * steps <= 1.03 * lengths.sum()
    padded = sum(int(batch.max()) * 32 for batch in lengths.reshape(-1, 32))
    assert padded > 1.5 * lengths.sum()


def test_first_fit_decreasing_is_what_it_says():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths, steps = rng.integers(0, 12, rng.integers(1, 40)).tolist(), int(rng.integers(11, 30))
        rows = []  # the plain search, row by row
        for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
            fits = (row for row in rows if sum(lengths[k] for k in row) + lengths[i] <= steps)
            row = next(fits, None)
            if row is None:
                rows.append(row := [])
            row.append(i)
        assert sequence.packing.first_fit_decreasing(lengths, steps) == rows


def test_buckets_hold_everything_once_and_little_padding():
    lengths = np.random.default_rng(0).lognormal(3, 0.7, 1000).astype(int)
    for rng in (None, np.random.default_rng(1)):
        batches = list(sequence.buckets(lengths, 32, rng=rng, spread=10))
        assert sorted(itertools.chain(*map(list, batches))) == list(range(1000))
        padded = sum(lengths[b].max() * len(b) for b in batches)
        assert padded < (1.1 if rng is None else 1.5) * lengths.sum()
    again = list(sequence.buckets(lengths, 32, rng=np.random.default_rng(1), spread=10))
    assert all((a == b).all() for a, b in zip(again, batches, strict=True))


def test_packed_nets_feed_losses_of_whole_sequences():
    net, parts = rnn.stack(rnn.gru(4), rnn.layer(nn.Dense(6))), sequences()
    packed = sequence.pack(parts)
    params = net.init(jax.random.key(0), parts[0][0])
    _, ys = rnn.unroll(net, params, packed.xs, resets=packed.resets)
    xs, lengths = sequence.pad(parts)
    _, want = rnn.unroll(net, params, xs, lengths=lengths)
    got = packed.unpacked(ys, 12)
    assert_close(got, want, 1e-5)
    labels = jnp.broadcast_to(jnp.array([[2, 1]]), (len(parts), 2))
    tags = jnp.ones(got.shape[:2], jnp.int32)
    transitions = rnn.losses.crf(6).init(jax.random.key(1), None)
    for loss in (
        lambda scores, lengths: rnn.losses.ctc_loss(scores, labels, lengths=lengths),
        lambda scores, lengths: rnn.losses.crf_loss(transitions, scores, tags, lengths=lengths),
    ):
        assert_close(loss(got, packed.lengths), loss(want, lengths), 1e-4)


def test_bad_input():
    parts = sequences()
    with pytest.raises(ValueError, match=r"pack: sequences\[7\] has 12 steps, more than steps=10"):
        sequence.pack(parts, steps=10)
    with pytest.raises(ValueError, match="pack: 4 rows of 12 steps are needed, got rows=3"):
        sequence.pack(parts, rows=3)
    with pytest.raises(ValueError, match="pack: needs at least one sequence"):
        sequence.pack([])
    with pytest.raises(ValueError, match=r"sequences\[1\] should be float32\[n, 3\]"):
        sequence.pack([np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)])
    with pytest.raises(ValueError, match=r"sequences\[0\]\['b'\] has 3 steps"):
        sequence.pack([{"a": np.zeros(2), "b": np.zeros(3)}])
    with pytest.raises(ValueError, match="should have the structure"):
        sequence.pack([{"a": np.zeros(2)}, {"b": np.zeros(2)}])
    with pytest.raises(ValueError, match=r"pack: sequences\[0\]\[0\] is a scalar"):
        sequence.pack([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"Packed.last: ys should be \[T, R, ...\] with T, R = \(12, 4\)"):
        sequence.pack(iter(parts)).last(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="pad: sequences"):
        sequence.pad(parts, steps=3)
    with pytest.raises(ValueError, match="buckets: lengths must be integers"):
        list(sequence.buckets([1.5], 2))
    with pytest.raises(TypeError, match="states_at_ends: packed must be"):
        sequence.states_at_ends(rnn.gru(2), {}, parts)
