"""Cells against other people's packages with the same weights, where these are installed; most need PyTorch.

They are no dependencies:
pip install torch==2.13.0 mingru-pytorch lru-pytorch s5-pytorch mambapy xlstm sru recurrentgemma
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from tests.cells.by_hand import F64, parts, problem

pytestmark = pytest.mark.filterwarnings("default")  # theirs are their own
SIZE, STEPS, BATCH = 4, 9, 2


def given(cell):
    """Parameters, inputs and outputs in numpy, for cells whose input is as wide as they are."""
    _, params, xs, ys, _ = problem(cell, STEPS, features=SIZE)
    return params, xs, ys


def tensor(array):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch.from_numpy(np.array(array))


def package(name):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return pytest.importorskip(name, reason=f"{name} is not installed")


def agree(got, expected, tolerance):
    got = np.asarray(got.detach() if hasattr(got, "detach") else got, np.float64)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"relative error {error:.1e}")
    assert got.shape == expected.shape and error < tolerance


@pytest.mark.parametrize("name", ["minGRU", "minLSTM"])
def test_min_gru_and_min_lstm_equal_mingru_pytorch(name, x64):
    """Theirs is in log space, parallel over time, has no biases, and its blocks in another order: n, then the gates."""
    package("minGRU_pytorch")
    theirs = getattr(importlib.import_module(f"minGRU_pytorch.{name}"), name)(SIZE).double()
    cell = {"minGRU": cells.min_gru, "minLSTM": cells.min_lstm}[name](SIZE, positive=True, dtype=F64)
    params, xs, _ = given(cell)
    *gates, n = parts(params["U"], 2 if name == "minGRU" else 3)
    (weight,) = theirs.parameters()
    weight.data = tensor(np.concatenate([n, *gates], axis=-1).T)
    ys = rnn.unroll(cell, {**params, "b": 0 * params["b"]}, jnp.asarray(xs))[1]
    agree(theirs(tensor(xs).transpose(0, 1)).transpose(0, 1), np.asarray(ys), 1e-10)


def test_lru_equals_lru_pytorch(x64):
    theirs = package("LRU_pytorch").LRU(SIZE, SIZE, 3)
    params, xs, ys = given(cells.lru(SIZE, states=3, dtype=F64))
    as_complex = lambda matrix, axis: np.split(matrix, 2, axis)[0] + 1j * np.split(matrix, 2, axis)[1]
    theirs.nu_log.data, theirs.theta_log.data = tensor(params["nu"]), tensor(params["theta"])
    theirs.gamma_log.data, theirs.D.data = tensor(params["gamma"]), tensor(np.diag(params["d"]))
    theirs.B.data, theirs.C.data = tensor(as_complex(params["U"], 1).T), tensor(as_complex(params["C"], 0).T)
    agree(theirs(tensor(xs).transpose(0, 1)).transpose(0, 1), ys, 1e-6)  # its outputs are float32


def test_s5_equals_s5_pytorch(x64):
    package("s5")
    from s5.s5_model import apply_ssm, discretize_zoh

    params, xs, ys = given(cells.s5(SIZE, states=3, dtype=F64))
    as_complex = lambda matrix, axis: np.split(matrix, 2, axis)[0] + 1j * np.split(matrix, 2, axis)[1]
    rate = tensor(np.minimum(params["lambda"][0], -1e-4) + 1j * params["lambda"][1])
    B, C = tensor(as_complex(params["U"], 1).T), tensor(2 * as_complex(params["C"], 0).T)
    a, held = discretize_zoh(rate, B, tensor(np.exp(params["log_step"])))
    for b in range(BATCH):
        agree(apply_ssm(a, held, C, tensor(params["d"]), tensor(xs[:, b]))[0], ys[:, b], 1e-10)


def test_selective_ssm_equals_mambapy(x64):
    package("mambapy")
    from mambapy.mamba import MambaBlock, MambaConfig

    config = MambaConfig(d_model=SIZE, n_layers=1, dt_rank=2, d_state=3, expand_factor=1, pscan=False)
    theirs = MambaBlock(config).double()
    params, xs, ys = given(cells.selective_ssm(SIZE, states=3, rank=2, dtype=F64))
    theirs.x_proj.weight.data, theirs.dt_proj.weight.data = tensor(params["U"].T), tensor(params["V"].T)
    theirs.dt_proj.bias.data, theirs.A_log.data = tensor(params["b"]), tensor(params["a"])
    theirs.D.data = tensor(params["d"])
    agree(theirs.ssm(tensor(xs).transpose(0, 1), None).transpose(0, 1), ys, 1e-6)  # its A is float32


def test_mlstm_equals_xlstm(x64):
    package("xlstm")
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    heads, N = 2, SIZE // 2
    params, xs, ys = given(cells.mlstm(SIZE, heads=heads, dtype=F64))
    columns = xs @ params["U"] + params["b"]
    # [B, heads, T, N] and [B, heads, T, 1]
    q, k, v, o = (a.reshape(STEPS, BATCH, heads, N).transpose(1, 2, 0, 3) for a in parts(columns[..., : 4 * SIZE], 4))
    i, f = (a.transpose(1, 2, 0)[..., None] for a in parts(columns[..., 4 * SIZE :], 2))
    h = parallel_stabilized_simple(*map(tensor, (q, k, v, i, f)), eps=0.0).numpy() / (1 + np.exp(-o))
    agree(h.transpose(2, 0, 1, 3).reshape(ys.shape), ys, 1e-10)


def test_slstm_equals_xlstm(x64):
    package("xlstm")
    from xlstm.blocks.slstm.src.vanilla.slstm import slstm_forward_pointwise

    params, xs, ys = given(cells.slstm(SIZE, dtype=F64))
    states = tensor(np.zeros((4, BATCH, SIZE)))
    for x, y in zip(xs, ys, strict=True):
        mixed = states[0] @ tensor(params["W"][0])
        states, _ = slstm_forward_pointwise(tensor(x @ params["U"]), mixed, tensor(params["b"][None]), states, {})
        agree(states[0], y, 1e-10)


@pytest.mark.parametrize("features", [SIZE, SIZE - 1])
@pytest.mark.parametrize("peephole", [False, True])
def test_sru_equals_sru(peephole, features, x64):
    """Theirs keeps a unit's columns side by side; its fourth is the highway's projection, which has the root in it."""
    theirs = package("sru").SRUCell(features, SIZE, highway_bias=-1.0, rescale=True).double().eval()
    cell = cells.sru(SIZE, peephole=peephole, highway_bias=-1.0, dtype=F64)
    _, params, xs, ys, _ = problem(cell, STEPS, features=features)
    root = np.sqrt(1 + 2 * np.exp(-1.0))
    columns = [*parts(params["U"], 3), *([root * params["P"]] if "P" in params else [])]
    theirs.weight.data = tensor(np.stack(columns, axis=-1).reshape(features, -1))
    theirs.weight_c.data = tensor(params["v"] if peephole else np.zeros(2 * SIZE))
    theirs.bias.data, theirs.scale_x.data = tensor(params["b"]), tensor([root])
    agree(theirs(tensor(xs))[0], ys, 1e-6)  # float32 inside


def test_rg_lru_equals_recurrentgemma():
    """float32, and from a position after the first, where theirs leaves out the root."""
    layers = pytest.importorskip("recurrentgemma.jax.layers", reason="recurrentgemma is not installed")
    cell = cells.rg_lru(SIZE)
    params = cell.init(jax.random.key(0), jnp.zeros(SIZE))
    xs = jax.random.normal(jax.random.key(1), (STEPS, BATCH, SIZE))
    (W_a, W_x), (b_a, b_x) = parts(params["U"], 2), parts(params["b"] + 0.3, 2)
    params["b"] = params["b"] + 0.3
    theirs = {
        "a_param": params["l"],
        "a_gate": {"w": W_a[None], "b": b_a[None]},
        "input_gate": {"w": W_x[None], "b": b_x[None]},
    }
    positions = jnp.broadcast_to(jnp.arange(1, STEPS + 1), (BATCH, STEPS))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        module = layers.RGLRU(SIZE, 1, scan_type=layers.common.ScanType.LINEAR_NATIVE)
        expected, _ = module.apply({"params": theirs}, jnp.swapaxes(xs, 0, 1), positions)
    agree(rnn.unroll(cell, params, xs)[1], np.asarray(jnp.swapaxes(expected, 0, 1)), 1e-6)
