"""What the tests of training share: a problem that compiles in no time, and one with a recurrent net."""

import hashlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as rnn

CELL = rnn.stack(rnn.dropout(rnn.elman(5), 0.2), rnn.lift(lambda y: jnp.sum(y, axis=-1)))
SERIES = np.sin(np.arange(400) / 7).astype("f4")[:, None]


def recurrent_loss(params, batch, key, carry):
    (xs, ys), begins = batch
    carry, out = rnn.unroll(CELL, params, xs, carry, resets=jnp.asarray(begins), key=key, scan=jax.lax.scan)
    return jnp.mean((out - ys[..., 0]) ** 2), carry, {"largest": jnp.max(jnp.abs(out))}


def recurrent(**changed):
    """Arguments for `fit`: a net with dropout and a carried state, so that keys and carries matter."""
    params = CELL.init(jax.random.key(0), jnp.zeros(1))
    return {
        **tiny(),
        "loss_fn": recurrent_loss,
        "params": params,
        "batches": rnn.training.Streams((SERIES[:-1], SERIES[1:]), batch=4, window=10),
        "carry": CELL.initial_state(params, (4,)),
    } | changed


def tiny_loss(params, batch, key, carry):
    """Noise from the key and a carried mean, so that a wrong key or carry changes the bits."""
    wrong = params["w"] - batch + jax.random.normal(key, (2,)) * 0.1
    carry = 0.9 * carry + 0.1 * params["w"]
    return jnp.sum(wrong**2) + 0.01 * jnp.sum(carry**2), carry, {"largest": jnp.max(jnp.abs(carry))}


def tiny(**changed):
    """Arguments for `fit`: two weights, momentum and a carry."""
    return {
        "loss_fn": tiny_loss,
        "params": {"w": jnp.zeros(2)},
        "batches": tiny_batches,
        "steps": 30,
        "optimizer": optax.sgd(0.05, momentum=0.9),
        "key": jax.random.key(1),
        "carry": jnp.zeros(2),
        "progress": False,
        "log_every": 7,
        "save_every": 10,
    } | changed


def tiny_batches(step):
    return np.array([1.0, step % 5], "f4")


def bits(tree):
    """The leaves as bytes, keys as their data: NaN equals itself, and 0.0 is not -0.0."""
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return jax.tree.map(lambda leaf: np.asarray(plain(leaf)).tobytes(), tree)


def contents(folder):
    """Every file below a folder with its digest, and every folder; the lock's file apart, which says who writes."""
    read = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return {str(p.relative_to(folder)): read(p) for p in sorted(folder.rglob("*")) if p.name != "run.lock"}


def interrupting(batches, at, signum):
    """`batches`, but the signal comes while the batch of a step is fetched."""

    def read(step):
        if step == at:
            signal.raise_signal(signum)
        return batches(step)

    return read
