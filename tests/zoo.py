"""Every cell and every scan there is, by name: what the property tests run over."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

import jaxrnn as rnn
from jaxrnn.combinators import scheduled_sampling
from jaxrnn.scans import randomly_truncated

D = 3  # input features
H = 4  # hidden units
NORMAL = nn.initializers.lecun_normal()  # Flax orthogonalises in the parameter dtype, which bfloat16 cannot


def _masked_all(cell):
    """masked() as a cell of x alone: a step counts if its first feature is below 1."""
    inner = rnn.masked(cell)
    pair = lambda x: (x, x[..., 0] < 1)
    return inner._replace(
        init=lambda key, x: cell.init(key, x),
        step=lambda p, s, x, key=None: inner.step(p, s, pair(x), key=key),
    )


def _resettable_all(cell):
    """resettable() as a cell of x alone: a sequence starts anew where its second feature is above 1."""
    inner = rnn.resettable(cell)
    return inner._replace(
        init=lambda key, x: cell.init(key, x),
        step=lambda p, s, x, key=None: inner.step(p, s, (x, x[..., 1] > 1), key=key),
    )


def _itself(key, y):
    """An output that is the next input as it is."""
    del key
    return y


def pixels(x):
    """D features as D places in a row, of one feature each."""
    return x[..., None]


def running_mean():
    """A cell with an integer in its state, written by hand from the contract."""

    def step(params, state, x, *, key=None):
        del key
        count, mean = state
        count = count + 1
        mean = mean + (x * params - mean) / count[..., None].astype(x.dtype)
        return (count, mean), mean

    return rnn.Cell(
        init=lambda key, x: jnp.ones((), x.dtype),
        initial_state=lambda p, batch: (jnp.zeros(batch, jnp.int32), jnp.zeros((*batch, D), p.dtype)),
        step=step,
    )


def fed_back(dtype):
    """A graph with delays of one and two steps, a start of each kind, a layer, a function, and a cell that draws."""
    dense = lambda size: nn.Dense(size, dtype=dtype, param_dtype=dtype)
    return rnn.graph(
        {
            "n": (lambda n: n + 1, rnn.prev("n", start=jnp.int32(0))),
            "h": (rnn.stack(rnn.layer(dense(H)), rnn.lift(jnp.tanh)), ["x", rnn.prev("h", steps=2), rnn.prev("y")]),
            "r": (rnn.dropout(rnn.gru(2, dtype=dtype), 0.4), ["h", rnn.prev("x")]),
            "s": (lambda h, n: h / n[..., None].astype(h.dtype), [rnn.prev("h", start="learned"), "n"]),
            "y": (dense(2), ["r", "s"]),
        },
        output={"y": "y", "n": "n"},
    )


CELLS = {
    "elman": lambda t: rnn.elman(H, dtype=t),
    "elman_relu_learned": lambda t: rnn.elman(H, activation=jax.nn.relu, dtype=t, learn_initial_state=True),
    "jordan": lambda t: rnn.jordan(H, 2, dtype=t),
    "ind_rnn": lambda t: rnn.ind_rnn(H, dtype=t),
    "lstm": lambda t: rnn.lstm(H, dtype=t),
    "lstm_all": lambda t: rnn.lstm(H, peephole=True, projection=3, dtype=t, learn_initial_state=True),
    "gru": lambda t: rnn.gru(H, dtype=t),
    "gru_before": lambda t: rnn.gru(H, reset="before", dtype=t, learn_initial_state=True),
    "gru_no_bias": lambda t: rnn.gru(H, bias=False, dtype=t),
    "mgu": lambda t: rnn.mgu(H, dtype=t),
    "layer": lambda t: rnn.layer(nn.Dense(H, dtype=t, param_dtype=t)),
    "flax_lstm": lambda t: rnn.recurrent(nn.OptimizedLSTMCell(H, dtype=t, param_dtype=t, recurrent_kernel_init=NORMAL)),
    "flax_gru": lambda t: rnn.recurrent(nn.GRUCell(H, dtype=t, param_dtype=t, recurrent_kernel_init=NORMAL)),
    "nnx_gru": lambda t: rnn.recurrent(
        nnx.GRUCell(D, H, dtype=t, param_dtype=t, recurrent_kernel_init=NORMAL, rngs=nnx.Rngs(0))
    ),
    "lift": lambda t: rnn.lift(jnp.tanh),
    "stack": lambda t: rnn.stack(
        rnn.layer(nn.Dense(H, dtype=t, param_dtype=t)), rnn.lstm(H, dtype=t), rnn.lift(jnp.tanh), rnn.gru(2, dtype=t)
    ),
    "residual": lambda t: rnn.residual(rnn.gru(D, dtype=t)),
    "masked": lambda t: _masked_all(rnn.lstm(H, dtype=t)),
    "resettable": lambda t: _resettable_all(rnn.gru(H, dtype=t, learn_initial_state=True)),
    "dropout_step": lambda t: rnn.dropout(rnn.gru(H, dtype=t), 0.4),
    "dropout_sequence": lambda t: rnn.stack(
        rnn.dropout(rnn.lstm(H, dtype=t), 0.4, on="input", mask="sequence"),
        rnn.layer(nn.Dense(2, dtype=t, param_dtype=t)),
    ),
    "zoneout": lambda t: rnn.zoneout(rnn.lstm(H, dtype=t), 0.3),
    "scheduled_sampling": lambda t: scheduled_sampling(rnn.gru(D, dtype=t), 0.4, sample=_itself, like=jnp.zeros(D, t)),
    "running_mean": lambda t: running_mean(),
    "graph": fed_back,
    "min_gru": lambda t: rnn.cells.min_gru(H, dtype=t),
    "min_lstm": lambda t: rnn.cells.min_lstm(H, positive=True, dtype=t, learn_initial_state=True),
    "sru": lambda t: rnn.cells.sru(H, highway_bias=-1.0, dtype=t),
    "sru_peephole": lambda t: rnn.cells.sru(D, peephole=True, dtype=t),
    "lru": lambda t: rnn.cells.lru(D, states=2, dtype=t, learn_initial_state=True),
    "s5": lambda t: rnn.cells.s5(D, states=2, dtype=t),
    "rg_lru": lambda t: rnn.cells.rg_lru(D, dtype=t),
    "selective_ssm": lambda t: rnn.cells.selective_ssm(D, states=2, dtype=t),
    "slstm": lambda t: rnn.cells.slstm(H, heads=2, dtype=t),
    "mlstm": lambda t: rnn.cells.mlstm(H, heads=2, dtype=t, learn_initial_state=True),
    "elementwise_gru": lambda t: rnn.cells.elementwise_gru(H, dtype=t),
    "elementwise_lstm": lambda t: rnn.cells.elementwise_lstm(H, peephole=True, coupled=True, dtype=t),
    "conv_lstm": lambda t: rnn.stack(rnn.lift(pixels), rnn.cells.conv_lstm(2, (D,), peephole=True, dtype=t)),
    "conv_gru": lambda t: rnn.stack(rnn.lift(pixels), rnn.cells.conv_gru(2, (D,), window=2, dtype=t)),
    "layer_norm_lstm": lambda t: rnn.cells.layer_norm_lstm(H, dtype=t),
    "co_rnn": lambda t: rnn.cells.co_rnn(H, dtype=t),
    "clockwork": lambda t: rnn.cells.clockwork(H, periods=(1, 2), dtype=t, learn_initial_state=True),
}

# Of these some of the state is float32 also where the cell computes in 16 bits.
WIDE = {"lru", "s5", "rg_lru", "selective_ssm", "slstm", "mlstm"}

SCANS = {
    "lax.scan": lax.scan,
    "python_loop": rnn.python_loop(),
    "checkpointed": rnn.checkpointed(),
    "checkpointed(2)": rnn.checkpointed(2),
    "checkpointed(2, levels=2)": rnn.checkpointed(2, levels=2),
    "checkpointed(python_loop)": rnn.checkpointed(3, inner=rnn.python_loop()),
    "fissioned": rnn.scan,
    "fissioned(2, separate)": rnn.fissioned(2, separate=True),
    "checkpointed(fissioned)": rnn.checkpointed(2, inner=rnn.scan),
    "revolve(2, 1, kept=1)": rnn.revolve(2, 1, kept=1),
    "truncated(all)": rnn.truncated(99, inner=rnn.checkpointed(2)),
    "randomly_truncated(never)": randomly_truncated(jax.random.key(0), mean_length=math.inf, inner=rnn.scan),
    "parallel": rnn.parallel(),
    "parallel(2)": rnn.parallel(2, inner=lax.scan),
}


def rounded(tree, dtype):
    """Floating leaves in a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def sequence(seed, shape, dtype):
    return jax.random.normal(jax.random.key(seed), (*shape, D), jnp.float32).astype(dtype)
